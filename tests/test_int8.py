"""int8 weights: the numbers of their definition, the file that keeps them, and what they cost a trained model."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from conftest import MODELS, text_ids
from test_checkpoint import read, write_tensors
from test_methods import CACHES
from test_shipped import answers, tasks  # noqa: F401 (a fixture)

import dllm_fast
from dllm_fast import _core
from dllm_fast.model import DEMO, INT8_CACHE

FOLDERS = ["llada_tiny", "llada_odd_gqa", "llada_tied", "llada_tiny_2shard_f32", "dream_tiny"]
MAGIC = b"dllm_fast int8 weights\n"


def load(folder=MODELS / "llada_tiny", **options):
    return dllm_fast.load(folder, weights="int8", **({"dtype": "float32", "device": "cpu"} | options))


def logits(model, ids=None):
    return np.asarray(model.forward(np.arange(5, 29)[None] if ids is None else ids))


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def rounded(rows):
    """Each row as whole multiples of its largest size / 127."""
    size = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32)
    inverse = (np.float32(127) / size).astype(np.float32)
    return np.rint(rows * inverse).astype(np.int64), (size / np.float32(127))[:, 0]


def test_a_product_is_what_its_definition_says(tmp_path):
    """The head alone: final states are known, so logits follow from the matrix in the file."""
    config, header, data = read("llada_tiny")
    info = header["model.transformer.ff_out.weight"]
    begin, end = info["data_offsets"]
    head = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(info["shape"])
    model = load()
    session = _core.Session(model.core, {"answer_len": 0}, [np.arange(5, 29, dtype=np.int32)])
    states = session.hidden()[-1]
    (x, x_scale), (w, w_scale) = rounded(states), rounded(head)
    expected = (x @ w.T).astype(np.float32) * w_scale * x_scale[:, None]
    assert np.array_equal(session.logits(), expected)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_level_gives_the_same_logits(name):
    """Products are the same to the last bit; what is left is the rest of the network, which may flip a step here and there."""
    exact = logits(dllm_fast.load(MODELS / name, dtype="float32", device="cpu"))
    found = [logits(load(MODELS / name, device=f"cpu:{level}")) for level in _core.cpu_levels()]
    for other in found:
        assert np.abs(other - found[0]).max() < 0.02 * np.abs(exact).max()
        assert 0 < np.abs(other - exact).max() < 0.3 * np.abs(exact).max()  # random weights: errors grow; trained ones see below


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_threads_and_company_change_nothing(dtype, rng):
    one, two = load(dtype=dtype, threads=1), load(dtype=dtype, threads=2)
    ids = [text_ids(rng, n) for n in (3, 40, 17)]
    together = one.forward(ids)
    for row, other, alone in zip(together, two.forward(ids), ids, strict=True):
        assert np.array_equal(row, other)
        assert np.array_equal(row, np.asarray(one.forward(alone[None]))[0])


@pytest.mark.parametrize("cache", [None, *CACHES], ids=str)
@pytest.mark.parametrize("name", ["llada_tiny", "dream_tiny"])
def test_methods_and_batches(name, cache, rng):
    model, prompts = load(MODELS / name), [text_ids(rng, n) for n in (4, 11, 7)]

    def run(rows):
        if name.startswith("dream"):
            return model.diffusion_generate(rows, max_new_tokens=16, steps=16, alg="entropy", cache=cache)
        return model.generate(rows, gen_length=16, block_length=8, steps=16, cache=cache)

    for together, prompt in zip(run(prompts), prompts, strict=True):
        assert list(together) == list(run([prompt])[0])
        assert len(together) == len(prompt) + 16 and list(together)[len(prompt) :].count(300) < 8


def test_what_it_says_of_itself(capsys):
    model, exact = load(dtype="bfloat16"), dllm_fast.load(MODELS / "llada_tiny", device="cpu")
    assert model.weights == "int8" and exact.weights == "bfloat16" and model.dtype == "bfloat16"
    assert "int8 weights" in repr(model) and "int8 weights" in repr(model.core) and "int8" not in repr(exact)
    c = model.config
    kv, dim, ffn, up = c["kv_heads"] * c["head_dim"], c["dim"], c["ffn_dim"], lambda n, to: -(-n // to) * to
    shapes = [(dim, dim), (kv, dim), (kv, dim), (dim, dim), (ffn, dim), (ffn, dim), (dim, ffn)] * c["layers"] + [(c["vocab"], dim)]
    matrices = sum(up(n, 32) * (up(k, 64) + 4) for n, k in shapes)
    assert model.nbytes == matrices + exact.nbytes - sum(2 * n * k for n, k in shapes)
    out = model.generate([[5, 6, 7]], gen_length=4, block_length=4, steps=4, return_dict=True)
    assert out.stats["weight_bytes"] == model.nbytes
    from dllm_fast.cli import main

    assert main(["generate", "A123+456=", "--gen-length", "24", "--weights", "int8"]) == 0
    assert "0579" in capsys.readouterr().out
    assert main(["bench", "--weights", "int8", "--cache", "dyllm", "--gen-length", "32", "--repeats", "1"]) == 0
    assert "int8 weights" in capsys.readouterr().out


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_refusals():
    with pytest.raises(ValueError, match="'int4'.*'int8'"):
        dllm_fast.load(MODELS / "llada_tiny", weights="int4")
    with pytest.raises(ValueError, match="int8_cache.*'auto'"):
        dllm_fast.load(MODELS / "llada_tiny", int8_cache=True)
    with pytest.raises(ValueError, match="CPU.*cuda:1"):
        dllm_fast.load(MODELS / "llada_tiny", weights="int8", device="cuda:1")


def test_shared_weights_stay_as_they_are():
    with pytest.raises(ValueError, match="shares its own weights"):
        dllm_fast.accelerate(object(), weights="int8")


@pytest.mark.parametrize(("bits", "row"), [(0x7FC0, 3), (0x7F80, 0)])
def test_numbers_that_are_not_finite(bits, row, tmp_path):
    config, header, data = read("llada_tiny")
    info = header["model.transformer.blocks.1.up_proj.weight"]
    data = bytearray(data)
    at = info["data_offsets"][0] + 2 * (row * info["shape"][1] + 5)
    data[at : at + 2] = bits.to_bytes(2, "little")
    shutil.copy(MODELS / "llada_tiny" / "config.json", tmp_path)
    write_tensors(tmp_path / "model.safetensors", header, bytes(data))
    with pytest.raises(dllm_fast.CheckpointError, match=f"layer 1, up: row {row} .*not finite"):
        load(tmp_path, int8_cache=True)
    assert not (tmp_path / INT8_CACHE).exists()


# ---- the file ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder with its file of int8 weights."""
    made = tmp_path / "model"
    shutil.copytree(MODELS / "llada_tiny_2shard_f32", made)
    load(made, int8_cache=True)
    return made


