"""Does a caching method pay, and where does it not? Every method at the papers' geometry, against the uncached run.

    python benchmarks/methods.py [--family llada|dream] [--layers 2] [--prompts 64,512,1024,4096] [--batch 1] [--device cpu]

A model of the layer shapes of LLaDA-8B or Dream-7B (few layers, random bfloat16 weights, the real vocabulary) answers 256 tokens in
blocks of 32, one token a step. Methods run to the end; of the uncached run eight steps are timed, since all cost the same. Writes
benchmarks/results/methods-<family>-<date>.md and .json. --device cpu:avx512bf16 runs the kernels of processors without AMX, whose
arithmetic is slower beside their memory. With random weights every row's context turns quickly, so DyLLM's salient
set, which is data, is stated beside its time.

A second table says where the time of a step goes. The limit is the speed-up that this machine allows a method: the uncached step's
time over the floor of the method's own step, which is its stages' floors summed: max(bytes / bandwidth, operations / peak), of the
ceilings that `dllm-fast info --ceilings` measures.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from make_model import make
from step import commit

import dllm_fast
from dllm_fast import ceilings
from dllm_fast.bench import machine

ANSWER, BLOCK, LAYERS = 256, 32, 2
UNCACHED_STEPS = ANSWER // BLOCK  # they reveal more at once, which costs the same


def measure(model: dllm_fast.Model, prompt: np.ndarray, cache: str | None, n: int = ANSWER) -> dict[str, Any]:
    """Seconds and operations of each of n steps; the seconds also by stage."""
    options = {"max_new_tokens": ANSWER, "alg": "entropy"} if model.config["family"] == "dream" else {"gen_length": ANSWER}
    options |= {"steps": n, "block_length": BLOCK, "cache": cache}
    if "alg" in options:
        out = model.diffusion_generate(prompt, return_dict_in_generate=True, **options)
    else:
        out = model.generate(prompt, return_dict=True, **options)
    s = out.stats
    layers, best = model.config["layers"], ceilings.ceilings(model.backend, model.threads)
    return {
        "seconds": s["seconds"] / n,
        "gflop": s["flops"] / n / 1e9,
        "floor_seconds": ceilings.floor(s["stages"], best, ceilings.product_dtype(model)) / n,
        "ffn_rows": s["rows"]["ffn"] / n / layers,
        "cache_mb": s["cache_bytes"] / 1e6,
        "peak_mb": (s["peak_bytes"] - s["weight_bytes"]) / 1e6,
        "stages": {name: {what: value / n for what, value in cost.items()} for name, cost in s["stages"].items()},
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--family", choices=("llada", "dream"), default="llada")
    p.add_argument("--layers", type=int, default=LAYERS)
    p.add_argument("--prompts", default="64,512,1024,4096")
    p.add_argument("--batch", type=int, default=1, help="so many prompts at once, of one length")
    p.add_argument("--threads", type=int)
    p.add_argument("--device", default="cpu")
    args = p.parse_args()

    folder = pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks" / f"{args.family}-{args.layers}"
    model = dllm_fast.load(make(folder, args.family, args.layers), threads=args.threads, device=args.device)
    random = np.random.default_rng(0)
    measure(model, random.integers(0, 100_000, (1, BLOCK)), None, UNCACHED_STEPS)  # reads the file into memory
    rows = []
    for length in map(int, args.prompts.split(",")):
        prompt = random.integers(0, 100_000, (args.batch, length))
        uncached = measure(model, prompt, None, UNCACHED_STEPS)
        rows.append({"prompt": length, "cache": "uncached", **uncached, **compared(uncached, uncached)})
        for cache in ("dllm-cache", "sparse-dllm", "dyllm"):
            mine = measure(model, prompt, cache)
            rows.append({"prompt": length, "cache": cache, **mine, **compared(uncached, mine)})
        for row in rows[-4:]:
            print(line(row), flush=True)
    report(args, rows, model)


def compared(uncached: dict[str, Any], mine: dict[str, Any]) -> dict[str, float]:
    return {
        "time_ratio": uncached["seconds"] / mine["seconds"],
        "flops_ratio": uncached["gflop"] / mine["gflop"],
        "limit": uncached["seconds"] / mine["floor_seconds"],
    }


HEADER = "| prompt | method | ms a step | faster | limit | fewer operations | FFN rows | cache MB | all but weights MB |"
STAGES = "| prompt | method | " + " | ".join(ceilings.GROUPS) + " |"


def line(r: dict) -> str:
    return (
        f"| {r['prompt']} | {r['cache']} | {r['seconds'] * 1e3:.1f} | {r['time_ratio']:.2f} x | {r['limit']:.1f} x "
        f"| {r['flops_ratio']:.2f} x | {r['ffn_rows']:.0f} | {r['cache_mb']:.1f} | {r['peak_mb']:.0f} |"
    )


def stages_line(r: dict) -> str:
    """Milliseconds a step, by groups of stages."""
    groups = ceilings.grouped(r["stages"]).values()
    return f"| {r['prompt']} | {r['cache']} | " + " | ".join(f"{seconds * 1e3:.2f}" for seconds in groups) + " |"


def table(header: str, lines: Iterable[str]) -> str:
    return "\n".join([header, "|---" * (header.count("|") - 1) + "|", *lines])


def report(args: argparse.Namespace, rows: list[dict], model: dllm_fast.Model) -> None:
    where = machine() | {"commit": commit()}
    shape = {"llada": "LLaDA-8B", "dream": "Dream-7B"}[args.family]
    about = f"{args.layers} layers of {shape}, bfloat16, random weights; answer {ANSWER}, block {BLOCK}, one token a step"
    about += f"; {args.batch} sequences at once" if args.batch > 1 else ""
    best = ceilings.ceilings(model.backend, model.threads)
    folder = pathlib.Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    batch = f"-batch{args.batch}" if args.batch > 1 else ""
    layers = f"-{args.layers}layers" if args.layers != LAYERS else ""
    level = args.device.removeprefix("cpu").replace(":", "-")
    path = folder / f"methods-{args.family}{layers}{batch}{level}-{time.strftime('%Y-%m-%d')}"
    text = f"{about}\n\n{where['cpu']} ({best}), {where['date']}, commit {where['commit']}\n\n{table(HEADER, map(line, rows))}\n"
    text += f"\nMilliseconds a step, by stage:\n\n{table(STAGES, map(stages_line, rows))}\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    result = {"about": about, **where, "ceilings": dataclasses.asdict(best), "rows": rows}
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
