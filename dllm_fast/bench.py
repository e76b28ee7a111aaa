"""`dllm-fast bench`: every caching method against the uncached run of the same model, prompt and schedule."""

import json
import pathlib
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import __version__
from .caches import as_cache
from .ceilings import cpu_name
from .generate import generate
from .model import Model


@dataclass
class Row:
    """One method. Ratios are to the uncached run; agreement is the share of the answer's tokens that are the same; stats: all that
    was counted, stage by stage."""

    cache: str
    seconds: float
    tokens_per_second: float
    speed_up: float
    flops_ratio: float
    cache_mb: float
    peak_mb: float
    agreement: float
    stats: dict[str, Any]


def run(model: Model, prompt: np.ndarray, caches: Sequence[str], repeats: int = 3, **options: Any) -> list[Row]:
    """Times every method, in alternation, `repeats` times; keeps each one's fastest run."""
    names = ["uncached", *caches]
    settings = [None, *(as_cache(c, model.config["family"]) for c in caches)]
    best: list[Any] = [None] * len(names)
    for _ in range(repeats):
        for i, cache in enumerate(settings):
            start = time.perf_counter()
            out = generate(model, prompt, cache=cache, return_dict=True, **options)
            seconds = time.perf_counter() - start
            if best[i] is None or seconds < best[i][0]:
                best[i] = (seconds, out)
    return [_row(name, *mine, *best[0]) for name, mine in zip(names, best, strict=True)]


def _row(name: str, seconds: float, out: Any, uncached_seconds: float, uncached: Any) -> Row:
    s, answer = out.stats, slice(-uncached.stats["tokens"], None)
    same = np.asarray(out.sequences)[..., answer] == np.asarray(uncached.sequences)[..., answer]
    return Row(
        cache=name,
        seconds=seconds,
        tokens_per_second=s["tokens"] / seconds,
        speed_up=uncached_seconds / seconds,
        flops_ratio=uncached.stats["flops"] / s["flops"],
        cache_mb=s["cache_bytes"] / 1e6,
        peak_mb=s["peak_bytes"] / 1e6,
        agreement=float(same.mean()),
        stats=s,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["| | tokens/s | speed-up | fewer operations | cache MB | peak MB | same tokens |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.cache} | {r.tokens_per_second:.1f} | {r.speed_up:.2f} x | {r.flops_ratio:.2f} x | {r.cache_mb:.2f} "
            f"| {r.peak_mb:.1f} | {r.agreement:.0%} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What a result file says of where it was made."""
    return {"cpu": cpu_name(), "python": platform.python_version(), "dllm_fast": __version__, "date": time.strftime("%Y-%m-%d")}


def write(rows: Sequence[Row], about: str, path: pathlib.Path, more: str = "") -> None:
    """Markdown, with what else there is to say, and JSON beside each other, and a PNG if matplotlib is there."""
    where = machine()
    heading = f"{about}\n\n{where['cpu']}, {where['date']}\n\n"
    path.with_suffix(".md").write_text(heading + markdown(rows) + f"\n{more}", encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"about": about, **where, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    at = np.arange(len(rows))
    axes.barh(at - 0.2, [r.flops_ratio for r in rows], 0.4, label="fewer operations", color="#b8c4d6")
    axes.barh(at + 0.2, [r.speed_up for r in rows], 0.4, label="speed-up", color="#3b6ea5")
    axes.set_yticks(at, [r.cache for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times the uncached run")
    axes.set_title(about, fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
