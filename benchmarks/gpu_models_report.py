"""What gpu_models.py measured, for gpu_report.py: what was wanted beside what is, tables, a file of all numbers, a picture."""

import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

OURS, TORCH, METHODS = "dllm_fast", "torch", ("dllm-cache", "sparse-dllm", "dyllm")
Row = dict[str, Any]
Kernels = list[dict[str, str]]  # lines of gpu_kernels
PAPERS = (1024, 1)  # prompt and batch at which most is wanted
COLUMNS = (
    "prompt", "batch", "method", "who", "steps/s", "tokens/s", "torch, the same, takes x", "torch, uncached, takes x", "ms a step",
    "weight-read limit", "kernels", "launches", "waits", "host ms", "GB", "steps timed",
)  # fmt: skip
FIELDS = (
    "model", "prompt", "batch", "who", "method", "setting", "kind", "steps", "timed", "seconds", "kernels", "launches", "waits",
    "host_seconds", "product_flops", "ffn_rows", "answer_seconds", "tokens_per_second", "peak_bytes", "why",
)  # fmt: skip


class Models:
    """What was measured of one family. limits: of the device, bytes moved and operations a second; None: not known."""

    def __init__(self, path: pathlib.Path, limits: tuple[float | None, float | None]) -> None:
        lines = list(parsed(path))
        self.about: Row = next((x for x in lines if "about" in x), {})
        self.rows: list[Row] = [x for x in lines if "who" in x]
        self.bandwidth, self.peak = self.about.get("bandwidth") or limits[0], limits[1]

    def find(self, cell: tuple[int, int], who: str, method: str) -> Row | None:
        """The row of a contestant that came to an end."""
        found = (r for r in self.rows if (r["prompt"], r["batch"]) == cell and (r["who"], r["method"]) == (who, method))
        return next((r for r in found if r.get("seconds")), None)

    def cells(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys((r["prompt"], r["batch"]) for r in self.rows))

    def times(self, cell: tuple[int, int], method: str, other: str, by: str = TORCH) -> float | None:
        """How many times as long as our method somebody's other one takes for the same request."""
        mine, theirs = self.find(cell, OURS, method), self.find(cell, by, other)
        return theirs["seconds"] / mine["seconds"] if mine and theirs else None


def parsed(path: pathlib.Path) -> Iterator[Row]:
    """The whole lines of a file that may have been cut off."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            print(f"{path}: a line is cut off: {line[:40]}...", file=sys.stderr)


def common(row: Row) -> Row:
    """Of a row's kinds of steps the most frequent."""
    return max(row["kinds"].values(), key=lambda kind: kind["steps"])


# ---- wanted and measured ---------------------------------------------------------------------------------------------------------

Wish = tuple[str, float, float | None, str]  # what, how much at least, how much it is or None, the same in words


def acceptance(models: list[Models], kernels: Kernels) -> list[str]:
    lines = ["## Wanted and measured", "", "| model | wanted, at least | reached | measured |", "| --- | --- | --- | --- |"]
    for m in models:
        for what, least, value, told in wishes(m, kernels):
            verdict = "not measured" if value is None else "yes" if value >= least else "no"
            lines.append(f"| {m.about['model']} | {what} | {verdict} | {told if value is not None else ''} |")
    return [*lines, ""]


def wishes(m: Models, kernels: Kernels) -> Iterator[Wish]:
    if m.about["family"] == "llada":
        sparse = m.find(PAPERS, OURS, "sparse-dllm")
        rate = 1 / sparse["kinds"]["sparse"]["seconds"] if sparse else None
        yield "batch 1, 32 active rows (Sparse-dLLM, prompt 1024): 220 steps/s", 220, rate, f"{rate or 0:.1f} steps/s"
        yield of_products(m, kernels)
    for method in METHODS:
        for other, least, what in ((method, 2.5, "running the same"), ("uncached", 10.0, "uncached")):
            ratio = m.times(PAPERS, method, other)
            yield f"{method}, prompt 1024: {least:g} x as fast as torch {what}", least, ratio, f"{ratio or 0:.2f} x"
    yield of_caches(m)
    rates = {f"{r['method']}, prompt {r['prompt']}": 32 * r["answer"] / r["seconds"]
             for r in m.rows if r["batch"] == 32 and r["who"] == OURS and r.get("seconds")}  # fmt: skip
    best = max(rates, key=rates.__getitem__, default="")
    yield "batch 32: 5000 tokens/s", 5000, rates.get(best), f"{rates.get(best, 0):.0f} tokens/s ({best})"


