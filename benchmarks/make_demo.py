"""Writes the demo model that `dllm-fast generate` uses when no MODEL is given: LLaDA's layout, random bfloat16 weights.

    python benchmarks/make_demo.py [FOLDER]

The weights are a function of SEED alone, so running it again changes nothing.
"""

import json
import pathlib
import struct
import sys
from collections.abc import Mapping

import numpy as np

SEED, DIM, HEADS, LAYERS, FFN = 7, 64, 4, 2, 128
CHARS = "\n" + "".join(map(chr, range(32, 127)))
SPECIAL = {"<eos>": len(CHARS), "<mask>": len(CHARS) + 1}
VOCAB = len(CHARS) + len(SPECIAL)
FOLDER = pathlib.Path(__file__).parent.parent / "dllm_fast" / "data" / "demo"


def config() -> dict:
    """config.json as LLaDA's own."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "torch_dtype": "bfloat16",
        "d_model": DIM,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "mlp_hidden_size": FFN,
        "vocab_size": VOCAB,
        "embedding_size": VOCAB,
        "max_sequence_length": 512,
        "mask_token_id": SPECIAL["<mask>"],
        "eos_token_id": SPECIAL["<eos>"],
        "pad_token_id": SPECIAL["<eos>"],
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "weight_tying": False,
    }


def weights() -> dict[str, np.ndarray]:
    """Random float32 values under LLaDA's names; the mask is never written."""
    rng = np.random.default_rng(SEED)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    t = {"model.transformer.wte.weight": matrix(VOCAB, DIM) * 4, "model.transformer.ff_out.weight": matrix(VOCAB, DIM) * 3}
    t["model.transformer.ff_out.weight"][list(SPECIAL.values())] = 0
    t["model.transformer.ln_f.weight"] = np.ones(DIM, np.float32)
    for i in range(LAYERS):
        layer = {"attn_norm": np.ones(DIM, np.float32), "ff_norm": np.ones(DIM, np.float32)}
        layer |= {name: matrix(DIM, DIM) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        layer |= {"ff_proj": matrix(FFN, DIM), "up_proj": matrix(FFN, DIM), "ff_out": matrix(DIM, FFN)}
        t |= {f"model.transformer.blocks.{i}.{name}.weight": w for name, w in layer.items()}
    return t


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16s, as their bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """The tensors as bfloat16: a length, a JSON header padded to 8 bytes, the data."""
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + 2 * t.size]}
        at += 2 * t.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(bfloat16(t).tobytes() for t in tensors.values()))


def main(folder: pathlib.Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n", encoding="utf-8")
    (folder / "chars.json").write_text(json.dumps({"chars": CHARS, "special": SPECIAL}, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", weights())


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:2]))
