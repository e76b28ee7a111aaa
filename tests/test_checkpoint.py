"""Folders that must open, and hostile or unsupported ones that must be refused with a message that says what and which number."""

import json
import os
import pathlib
import struct

import numpy as np
import pytest

from dllm_fast._core import CheckpointError, Model, Session

MODELS = pathlib.Path(__file__).parent / "golden" / "base" / "models"
DENSE = ["llada_tiny", "llada_tiny_2shard_f32", "llada_odd_gqa", "llada_tied", "dream_tiny"]
WTE = "model.transformer.wte.weight"
LAST = "model.transformer.blocks.2.ff_out.weight"


def read(name):
    """config, header and data of a model of one file."""
    raw = (MODELS / name / "model.safetensors").read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads((MODELS / name / "config.json").read_text()), json.loads(raw[8 : 8 + n]), raw[8 + n :]


def write_tensors(path, header, data, pad=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def model(tmp_path):
    """A folder that is fine until somebody spoils it: (folder, config, header, data)."""
    config, header, data = read("llada_tiny")
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tensors(tmp_path / "model.safetensors", header, data)
    Model.from_folder(str(tmp_path), device="cpu")
    return tmp_path, config, header, data


def refuse(folder, *parts, error=CheckpointError):
    with pytest.raises(error) as caught:
        Model.from_folder(str(folder), device="cpu")
    for part in parts:
        assert part in str(caught.value)


def logits(folder):
    model = Model.from_folder(str(folder), device="cpu:c", dtype="float32")
    session = Session(model, {"answer_len": 0}, [np.arange(5, 17, dtype=np.int32)])
    return session.logits()


# ---- what opens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
def test_a_model_opens_with_its_config(name):
    text = json.loads((MODELS / name / "config.json").read_text())
    model = Model.from_folder(str(MODELS / name), device="cpu")
    c = model.config
    dream = name.startswith("dream")
    assert c["family"] == ("dream" if dream else "llada") and c["shift_logits"] is dream
    assert c["layers"] == text["num_hidden_layers" if dream else "n_layers"]
    assert c["dim"] == text["hidden_size" if dream else "d_model"]
    assert c["heads"] == text["num_attention_heads" if dream else "n_heads"]
    assert c["kv_heads"] == text["num_key_value_heads" if dream else "n_kv_heads"]
    assert c["ffn_dim"] == text["intermediate_size" if dream else "mlp_hidden_size"]
    assert c["vocab"] == text["vocab_size" if dream else "embedding_size"]
    assert c["head_dim"] * c["heads"] == c["dim"]
    assert (c["mask_id"], c["eos_id"], c["pad_id"], c["eot_id"]) == (300, 290, 290, -1)
    assert c["tied_head"] is text.get("weight_tying", False)
    assert c["rope_f32"] is text.get("rope_full_precision", False)
    assert c["rope_theta"] == pytest.approx(text["rope_theta"]) and c["norm_eps"] == pytest.approx(text["rms_norm_eps"])
    assert c["dtype"] == ("float32" if name.endswith("f32") else "bfloat16")


@pytest.mark.parametrize("name", DENSE)
def test_bytes_are_those_of_the_files(name):
    data = 0
    for file in (MODELS / name).glob("*.safetensors"):
        data += file.stat().st_size - 8 - struct.unpack("<Q", file.read_bytes()[:8])[0]
    assert Model.from_folder(str(MODELS / name), device="cpu").nbytes == data


def split(name, folder):
    """The model with every other tensor in a second shard."""
    config, header, data = read(name)
    header.pop("__metadata__", None)
    places = {}
    for shard in (0, 1):
        file, part, body = f"model-0000{shard + 1}-of-00002.safetensors", {}, b""
        for tensor in sorted(header)[shard::2]:
            begin, end = header[tensor]["data_offsets"]
            part[tensor] = header[tensor] | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[begin:end]
            places[tensor] = file
        write_tensors(folder / file, part, body)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("name", ["llada_tiny", "llada_tied", "dream_tiny"])
def test_shards_give_what_one_file_gives(name, tmp_path):
    split(name, tmp_path)
    one = logits(MODELS / name)
    assert np.isfinite(one).all() and np.array_equal(one, logits(tmp_path))


def test_recorded_shards_give_what_their_twin_gives():
    assert np.array_equal(logits(MODELS / "llada_tiny"), logits(MODELS / "llada_tiny_2shard_f32"))


def test_cache_of_the_hub(model, tmp_path):
    folder, config, header, data = model
    snapshot = tmp_path / "hub" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).rename(tmp_path / "hub" / "blobs" / f"{number}f")
        (snapshot / name).symlink_to(f"../../blobs/{number}f")
    assert Model.from_folder(str(snapshot), device="cpu").nbytes == len(data)


def test_unused_tensors_may_have_any_dtype(model):
    folder, config, header, data = model
    extra = {"dtype": "I64", "shape": [2], "data_offsets": [len(data), len(data) + 16]}
    write_tensors(folder / "model.safetensors", header | {"position_ids": extra}, data + bytes(16))
    assert Model.from_folder(str(folder), device="cpu").nbytes == len(data)


