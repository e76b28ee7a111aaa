"""How rivals.py shows what it measured: tables, pictures, and files that say where and when."""

import argparse
import importlib.util
import json
import pathlib
from typing import Any

import numpy as np
import rival_kernels
import torch
from runs import OURS, SHAPES
from step import commit

from dllm_fast import _core
from dllm_fast.bench import machine


def steps_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | median ms | fastest ms | time / dllm_fast | same tokens |", "|---|---|---|---|---|"]
    for r in rows:
        ratio = r["step"] / rows[0]["step"]
        lines.append(f"| {r['name']} | {r['step'] * 1e3:.1f} | {r['fastest'] * 1e3:.1f} | {ratio:.2f} | {r['same_tokens']:.0%} |")
    return lines


def generation_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | whole answer, s | ms a step | time / dllm_fast | steps timed |", "|---|---|---|---|---|"]
    for r in rows:
        ratio = r["seconds"] / rows[0]["seconds"]
        lines.append(f"| {r['name']} | {r['seconds']:.1f} | {r['step'] * 1e3:.1f} | {ratio:.2f} | {r['timed_steps']} |")
    return lines


def methods_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | dllm_fast, s an answer | torch, the same method | dllm_fast, uncached | torch, uncached "
        "| rows a layer, ours / torch's | steps timed |",
        "|---" * 7 + "|",
    ]
    for r in rows:
        mine = r["seconds"][OURS]
        others = [f"{seconds / mine:.2f} x as long" for name, seconds in r["seconds"].items() if name != OURS]
        ffn = " / ".join(f"{n:.0f}" for n in r["ffn_rows"].values())
        lines.append(f"| {r['method']} | {mine:.1f} | {' | '.join(others)} | {ffn} | {r['timed_steps']} |")
    return lines


def draw_bars(pyplot: Any, part: str, rows: list[dict[str, Any]]) -> Any:
    """Horizontal bars: seconds of a step, or of an answer, a group for every method."""
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    if part == "methods":
        names = list(rows[0]["seconds"])
        for i, name in enumerate(names):
            axes.barh(np.arange(len(rows)) + 0.2 * (i - 1.5), [r["seconds"][name] for r in rows], 0.2, label=name)
        axes.set_yticks(np.arange(len(rows)), [r["method"] for r in rows])
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.barh([r["name"] for r in rows], [r.get("seconds", r["step"]) for r in rows], color="#3b6ea5")
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step" if part == "steps" else "seconds an answer")
    return figure


def about(args: argparse.Namespace) -> str:
    if args.part == "kernels":
        return "Single kernels, fastest of the turns; floor: the larger of bytes over measured bandwidth and operations over peak."
    what = {
        "steps": f"One uncached step, {args.prompt + 128} tokens, 128 of them answer",
        "generation": f"A whole uncached answer of {args.answer} tokens to a prompt of {args.prompt}, one token a step",
        "methods": f"Caching methods at the papers' settings: prompt {args.prompt}, answer {args.answer}, block {args.block}, "
        "one token a step",
    }[args.part]
    scaled = "" if args.part == "steps" or args.whole else " Medians of the timed steps stand for the others of their kind."
    model = args.model.name if args.model else f"{args.layers} layers of {SHAPES[args.family]}, random weights"
    return f"{what}; {model}.{scaled}"


LINES = {"kernels": rival_kernels.lines, "steps": steps_lines, "generation": generation_lines, "methods": methods_lines}


def report(args: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Prints the table, and writes it with the numbers and a picture."""
    where = machine() | {"commit": commit(), "threads": args.threads, "torch": torch.__version__}
    where |= {"backend": _core.cpu_levels()[-1], "torch_cpu": torch.backends.cpu.get_cpu_capability()}
    told = [f"{where['cpu']}, {args.threads} threads, {where['date']}, commit {where['commit']}, backend {where['backend']}, "
            f"torch {where['torch']} {where['torch_cpu']}"]  # fmt: skip
    if facts:
        told.append(f"Measured: {facts['bandwidth'] / 1e9:.1f} GB/s, {facts['peak'] / 1e9:.0f} bfloat16 GFLOP/s.")
    text = "\n\n".join([about(args), *told, "\n".join(LINES[args.part](rows))]) + "\n"
    print("\n" + text)
    if not args.results:
        return
    name = "-".join(["rivals", args.part, *([] if args.part == "kernels" else [args.family]), where["date"]])
    path = pathlib.Path(args.results) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"about": about(args), **where, **facts, "rows": rows}, indent=1) + "\n")
    if not importlib.util.find_spec("matplotlib"):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = rival_kernels.draw(pyplot, rows) if args.part == "kernels" else draw_bars(pyplot, args.part, rows)
    figure.savefig(path.with_suffix(".png"), dpi=120)
