"""What int8 weights cost and gain: python benchmarks/int8.py

Right answers of the tiny trained models with bfloat16 and with int8 weights, on the puzzles of tiny_tasks.py, uncached and with
every caching method; how far the logits of the same inputs differ; and the matrix products of an 8B model from both kinds of
weights, which take turns on cold memory, so that whatever else the machine does hits both. Writes benchmarks/results/int8.md and
.json.
"""

import argparse
import datetime
import json
import pathlib
from typing import Any

import accuracy
import numpy as np
import tiny_tasks as tasks
from step import commit

import dllm_fast
from dllm_fast import _core
from dllm_fast.ceilings import cpu_name

HERE = pathlib.Path(__file__).parent
SHAPES = ((4096, 4096), (12288, 4096), (4096, 12288), (126464, 4096))
ROWS = (1, 4, 8, 16, 32, 64, 128)
METHODS = (None, "dllm-cache", "sparse-dllm", "dyllm")
KINDS = ("bfloat16", "int8")


# ---- trained models -------------------------------------------------------------------------------------------------------------


def answers(models: dict[str, Any], family: str, count: int, seeds: int) -> list[dict[str, Any]]:
    """Right answers of both, for every method."""
    rows = []
    for method in METHODS:
        setting = accuracy.Setting(method or "none", cache=method)
        right = {}
        for kind, model in models.items():
            right[kind], total = accuracy.summed(accuracy.measure(model, setting, accuracy.DEFAULT_RULE[family], count, seeds, 16))
        rows.append({"model": f"{family}-tiny", "method": method or "uncached", "count": total, "right": right})
    return rows


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def logits_error(models: dict[str, Any], family: str, count: int) -> dict[str, Any]:
    """Over every position of solved puzzles with half of the answer masked, as a step in the middle sees them."""
    rng, found = np.random.default_rng(7), {kind: [] for kind in models}
    for name in tasks.TASKS:
        if tasks.TASKS[name].free:
            continue
        prompts, wanted = tasks.puzzles(name, count, 7)
        wanted = np.where(rng.random(wanted.shape) < 0.5, models["int8"].config["mask_id"], wanted)
        for kind, model in models.items():
            logits = np.asarray(model.forward(np.concatenate([prompts, wanted], axis=1)), np.float64)
            found[kind].append(logits.reshape(-1, logits.shape[-1]))
    exact, other = (np.concatenate(found[kind]) for kind in KINDS)
    p, q = softmax(exact), softmax(other)
    return {
        "model": f"{family}-tiny",
        "positions": len(exact),
        "largest": float(np.abs(exact - other).max()),
        "typical": float(np.sqrt(np.square(exact - other).mean())),
        "of": float(np.sqrt(np.square(exact).mean())),
        "kl": float((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum(axis=-1).mean()),
        "same": float((exact.argmax(-1) == other.argmax(-1)).mean()),
    }


# ---- matrix products ------------------------------------------------------------------------------------------------------------


def race(shape: tuple[int, int], rows: int, threads: int, rounds: int) -> dict[str, Any]:
    """Fastest of several rounds, so that some meet a quiet machine."""
    n, k = shape
    laps = max(2, int(4e8 / (n * k)))
    runs = [_core.race(n, k, rows, laps, threads) for _ in range(rounds)]
    best = [min(seconds) for seconds in zip(*runs, strict=True)]
    print(f"{n} x {k}, {rows} rows: {best[0] * 1e3:.3f} ms, int8 {best[1] * 1e3:.3f} ms, {best[0] / best[1]:.2f} x", flush=True)
    return {"shape": f"{n} x {k}", "rows": rows, "seconds": dict(zip(KINDS, best, strict=True))}


# ---- showing --------------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(right: int, count: int) -> str:
    low, high = accuracy.wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def report(result: dict[str, Any]) -> str:
    right = [
        [r["model"], r["method"], *(percent(r["right"][kind], r["count"]) for kind in KINDS), str(r["count"])]
        for r in result["answers"]
    ]
    errors = [
        [e["model"], f"{e['largest']:.2f}", f"{e['typical']:.3f} of {e['of']:.2f}", f"{e['kl']:.1e}", f"{e['same']:.2%}"]
        for e in result["logits"]
    ]
    times = [
        [r["shape"], str(r["rows"]), *(f"{r['seconds'][kind] * 1e3:.3f}" for kind in KINDS),
         f"{r['seconds']['bfloat16'] / r['seconds']['int8']:.2f} x"]
        for r in result["products"]
    ]  # fmt: skip
    return "\n".join(
        [
            "# int8 weights: what they cost and gain",
            "",
            f"{result['date']}, commit {result['commit']}, {result['cpu']}, {result['backend']}, {result['threads']} threads.",
            "",
            "Right answers of the tiny trained models in per cent, all tasks, with 95 % Wilson intervals:",
            "",
            table(["model", "method", *KINDS, "puzzles"], right),
            "",
            "Logits against those of bfloat16 weights, on puzzles with half of the answer masked: largest difference, root mean",
            "square beside that of the logits, mean KL divergence, share of equal best tokens:",
            "",
            table(["model", "largest", "typical", "KL", "same token"], errors),
            "",
            "Matrix products, ms, the fastest of alternating runs on cold weights:",
            "",
            table(["weights", "rows", *KINDS, "int8 is faster"], times),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="puzzles a task and seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=dllm_fast.load().threads)
    parser.add_argument("--rounds", type=int, default=3, help="of races a shape")
    parser.add_argument("--rows", type=lambda text: tuple(map(int, text.split(","))), default=ROWS)
    parser.add_argument("--out", default=str(HERE / "results"))
    args = parser.parse_args()
    result: dict[str, Any] = {"cpu": cpu_name(), "commit": commit(), "date": datetime.date.today().isoformat()}
    result |= {"threads": args.threads, "backend": _core.cpu_levels()[-1], "answers": [], "logits": []}
    for family in ("llada", "dream"):
        folder = accuracy.DATA / f"{family}-tiny"
        models = {kind: dllm_fast.load(folder, weights="auto" if kind != "int8" else kind, threads=args.threads) for kind in KINDS}
        result["answers"] += answers(models, family, args.count, args.seeds)
        result["logits"].append(logits_error(models, family, args.count))
        print(result["logits"][-1], flush=True)
    result["products"] = [race(shape, rows, args.threads, args.rounds) for shape in SHAPES for rows in args.rows]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "int8.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "int8.md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