def of_products(m: Models, kernels: Kernels) -> Wish:
    """Products alone, where gpu_kernels timed them; else their operations in the time of the whole step, more than theirs."""
    row, peak = m.find(PAPERS, OURS, "uncached"), m.peak
    step = row["kinds"]["uncached"] if row else None
    rates = {"alone": product_rate(kernels), "of the whole step's time": step["product_flops"] / step["seconds"] if step else None}
    shares = {name: 100 * rate / peak for name, rate in rates.items() if rate and peak}
    told = ", ".join(f"{share:.0f} % {name}" for name, share in shares.items())
    what = "uncached, 1280 rows: matrix products at 60 % of the tensor cores' data-sheet peak"
    return what, 60, next(iter(shares.values()), None), told


def product_rate(kernels: Kernels) -> float | None:
    """Operations a second of LLaDA-8B's products of 1280 rows, one after the other: q, k, v, o, gate, up and down."""
    seconds = operations = 0.0
    for shape, n in {"4096 x 4096": 4, "12288 x 4096": 2, "4096 x 12288": 1}.items():
        mine = [r for r in kernels if (r["kernel"], r["case"]) == ("linear", f"1280 rows by {shape}")]
        if not mine:
            return None
        best = min(mine, key=lambda r: float(r["seconds"]))
        seconds += n * float(best["seconds"])
        operations += n * float(best["operations"])
    return operations / seconds


def of_caches(m: Models) -> Wish:
    """The worst of all cached runs."""
    ratios = {(cell, method): m.times(cell, method, "uncached", OURS) for cell in m.cells() for method in METHODS}
    known = {where: ratio for where, ratio in ratios.items() if ratio}
    worst = min(known, key=known.__getitem__, default=None)
    if not worst:
        return "no cached run slower than uncached", 1, None, ""
    (prompt, batch), method = worst
    told = f"{known[worst]:.2f} x as fast at the least ({method}, prompt {prompt}, batch {batch}), of {len(known)}"
    return "no cached run slower than uncached", 1, known[worst], told


# ---- tables ----------------------------------------------------------------------------------------------------------------------


def tables(m: Models) -> list[str]:
    a, best = m.about, ""
    if m.bandwidth:
        source = "a large copy, read and written" if a["bandwidth"] else "our copy kernel, or the data sheet"
        best = f", in {1e3 * a['read_bytes'] / m.bandwidth:.2f} ms at {m.bandwidth / 1e12:.2f} TB/s ({source})"
    return [
        f"## {a['model']}: answer {a['answer']}, block {a['block']}, one token a step", "",
        f"Device {a['device']}; weights: {a['weights']}; torch: {a['torch'] or 'takes no part'}. "
        f"A step reads {a['read_bytes'] / 1e9:.2f} GB of weights{best}.{beside_torch(a)}", "",
        "ms a step, kernels, launches, waits and host time are medians of the most frequent kind of step; the weight-read limit is "
        "the least time that the weights need, of that step's. Which rows DyLLM recomputes follows from the numbers, here of "
        "random weights: see the rows beside its kinds of steps.", "",
        f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", *(line(m, row) for row in m.rows), "",
        *kind_lines(m), "",
    ]  # fmt: skip


