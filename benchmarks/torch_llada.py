"""LLaDA in plain torch, as the official code computes it: the rival that benchmarks/step.py measures against.

    model = TorchLLaDA(*read_folder("LLaDA-8B-Instruct")); ids = generate(model, prompt, steps=128, gen_length=128, block_length=32)

Uncached, greedy, no guidance. Linear layers are F.linear, attention is F.scaled_dot_product_attention, in the weights' dtype.
"""

import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LLADA_NAMES = {
    "embed": "model.transformer.wte", "norm": "model.transformer.ln_f", "head": "model.transformer.ff_out",
    "layer": "model.transformer.blocks.{}.", "attn_norm": "attn_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out",
    "ffn_norm": "ff_norm", "gate": "ff_proj", "up": "up_proj", "down": "ff_out",
}  # fmt: skip


def read_folder(folder: str | pathlib.Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json, and every tensor of *.safetensors in memory of its own, as from_pretrained leaves them."""
    folder, tensors = pathlib.Path(folder), {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(file, mode="r")
        (n,) = struct.unpack("<Q", raw[:8].tobytes())
        for name, t in json.loads(raw[8 : 8 + n].tobytes()).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                x = torch.from_numpy(np.array(raw[8 + n + a : 8 + n + b])).view(DTYPES[t["dtype"]]).reshape(t["shape"])
                tensors[name] = x.to(dtype or x.dtype)
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), tensors


def places(x: torch.Tensor) -> torch.Tensor:
    """0, 1, ... for the columns of x, where x lies."""
    return torch.arange(x.shape[1], device=x.device)


class TorchLLaDA:
    """A LLaDA checkpoint; the class below it in torch_dream.py is the same network with Dream's names and roundings."""

    names = LLADA_NAMES

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """What read_folder gives; the weights may lie on a GPU."""
        self.config, self.w = config, weights
        c = config
        self.dim, self.layers, self.heads, self.kv_heads = self.sizes(c)
        self.head_dim, self.eps, self.theta = self.dim // self.heads, c["rms_norm_eps"], c["rope_theta"]
        self.rope_in_float32 = c["model_type"] == "llada" and c.get("rope_full_precision", True)
        self.mask_id = c["mask_token_id"]
        tied = c.get("weight_tying", c.get("tie_word_embeddings", False))
        self.head = self.w[self.names["embed" if tied else "head"] + ".weight"]

    @staticmethod
    def sizes(c: dict[str, Any]) -> tuple[int, int, int, int]:
        return c["d_model"], c["n_layers"], c["n_heads"], c["n_kv_heads"] or c["n_heads"]

    def linear(self, x: torch.Tensor, layer: int, name: str) -> torch.Tensor:
        at = self.names["layer"].format(layer) + self.names[name]
        return F.linear(x, self.w[at + ".weight"], self.w.get(at + ".bias"))

    def rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.w[name + ".weight"]

    def rope_tables(self, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        inv = 1.0 / self.theta ** (torch.arange(0, self.head_dim, 2, device=self.head.device).float() / self.head_dim)
        angle = torch.outer(torch.arange(length, device=self.head.device).float(), inv).repeat(1, 2)
        dtype = torch.float32 if self.rope_in_float32 else dtype
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def rotate(self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [B, heads, L, head_dim]."""
        y = x.float() if self.rope_in_float32 else x
        a, b = y.chunk(2, -1)
        return (y * tables[0] + torch.cat((-b, a), -1) * tables[1]).to(x.dtype)

    def attention(self, x: torch.Tensor, layer: int, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (self.linear(x, layer, n).view(batch, length, -1, self.head_dim).transpose(1, 2) for n in "qkv")
        q, k = self.rotate(q, tables), self.rotate(k, tables)
        group = self.heads // self.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.linear(y.transpose(1, 2).reshape(batch, length, -1), layer, "o")

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Output of the final norm, [B, L, dim]."""
        x = F.embedding(ids, self.w[self.names["embed"] + ".weight"])
        tables = self.rope_tables(ids.shape[1], x.dtype)
        for i in range(self.layers):
            at = self.names["layer"].format(i)
            x = x + self.attention(self.rms_norm(x, at + self.names["attn_norm"]), i, tables)
            x = x + self.ffn(x, i)
        return self.rms_norm(x, self.names["norm"])

    def ffn(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        m = self.rms_norm(x, self.names["layer"].format(layer) + self.names["ffn_norm"])
        return self.linear(F.silu(self.linear(m, layer, "gate")) * self.linear(m, layer, "up"), layer, "down")

    def window(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(hidden rows, position of the first): all of them here, fewer where a caching method leaves the others out."""
        return self.hidden(ids), 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.head)


def predict_all(model: TorchLLaDA, x: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, confidence) [B, L] as the official loop has them: logits and softmax of every row there is, in the logits' dtype."""
    rows, first = model.window(x)
    logits = model.logits(rows)
    token = torch.argmax(logits, -1)
    p = F.softmax(logits, -1).gather(-1, token[..., None])[..., 0]
    around = (first, x.shape[1] - first - token.shape[1])
    x0, confidence = F.pad(token, around), F.pad(p, around, value=-torch.inf)
    return x0, torch.where((x == model.mask_id) & (places(x) < end), confidence, -torch.inf)


def predict_candidates(model: TorchLLaDA, x: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for someone who does not waste work: the head and a float32 softmax on the rows that may be revealed only."""
    at = (x == model.mask_id) & (places(x) < end)
    z = model.logits(model.hidden(x)[at]).float()
    best, token = z.max(-1)
    x0, confidence = x.clone(), torch.full(x.shape, -torch.inf, device=x.device)
    x0[at], confidence[at] = token, torch.exp(best - torch.logsumexp(z, -1))
    return x0, confidence


def surest(confidence: torch.Tensor, n: int) -> torch.Tensor:
    """torch.topk's indices, but of equals always the first."""
    return torch.sort(confidence, stable=True, descending=True).indices[..., :n]


def reveal(x: torch.Tensor, x0: torch.Tensor, confidence: torch.Tensor, quota: list[int]) -> torch.Tensor:
    """x with the quota of every row taken from x0, surest first."""
    out = x.clone()
    for b, n in enumerate(quota):
        at = surest(confidence[b], n)
        out[b, at] = x0[b, at]
    return out


def denoise(
    model: TorchLLaDA,
    prompt: torch.Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    predict: Any = predict_all,
) -> Iterator[torch.Tensor]:
    """LLaDA's loop, the ids after every step: blocks from left to right, an even share of a block's masks a step."""
    x = F.pad(prompt, (0, gen_length), value=model.mask_id)
    per_block = steps // (gen_length // block_length)
    for end in range(prompt.shape[1] + block_length, x.shape[1] + 1, block_length):
        masks = (x[:, end - block_length : end] == model.mask_id).sum(1).tolist()
        for i in range(per_block):
            x0, confidence = predict(model, x, end)
            x = reveal(x, x0, confidence, [m // per_block + (i < m % per_block) for m in masks])
            yield x


@torch.inference_mode()
def generate(model: TorchLLaDA, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    """The ids after the last step; options: those of denoise."""
    *_, last = denoise(model, prompt, **options)
    return last
