"""Whole models on a GPU: every caching method beside our uncached run and beside plain torch doing the same, in one run.

    python benchmarks/gpu_models.py --out FILE [--family llada|dream] [--device cuda:0] [--seconds 540]
    python benchmarks/gpu_models.py --out FILE --tiny --device cpu       all of it in seconds, on the shapes of the package's models

LLaDA-8B or Dream-7B at full size, random bfloat16 weights, answers 256 tokens in blocks of 32, one token a step, to prompts of
several lengths and in batches. torch makes the weights on the GPU and runs on them, and we borrow them. Where torch has no CUDA, or
with --without torch, it takes no part: a folder of random weights (16 GB, in the temporary directory) is written and loaded first.

A contestant runs for --patience seconds, or longer until every kind of its steps (dense, cached, ...) occurred; the time of the
answer is composed of its kinds (runs.py). torch's methods take one sequence, so they run at batch 1. What finds no time before
--seconds are over is named, not measured. A line of JSON a contestant goes to FILE as soon as it is known; gpu_report.py makes
tables of such files.
"""

import argparse
import collections
import copy
import dataclasses
import datetime
import gc
import importlib.util
import json
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from make_model import DREAM_7B, LLADA_8B, is_norm, make, shapes_of
from runs import OURS, SHAPES, Request, Runner, enough, kind_of, our_runner, papers_setting, typical
from step import commit, our_model, ours, timed, torch_contestants, torch_model

import dllm_fast
from dllm_fast.ceilings import INSIDE

METHODS = ("dllm-cache", "sparse-dllm", "dyllm")
TORCH, COMPILED = "torch", "torch.compile"
WARM_STEPS = 6  # of a run before the one that counts; all kernels are loaded after that
# The most telling first. The last is the heaviest, and comes after everything else.
CELLS = "1024x1,64x1,512x1,4096x1,1024x32,1024x8,64x32,512x32,64x8,512x8,4096x8,4096x32"
TINY = {"cells": "12x1,5x1,12x3", "answer": 16, "block": 8, "seconds": 120.0, "patience": 0.0, "large": 256}
FULL = {"cells": CELLS, "answer": 256, "block": 32, "seconds": 540.0, "patience": 3.0, "large": 8192}


@dataclasses.dataclass(frozen=True)
class Job:
    """One contestant at one prompt length and batch size."""

    prompt: int
    batch: int
    who: str
    method: str | None  # None: uncached


def jobs(args: argparse.Namespace, torch_runs: bool) -> list[Job]:
    """What there is to measure, in the order of importance."""
    found = []
    for n, (prompt, batch) in enumerate(args.cells):
        if torch_runs and args.compile != "none" and n == len(args.cells) - 1:
            found.append(Job(*args.cells[0], COMPILED, None))
        found += [Job(prompt, batch, OURS, m) for m in (None, *args.methods)]
        if torch_runs:
            found += [Job(prompt, batch, TORCH, m) for m in (None, *args.methods) if batch == 1 or not m]
    return found


# ---- models ----------------------------------------------------------------------------------------------------------------------


def torch_place(device: str) -> str:
    """torch's name of our device; "" where torch is missing or has no such device."""
    if not importlib.util.find_spec("torch"):
        return ""
    import torch

    if not device.startswith("cuda") or device.startswith("cuda-sim"):
        return "cpu"
    index = int((re.findall(r"\d+", device) or ["0"])[0])
    return f"cuda:{index}" if torch.cuda.is_available() and index < torch.cuda.device_count() else ""


def random_weights(family: str, config: dict[str, Any], place: str, seed: int = 0) -> dict[str, Any]:
    """torch's bfloat16 tensors of the official names, made where they lie; about as large as those of make_model.py."""
    import torch

    random = torch.Generator(place).manual_seed(seed)
    made = {name: torch.ones(shape, dtype=torch.bfloat16, device=place) for name, shape in shapes_of(family, config).items()}
    for name, w in made.items():
        if not is_norm(name):
            w.normal_(0, 0.014, generator=random)
    return made