# ---- files that are not there ------------------------------------------------------------------------------------------------


def test_missing_files_are_named(model):
    folder = model[0]
    refuse(folder / "nowhere", "nowhere", error=FileNotFoundError)
    (folder / "model.safetensors").unlink()
    refuse(folder, "model.safetensors nor model.safetensors.index.json", error=FileNotFoundError)
    (folder / "config.json").unlink()
    refuse(folder, "config.json", error=FileNotFoundError)


# ---- hostile safetensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "0 bytes are too few"),
        (b"1234567", "7 bytes are too few"),
        (struct.pack("<Q", 100) + b"{}", "a header of 100 bytes in a file of 10 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 100_000_001) + b"{}", "a header of 100000001 bytes; at most 100000000"),
        (struct.pack("<Q", 2) + b"[]", "does not start with '{'"),
        (struct.pack("<Q", 6) + b'{"\xff":1', "not UTF-8"),
        (struct.pack("<Q", 3) + b"{}x", "at byte 2: text after the end"),
        (struct.pack("<Q", 2) + b"{}xyz", "3 bytes at the end belong to no tensor"),
        (struct.pack("<Q", 2) + b"{}", f"tensor {WTE} is missing"),
        (struct.pack("<Q", 500) + b"{" + b'"a":{' * 100 + bytes(99), "nested too deeply"),
    ],
)
def test_hostile_bytes(model, raw, part):
    (model[0] / "model.safetensors").write_bytes(raw)
    refuse(model[0], part, "model.safetensors" if "missing" not in part else "missing")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"dtype": "F33"}, "has unknown dtype F33"),
        ({"dtype": 7}, "dtype is not a string"),
        ({"dtype": "I16"}, "has dtype I16; float32, bfloat16 or float16 expected"),
        ({"dtype": "F64"}, "its dtype and shape ask for 163840"),
        ({"shape": [-320, 64]}, "shape must hold non-negative integers"),
        ({"shape": [320.0, 64]}, "shape must hold non-negative integers"),
        ({"shape": [2**62, 2**62]}, "shape overflows"),
        ({"shape": "320"}, "shape is not an array"),
        ({"shape": [64, 320]}, "is [64, 320]; [320, 64] expected"),
        ({"shape": [320, 8, 8]}, "has 3 dimensions"),
        ({"data_offsets": [40960, 0]}, "data_offsets [40960, 0] do not lie in"),
        ({"data_offsets": [0, 2**40]}, "data_offsets [0, 1099511627776] do not lie in"),
        ({"data_offsets": [0]}, "data_offsets must be two"),
        ({"data_offsets": [0, 2**64]}, "data_offsets must be two"),
        ({"data_offsets": [0, 40960]}, "overlap"),
    ],
)
def test_hostile_tensor(model, change, part):
    folder, config, header, data = model
    write_tensors(folder / "model.safetensors", header | {WTE: header[WTE] | change}, data)
    refuse(folder, part)


def test_hostile_layout(model):
    folder, config, header, data = model
    file = folder / "model.safetensors"
    write_tensors(file, {k: v for k, v in header.items() if k != LAST}, data)
    refuse(folder, "belong to no tensor")
    text = json.dumps(header)[:-1] + f', "{WTE}": {json.dumps(header[WTE])}}}'
    write_tensors(file, text.encode(), data)
    refuse(folder, "overlap")
    write_tensors(file, text.replace("wte", "\\u0077te", 1).encode(), data)
    refuse(folder, "overlap")
    write_tensors(file, header, data[:-6])
    refuse(folder, "do not lie in")
    write_tensors(file, json.dumps(header).encode() + b" " * (1 - len(json.dumps(header)) % 2), data, pad=1)
    refuse(folder, "is not aligned to the 2 bytes of bfloat16")
    write_tensors(file, header | {"__metadata__": {"format": 7}}, data)
    refuse(folder, "__metadata__")
    renamed = {("x" if k == LAST else k): v for k, v in header.items()}
    write_tensors(file, renamed, data)
    refuse(folder, f"tensor {LAST} is missing")


def test_a_pipe_does_not_block(model):
    file = model[0] / "model.safetensors"
    file.unlink()
    os.mkfifo(file)
    refuse(model[0], "not a file", error=FileNotFoundError)


# ---- hostile indexes and links -----------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """A copy of a model of two shards, and its index."""
    source = MODELS / "llada_tiny_2shard_f32"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path, json.loads((source / "model.safetensors.index.json").read_text())


def spoil(shards, **places):
    folder, index = shards
    index["weight_map"] |= places
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.safetensors", "..", "", "a/b.safetensors"])
def test_shards_stay_in_the_folder(shards, name):
    spoil(shards, **{WTE: name})
    refuse(shards[0], f'shard name "{name}" is not the name of a file')


