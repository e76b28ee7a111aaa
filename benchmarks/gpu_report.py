"""The report of benchmarks/gpu.sh: which parts passed, how near kernels come to what the device can do, and whole models.

    python benchmarks/gpu_report.py RESULTS MACHINE COMMIT PARTS [MODELS ...]

RESULTS.csv, if it is there, has the lines of gpu_kernels; MODELS are files of gpu_models.py. RESULTS.md is written, and of models
RESULTS-models.csv with a line for every kind of step; with matplotlib also RESULTS.png and RESULTS-models.png. A line that a
stopped program left half written is passed over.
"""

import csv
import datetime
import pathlib
import sys

from gpu_models_report import Models, acceptance, draw, figure_of, tables, write_kinds

PEAKS = {  # bytes/s of memory and bfloat16 operations/s of dense products, as NVIDIA's data sheets say; the first name that fits
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-80GB": (2.04e12, 312e12),
    "A100": (1.56e12, 312e12),
    "B200": (8.0e12, 2250e12),
}
NUMBERS = ("seconds", "bytes", "operations")


# ---- kernels ---------------------------------------------------------------------------------------------------------------------


def kernel_rows(path: pathlib.Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return [r for r in rows if all(r[key] for key in NUMBERS)]


def share(row: dict[str, str], peaks: tuple[float, float] | None) -> str:
    """Of the limit that binds: the time that bytes or operations need at best, beside the time taken."""
    if not peaks:
        return ""
    memory, arithmetic = float(row["bytes"]) / peaks[0], float(row["operations"]) / peaks[1]
    which = "memory" if memory > arithmetic else "tensor cores"
    return f"{100 * max(memory, arithmetic) / float(row['seconds']):.0f} % of {which}"


def table(rows: list[dict[str, str]], peaks: tuple[float, float] | None) -> list[str]:
    lines = ["| device | kernel | case | us | GB/s | TFLOP/s | share of the limit |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        s = float(r["seconds"])
        speed = f"{float(r['bytes']) / s / 1e9:.0f} | {float(r['operations']) / s / 1e12:.1f}"
        lines.append(f"| {r['device']} | {r['kernel']} | {r['case']} | {1e6 * s:.1f} | {speed} | {share(r, peaks)} |")
    return lines


def break_even(rows: list[dict[str, str]]) -> list[str]:
    """Where the library overtakes our own products: its least number of rows that is faster, per shape of weights."""
    times: dict[str, dict[int, dict[bool, float]]] = {}
    for r in rows:
        if r["kernel"] == "linear":
            n, shape = r["case"].split(" rows by ")
            times.setdefault(shape, {}).setdefault(int(n), {})[r["device"].endswith(":own")] = float(r["seconds"])
    lines = []
    for shape, by_rows in times.items():
        both = {n: t[True] / t[False] for n, t in sorted(by_rows.items()) if len(t) == 2 and n >= 128}
        if both:
            lines.append(f"* {shape}: " + ", ".join(f"{n} rows: cuBLAS {ratio:.2f} x as fast" for n, ratio in both.items()))
    return lines


def copy_rate(rows: list[dict[str, str]]) -> float | None:
    """Bytes a second of our own copy within the memory, where it was measured."""
    return max((float(r["bytes"]) / float(r["seconds"]) for r in rows if r["kernel"] == "copy"), default=None)


# ---- pictures --------------------------------------------------------------------------------------------------------------------


def picture(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    if not (figure := figure_of(8, 5)):
        return
    axes = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = {}
    for r in rows:
        if r["kernel"] == "linear":
            n, shape = r["case"].split(" rows by ")
            lines.setdefault(f"{shape}, {r['device']}", []).append((int(n), 1e6 * float(r["seconds"])))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="us a product", title="matrix products, bfloat16")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


# ---- the report ------------------------------------------------------------------------------------------------------------------


def main(results: str, machine: str, commit: str, parts: str, *files: str) -> None:
    path = pathlib.Path(results)
    rows = kernel_rows(path.with_name(path.name + ".csv"))
    peaks = next((p for name, p in PEAKS.items() if all(word in machine for word in name.split())), None)
    best = (copy_rate(rows) or (peaks[0] if peaks else None), peaks[1] if peaks else None)
    models = [m for m in (Models(pathlib.Path(file), best) for file in files) if m.rows]
    lines = [f"# {machine}", "", f"Commit {commit}, {datetime.date.today()}; `bash benchmarks/gpu.sh`.", ""]
    lines += ["| part | verdict | seconds | last line |", "| --- | --- | --- | --- |", pathlib.Path(parts).read_text().rstrip()]
    if models:
        lines += ["", *acceptance(models, rows), *(line for m in models for line in tables(m))]
        write_kinds(models, path.with_name(path.name + "-models.csv"))
        draw(models, path.with_name(path.name + "-models.png"))
    if rows:
        limits = f"{peaks[0] / 1e12:.2f} TB/s and {peaks[1] / 1e12:.0f} TFLOP/s by its data sheet" if peaks else "unknown"
        lines += ["", "## Kernels", "", f"Limits of this device: {limits}.", "", *table(rows, peaks), "", *break_even(rows)]
        picture(rows, path.with_name(path.name + ".png"))
    path.with_name(path.name + ".md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
