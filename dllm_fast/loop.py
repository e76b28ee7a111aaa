"""The one denoising loop: LLaDA's and Dream's ways of generating, streams, callbacks and hooks all walk through `Run.steps`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core, live
from .inputs import Batch
from .model import Model
from .noise import recorded, seeds


class Step:
    """What one step did. Everything is in the shape and framework of the prompts.

    index: 0, 1, ...   sequences: the ids after the step, prompts and pads included.
    """

    def __init__(self, run: "Run", index: int) -> None:
        session = run.session
        self.index = index
        self._batch, self._mask_id = run.batch, run.mask_id
        self._ids, self._revealed, self._candidates = session.tokens(), session.revealed(), session.candidates()
        self._watched = session.watched() if run.watching else None
        self._layers = run.model.config["layers"]

    @property
    def sequences(self) -> Any:
        return self._batch.sequences(self._ids)

    @property
    def committed(self) -> list[np.ndarray]:
        """The columns revealed by this step, one array a sequence, surest first."""
        return self._batch.by_sequence(self._revealed)

    @property
    def masked(self) -> Any:
        """True where a mask is left."""
        return self._batch.give(self._batch.place(self._ids == self._mask_id, False))

    @property
    def tokens(self) -> Any:
        """What the model would write at every candidate; -1 elsewhere."""
        rows, tokens, _, _ = self._candidates
        return self._spread(rows, tokens, np.int64, -1)

    @property
    def confidence(self) -> Any:
        """The score of every candidate, by which the step chose; NaN elsewhere."""
        rows, _, scores, _ = self._candidates
        return self._spread(rows, scores, np.float32, np.nan)

    @property
    def mode(self) -> np.ndarray:
        """What the caching method did, [layers, sequences]; -1: nothing. Without a cache [0, sequences].

        dLLM-Cache: 0 refreshed all, 1 kept the prompt, 2 updated the answer in part, 3 both.
        DyLLM: 1 a whole partial step, 2 one of the answer alone.
        """
        return self._work(0, np.zeros((0, len(self._batch)), np.int8))

    @property
    def chosen(self) -> list[list[np.ndarray]]:
        """chosen[layer][sequence]: columns that the method recomputed (dLLM-Cache), kept (Sparse-dLLM) or found salient (DyLLM)."""
        marks = self._work(1, np.zeros((0, len(self._ids)), bool))
        return [self._batch.by_sequence(np.flatnonzero(m)) for m in marks]

    @property
    def decided_by(self) -> list[Any]:
        """decided_by[layer]: the similarity or importance of every position that the method looked at; NaN elsewhere."""
        seen = self._work(2, np.zeros((0, len(self._ids)), np.float32))
        return [self._batch.give(self._batch.place(v, np.nan)) for v in seen]

    @property
    def unconditional(self) -> "Step":
        """The same step as guidance's pass without the condition saw it: its mode, chosen and decided_by."""
        other = object.__new__(Step)
        other.__dict__ |= self.__dict__
        if self._watched is not None:
            other._watched = tuple(w[self._layers :] for w in self._watched)
        return other

    def _work(self, which: int, nothing: np.ndarray) -> np.ndarray:
        return nothing if self._watched is None else self._watched[which][: self._layers]

    def _spread(self, rows: np.ndarray, values: np.ndarray, dtype: Any, empty: Any) -> Any:
        packed = np.full(len(self._ids), empty, dtype)
        packed[rows] = values
        return self._batch.give(self._batch.place(packed, empty))


@dataclass
class GenerateOutput:
    """What a run gave. Also unpacks as (sequences, nfe), nfe being the number of steps.

    history[i]: the sequences after step i, or None if it was not asked for. stats: forwards, tokens, seconds, ...;
    stats["stages"]: of every stage of a step ("q", "attention", "head", ...) its seconds, flops and bytes.
    """

    sequences: Any
    history: list[Any] | None
    stats: dict[str, Any]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.sequences, self.stats["steps"]))

    def __getitem__(self, i: int) -> Any:
        return (self.sequences, self.stats["steps"])[i]


class Run:
    """One request: a session of the core, and the way from its packed rows back to the caller's sequences.

    watch: somebody will look at what the caching method does, so the last layer runs for rows that nobody asks, too.
    tokens_hook(index, sequences, logits) and logits_hook(index, sequences, logits) are Dream's two hook functions.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        params: Mapping[str, Any],
        *,
        seed: Any = None,
        noise: Any = None,
        watch: bool,
        tokens_hook: Callable[..., Any] | None = None,
        logits_hook: Callable[..., Any] | None = None,
    ) -> None:
        self.model, self.batch, self.mask_id, self.total = model, batch, params["mask_id"], params["steps"]
        self.tokens_hook, self.logits_hook = tokens_hook, logits_hook
        cached = params.get("strategy") is not None
        self.watching = watch and cached
        if cached and (tokens_hook or logits_hook):
            raise ValueError("hooks see the logits of all positions, which a cached step does not compute: use cache=None")
        self.session = _core.Session(
            model.core,
            {**params, "watch": self.watching},
            batch.prompts,
            positions=batch.answer_positions(model.config["family"]),
            seeds=seeds(seed, len(batch)),
            noise=recorded(noise, batch),
        )

    def steps(self) -> Iterator[Step]:
        """Runs to the end, one step at a time."""
        if self.tokens_hook:
            self._keep(self.tokens_hook(None, self.sequences(), None))
        hooked = self.tokens_hook or self.logits_hook
        index, unfinished = 0, 1
        while unfinished:
            unfinished = self._hooked_step(index) if hooked else self.session.step()
            yield Step(self, index)
            index += 1

    def _hooked_step(self, index: int) -> int:
        """A step on the logits of every position, which hooks may look at and change."""
        logits = self.batch.logits(self.session, shifted=True)
        if self.logits_hook:
            logits = self.logits_hook(index, self.sequences(), logits)
        unfinished = self.session.decide(self.batch.packed_logits(self.session, logits))
        if self.tokens_hook:
            self._keep(self.tokens_hook(index, self.sequences(), logits))
        return unfinished

    def _keep(self, sequences: Any) -> None:
        self.session.set_tokens(self.batch.replace(sequences, self.model.config["vocab"]))

    def sequences(self) -> Any:
        """The ids as they stand."""
        return self.batch.sequences(self.session.tokens())

    def stats(self) -> dict[str, Any]:
        """What the run cost so far."""
        s: dict[str, Any] = dict(self.session.stats())
        s["rows"] = {stage: s.pop(f"rows_{stage}") for stage in ("v", "k", "q", "out", "ffn", "head")}
        s["tokens_per_second"] = s["tokens"] / s["seconds"] if s["seconds"] > 0 else 0.0
        s["peak_bytes"] = s["weight_bytes"] + s["cache_bytes"] + s["scratch_bytes"]
        return s | {"device": self.model.device, "backend": self.model.backend}

    def finish(
        self,
        history: bool = False,
        progress: bool | Callable[[int, int], Any] = False,
        callback: Callable[[Step], Any] | None = None,
    ) -> GenerateOutput:
        """Walks to the end, showing and recording what was asked for. A callback that returns False stops the run."""
        seen: list[Any] | None = [] if history else None
        with live.progress(progress, self.total) as advance:
            for step in self.steps():
                advance(step.index + 1)
                if seen is not None:
                    seen.append(step.sequences)
                if callback is not None and callback(step) is False:
                    break
        return GenerateOutput(self.sequences(), seen, self.stats())
