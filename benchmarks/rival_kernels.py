"""Single kernels for rivals.py: matrix products and attention of the engine and of torch, in turns, beside what the machine can.

Weights and keys are taken from a gigabyte of them, the next piece at every call, so that no call finds them in a cache.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from runs import rest

from dllm_fast import _core

HEADS, HEAD_DIM = 32, 128
POOL = 1 << 29  # numbers
SPREAD = 0.04  # seconds


@dataclasses.dataclass
class Ceilings:
    """The best this machine showed: bytes read a second, bfloat16 operations a second."""

    bandwidth: float
    peak: float

    def raise_to(self, weight_bytes: float, flops: float, seconds: float) -> None:
        self.bandwidth = max(self.bandwidth, weight_bytes / seconds)
        self.peak = max(self.peak, flops / seconds)

    def floor(self, weight_bytes: float, flops: float) -> float:
        """Seconds below which nobody was."""
        return max(weight_bytes / self.bandwidth, flops / self.peak)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ceilings(threads: int, rounds: int = 4) -> Ceilings:
    """Sums over pieces of a gigabyte; products of the caches' size, by torch or by the engine. The best moment counts: pieces are
    short, so that some meet a quiet machine."""
    pieces = torch.ones(1 << 28).split(1 << 23)
    read = min(seconds(piece.sum) for _ in range(rounds) for piece in pieces)
    x, w = (torch.randn(shape).bfloat16() for shape in ((256, 4096), (4096, 4096)))
    out = torch.empty(256, 4096, dtype=torch.bfloat16)
    product = min(min(seconds(lambda: F.linear(x, w)), _core.linear(out, x, w, threads)) for _ in range(8 * rounds))
    return Ceilings(pieces[0].nbytes / read, 2 * x.numel() * len(w) / product)


class Pool:
    """Random numbers; piece() is the next so many of them, in both types."""

    def __init__(self, f32: bool) -> None:
        self.numbers = {"bf16": torch.randn(1 << 22).mul_(0.02).bfloat16().repeat(POOL >> 22)}
        if f32:
            self.numbers["f32"] = self.numbers["bf16"].float()
        self.at = 0

    def piece(self, kind: str, rows: int, cols: int) -> torch.Tensor:
        if rows * cols > POOL:
            raise ValueError(f"{rows} x {cols} numbers are more than the {POOL} there are")
        if self.at + rows * cols > POOL:
            self.at = 0
        self.at += rows * cols
        return self.numbers[kind][self.at - rows * cols : self.at].view(rows, cols)


def take_turns(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Fastest and median seconds of each. What counts is the last run of a turn: by then the system, which may wake all threads on
    one core, has spread them."""
    all_: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            rest()
            began = time.perf_counter()
            while time.perf_counter() - began < SPREAD:
                run()
            all_[name].append(run())
    return {name: {"fastest": min(s), "median": statistics.median(s)} for name, s in all_.items()}


def products(pool: Pool, shape: tuple[int, int], rows: int, threads: int) -> dict[str, Callable[[], float]]:
    n, k = shape
    x = torch.randn(rows, k).bfloat16()
    wide, out = x.float(), torch.empty(rows, n, dtype=torch.bfloat16)

    def torch_f32() -> float:
        w = pool.piece("f32", n, k)
        return seconds(lambda: F.linear(wide, w))

    def torch_bf16() -> float:
        w = pool.piece("bf16", n, k)
        return seconds(lambda: F.linear(x, w))

    runs = {"dllm_fast": lambda: _core.linear(out, x, pool.piece("bf16", n, k), threads), "torch bf16": torch_bf16}
    return runs | ({"torch f32": torch_f32} if "f32" in pool.numbers else {})


