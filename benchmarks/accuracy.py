"""How right the answers stay, and what they cost, with every caching method and setting: python benchmarks/accuracy.py

Runs the tiny trained models of the package on the puzzles of tiny_tasks.py, in ragged batches through the public functions. For
every setting: the share of answers that are right, task by task and in all, with 95 % Wilson intervals over all puzzles and seeds,
and multiply-adds (two each) and passes. Puzzles with many right answers are drawn at temperature 1 and checked against themselves.
Dream's own schedule may write a block's first row late, and that row leans on a state that Sparse-dLLM leaves stale: Dream is
decoded by Sparse-dLLM's own rule, which writes it first, with some rows by the official schedule to compare.
Writes benchmarks/results/accuracy-FAMILY.md, .json and, if matplotlib is there, .png.
"""

import argparse
import datetime
import json
import math
import pathlib
import platform
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tiny_tasks as tasks

import dllm_fast
from dllm_fast.caches import DLLMCache, DyLLM, SparseDLLM

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(dllm_fast.__file__).parent / "data"
RULES = {"official": None, "sparse-dllm": "sparse-dllm", "dyllm": "dyllm"}
DEFAULT_RULE = {"llada": "official", "dream": "sparse-dllm"}


@dataclass(frozen=True)
class Setting:
    """A row of the table: a method with its options, and how the answer is written."""

    method: str
    options: str = ""
    cache: Any = None
    each: int = 1  # tokens a step
    decoding: dict[str, Any] = field(default_factory=dict)  # more options of the generating function

    @property
    def label(self) -> str:
        return f"{self.method} {self.options}".strip()


def settings(family: str, rule: str) -> list[Setting]:
    """Every method over a range of what it lets one choose, at one token a step; then several a step, then with a threshold."""
    none = [Setting("none")]
    dllm = [
        Setting("dllm-cache", f"{p}/{a}/{share:g}", DLLMCache(p, a, share))
        for p, a, share in ((8, 2, 0.25), (16, 4, 0.25), (50, 7, 0.5), (50, 7, 0.25), (50, 7, 0.0), (50, 50, 0.25), (50, 50, 0.0))
    ]
    sparse = [Setting("sparse-dllm", f"{share:g}/3", SparseDLLM(share, 3)) for share in (1.0, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0)]
    several = [
        Setting(name, f"{tag}{each} a step", cache, each) for each in (2, 4, 8) for name, tag, cache in representatives(family)
    ]
    sure = [Setting(name, f"{tag}threshold 0.9", cache, 1, {"threshold": 0.9}) for name, tag, cache in representatives(family)]
    rows = none + dllm + sparse + dyllm_settings(family) + several + sure
    if rule == "dyllm":  # one open block, which Sparse-dLLM cannot have
        return [setting for setting in rows if setting.method != "sparse-dllm"]
    if family == "dream" and rule != "official":
        kinds = [*representatives(family), ("sparse-dllm", "1/3 ", SparseDLLM(1.0, 3))]
        rows += [Setting(name, f"{tag}official schedule", cache, 1, {"rule": None}) for name, tag, cache in kinds]
    return rows


def dyllm_settings(family: str) -> list[Setting]:
    """Thresholds; then what the default gains by full steps now and then, and by the two options the paper does not have."""
    default = DyLLM.default(family)
    taus = (0.9999, 0.999, default.tau, 0.98, 0.95, 0.9, 0.7, 0.0)
    refreshed = [Setting("dyllm", f"{default.tau:g} refresh {n}", replace(default, refresh_interval=n)) for n in (4, 8)]
    kept = [Setting("dyllm", f"{default.tau:g} keep_seed", replace(default, keep_seed=True))]
    both = [Setting("dyllm", f"{tau:g} keep_seed seed_all", careful(tau)) for tau in (default.tau, 0.95, 0.9)]
    return [Setting("dyllm", f"{tau:g}", DyLLM(tau)) for tau in taus] + refreshed + kept + both


def careful(tau: float) -> DyLLM:
    return DyLLM(tau, keep_seed=True, seed_all=True)


def representatives(family: str) -> list[tuple[str, str, Any]]:
    """(method, words, cache): the uncached run, every method at its default, and DyLLM with its two options."""
    defaults = [(kind.name, "", kind.default(family)) for kind in (DLLMCache, SparseDLLM, DyLLM)]
    return [("none", "", None), *defaults, ("dyllm", "keep_seed seed_all ", careful(DyLLM.default(family).tau))]


# ---- running --------------------------------------------------------------------------------------------------------------------


def answer(model: Any, prompts: list[np.ndarray], setting: Setting, rule: str, block: int, free: bool, seed: int) -> Any:
    """(answers [n, ANSWER], stats) of one ragged batch."""
    steps = tasks.ANSWER // setting.each
    options = {"steps": steps, "block_length": block, "temperature": float(free), "seed": seed, "cache": setting.cache}
    options["rule"] = RULES[rule]
    if model.config["family"] == "llada":
        out = model.generate(prompts, gen_length=tasks.ANSWER, return_dict=True, **(options | setting.decoding))
    else:
        options |= {"alg": "entropy", "return_dict_in_generate": True}
        out = model.diffusion_generate(prompts, max_new_tokens=tasks.ANSWER, **(options | setting.decoding))
    return np.stack([np.asarray(row)[-tasks.ANSWER :] for row in out.sequences]), out.stats


