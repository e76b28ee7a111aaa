"""Writes a checkpoint folder with the layer shapes of LLaDA-8B or Dream-7B, any number of layers, and random bfloat16 weights.

    python benchmarks/make_model.py FOLDER [--family llada|dream] [--layers 4] [--seed 0]

Everything a speed measurement depends on is real: shapes, vocabulary, dtype, names, file format. The text it writes is noise.
"""

import argparse
import json
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

ONE, CHUNK = 0x3F80, 1 << 25  # bfloat16 1.0; elements written at a time
Shapes = Iterator[tuple[str, tuple[int, ...]]]

LLADA_8B: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32,
    "mlp_hidden_size": 12288, "mlp_ratio": 4, "vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 4096,
    "mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081, "rope": True, "rope_theta": 500000.0,
    "rope_full_precision": True, "alibi": False, "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "layer_norm_with_affine": True,
    "bias_for_layer_norm": False, "attention_layer_norm": False, "input_emb_norm": False, "activation_type": "silu",
    "block_type": "llama", "block_group_size": 1, "include_bias": False, "include_qkv_bias": False, "weight_tying": False,
    "scale_logits": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DREAM_7B: dict[str, Any] = {
    "architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 131072,
    "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "mask_token_id": 151666, "pad_token_id": 151643, "bos_token_id": 151643, "eos_token_id": 151643, "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def llada_shapes(c: dict[str, Any]) -> Shapes:
    d, ffn, root = c["d_model"], c["mlp_hidden_size"], "model.transformer."
    kv = d // c["n_heads"] * c["n_kv_heads"]
    yield root + "wte.weight", (c["embedding_size"], d)
    for i in range(c["n_layers"]):
        layer = {"attn_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d), "ff_norm": (d,),
                 "ff_proj": (ffn, d), "up_proj": (ffn, d), "ff_out": (d, ffn)}  # fmt: skip
        yield from ((f"{root}blocks.{i}.{name}.weight", shape) for name, shape in layer.items())
    yield root + "ln_f.weight", (d,)
    yield root + "ff_out.weight", (c["embedding_size"], d)


def dream_shapes(c: dict[str, Any]) -> Shapes:
    d, ffn = c["hidden_size"], c["intermediate_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        layer = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,), "self_attn.o_proj.weight": (d, d),
                 "mlp.gate_proj.weight": (ffn, d), "mlp.up_proj.weight": (ffn, d), "mlp.down_proj.weight": (d, ffn)}  # fmt: skip
        for name, n in (("q", d), ("k", kv), ("v", kv)):
            layer |= {f"self_attn.{name}_proj.weight": (n, d), f"self_attn.{name}_proj.bias": (n,)}
        yield from ((f"model.layers.{i}.{name}", shape) for name, shape in layer.items())
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (c["vocab_size"], d)


def shapes_of(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Official names of all tensors."""
    return dict(llada_shapes(config) if family == "llada" else dream_shapes(config))


def is_norm(name: str) -> bool:
    """Of those of the official names whose numbers lie around 1."""
    return "norm" in name or "ln_f" in name


def values(rng: np.random.Generator, n: int, norm: bool) -> Iterator[np.ndarray]:
    """bfloat16 bits: ones for a norm, else random signs and mantissas with magnitudes in 2**-9 .. 2**-5 (rms 0.014)."""
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        if norm:
            yield np.full(size, ONE, np.uint16)
        else:
            bits = rng.integers(0, 1 << 64, -(-size // 4), np.uint64).view(np.uint16)[:size]
            yield (bits & np.uint16(0x81FF)) + np.uint16(118 << 7)


def make(folder: str | pathlib.Path, family: str = "llada", layers: int = 4, seed: int = 0) -> pathlib.Path:
    """Writes the folder unless it is there; config.json comes last, so a folder that has one is whole."""
    folder = pathlib.Path(folder)
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(LLADA_8B, n_layers=layers) if family == "llada" else dict(DREAM_7B, num_hidden_layers=layers)
    shapes = shapes_of(family, config)
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    text += b" " * ((56 - len(text)) % 64)  # data starts at a multiple of 64
    rng = np.random.Generator(np.random.SFC64(seed))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            for chunk in values(rng, math.prod(shape), is_norm(name)):
                file.write(chunk)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder")
    p.add_argument("--family", choices=("llada", "dream"), default="llada")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    folder = make(args.folder, args.family, args.layers, args.seed)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