class Field:
    """The model, ours and torch's, of the same weights where torch takes part."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.place = "" if "torch" in args.without else torch_place(args.device)
        folder = pathlib.Path(dllm_fast.__file__).parent / "data" / f"{args.family}-tiny"
        full = LLADA_8B if args.family == "llada" else DREAM_7B
        self.config = json.loads((folder / "config.json").read_text()) if args.tiny else full
        if self.place:
            weights = random_weights(args.family, self.config, self.place)
            self.weights, self.model = self.share(weights)
            self.rival, self.torch_model = torch_model(args.family, self.config, weights)
        else:
            layers = full.get("n_layers") or full["num_hidden_layers"]
            cache = pathlib.Path(args.cache or pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks")
            made = folder if args.tiny else make(cache / f"{args.family}-{layers}", args.family, layers)
            self.weights, self.model = "from a folder", dllm_fast.load(made, device=args.device)

    def share(self, weights: dict[str, Any]) -> tuple[str, dllm_fast.Model]:
        """(whose our weights are, our model of torch's)."""
        model = our_model(self.config, weights, self.args.device)
        borrowed = model.core.pointers()["embed"] == next(iter(weights.values())).data_ptr()
        return "torch's own" if borrowed else "copies of torch's", model

    def read_bytes(self) -> int:
        """Of the weights that every step reads: all but the embedding, of which it takes rows, unless it is the head, too."""
        c = self.model.config
        return self.model.nbytes - (0 if c["tied_head"] else 2 * c["vocab"] * c["dim"])

    def contestant(self, job: Job) -> Callable[[], Runner]:
        """Opens a fresh one."""
        args = argparse.Namespace(**vars(self.args) | {"prompt": job.prompt})
        cache = papers_setting(job.method, args.family) if job.method else None
        kind = kind_of(cache, args.block)
        request = Request(args, self.model.config["mask_id"], cache, job.batch)
        if job.who == OURS:
            return lambda: our_runner(self.model, request, kind)
        from rivals import plain, torch_runner

        model = compiled(self.torch_model, args.compile) if job.who == COMPILED else self.torch_model

        def fresh() -> Runner:
            mine = plain(cache, model, job.prompt, args.answer, args.block) if cache else model
            return torch_runner(job.who, self.rival, mine, self.rival.predict_all, request, kind, self.place)

        return fresh

    def clear(self) -> None:
        """What torch holds for later is memory that we cannot have."""
        gc.collect()
        if self.place.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.place)

    def torch_peak(self) -> int | None:
        """Bytes that torch's tensors took at most since clear(), the weights among them."""
        if not self.place.startswith("cuda"):
            return None
        import torch

        return int(torch.cuda.max_memory_allocated(self.place))

    def rates(self) -> dict[str, float | None]:
        """Bytes a second that a large copy reads and writes, and operations of torch's product of large matrices."""
        if not self.place:
            return {"bandwidth": None, "product_rate": None}
        import torch

        n, bfloat16 = self.args.large, {"dtype": torch.bfloat16, "device": self.place}
        a, b = torch.ones(n * n * 16, **bfloat16), torch.ones(n * n * 16, **bfloat16)
        x, y = torch.randn(n, n, **bfloat16), torch.randn(n, n, **bfloat16)

        def best(run: Callable[[], Any]) -> float:
            """Seconds of a call, at best."""

            def calls() -> None:
                for _ in range(4):
                    run()
                if self.place.startswith("cuda"):
                    torch.cuda.synchronize(self.place)

            calls()
            return min(timed(calls)[0] for _ in range(5)) / 4

        return {"bandwidth": 4 * len(a) / best(lambda: b.copy_(a)), "product_rate": 2 * n**3 / best(lambda: x @ y)}

    def agreement(self, prompt: int) -> float | None:
        """Of the masks of one uncached step, those that get the same token from torch; near-ties turn either way in bfloat16."""
        if not self.place:
            return None
        ids = np.random.default_rng(1).integers(0, self.model.config["mask_id"], prompt).astype(np.int32)
        mine = ours(self.model, ids, self.args.family).step()[1]
        official = torch_contestants(self.rival, self.torch_model, ids, self.args.family, self.place)[0].step()[1]
        return float((mine == official)[mine >= 0].mean())