def test_hostile_index(shards):
    folder, index = shards
    file = folder / "model.safetensors.index.json"
    first, second = sorted(set(index["weight_map"].values()))
    home = index["weight_map"][WTE]
    spoil(shards, **{WTE: second if home == first else first})
    refuse(folder, f"tensor {WTE} is not in")
    spoil(shards, **{WTE: home, "nothing": first})
    refuse(folder, f"tensor nothing is not in {first}")
    del index["weight_map"]["nothing"]
    spoil(shards, **{WTE: "model-00003-of-00002.safetensors"})
    refuse(folder, "model-00003-of-00002.safetensors", error=FileNotFoundError)
    spoil(shards, **{WTE: None})
    refuse(folder, f"weight_map does not say the file of tensor {WTE}")
    file.write_text(f'{{"weight_map": {{"{WTE}": "{first}", "{WTE}": "{first}"}}}}')
    refuse(folder, f"tensor {WTE} is there twice")
    for text, part in (("[]", "no weight_map"), ('{"weight_map": 1}', "no weight_map"), ("{", "not valid JSON at byte 1")):
        file.write_text(text)
        refuse(folder, "model.safetensors.index.json", part)


def test_a_tensor_in_two_shards(shards):
    folder, index = shards
    home = index["weight_map"][WTE]
    other = next(f for f in sorted(set(index["weight_map"].values())) if f != home)
    raw = (folder / other).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    header[WTE] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    write_tensors(folder / other, header, data + bytes(4))
    refuse(folder, f"tensor {WTE} is there twice, in {home} and in {other}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder(model, tmp_path, name):
    inside = tmp_path / "sub"
    inside.mkdir()
    for file in ("model.safetensors", "config.json"):
        (model[0] / file).rename(inside / file)
    (inside / name).rename(tmp_path / name)
    (inside / name).symlink_to(tmp_path / name)
    refuse(inside, f"sub/{name} is a link out of the folder", str(tmp_path / name))


# ---- configs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llada_moe_tiny", ("mixture of experts is not supported", "LLaDAMoEModelLM", "num_experts = 8")),
        ("llada2_tiny", ("mixture of experts is not supported", "LLaDA2MoeModelLM", "num_experts = 12")),
    ],
)
def test_experts_are_refused_by_name(name, parts):
    refuse(MODELS / name, *parts)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"block_type": "sequential"}, 'block_type = "sequential" is not supported; "llama" is'),
        ({"layer_norm_type": "default"}, 'layer_norm_type = "default"'),
        ({"activation_type": "gelu"}, 'activation_type = "gelu"'),
        ({"rope": False}, "rope = false"),
        ({"rope": None}, "rope is absent, which means false"),
        ({"alibi": True}, "alibi = true"),
        ({"block_group_size": 2}, "block_group_size = 2"),
        ({"attention_layer_norm": True}, "attention_layer_norm = true"),
        ({"include_bias": True}, "include_bias = true"),
        ({"scale_logits": True}, "scale_logits = true"),
        ({"input_emb_norm": True}, "input_emb_norm = true"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling = {"type": "linear", "factor": 2.0} is not supported'),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"architectures": ["LlamaForCausalLM"]}, 'architectures = ["LlamaForCausalLM"]'),
        ({"model_type": "gpt2"}, 'model_type = "gpt2"'),
        ({"d_model": 62}, "62 columns cannot be divided among 4 heads"),
        ({"d_model": 64.5}, "d_model = 64.5"),
        ({"n_layers": 1_000_000}, "n_layers = 1000000; an integer from 1 to 1000"),
        ({"n_layers": 4}, "tensor model.transformer.blocks.3.attn_norm.weight is missing"),
        ({"n_kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"n_kv_heads": 2}, "k_proj.weight is [64, 64]; [32, 64] expected"),
        ({"embedding_size": 300}, "embedding_size = 300 is less than vocab_size = 320"),
        ({"rope_theta": float("inf")}, "not valid JSON at byte"),
        ({"rope_theta": -1}, "rope_theta = -1"),
        ({"mask_token_id": 320}, "mask_token_id = 320; a token of the 320"),
        ({"torch_dtype": "float64"}, 'torch_dtype = "float64"'),
    ],
)
def test_configs_that_do_not_run(model, change, part):
    folder, config, header, data = model
    (folder / "config.json").write_text(json.dumps(config | change))
    refuse(folder, part)


TWICE = '{"model_type": "llada", "model_type": "llada"}'


@pytest.mark.parametrize("text", ["", "{", "[]", TWICE, "\ufeff{}", "nul", "[" * 100_000])
def test_configs_that_are_none(model, text):
    (model[0] / "config.json").write_text(text, encoding="utf-8")
    refuse(model[0], "config.json: ")


def test_dream_biases_are_all_or_none(tmp_path):
    config, header, data = read("dream_tiny")
    bias = "model.layers.1.self_attn.k_proj.bias"
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tensors(tmp_path / "model.safetensors", {("x" if k == bias else k): v for k, v in header.items()}, data)
    refuse(tmp_path, "model.layers.1 has biases for 2 of query, key and value")


def test_messages_may_cut_a_letter_in_half(model):
    text = json.dumps({"model_type": "a" + "\u4e2d" * 100}, ensure_ascii=False)
    (model[0] / "config.json").write_text(text, encoding="utf-8")
    refuse(model[0], 'model_type = "a\u4e2d\u4e2d', "is not supported")