def beside_torch(a: Row) -> str:
    """What torch's part in it says of device and engine."""
    rate, same = a.get("product_rate"), a.get("same_tokens")
    said = f" torch multiplies large bfloat16 matrices at {rate / 1e12:.0f} TFLOP/s." if rate else ""
    return said + (f" In an uncached step {same:.0%} of the masks get torch's token; near-ties turn either way." if same else "")


def line(m: Models, row: Row) -> str:
    shown = [row["prompt"], row["batch"], row["method"], row["who"]]
    if not row.get("seconds"):
        shown += [row["why"].replace("|", " "), *[""] * (len(COLUMNS) - 5)]
        return f"| {' | '.join(map(str, shown))} |"
    rate, kind, cell = row["answer"] / row["seconds"], common(row), (row["prompt"], row["batch"])
    ratios = [m.times(cell, row["method"], other) if row["who"] == OURS else None for other in (row["method"], "uncached")]
    shown += [
        f"{rate:.1f}",
        f"{row['batch'] * rate:.0f}",
        *(f"{x:.2f}" if x else "" for x in ratios),
        f"{1e3 * kind['seconds']:.2f}",
    ]
    shown.append(f"{100 * m.about['read_bytes'] / m.bandwidth / kind['seconds']:.0f} %" if m.bandwidth else "")
    ours = "launches" in kind
    shown += [f"{kind[key]:.0f}" for key in ("kernels", "launches", "waits")] if ours else [""] * 3
    shown.append(f"{1e3 * kind['host_seconds']:.2f}" if ours else "")
    shown += [f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "", row["timed_steps"]]
    return f"| {' | '.join(map(str, shown))} |"


def kind_lines(m: Models) -> list[str]:
    """Every kind of step at the first cell."""
    lines = ["| method | who | kind of step | of an answer | ms | kernels | launches | FFN rows a layer |", "| --- " * 8 + "|"]
    for row in m.rows:
        if (row["prompt"], row["batch"]) != m.cells()[0] or not row.get("seconds"):
            continue
        for name, k in row["kinds"].items():
            ours = (
                f"{k['kernels']:.0f} | {k['launches']:.0f} | {k['ffn_rows'] / m.about['layers']:.0f}" if "kernels" in k else "| |"
            )
            lines.append(f"| {row['method']} | {row['who']} | {name} | {k['steps']} | {1e3 * k['seconds']:.2f} | {ours} |")
    return lines


def write_kinds(models: list[Models], path: pathlib.Path) -> None:
    """A line for every kind of step of every contestant; without a kind: why there is none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        out.writeheader()
        for m in models:
            for row in m.rows:
                total = row.get("seconds")
                rate = row["batch"] * row["answer"] / total if total else None
                about = row | {"model": m.about["model"], "answer_seconds": total, "tokens_per_second": rate, "seconds": None}
                for kind, k in (row.get("kinds") or {"": {}}).items():
                    out.writerow(about | {"kind": kind} | k)


# ---- pictures --------------------------------------------------------------------------------------------------------------------


def figure_of(width: float, height: float) -> Any:
    """None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def draw(models: list[Models], path: pathlib.Path) -> None:
    """Tokens a second against the prompt's length: a picture for every model and batch."""
    places = [(m, batch) for m in models for batch in sorted({batch for _, batch in m.cells()})]
    if not places or not (figure := figure_of(4 * len(places), 3.6)):
        return
    for axes, (m, batch) in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for r in m.rows:
            if r["batch"] == batch and r.get("seconds"):
                lines.setdefault((r["who"], r["method"]), []).append((r["prompt"], batch * r["answer"] / r["seconds"]))
        for (who, method), points in lines.items():
            style, color = {OURS: "o-", TORCH: "s--"}.get(who, "^:"), f"C{('uncached', *METHODS).index(method)}"
            axes.plot(*zip(*sorted(points), strict=True), style, color=color, markersize=3, label=f"{who}, {method}")
        axes.set(xscale="log", yscale="log", xlabel="prompt", ylabel="tokens/s", title=f"{m.about['model']}, batch {batch}")
        if lines:
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=120)
