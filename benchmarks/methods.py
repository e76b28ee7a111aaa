"""Does a caching method pay, and where does it not? Every method at the papers' geometry, against the uncached run.

    python benchmarks/methods.py [--family llada|dream] [--layers 2] [--prompts 64,512,1024,4096]

A model of the layer shapes of LLaDA-8B or Dream-7B (few layers, random bfloat16 weights, the real vocabulary) answers 256 tokens in
blocks of 32, one token a step. Methods run to the end; of the uncached run a few steps are timed, since all cost the same. Writes
benchmarks/results/methods-<family>-<date>.md and .json. With random weights every row's context turns quickly, so DyLLM's salient
set, which is data, is stated beside its time.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import numpy as np
from make_model import make

import dllm_fast
from dllm_fast.bench import machine

ANSWER, BLOCK, UNCACHED_STEPS = 256, 32, 4


def measure(model: dllm_fast.Model, prompt: np.ndarray, cache: str | None, most: int = ANSWER) -> dict[str, float]:
    """Seconds and operations a step, over the first `most` steps."""
    options = {"max_new_tokens": ANSWER, "alg": "entropy"} if model.config["family"] == "dream" else {"gen_length": ANSWER}
    seen: list[dllm_fast.Step] = []

    def stop(step: dllm_fast.Step) -> bool:
        seen.append(step.index)
        return len(seen) < most

    options |= {"steps": ANSWER, "block_length": BLOCK, "cache": cache, "callback": stop}
    if "alg" in options:
        out = model.diffusion_generate(prompt, return_dict_in_generate=True, **options)
    else:
        out = model.generate(prompt, return_dict=True, **options)
    s, n = out.stats, len(seen)
    layers = model.config["layers"]
    return {
        "seconds": s["seconds"] / n,
        "gflop": s["flops"] / n / 1e9,
        "ffn_rows": s["rows"]["ffn"] / n / layers,
        "cache_mb": s["cache_bytes"] / 1e6,
        "peak_mb": (s["peak_bytes"] - s["weight_bytes"]) / 1e6,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--family", choices=("llada", "dream"), default="llada")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--prompts", default="64,512,1024,4096")
    p.add_argument("--threads", type=int)
    args = p.parse_args()

    folder = pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks" / f"{args.family}-{args.layers}"
    model = dllm_fast.load(make(folder, args.family, args.layers), threads=args.threads)
    random = np.random.default_rng(0)
    rows = []
    for length in map(int, args.prompts.split(",")):
        prompt = random.integers(0, 100_000, (1, length))
        uncached = measure(model, prompt, None, UNCACHED_STEPS)
        rows.append({"prompt": length, "cache": "uncached", **uncached, "time_ratio": 1.0, "flops_ratio": 1.0})
        for cache in ("dllm-cache", "sparse-dllm", "dyllm"):
            mine = measure(model, prompt, cache)
            ratios = {"time_ratio": uncached["seconds"] / mine["seconds"], "flops_ratio": uncached["gflop"] / mine["gflop"]}
            rows.append({"prompt": length, "cache": cache, **mine, **ratios})
        for row in rows[-4:]:
            print(line(row), flush=True)
    report(args, rows)


HEADER = "| prompt | method | ms a step | faster | fewer operations | rows through the FFN | cache MB | all but weights MB |"


def line(r: dict) -> str:
    return (
        f"| {r['prompt']} | {r['cache']} | {r['seconds'] * 1e3:.1f} | {r['time_ratio']:.2f} x | {r['flops_ratio']:.2f} x "
        f"| {r['ffn_rows']:.0f} | {r['cache_mb']:.1f} | {r['peak_mb']:.0f} |"
    )


def report(args: argparse.Namespace, rows: list[dict]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    where = machine() | {"commit": commit}
    shape = {"llada": "LLaDA-8B", "dream": "Dream-7B"}[args.family]
    about = f"{args.layers} layers of {shape}, bfloat16, random weights; answer {ANSWER}, block {BLOCK}, one token a step"
    folder = pathlib.Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"methods-{args.family}-{time.strftime('%Y-%m-%d')}"
    table = "\n".join([HEADER, "|---" * 8 + "|", *map(line, rows)])
    text = f"{about}\n\n{where['cpu']}, {where['date']}, commit {commit}\n\n{table}\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"about": about, **where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