def test_the_file_is_used_again(folder):
    cache, fresh = folder / INT8_CACHE, load(folder)
    before = cache.stat()
    assert np.array_equal(logits(load(folder, int8_cache=True)), logits(fresh))
    after = cache.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(INT8_CACHE)) == [INT8_CACHE]
    assert load(folder, int8_cache=cache).nbytes == fresh.nbytes


def test_a_file_of_one_s_own_choice(folder, tmp_path):
    load(folder, int8_cache=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").read_bytes() == (folder / INT8_CACHE).read_bytes()


def cut(cache):
    os.truncate(cache, cache.stat().st_size - 1000)


def cut_to_nothing(cache):
    os.truncate(cache, 0)


def cut_in_the_name(cache):
    os.truncate(cache, 7)


def lengthen(cache):
    with cache.open("ab") as file:
        file.write(bytes(64))


def of_another_layout(cache):
    cache.write_bytes(cache.read_bytes().replace(b"layout 1,", b"layout 0,"))


def of_another_model(cache):
    load(MODELS / "llada_tiny", int8_cache=cache)


@pytest.mark.parametrize("spoil", [cut, cut_to_nothing, cut_in_the_name, lengthen, of_another_layout, of_another_model])
def test_a_spoilt_or_foreign_file_is_made_again(folder, spoil):
    cache = folder / INT8_CACHE
    good, expected = cache.read_bytes(), logits(load(folder))
    spoil(cache)
    assert cache.read_bytes() != good
    assert np.array_equal(logits(load(folder, int8_cache=True)), expected)
    assert cache.read_bytes() == good


def test_a_stale_file_is_made_again(folder):
    cache, shard = folder / INT8_CACHE, folder / "model-00001-of-00002.safetensors"
    before = cache.read_bytes()
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    load(folder, int8_cache=True)
    after = cache.read_bytes()
    assert before != after and before[4096:] == after[4096:]
    load(folder, int8_cache=True)
    assert cache.read_bytes() == after


def test_a_stranger_s_file_is_left_alone(folder, tmp_path):
    victim = tmp_path / "thesis.txt"
    victim.write_text("dllm_fast int9 weights")
    with pytest.raises(OSError, match="thesis.txt is there and keeps no int8 weights"):
        load(folder, int8_cache=victim)
    assert victim.read_text() == "dllm_fast int9 weights"
    with pytest.raises(OSError, match="not a file"):
        load(folder, int8_cache=tmp_path)
    with pytest.raises(OSError, match="no/where: int8 weights cannot be kept here: No such file"):
        load(folder, int8_cache=tmp_path / "no" / "where")


def test_the_file_begins_with_what_it_is_of(folder):
    text = (folder / INT8_CACHE).read_bytes()
    assert text.startswith(MAGIC) and b"layers 3" in text[:4096] and b"model-00002-of-00002.safetensors" in text[:4096]


# ---- a trained model ---------------------------------------------------------------------------------------------------------

SAMPLES, MARGIN = 24, 0.05  # puzzles of each kind; share of them that int8 may get wrong beyond what bfloat16 does
TYPICAL, AGREE = 0.05, 0.97  # root mean square error of logits by that of the logits; share of equal best tokens


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_a_trained_model_keeps_its_answers(name, tasks):  # noqa: F811
    folder = pathlib.Path(DEMO).with_name(name)
    exact, int8 = dllm_fast.load(folder, device="cpu"), load(folder, dtype="auto")
    rng, right, errors, equal = np.random.default_rng(5), [], [], []
    for task in (tasks.TASKS["addition"], tasks.TASKS["reverse"]):
        prompts, expected = task.make(rng, SAMPLES, task.size)
        found = [answers(model, prompts, expected.shape[1], None) for model in (exact, int8)]
        right.append([(f == expected).all(axis=1).mean() for f in found])
        a, b = (logits(model, np.concatenate([prompts, expected], axis=1)) for model in (exact, int8))
        errors.append(np.sqrt(np.square(a - b).mean() / np.square(a).mean()))
        equal.append((a.argmax(-1) == b.argmax(-1)).mean())
    bf16, other = np.mean(right, axis=0)
    assert other >= bf16 - MARGIN, f"{name}: {other:.0%} right with int8, {bf16:.0%} with bfloat16"
    assert max(errors) < TYPICAL and min(equal) > AGREE, f"{name}: errors {errors}, equal {equal}"