def attentions(pool: Pool, queries: int, keys: int, threads: int) -> dict[str, Callable[[], float]]:
    dim = HEADS * HEAD_DIM
    q = torch.randn(queries, dim).bfloat16()
    out = torch.empty_like(q)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(1, len(x), HEADS, HEAD_DIM).transpose(1, 2)

    def sdpa() -> float:
        k, v = (heads(pool.piece("bf16", keys, dim)) for _ in "kv")
        return seconds(lambda: F.scaled_dot_product_attention(heads(q), k, v))

    def mine() -> float:
        k, v = (pool.piece("bf16", keys, dim) for _ in "kv")
        return _core.attend(out, q, k, v, HEADS, HEADS, threads)

    return {"dllm_fast": mine, "torch bf16": sdpa}


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a row for every kernel, shape and contestant, facts)."""
    best = ceilings(args.threads)
    rows = list(_rows(args, Pool("torch f32" not in args.without)))
    for r in rows:  # a machine that was busy before may show more now
        best.raise_to(r["bytes"], r["flops"], min(t["fastest"] for name, t in r["times"].items() if name != "torch f32"))
    for r in rows:
        r["floor"] = best.floor(r["bytes"], r["flops"])
    return rows, dataclasses.asdict(best)


def _rows(args: argparse.Namespace, pool: Pool) -> Iterator[dict[str, Any]]:
    for (n, k), m in itertools.product(args.shapes, args.rows):
        times = take_turns(products(pool, (n, k), m, args.threads), args.repeats)
        work = {"bytes": 2 * n * k, "flops": 2 * m * n * k}
        yield shown({"kernel": "linear", "shape": f"{n} x {k}", "rows": m, **work, "times": times})
    dim = HEADS * HEAD_DIM
    for keys, m in itertools.product(args.keys, args.queries):
        times = take_turns(attentions(pool, m, keys, args.threads), args.repeats)
        work = {"bytes": 4 * keys * dim, "flops": 4 * m * keys * dim}
        yield shown({"kernel": "attention", "shape": f"{keys} keys", "rows": m, **work, "times": times})


def shown(row: dict[str, Any]) -> dict[str, Any]:
    times = ", ".join(f"{name} {t['fastest'] * 1e3:.3f} ms" for name, t in row["times"].items())
    print(f"{row['kernel']} {row['shape']}, {row['rows']} rows: {times}", flush=True)
    return row


HEADER = "| kernel | shape | rows | floor ms | dllm_fast ms | of the floor | torch bf16 | torch f32 |"


def line(row: dict[str, Any]) -> str:
    """Fastest times; torch's as multiples of ours."""
    best = {name: t["fastest"] for name, t in row["times"].items()}
    mine = best["dllm_fast"]
    others = [f"{best[name] / mine:.2f} x as long" if name in best else "" for name in ("torch bf16", "torch f32")]
    return (
        f"| {row['kernel']} | {row['shape']} | {row['rows']} | {row['floor'] * 1e3:.3f} | {mine * 1e3:.3f} "
        f"| {mine / row['floor']:.2f} x | {others[0]} | {others[1]} |"
    )


def lines(rows: list[dict[str, Any]]) -> list[str]:
    return [HEADER, "|---" * 8 + "|", *map(line, rows)]


def draw(pyplot: Any, rows: list[dict[str, Any]]) -> Any:
    """One small picture a shape: time over the floor against rows."""
    shapes = list(dict.fromkeys((r["kernel"], r["shape"]) for r in rows))
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(2.6 * len(shapes), 3), sharey=True, squeeze=False, layout="constrained")
    for ax, (kernel, shape) in zip(axes[0], shapes, strict=True):
        mine = [r for r in rows if (r["kernel"], r["shape"]) == (kernel, shape)]
        for name in mine[0]["times"]:
            ax.plot([r["rows"] for r in mine], [r["times"][name]["fastest"] / r["floor"] for r in mine], "o-", ms=3, label=name)
        ax.set(xscale="log", yscale="log", title=f"{kernel} {shape}", xlabel="rows")
        ax.title.set_fontsize(9)
        ax.axhline(1, color="#999", lw=0.8)
    axes[0][0].set_ylabel("time / floor")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure
