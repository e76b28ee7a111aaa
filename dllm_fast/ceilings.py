"""What this machine could do at best, measured once and remembered; and how near every stage of a step comes to it."""

import json
import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from . import _core
from .model import Model

# Stages by what they have in common, for tables that are short.
GROUPS = {
    "embed": ("embed",),
    "norm": ("norm",),
    "projections": ("q", "k", "v", "o"),
    "rope": ("rope",),
    "attention": ("attention",),
    "ffn": ("gate", "up", "swiglu", "down"),
    "cache": ("cache",),
    "head": ("head",),
    "predict": ("predict",),
    "rest": ("plan", "add", "decide"),
}
INSIDE = ("q", "k", "v", "o", "gate", "up", "down", "head", "attention")  # matrix products and attention


@dataclass(frozen=True)
class Ceilings:
    """bytes: read from memory, by all threads together; the others: operations of matrix products by dtype; all a second."""

    bytes: float
    float32: float
    bfloat16: float
    int8: float

    def floor(self, name: str, cost: Mapping[str, Any], dtype: str) -> float:
        """The seconds that a stage cannot undercut: its bytes at full bandwidth or its operations at the peak of dtype. Attention
        has no weights, and is never int8."""
        peak = "bfloat16" if (name, dtype) == ("attention", "int8") else dtype
        return max(cost["bytes"] / self.bytes, cost["flops"] / getattr(self, peak))

    def __str__(self) -> str:
        products = ", ".join(f"{getattr(self, dtype) / 1e9:.0f} GFLOP/s {dtype}" for dtype in ("float32", "bfloat16", "int8"))
        return f"{self.bytes / 1e9:.1f} GB/s read, {products}"


def cpu_name() -> str:
    """The processor, as it calls itself."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def store() -> pathlib.Path:
    """The file that remembers: $XDG_CACHE_HOME/dllm_fast/ceilings.json."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dllm_fast" / "ceilings.json"


def measure(backend: str, threads: int) -> Ceilings:
    """Measures the level of the CPU now, in some seconds, and remembers it if the cache folder can be written."""
    found = Ceilings(**_core.ceilings(f"cpu:{backend}", threads))
    path, known = store(), _known()
    known[_key(backend, threads)] = asdict(found) | {"date": time.strftime("%Y-%m-%d")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError:
        pass  # measured again next time
    return found


def ceilings(backend: str, threads: int) -> Ceilings:
    """What is remembered of this machine, level and number of threads, else measured now."""
    known = _known().get(_key(backend, threads), {})
    try:
        return Ceilings(*(float(known[field.name]) for field in fields(Ceilings)))
    except (KeyError, TypeError, ValueError):
        return measure(backend, threads)


def _key(backend: str, threads: int) -> str:
    return f"{platform.node()}, {cpu_name()}, {backend}, {threads} threads"


def _known() -> dict[str, Any]:
    try:
        found = json.loads(store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- how near a run comes -------------------------------------------------------------------------------------------------------


def product_dtype(model: Model) -> str:
    """What the products of the model are made in: int8 if its weights are, bfloat16 if both sides are, else float32."""
    if model.weights == "int8":
        return "int8"
    return "bfloat16" if model.dtype == model.config["dtype"] == "bfloat16" else "float32"


def floor(stages: Mapping[str, Mapping[str, Any]], best: Ceilings, dtype: str) -> float:
    """Seconds that a run's stages cannot undercut, one after the other."""
    return sum(best.floor(name, cost, dtype) for name, cost in stages.items())


def inside(stages: Mapping[str, Mapping[str, Any]]) -> float:
    """The share of a run's time that is spent inside matrix products and attention."""
    total = sum(cost["seconds"] for cost in stages.values())
    return sum(stages[name]["seconds"] for name in INSIDE) / total if total else 0.0


def grouped(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by GROUPS."""
    return {group: sum(stages[name]["seconds"] for name in names) for group, names in GROUPS.items()}


def table(stages: Mapping[str, Mapping[str, Any]], steps: int, best: Ceilings, dtype: str) -> str:
    """Markdown: of every stage its time, its rates, and which share of the time the machine's limits explain.

    The floor is that of memory: what a cache still holds may come faster, so that small models pass it.
    """
    total = sum(cost["seconds"] for cost in stages.values())
    lines = ["| stage | ms a step | of the time | GFLOP/s | GB/s | floor / time |", "|---|---|---|---|---|---|"]
    for name, cost in stages.items():
        lines.append(_line(name, cost, steps, total, best.floor(name, cost, dtype)))
    both = {key: sum(cost[key] for cost in stages.values()) for key in ("seconds", "flops", "bytes")}
    lines.append(_line("all", both, steps, total, floor(stages, best, dtype)))
    return "\n".join(lines)


def _line(name: str, cost: Mapping[str, Any], steps: int, total: float, least: float) -> str:
    seconds = cost["seconds"]
    if not seconds:
        return f"| {name} | 0 | | | | |"
    return (
        f"| {name} | {seconds / steps * 1e3:.3f} | {seconds / total:.1%} | {cost['flops'] / seconds / 1e9:.1f} "
        f"| {cost['bytes'] / seconds / 1e9:.1f} | {least / seconds:.0%} |"
    )


def profile(runs: Sequence[tuple[str, Mapping[str, Any]]], model: Model) -> str:
    """The table of every (name, stats), and which share of the step is inside matrix products and attention."""
    best, dtype = ceilings(model.backend, model.threads), product_dtype(model)
    parts = [f"ceilings ({model.backend}, {model.threads} threads): {best}"]
    for name, stats in runs:
        share = f"{inside(stats['stages']):.0%} of the step is inside matrix products and attention"
        parts.append(f"**{name}**: {share}\n\n{table(stats['stages'], stats['steps'], best, dtype)}")
    return "\n\n".join(parts)
