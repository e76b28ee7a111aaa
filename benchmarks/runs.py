"""One generation, step by step: what rivals.py and gpu_models.py share. Without torch, which not every machine with a GPU has.

A generation is not run to its end unless there is time: its steps are of a few kinds (dense, cached, refresh, ...), as many of each
as the schedule says, and the median of those timed stands for all of a kind.
"""

import argparse
import collections
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from step import timed

import dllm_fast
from dllm_fast import _core

OURS = "dllm_fast"
SHAPES = {"llada": "LLaDA-8B", "dream": "Dream-7B"}


def rest() -> None:
    """OpenMP's threads stay awake for a while after a call of torch, on the cores that the next contestant needs."""
    time.sleep(0.03)


class Runner:
    """A contestant: step(True) computes a step and returns its seconds, step(False) reveals something without computing."""

    def __init__(self, name: str, kind: Callable[[int], str], step: Callable[[bool], float], about: Any = None) -> None:
        self.name, self.kind, self.about, self._step = name, kind, about, step
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.at = 0

    def run(self, to: int, pause: Callable[[], None] = rest) -> None:
        """Computes and times step `to`, after a pause; those before it are passed over."""
        while self.at < to:
            self._step(False)
            self.at += 1
        pause()
        self.seconds[self.kind(to)].append(self._step(True))
        self.at += 1

    def total(self, steps: int) -> float:
        """Seconds of the whole schedule, from those of its kinds of steps."""
        counts = collections.Counter(map(self.kind, range(steps)))
        return sum(n * typical(self.seconds[kind], n) for kind, n in counts.items())


def typical(seconds: list[float], count: int) -> float:
    """Of a kind of which there are so many: the mean if all were timed, else the median, which a disturbed step does not move."""
    return statistics.mean(seconds) if len(seconds) == count else statistics.median(seconds)


class Request:
    """What all contestants are asked: prompts of one length, one token a step."""

    def __init__(self, args: argparse.Namespace, mask_id: int, cache: Any = None, batch: int = 1) -> None:
        self.family, self.answer, self.block, self.cache = args.family, args.answer, args.block, cache
        self.prompts = np.random.default_rng(0).integers(0, mask_id, (batch, args.prompt)).astype(np.int32)

    @property
    def blocks(self) -> int | None:
        """Without a cache Dream's answer is one block, as the official loop has it; the methods' own codes cut it."""
        return self.block if self.cache or self.family == "llada" else None

    def for_core(self) -> dict[str, Any]:
        params = {"answer_len": self.answer, "steps": self.answer, "temperature": 0.0, "block_len": self.blocks or 0}
        params |= self.cache.params() if self.cache else {}
        if self.family == "llada":
            return params | {"rule": "quota", "score": "prob", "gumbel": True}
        return params | {"rule": "times", "score": "entropy", "gumbel": False}

    def for_torch(self) -> dict[str, Any]:
        length = "gen_length" if self.family == "llada" else "max_new_tokens"
        return {"steps": self.answer, length: self.answer, "block_length": self.blocks}


def our_runner(model: Any, request: Request, kind: Callable[[int], str]) -> Runner:
    session = _core.Session(model.core, request.for_core(), list(request.prompts))

    @functools.cache
    def alike() -> np.ndarray:
        """Logits that are all equal: the first masks get token 0."""
        return np.zeros((session.rows, model.config["vocab"]), np.float32)

    def step(computed: bool) -> float:
        return timed(session.step if computed else lambda: session.decide(alike()))[0]

    return Runner(OURS, kind, step, session)


# ---- kinds of steps --------------------------------------------------------------------------------------------------------------


def uncached(step: int) -> str:
    return "uncached"


def dllm_cache_kind(step: int, prompt_interval: int, answer_interval: int) -> str:
    prompt, answer = (step % n == 0 for n in (prompt_interval, answer_interval))
    return {(1, 1): "all", (0, 1): "answer", (1, 0): "prompt", (0, 0): "part of the answer"}[prompt, answer]


def sparse_dllm_kind(step: int, block_steps: int) -> str:
    return {0: "dense", 1: "dense, selecting"}.get(step % block_steps, "sparse")


def dyllm_kind(step: int, full_steps: int, whole_interval: int) -> str:
    number = step + 1
    if number <= max(1, full_steps):
        return "full"
    return "answer" if number > 4 and number % whole_interval else "whole"


def kind_of(cache: Any, block_steps: int) -> Callable[[int], str]:
    """What a method, given as dllm_fast's object, does in a step."""
    if cache is None:
        return uncached
    return {
        "dllm-cache": lambda step: dllm_cache_kind(step, cache.prompt_interval_steps, cache.gen_interval_steps),
        "sparse-dllm": lambda step: sparse_dllm_kind(step, block_steps),
        "dyllm": lambda step: dyllm_kind(step, cache.full_steps, cache.whole_interval),
    }[cache.name]


def enough(kind: Callable[[int], str], least: int, steps: int) -> int:
    """The first steps of a schedule, at least so many, in which every kind of step occurs."""
    kinds: Sequence[str] = [kind(i) for i in range(steps)]
    return max(min(least, steps), *(kinds.index(k) + 1 for k in kinds))


def papers_setting(method: str, family: str) -> Any:
    """The method's default for the family; who speaks for a window's first row on Dream is as in the methods' own code."""
    default = dllm_fast.caches.CACHES[method].default(family)
    shift = {"sparse-dllm": {"shift": "own"}, "dyllm": {"shift": "flat"}}.get(method, {})
    return type(default)(**(vars(default) | shift))
