"""Does a step cost what its operations say? Time against length, batch, rows of a cached step, and threads.

    python benchmarks/scaling.py [--layers 2 | --model FOLDER] [--threads N] [--repeats 5]

A model of LLaDA-8B's layer shapes (few layers, random bfloat16 weights, the real vocabulary) computes uncached steps of growing
length and of growing batches, and steps of Sparse-dLLM, whose rows are one block, with growing blocks. The law they are held
against is the sum over a step's stages of max(bytes / bandwidth, operations / peak), of the ceilings that are measured first, times
one number a series, since no kernel reaches a ceiling whole: a step then deviates by so many per cent from its series' line. The
last series is one long uncached step on 1, 2, 4, ... threads. All points take turns, and the fastest step of each counts. Numbers
go to benchmarks/results/scaling-DATE.md, .json and, with matplotlib, .png.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from make_model import make
from step import HERE, commit, timed

import dllm_fast
from dllm_fast import SparseDLLM, _core, ceilings
from dllm_fast.bench import machine

BLOCK, TARGET = 32, 0.15  # answer of an uncached step; a step may be so far from the line
NAMES = {"length": "tokens of an uncached step", "batch": "sequences of {length} tokens", "rows": "rows of a cached step"}


class Point:
    """One step of a series, computed again and again: at is what the series varies, warm the steps before the first that counts."""

    def __init__(self, series: str, at: int, model: dllm_fast.Model, lengths: Sequence[int], block: int, cache: Any = None) -> None:
        self.series, self.at, self.model = series, at, model
        random = np.random.default_rng(0)
        self.prompts = [random.integers(0, model.config["mask_id"], n - block).astype(np.int32) for n in lengths]
        self.params = {"answer_len": block, "block_len": block, "steps": block, "temperature": 0.0}
        self.params |= {"rule": "quota", "score": "prob", "gumbel": True} | (cache.params() if cache else {})
        self.warm, self.unfinished = 3 if cache else 1, 0
        self.steps: list[dict[str, float]] = []

    def run(self, best: ceilings.Ceilings) -> None:
        """Times a step; a session that came to its end makes room for a new one."""
        if not self.unfinished:
            self.session = _core.Session(self.model.core, self.params, self.prompts)
            for _ in range(self.warm):
                self.session.step()
        before = self.session.stats()["stages"]
        seconds, self.unfinished = timed(self.session.step)
        after = self.session.stats()["stages"]
        cost = {name: {key: after[name][key] - before[name][key] for key in ("flops", "bytes")} for name in after}
        flops = sum(stage["flops"] for stage in cost.values())
        floor = ceilings.floor(cost, best, ceilings.product_dtype(self.model))
        self.steps.append({"seconds": seconds, "flops": flops, "floor": floor})

    def result(self) -> dict[str, Any]:
        all_seconds = [step["seconds"] for step in self.steps]
        return {"series": self.series, "at": self.at} | min(self.steps, key=lambda s: s["seconds"]) | {"all": all_seconds}


def points(args: argparse.Namespace, folder: pathlib.Path) -> list[Point]:
    model = dllm_fast.load(folder, device="cpu", threads=args.threads)
    args.threads = model.threads
    found = [Point("length", n, model, [n], args.block) for n in args.lengths]
    found += [Point("batch", n, model, [args.batch_length] * n, args.block) for n in args.batches]
    found += [Point("rows", n, model, [args.prompt + n], n, SparseDLLM()) for n in args.rows]
    counts = [n for n in (2**i for i in range(20)) if n < args.threads] + [args.threads]
    for n in counts:
        alone = dllm_fast.load(folder, device="cpu", threads=n)
        found.append(Point("threads", n, alone, [args.threads_length], args.block))
    return found


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a row for every point, facts)."""
    cache = pathlib.Path(args.cache or pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks")
    folder = args.model or make(cache / f"llada-{args.layers}", "llada", args.layers)
    every = points(args, folder)
    model = every[0].model
    best = ceilings.measure(model.backend, model.threads)
    for _ in range(args.repeats):
        for point in every:
            point.run(best)
    rows = [point.result() for point in every]
    facts = {"ceilings": dataclasses.asdict(best), "measured": str(best), "backend": model.backend, "dtype": model.dtype}
    return rows, facts | {"threads": model.threads, "layers": model.config["layers"], "efficiency": fit(rows)}


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Puts into every row how far it is from its series' line; returns each series' share of the ceilings, which is the line."""
    shares = {}
    for series in NAMES:
        mine = [row for row in rows if row["series"] == series]
        ratios = [math.log(row["seconds"] / row["floor"]) for row in mine]
        middle = (max(ratios) + min(ratios)) / 2  # the line whose worst point is nearest
        for row, ratio in zip(mine, ratios, strict=True):
            row["deviation"] = math.exp(ratio - middle) - 1
        shares[series] = math.exp(-middle)
    alone = next(row["seconds"] for row in rows if row["series"] == "threads")
    for row in rows:
        if row["series"] == "threads":
            row["speed_up"] = alone / row["seconds"]
    return shares


# ---- showing ---------------------------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = []
    for series, name in NAMES.items():
        mine = [row for row in rows if row["series"] == series]
        worst = max(abs(row["deviation"]) for row in mine)
        lines += [
            f"**{name.format(length=args.batch_length)}**: {facts['efficiency'][series]:.0%} of the ceilings, no step farther than "
            f"{worst:.0%} from that (target {TARGET:.0%})",
            "",
            f"| {series} | ms | GFLOP | GFLOP/s | floor ms | floor / time | from the line |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['at']} | {r['seconds'] * 1e3:.1f} | {r['flops'] / 1e9:.0f} | {r['flops'] / r['seconds'] / 1e9:.0f} "
            f"| {r['floor'] * 1e3:.1f} | {r['floor'] / r['seconds']:.0%} | {r['deviation']:+.1%} |"
            for r in mine
        ]
        lines.append("")
    lines += [f"**an uncached step of {args.threads_length} tokens**", "", "| threads | ms | faster than one |", "|---|---|---|"]
    lines += [f"| {r['at']} | {r['seconds'] * 1e3:.1f} | {r['speed_up']:.2f} x |" for r in rows if r["series"] == "threads"]
    return "\n".join(lines)


def about(args: argparse.Namespace, facts: dict[str, Any]) -> str:
    model = args.model.name if args.model else "LLaDA-8B"
    return (
        f"Steps of {facts['layers']} layers of {model}, {facts['dtype']}, and the head, against the floor that operations and "
        f"bytes set; cached steps: Sparse-dLLM after a prompt of {args.prompt}. Fastest of {args.repeats}."
    )


def draw(pyplot: Any, args: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> Any:
    """A picture a series: points, the line, and the target around it; then the threads."""
    figure, axes = pyplot.subplots(1, len(NAMES) + 1, figsize=(3.2 * len(NAMES) + 3.2, 3), layout="constrained")
    for ax, (series, name) in zip(axes, NAMES.items(), strict=False):
        mine = [row for row in rows if row["series"] == series]
        at, line = [r["at"] for r in mine], np.array([r["floor"] / facts["efficiency"][series] for r in mine]) * 1e3
        ax.fill_between(
            at, line * (1 - TARGET), line * (1 + TARGET), color="#b8c4d6", alpha=0.6, lw=0, label=f"within {TARGET:.0%}"
        )
        ax.plot(at, line, color="#3b6ea5", lw=1, label=f"operations and bytes, {facts['efficiency'][series]:.0%} of the ceilings")
        ax.plot(at, [r["seconds"] * 1e3 for r in mine], "o", ms=4, color="#123", label="measured")
        ax.set(xscale="log", yscale="log", xlabel=name.format(length=args.batch_length), ylabel="ms a step")
        ax.set_xticks(at, [str(n) for n in at])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=7)
    mine = [row for row in rows if row["series"] == "threads"]
    axes[-1].bar([str(r["at"]) for r in mine], [r["speed_up"] for r in mine], color="#3b6ea5")
    axes[-1].set(xlabel=f"threads, {args.threads_length} tokens", ylabel="times one thread")
    return figure


def report(args: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    where = machine() | {"commit": commit()}
    told = f"{where['cpu']}, {facts['threads']} threads ({facts['measured']}), {where['date']}, commit {where['commit']}"
    text = "\n\n".join([about(args, facts), told, table(args, rows, facts)]) + "\n"
    print(text)
    if not args.results:
        return
    path = pathlib.Path(args.results) / f"scaling-{where['date']}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"about": about(args, facts), **where, **facts, "rows": rows}, indent=1) + "\n")
    if not importlib.util.find_spec("matplotlib"):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    draw(pyplot, args, rows, facts).savefig(path.with_suffix(".png"), dpi=120)


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main(given: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--layers", type=int, default=2, help="of the random model that is made")
    p.add_argument("--model", type=pathlib.Path, help="a LLaDA checkpoint folder, in place of the random model")
    p.add_argument("--lengths", type=numbers, default=numbers("128,256,512,1024,2048,4096"), help="prompt and answer together")
    p.add_argument("--batches", type=numbers, default=numbers("1,2,4,8"), help="sequences at once")
    p.add_argument("--batch-length", type=int, default=512, help="tokens of each of them")
    p.add_argument("--rows", type=numbers, default=numbers("8,16,32,64,128,256,512"), help="of the open block of a cached step")
    p.add_argument("--prompt", type=int, default=1024, help="tokens before that block")
    p.add_argument("--block", type=int, default=BLOCK, help="tokens of the answer of an uncached step")
    p.add_argument("--threads-length", type=int, default=1024, help="tokens of the step that one thread and several compute")
    p.add_argument("--threads", type=int, help="default: all")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--cache", help="where the random model is kept; default: the system's temporary directory")
    p.add_argument("--results", default=str(HERE / "results"), help="where the numbers go; '' for nowhere")
    args = p.parse_args(given)
    if min(*args.lengths, args.batch_length, args.threads_length) <= args.block:
        p.error(f"a length must exceed the answer's {args.block} tokens")
    if min(args.rows) < 4 or args.repeats < 1:
        p.error("a block of a cached step has at least 4 rows, and a step is timed at least once")
    report(args, *measure(args))


if __name__ == "__main__":
    main()
