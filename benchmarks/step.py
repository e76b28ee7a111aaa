"""One uncached denoising step of LLaDA-8B's or Dream-7B's layers: dllm_fast beside plain torch, in one run, on the same weights.

    python benchmarks/step.py [--family llada|dream] [--layers 4] [--length 512] [--threads N] [--repeats 7]

Writes a folder of random bfloat16 weights to a cache directory at first use. The contestants take turns, so that whatever else the
machine does hits all of them alike; medians go to a table, and with the machine, commit and date to benchmarks/results.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from make_model import make

ANSWER, BLOCK, BLOCKS = 128, 32, 4
HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass
class Contestant:
    """step() computes one step of the same request and returns (seconds, tokens at the masks, -1 where it does not look)."""

    name: str
    step: Callable[[], tuple[float, np.ndarray]]
    seconds: list[float] = dataclasses.field(default_factory=list)
    tokens: np.ndarray | None = None


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def ours(model: Any, prompt: np.ndarray, family: str) -> Contestant:
    """A step of a fresh session. All the memory of a run is taken when the session opens, which is not part of a step."""
    from dllm_fast import _core

    llada = {"block_len": BLOCK, "steps": BLOCKS, "rule": "quota", "score": "prob", "gumbel": True}
    dream = {"block_len": 0, "steps": BLOCKS, "rule": "times", "score": "entropy", "gumbel": False}
    params = {"answer_len": ANSWER, "temperature": 0.0, **(llada if family == "llada" else dream)}

    def step() -> tuple[float, np.ndarray]:
        session = _core.Session(model.core, params, [prompt])
        seconds, _ = timed(session.step)
        tokens = np.full(session.rows, -1)
        rows, found = session.candidates()[:2]
        tokens[rows] = found
        step.stats = dict(session.stats())
        return seconds, tokens

    return Contestant("dllm_fast", step)


def torch_model(family: str, config: dict[str, Any], tensors: dict[str, Any]) -> tuple[Any, Any]:
    """(the module with the official loop, the model) of a config.json and its tensors, wherever they lie."""
    import torch_dream
    import torch_llada

    if family == "llada":
        return torch_llada, torch_llada.TorchLLaDA(config, tensors)
    return torch_dream, torch_dream.TorchDream(config, tensors)


def our_model(config: dict[str, Any], tensors: dict[str, Any], device: str, threads: int | None = None) -> Any:
    """Of torch's own tensors: a mapped file may leave memory while others take their turns, theirs may not."""
    import dllm_fast

    return dllm_fast.Model.from_tensors(json.dumps(config), tensors, device=device, threads=threads)


def torch_contestants(rival: Any, model: Any, prompt: np.ndarray, family: str, device: str = "cpu") -> list[Contestant]:
    """The official step, and the same without its waste. rival: the module whose loop the model runs in; device: where it lies."""
    import torch

    x = torch.nn.functional.pad(torch.from_numpy(prompt).long()[None].to(device), (0, ANSWER), value=model.mask_id)
    end = len(prompt) + BLOCK if family == "llada" else len(prompt) + ANSWER

    @torch.inference_mode()
    def official(predict: Any) -> np.ndarray:
        tokens = torch.full(x.shape[1:], -1)
        if family == "llada":
            x0, confidence = predict(model, x, end)
            rival.reveal(x, x0, confidence, [BLOCK])
            tokens[len(prompt) : end] = x0[0, len(prompt) : end]
        else:
            tokens[len(prompt) :], score = predict(model, x)
            torch.topk(score, int(ANSWER * (1 - 1e-3) / BLOCKS))
        return tokens.numpy()

    return [
        Contestant("torch, official step", lambda: timed(lambda: official(rival.predict_all))),
        Contestant("torch, head on candidates only", lambda: timed(lambda: official(rival.predict_candidates))),
    ]


def commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch_llada import read_folder

    import dllm_fast
    from dllm_fast.ceilings import cpu_name

    torch.set_num_threads(args.threads)
    cache = pathlib.Path(args.cache or pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks")
    folder = make(cache / f"{args.family}-{args.layers}", args.family, args.layers)
    load_seconds, _ = timed(lambda: dllm_fast.load(folder, device="cpu", threads=args.threads))
    config, tensors = read_folder(folder)
    model = our_model(config, tensors, "cpu", args.threads)
    prompt = np.random.default_rng(0).integers(0, 100_000, args.length - ANSWER).astype(np.int32)
    mine = ours(model, prompt, args.family)
    contestants = [mine, *torch_contestants(*torch_model(args.family, config, tensors), prompt, args.family)]
    gc.collect()
    for turn in range(args.repeats + 1):
        for c in contestants:
            seconds, c.tokens = c.step()
            if turn:  # the first turn touches the weights and fills caches
                c.seconds.append(seconds)
    stats, seen = mine.step.stats, mine.tokens >= 0
    return {
        "family": args.family, "layers": args.layers, "length": args.length, "answer": ANSWER, "repeats": args.repeats,
        "threads": args.threads, "cpu": cpu_name(), "backend": model.backend, "dtype": model.dtype, "torch": torch.__version__,
        "torch_cpu": torch.backends.cpu.get_cpu_capability(), "dllm_fast": dllm_fast.__version__, "commit": commit(),
        "date": datetime.date.today().isoformat(), "load_seconds": load_seconds, "weight_bytes": model.nbytes, "stats": stats,
        "candidates": int(seen.sum()),
        "steps": [
            {"name": c.name, "median": statistics.median(c.seconds), "fastest": min(c.seconds), "all": c.seconds,
             "same_tokens_as_dllm_fast": float((c.tokens == mine.tokens)[seen].mean())}
            for c in contestants
        ],
    }  # fmt: skip


def table(r: dict[str, Any]) -> str:
    """The result for people."""
    first, flops = r["steps"][0]["median"], r["stats"]["flops"]
    lines = [
        f"One uncached step of {r['layers']} layers of {'LLaDA-8B' if r['family'] == 'llada' else 'Dream-7B'}, L = {r['length']}, "
        f"{r['candidates']} candidates, {r['dtype']}; {r['cpu']}, {r['threads']} threads",
        f"({r['date']}, commit {r['commit']}, backend {r['backend']}, torch {r['torch']} {r['torch_cpu']}, {r['repeats']} turns)",
        "",
        "| | median ms | fastest ms | time / dllm_fast | same tokens |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {s['name']} | {s['median'] * 1e3:.1f} | {s['fastest'] * 1e3:.1f} | {s['median'] / first:.2f} "
        f"| {s['same_tokens_as_dllm_fast']:.0%} |"
        for s in r["steps"]
    ]
    lines += [
        "",
        f"dllm_fast computes {flops / 1e9:.0f} GFLOP a step, {flops / first / 1e9:.0f} GFLOP/s; scratch "
        f"{r['stats']['scratch_bytes'] / 1e6:.0f} MB beside {r['weight_bytes'] / 1e9:.2f} GB of weights, which load from a "
        f"folder in {1e3 * r['load_seconds']:.1f} ms.",
    ]
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--family", choices=("llada", "dream"), default="llada")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--length", type=int, default=512, help="prompt and answer together; the answer has 128 tokens")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--cache", help="where the random model is kept; default: the system's temporary directory")
    p.add_argument("--results", default=str(HERE / "results"), help="where the numbers go; '' for nowhere")
    args = p.parse_args()
    if args.length <= ANSWER:
        p.error(f"--length must exceed the answer's {ANSWER} tokens")
    result = measure(args)
    print(table(result))
    if args.results:
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)|processor|cpu|@.*", "", result["cpu"].lower())).strip("-")
        path = pathlib.Path(args.results) / f"step-{slug}-{result['date']}"
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{path}{'' if args.family == 'llada' else '-' + args.family}"
        pathlib.Path(name + ".json").write_text(json.dumps(result, indent=1) + "\n")
        pathlib.Path(name + ".md").write_text(table(result) + "\n")


if __name__ == "__main__":
    main()