def compiled(model: Any, backend: str) -> Any:
    """The same with its network, but for the head, compiled for one shape."""
    import torch

    stand_in = copy.copy(model)
    stand_in.hidden = torch.compile(model.hidden, backend=backend, dynamic=False)
    return stand_in


# ---- measuring -------------------------------------------------------------------------------------------------------------------


class Counts:
    """What a session of ours did in each kind of step; nothing is known of torch's."""

    def __init__(self, runner: Runner) -> None:
        self.session = runner.about if runner.name == OURS else None
        self.by_kind: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
        self.last = self.read()

    def read(self) -> dict[str, float]:
        if not self.session:
            return {}
        s = self.session.stats()
        products = sum(s["stages"][name]["flops"] for name in INSIDE if name != "attention")
        asked = {key: s[key] for key in ("kernels", "launches", "waits")} | {"host_seconds": s["seconds"] - s["waited"]}
        return asked | {"product_flops": products, "ffn_rows": s["rows_ffn"]}

    def step(self, kind: str) -> None:
        now = self.read()
        self.by_kind[kind].append({key: now[key] - self.last[key] for key in now})
        self.last = now

    def of(self, kind: str) -> dict[str, float]:
        """Medians of a step."""
        steps = self.by_kind[kind]
        return {key: statistics.median(s[key] for s in steps) for key in steps[0]} if steps else {}


def go(runner: Runner, steps: int, least: int, patience: float, deadline: float) -> Counts:
    """Runs the first steps: at least so many, and more while patience lasts, but none after the deadline."""
    counts, began = Counts(runner), time.monotonic()
    for i in range(steps):
        now = time.monotonic()
        if now > deadline or (i >= least and now - began > patience):
            break
        runner.run(i, pause=lambda: None)
        counts.step(runner.kind(i))
    return counts


def measure(field: Field, job: Job, deadline: float) -> dict[str, Any]:
    """One contestant: first a short run that nobody counts, then the one that counts."""
    args = field.args
    fresh = field.contestant(job)
    go(fresh(), min(WARM_STEPS, args.answer), 1, args.patience / 4, deadline)
    field.clear()
    runner = fresh()
    counts = go(runner, args.answer, enough(runner.kind, 2, args.answer), args.patience, deadline)
    return result(field, runner, counts)


def result(field: Field, runner: Runner, counts: Counts) -> dict[str, Any]:
    args, kinds = field.args, {}
    for kind, n in collections.Counter(map(runner.kind, range(args.answer))).items():
        seconds = runner.seconds[kind]
        kinds[kind] = {"steps": n, "timed": len(seconds), "seconds": typical(seconds, n) if seconds else None, **counts.of(kind)}
    missing = [kind for kind, k in kinds.items() if not k["timed"]]
    row = {"kinds": kinds, "timed_steps": runner.at, "seconds": None if missing else runner.total(args.answer)}
    if counts.session:
        s = counts.session.stats()
        row["peak_bytes"] = s["weight_bytes"] + s["cache_bytes"] + s["scratch_bytes"]
    else:
        row["peak_bytes"] = field.torch_peak()
    return row | ({"why": f"no time: {runner.at} of {args.answer} steps, none of them {missing[0]}"} if missing else {})


