"""Where random numbers come from: seeds of the core's counter-based streams, or numbers that the caller recorded."""

import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .inputs import Batch


def seeds(seed: Any, rows: int) -> list[tuple[int, int]]:
    """A (seed, stream) pair a row. An int s: row i uses stream i of s. A list: one int or pair a row. None: fresh entropy.

    Row i of a batch with seed=s draws what the row alone draws with seed=[(s, i)].
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    if isinstance(seed, list | tuple | np.ndarray):
        if len(seed) != rows:
            raise ValueError(f"seed has {len(seed)} entries for {rows} sequences")
        pairs = [s if isinstance(s, tuple | list) else (s, 0) for s in seed]
    else:
        pairs = [(seed, i) for i in range(rows)]
    return [(_word(s), _word(stream)) for s, stream in pairs]


def _word(value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"a seed is an int, not {type(value).__name__}") from None
    if not 0 <= number < 2**64:
        raise ValueError(f"a seed is between 0 and 2**64 - 1, not {number}")
    return number


class PaddedNoise:
    """Recorded draws of a padded batch, as the core asks for them.

    A recording of the official loops has a number for every column, pads included. The core has no pads, and asks for
    [sequences, longest, ...]: this picks the real columns. Draws that name masked rows only pass through as they are.
    """

    def __init__(self, noise: Any, batch: Batch) -> None:
        self.noise, self.batch = noise, batch
        counts = np.diff(np.searchsorted(batch.cells, batch.starts))
        self.columns = [c - start for c, start in zip(np.split(batch.cells, np.cumsum(counts)[:-1]), batch.starts, strict=False)]
        self.shape = (len(batch), int(counts.max()))

    def uniform(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._pick(shape, lambda full: self.noise.uniform(full, dtype))

    def exponential(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._pick(shape, self.noise.exponential)

    def _pick(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
        # [masked rows, vocab] could only be mistaken for [sequences, longest] if a sequence were as long as the vocabulary
        if tuple(shape[:2]) != self.shape:
            return draw(shape)
        full = np.asarray(draw((shape[0], self.batch.widths[0], *shape[2:])))
        out = np.zeros(shape, full.dtype)
        for b, columns in enumerate(self.columns):
            out[b, : len(columns)] = full[b, columns]
        return out


def recorded(noise: Any, batch: Batch) -> Any:
    """The caller's noise object as the core takes it."""
    if noise is None:
        return None
    missing = [name for name in ("uniform", "exponential") if not callable(getattr(noise, name, None))]
    if missing:
        raise TypeError(f"noise must have uniform(shape, dtype) and exponential(shape); {type(noise).__name__} lacks {missing[0]}")
    return noise if batch.dense else PaddedNoise(noise, batch)