def measure(model: Any, setting: Setting, rule: str, count: int, seeds: int, block: int) -> dict:
    """A row of the table: right answers by task, and the mean cost of a sequence."""
    row = {"label": setting.label, "method": setting.method, "right": dict.fromkeys(tasks.TASKS, 0), "count": count * seeds}
    cost = dict.fromkeys(("flops", "flops_uncached", "forwards", "seconds"), 0.0)
    for seed in range(seeds):
        for free in (False, True):
            names = [name for name, task in tasks.TASKS.items() if task.free == free]
            sets = {name: tasks.puzzles(name, count, 1000 + seed) for name in names}
            prompts = [prompt.astype(np.int32) for name in names for prompt in sets[name][0]]
            start = time.perf_counter()
            answers, stats = answer(model, prompts, setting, rule, block, free, seed)
            cost["seconds"] += time.perf_counter() - start
            for key in ("flops", "flops_uncached"):
                cost[key] += stats[key]
            cost["forwards"] += stats["forwards"] * len(names) * count
            for name, part in zip(names, np.split(answers, len(names)), strict=True):
                row["right"][name] += int(tasks.right(name, part, sets[name][1]).sum())
    total = len(tasks.TASKS) * count * seeds
    return row | {key: value / total for key, value in cost.items()}


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, right / count
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)


# ---- showing --------------------------------------------------------------------------------------------------------------------


def summed(row: dict) -> tuple[int, int]:
    return sum(row["right"].values()), row["count"] * len(row["right"])


def table(rows: list[dict], facts: dict) -> str:
    """Markdown."""
    head = ["setting", *tasks.TASKS, "all", "MFLOP a sequence", "of the same uncached", "passes", "ms a sequence"]
    lines = [
        f"# Accuracy and cost: the tiny {facts['family']} model",
        "",
        f"{facts['count']} puzzles a task ({facts['seeds']} seeds), {tasks.ANSWER} tokens in blocks of {facts['block']}, one token",
        f"a step unless it says otherwise, decoding rule: {facts['rule']}. Right answers in per cent with 95 % Wilson intervals.",
        f"{facts['when']}, {facts['machine']}.",
        "",
        "dllm-cache: prompt interval / answer interval / share; sparse-dllm: share kept / pool; dyllm: tau; refresh: its",
        "refresh_interval.",
        "Options that are not named are the method's default for the family.",
        "",
        *("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)])),
    ]
    for row in rows:
        right, count = summed(row)
        cells = [_percent(n, row["count"]) for n in row["right"].values()] + [_percent(right, count)]
        ratio = row["flops"] / row["flops_uncached"]
        cells += [f"{row['flops'] / 1e6:.1f}", f"{ratio:.3f}", f"{row['forwards']:.1f}", f"{1e3 * row['seconds']:.2f}"]
        lines.append("| " + " | ".join([row["label"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def _percent(right: int, count: int) -> str:
    low, high = wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def plot(rows: list[dict], facts: dict, path: pathlib.Path) -> bool:
    """Accuracy over cost; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["flops"])
        shares = [summed(row)[0] / summed(row)[1] for row in own]
        ends = [wilson(*summed(row)) for row in own]
        errors = np.array([(share - low, high - share) for share, (low, high) in zip(shares, ends, strict=True)]).clip(0).T
        costs = [row["flops"] / 1e6 for row in own]
        axes.errorbar(costs, 100 * np.array(shares), 100 * errors, fmt="o", ms=4, label=method)
    axes.set(xlabel="MFLOP a sequence", ylabel="right answers, %", title=f"tiny {facts['family']}, all tasks", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and cost of every caching method on the tiny models.")
    parser.add_argument("--family", choices=("llada", "dream", "both"), default="both")
    parser.add_argument("--model", help="another checkpoint folder that knows the puzzles; with one family")
    parser.add_argument("--count", type=int, default=64, help="puzzles a task and seed")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--block", type=int, default=16, help="block length")
    parser.add_argument("--rule", choices=RULES, help="decoding rule; default: official for llada, sparse-dllm for dream")
    parser.add_argument("--only", default="", help="only methods whose name starts so")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", default=str(HERE / "results"))
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for family in ("llada", "dream") if args.family == "both" else (args.family,):
        model = dllm_fast.load(args.model or DATA / f"{family}-tiny", threads=args.threads)
        rule = args.rule or DEFAULT_RULE[family]
        machine = f"{platform.machine()}, {model.backend}, {model.dtype}, {model.threads} threads"
        facts = {"family": family, "count": args.count * args.seeds, "seeds": args.seeds, "block": args.block, "machine": machine}
        facts |= {"when": datetime.date.today().isoformat(), "version": dllm_fast.__version__, "rule": rule}
        rows = []
        for setting in settings(family, rule):
            if setting.method.startswith(args.only):
                rows.append(measure(model, setting, rule, args.count, args.seeds, args.block))
                right, count = summed(rows[-1])
                print(f"{family} {rows[-1]['label']}: {_percent(right, count)} at {rows[-1]['flops'] / 1e6:.1f} MFLOP", flush=True)
        text = table(rows, facts)
        (out / f"accuracy-{family}.md").write_text(text, encoding="utf-8")
        (out / f"accuracy-{family}.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        drawn = plot(rows, facts, out / f"accuracy-{family}.png")
        print(text + ("" if drawn else "\nno plot: matplotlib is not installed"))


if __name__ == "__main__":
    main()