def attempt(field: Field, job: Job, deadline: float) -> dict[str, Any]:
    """measure(), or why there is nothing: no time, no memory, or a failure, which is nobody's to hide."""
    left = deadline - time.monotonic()
    if left < (field.args.seconds / 4 if job.who == COMPILED else 0):
        return {"why": "no time"}
    try:
        return measure(field, job, deadline)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"why": why, "failed": "out of memory" not in why.lower()}


def rows(field: Field, deadline: float) -> Iterator[dict[str, Any]]:
    """The line of every job; first the one that says what was measured on what."""
    args = field.args
    yield {
        "about": "models", "family": args.family, "model": "tiny" if args.tiny else SHAPES[args.family],
        "layers": field.model.config["layers"], "device": field.model.device, "weights": field.weights,
        "weight_bytes": field.model.nbytes, "read_bytes": field.read_bytes(), "answer": args.answer, "block": args.block,
        "torch": torch_version(field.place), "commit": commit(), "date": datetime.date.today().isoformat(),
        "same_tokens": field.agreement(args.cells[0][0]), **field.rates(),
    }  # fmt: skip
    for job in jobs(args, bool(field.place)):
        field.clear()
        about = dataclasses.asdict(job) | {"family": args.family, "method": job.method or "uncached"}
        about["setting"] = repr(papers_setting(job.method, args.family)) if job.method else ""
        yield about | {"answer": args.answer} | attempt(field, job, deadline)


def torch_version(place: str) -> str | None:
    if not place:
        return None
    import torch

    return f"{torch.__version__} on {place}"


def told(row: dict[str, Any]) -> str:
    """For whoever watches."""
    who = f"{row['family']}, prompt {row['prompt']}, batch {row['batch']}, {row['method']}, {row['who']}"
    if not row.get("seconds"):
        return f"{who}: {row['why']}"
    rate = row["answer"] / row["seconds"]
    return f"{who}: {rate:.1f} steps/s, {row['batch'] * rate:.0f} tokens/s ({row['timed_steps']} steps timed)"


# ---- the command line ------------------------------------------------------------------------------------------------------------


def cells(text: str) -> list[tuple[int, int]]:
    return [(int(prompt), int(batch)) for prompt, batch in (cell.split("x") for cell in text.split(","))]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, required=True, help="file that gets a line of JSON a contestant")
    p.add_argument("--family", choices=tuple(SHAPES), default="llada")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--tiny", action="store_true", help="small models and requests, to see that everything works")
    p.add_argument("--seconds", type=float, help="stop in time; default 540")
    p.add_argument("--patience", type=float, help="seconds that a contestant runs, or until all kinds of steps occurred; default 3")
    p.add_argument("--cells", type=cells, help=f"PROMPTxBATCH,...; default {CELLS}")
    p.add_argument("--answer", type=int, help="tokens, one a step; default 256")
    p.add_argument("--block", type=int, help="default 32")
    p.add_argument("--methods", type=lambda s: s.split(","), default=list(METHODS))
    p.add_argument("--compile", default="inductor", help="backend of torch.compile, at the first cell; none: without")
    p.add_argument("--without", type=lambda s: s.split(","), default=[], help="torch: measure ours alone")
    p.add_argument("--cache", help="where that folder is kept; default: the system's temporary directory")
    p.add_argument("--large", type=int, help="rows of the matrices by which torch measures the GPU; default 8192")
    args = p.parse_args(given)
    for name, value in (TINY if args.tiny else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, cells(value) if name == "cells" else value)
    return args


def main(given: Sequence[str] | None = None) -> int:
    """1 if a contestant of ours failed for another reason than memory or time."""
    args, began, failed = arguments(given), time.monotonic(), 0
    with open(args.out, "w", encoding="utf-8") as file:
        for row in rows(Field(args), began + args.seconds):
            file.write(json.dumps(row) + "\n")
            file.flush()
            if "who" in row:
                print(told(row), flush=True)
                failed += bool(row.get("failed")) and row["who"] == OURS
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
