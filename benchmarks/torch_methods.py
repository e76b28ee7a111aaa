"""The three caching methods in plain torch, as somebody would write them into a fork of the official code: rivals for rivals.py.

    cached = METHODS["sparse-dllm"](TorchLLaDA(*read_folder(folder)), prompt_length=512, answer_length=128, block_length=32)
    ids = torch_llada.generate(cached, prompt, steps=128, gen_length=128, block_length=32)

Such an object stands in for the model of one generation of one sequence. As in the methods' own code the head runs on every row of
a pass. Keys are kept after their rotation, and ties go to the lowest position.
"""

from typing import Any

import torch
import torch.nn.functional as F
from runs import dllm_cache_kind, dyllm_kind, sparse_dllm_kind
from torch_llada import TorchLLaDA


class Cached:
    """What the methods share. window() is one pass: (hidden rows of the last norm [1, n, dim], position of the first)."""

    def __init__(
        self, model: TorchLLaDA, prompt_length: int, answer_length: int, block_length: int, block_steps: int | None = None
    ) -> None:
        """block_steps: passes a block; as many as it has tokens, if not given."""
        self.model, self.mask_id, self.logits = model, model.mask_id, model.logits
        self.prompt, self.answer, self.block = prompt_length, answer_length, block_length
        self.block_steps = block_steps or block_length
        self.length = prompt_length + answer_length
        self.dtype, self.device = model.head.dtype, model.head.device
        self.tables = model.rope_tables(self.length, self.dtype)
        self.passes = 0
        self.fresh_rows = 0  # rows through the feed-forward, of all layers and passes
        self.kept: list[dict[str, torch.Tensor]] = [{} for _ in range(model.layers)]

    def window(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        x, first = self.run(ids[0])
        self.passes += 1
        return self.model.rms_norm(x, self.model.names["norm"])[None], first

    def run(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The layers: (residual rows [n, dim], position of the first)."""
        raise NotImplementedError

    def rows(self, first: int, end: int) -> torch.Tensor:
        return torch.arange(first, end, device=self.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.model.w[self.model.names["embed"] + ".weight"])

    def norm(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        return self.model.rms_norm(x, self.model.names["layer"].format(layer) + self.model.names["attn_norm"])

    def heads(self, h: torch.Tensor, layer: int, name: str, at: Any = None) -> torch.Tensor:
        """A projection of the rows h as [heads, rows, head_dim]; turned to the positions `at`, if given."""
        y = self.model.linear(h, layer, name)
        y = y.view(len(h), y.shape[1] // self.model.head_dim, self.model.head_dim).transpose(0, 1)
        return y if at is None else self.model.rotate(y, (self.tables[0][at], self.tables[1][at]))

    def spread(self, kv: torch.Tensor) -> torch.Tensor:
        """Keys or values once for every query head."""
        group = self.model.heads // self.model.kv_heads
        return kv.repeat_interleave(group, 0) if group > 1 else kv

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Contexts [rows, heads * head_dim]."""
        return self.flat(F.scaled_dot_product_attention(q[None], self.spread(k)[None], self.spread(v)[None])[0])

    @staticmethod
    def flat(y: torch.Tensor) -> torch.Tensor:
        return y.transpose(0, 1).flatten(1)

    def output(self, context: torch.Tensor, layer: int) -> torch.Tensor:
        return self.model.linear(context, layer, "o")

    def ffn(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        self.fresh_rows += len(x)
        return self.model.ffn(x, layer)


def lowest(score: torch.Tensor, n: int) -> torch.Tensor:
    """Indices of the n lowest scores, ascending."""
    return torch.sort(score, stable=True).indices[:n].sort().values


class DLLMCache(Cached):
    """dLLM-Cache: keys, values, attention and feed-forward outputs of every row stay; what is refreshed depends on the pass."""

    def __init__(self, *shape: Any, prompt_interval: int = 50, answer_interval: int = 7, ratio: float = 0.25, **named: Any) -> None:
        super().__init__(*shape, **named)
        self.intervals, self.ratio = (prompt_interval, answer_interval), ratio

    def kind(self, step: int) -> str:
        return dllm_cache_kind(step, *self.intervals)

    def run(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        x = self.embed(ids)
        for i in range(self.model.layers):
            prompt, answer = (self.passes % n == 0 or i == 0 for n in self.intervals)
            x = self.layer(x, i, prompt, answer)
        return x, 0

    def layer(self, x: torch.Tensor, i: int, prompt: bool, answer: bool) -> torch.Tensor:
        kept, h = self.kept[i], self.norm(x, i)
        if not kept:
            kv = (self.model.kv_heads, self.length, self.model.head_dim)
            kept |= {name: torch.zeros(kv, dtype=self.dtype, device=self.device) for name in "kv"}
            kept |= {name: torch.zeros_like(x) for name in ("attention", "ffn")}
        rows = torch.cat((self.rows(0, self.prompt if prompt else 0), self.answer_rows(h, i, answer)))
        if prompt:
            kept["v"][:, : self.prompt] = self.heads(h[: self.prompt], i, "v")
        if len(rows):
            kept["k"][:, rows] = self.heads(h[rows], i, "k", rows)
            context = self.attend(self.heads(h[rows], i, "q", rows), kept["k"], kept["v"])
            kept["attention"][rows] = self.output(context, i)
        x = x + kept["attention"]
        if len(rows):
            kept["ffn"][rows] = self.ffn(x[rows], i)
        return x + kept["ffn"]

    def answer_rows(self, h: torch.Tensor, i: int, whole: bool) -> torch.Tensor:
        """Rows of the answer to recompute: all, or those whose values turned most. The values themselves are all replaced."""
        if not whole and self.ratio == 0:
            return self.rows(0, 0)
        kept, new = self.kept[i]["v"][:, self.prompt :], self.heads(h[self.prompt :], i, "v")
        turned = F.cosine_similarity(self.flat(new), self.flat(kept), -1)
        kept.copy_(new)
        return self.prompt + (self.rows(0, self.answer) if whole else lowest(turned, int(self.answer * self.ratio)))


class SparseDLLM(Cached):
    """Sparse-dLLM: two dense passes a block, then the block alone over the keys and values that the second one found important."""

    def __init__(self, *shape: Any, keep_ratio: float = 0.5, kernel: int = 3, **named: Any) -> None:
        super().__init__(*shape, **named)
        self.keep_ratio, self.kernel = keep_ratio, kernel

    def kind(self, step: int) -> str:
        return sparse_dllm_kind(step, self.block_steps)

    def run(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        block, step = divmod(self.passes, self.block_steps)
        low = self.prompt + block * self.block
        first, end = (0, self.length) if step < 2 else (low, low + self.block)
        rows = self.rows(first, end)
        x = self.embed(ids[rows])
        for i in range(self.model.layers):
            h = self.norm(x, i)
            q, k, v = self.heads(h, i, "q", rows), self.heads(h, i, "k", rows), self.heads(h, i, "v")
            if step == 1:
                self.kept[i] = self.select(q, k, v, low)
            if step >= 2:
                k, v = torch.cat((self.kept[i]["k"], k), 1), torch.cat((self.kept[i]["v"], v), 1)
            x = x + self.output(self.attend(q, k, v), i)
            x = x + self.ffn(x, i)
        return x, first

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, low: int) -> dict[str, torch.Tensor]:
        """Keys and values outside the block with the highest pooled importance."""
        high = low + self.block
        k, v = (torch.cat((y[:, :low], y[:, high:]), 1) for y in (k, v))
        importance = (self.spread(k) @ q[:, low:high].mean(1, keepdim=True).transpose(1, 2))[..., 0].mean(0)
        pooled = F.max_pool1d(importance[None, None], self.kernel, 1, self.kernel // 2)[0, 0]
        at = lowest(-pooled, int(len(pooled) * self.keep_ratio))
        return {"k": k[:, at], "v": v[:, at]}


class DyLLM(Cached):
    """DyLLM: rows whose attention context turned go through the feed-forward, and change the next layer's keys and values; the
    others feel only how these values moved. Three of four such passes leave the prompt out."""

    def __init__(self, *shape: Any, tau: float = 0.99, full_steps: int = 4, whole_interval: int = 4, **named: Any) -> None:
        super().__init__(*shape, **named)
        self.tau, self.full_steps, self.whole_interval = tau, full_steps, whole_interval
        self.seen, self.seed = torch.empty(0), self.rows(0, 0)

    def kind(self, step: int) -> str:
        return dyllm_kind(step, self.full_steps, self.whole_interval)

    def run(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        if self.passes and (ids != self.seen).any():
            self.seed = (ids != self.seen).nonzero()[:, 0]
        self.seen = ids.clone()
        kind = self.kind(self.passes)
        first, salient = self.prompt if kind == "answer" else 0, self.seed
        x = self.embed(ids[first:])
        for i in range(self.model.layers):
            if kind == "full":
                x = self.full_layer(x, i)
            else:
                x, salient = self.partial_layer(x, i, first, salient)
        return x, first

    def full_layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        h, rows = self.norm(x, i), self.rows(0, self.length)
        k, v = self.heads(h, i, "k", rows), self.heads(h, i, "v").contiguous()
        context = self.attend(self.heads(h, i, "q", rows), k, v)
        x = x + self.output(context, i)
        ffn = self.ffn(x, i)
        self.kept[i] = {"k": k, "v": v, "context": context, "ffn": ffn}
        return x + ffn

    def partial_layer(self, x: torch.Tensor, i: int, first: int, changed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, h, rows = self.kept[i], self.norm(x, i), self.rows(first, self.length)
        q, moved = self.heads(h, i, "q", rows), self.heads(h[changed - first], i, "v")
        kept["k"][:, changed] = self.heads(h[changed - first], i, "k", changed)
        moved, kept["v"][:, changed] = moved - kept["v"][:, changed], moved
        p = F.softmax(q @ self.spread(kept["k"]).transpose(1, 2) * self.model.head_dim**-0.5, -1)
        old = kept["context"][first:]
        context = old + self.flat(p[..., changed] @ self.spread(moved))
        context[changed - first] = self.flat(p[:, changed - first] @ self.spread(kept["v"]))
        salient = first + (F.cosine_similarity(context.float(), old.float(), -1) < self.tau).nonzero()[:, 0]
        kept["context"][first:] = context
        x = x + self.output(context, i)
        if len(salient):
            kept["ffn"][salient] = self.ffn(x[salient - first], i)
        return x + kept["ffn"][first:], salient


METHODS: dict[str, type[Cached]] = {"dllm-cache": DLLMCache, "sparse-dllm": SparseDLLM, "dyllm": DyLLM}


def plain(
    cache: Any, model: TorchLLaDA, prompt_length: int, answer_length: int, block_length: int, block_steps: int | None = None
) -> Cached:
    """The same method with the same options as dllm_fast's cache object, ready for one generation."""
    options = {
        "dllm-cache": {
            "prompt_interval_steps": "prompt_interval",
            "gen_interval_steps": "answer_interval",
            "transfer_ratio": "ratio",
        },
        "sparse-dllm": {"keep_ratio": "keep_ratio", "kernel_size": "kernel"},
        "dyllm": {"tau": "tau", "full_steps": "full_steps", "whole_interval": "whole_interval"},
    }[cache.name]
    named = {mine: getattr(cache, theirs) for theirs, mine in options.items()}
    return METHODS[cache.name](model, prompt_length, answer_length, block_length, block_steps, **named)
