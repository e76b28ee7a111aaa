"""What callers hand in (padded grids, ragged lists, tensors of any framework) and what the core takes: packed rows of real ids.

A pad is a column whose attention mask is 0. The core never sees pads: a `Batch` drops them, remembers where every packed row
came from, and puts results back where the caller expects them, in the caller's framework.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from . import _core

Placed = np.ndarray | list[np.ndarray]


def as_array(obj: Any) -> np.ndarray:
    """A tensor on any device, an array, or a nested list, as a NumPy array; 16-bit floats may come as uint16."""
    if isinstance(obj, np.ndarray):
        return obj
    if getattr(getattr(obj, "device", None), "type", "cpu") != "cpu":
        obj = obj.cpu()
    return np.asarray(_core.to_numpy(obj))


def as_float32(obj: Any) -> np.ndarray:
    """A floating tensor or array as float32; also frees a tensor of its gradient and widens bfloat16."""
    if hasattr(obj, "detach"):
        obj = obj.detach().float()
    return np.ascontiguousarray(as_array(obj), np.float32)


def is_tensor(obj: Any) -> bool:
    """Whether results go back as tensors of obj's framework, rather than as NumPy arrays."""
    return hasattr(obj, "__dlpack__") and not isinstance(obj, np.ndarray)


def give(array: Any, like: Any, dtype: str | None = None) -> Any:
    """The array in like's framework, on like's device; a tensor is there already. dtype says what a uint16 array holds."""
    if not is_tensor(like) or is_tensor(array):
        return array
    tensor = _core.from_numpy(array, like, dtype)
    device = getattr(like, "device", None)
    return tensor.to(device) if getattr(device, "type", "cpu") != "cpu" else tensor


def as_ids(obj: Any, what: str = "ids") -> np.ndarray:
    """An array of integers, or TypeError."""
    name = str(getattr(obj, "dtype", ""))
    array = as_array(obj)
    if array.size == 0 and not name:
        return array.astype(np.int64)
    if "float" in name or array.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, not {name or array.dtype}")
    return array


def as_row(obj: Any, what: str, vocab: int) -> np.ndarray:
    """One sequence of ids as int32: a 1-D array, or a batch of one."""
    row = as_ids(obj, what)
    if row.ndim == 2 and len(row) == 1:
        row = row[0]
    if row.ndim != 1:
        raise ValueError(f"{what} must be one sequence of ids, not an array of shape {row.shape}")
    check_range(row, np.arange(len(row)), what, vocab)
    return row.astype(np.int32)


def check_range(ids: np.ndarray, columns: np.ndarray, what: str, vocab: int) -> None:
    """Every id is a row of the embedding, or ValueError with the number and its place."""
    bad = np.flatnonzero((ids < 0) | (ids >= vocab))
    if len(bad):
        raise ValueError(f"{what}, column {columns[bad[0]]}: id {ids[bad[0]]} is outside 0..{vocab - 1}")


class Batch:
    """Sequences of ids as the caller shaped them and as the core takes them.

    `prompts` holds the real ids of every sequence. With an answer, every sequence grows by `answer_len` cells of `mask_id`.
    A cell is a place in the caller's shape, flattened; packed row r lies in cell `cells[r]`.
    """

    def __init__(
        self, ids: Any, attention_mask: Any = None, *, vocab: int, answer_len: int = 0, mask_id: int = 0, repeat: int = 1
    ) -> None:
        rows, self.like, self.ragged = _split(ids)
        keep = _masks(rows, attention_mask, self.ragged)
        rows, keep = [r for r in rows for _ in range(repeat)], [k for k in keep for _ in range(repeat)]
        self.columns = [np.flatnonzero(k) for k in keep]
        for b, (row, columns) in enumerate(zip(rows, self.columns, strict=True)):
            check_range(row[columns], columns, f"ids, row {b}", vocab)
        self.prompts = [row[columns].astype(np.int32) for row, columns in zip(rows, self.columns, strict=True)]
        self.widths = [len(row) + answer_len for row in rows]
        self.starts = [0, *accumulate(self.widths)]
        answer = [np.arange(w - answer_len, w) for w in self.widths]
        self.cells = np.concatenate([s + np.r_[c, a] for s, c, a in zip(self.starts, self.columns, answer, strict=False)])
        self.dense = len(self.cells) == self.starts[-1]
        fill = np.full(answer_len, mask_id, np.int64)
        self.ids = np.concatenate([part for row in rows for part in (row.astype(np.int64), fill)])

    def __len__(self) -> int:
        return len(self.prompts)

    def answer_positions(self, family: str) -> list[np.ndarray] | None:
        """Rotary positions for generating. LLaDA counts from a row's first real column, so that a left-padded row is the row alone
        and a hole stays a hole; Dream counts real tokens, which is what the core does by itself."""
        if self.dense or family != "llada":
            return None
        return [(c - c[:1]).astype(np.int32) for c in self.columns]

    def column_positions(self, family: str, position_ids: Any = None) -> list[np.ndarray] | None:
        """Rotary positions for one forward pass: the caller's; else LLaDA's columns, or Dream's count of real tokens."""
        if position_ids is not None:
            return self._given_positions(position_ids)
        if self.dense or family != "llada":
            return None
        return [c.astype(np.int32) for c in self.columns]

    def _given_positions(self, position_ids: Any) -> list[np.ndarray]:
        if self.ragged:
            rows = [as_ids(p, "position_ids") for p in position_ids]
        else:
            given = as_ids(position_ids, "position_ids")
            rows = list(np.broadcast_to(given, (len(self), self.widths[0]))) if given.shape[-1:] == (self.widths[0],) else [given]
        if [r.shape for r in rows] != [(w,) for w in self.widths]:
            raise ValueError(f"position_ids: {[r.shape for r in rows]} do not fit rows of length {self.widths}")
        return [r[c].astype(np.int32) for r, c in zip(rows, self.columns, strict=True)]

    def place(self, packed: np.ndarray, empty: Any = 0) -> Placed:
        """One value a packed row, in the caller's shape; pads get `empty`."""
        if not self.dense:
            cells = np.full((self.starts[-1], *packed.shape[1:]), empty, packed.dtype)
            cells[self.cells] = packed
            packed = cells
        return self._cut(packed)

    def logits(self, session: _core.Session, dtype: str = "float32", shifted: bool = False) -> Any:
        """The session's logits in the caller's shape and framework; 0 at pads. If the caller's ids lie on the model's GPU, they are
        computed there and stay."""
        cells = None if self.dense else self.cells.astype(np.int32)
        placed = session.logits(dtype=dtype, shifted=shifted, like=self.like, cells=cells, total=self.starts[-1])
        return self.give(self._cut(placed), dtype)

    def sequences(self, packed: np.ndarray) -> Any:
        """Packed ids as the caller's sequences, pads as they came; int64, in the caller's framework."""
        ids = self.ids.copy()
        ids[self.cells] = packed
        return self.give(self._cut(ids))

    def _cut(self, cells: Any) -> Any:
        if self.ragged:
            return [cells[a:b] for a, b in zip(self.starts, self.starts[1:], strict=False)]
        return cells.reshape(len(self), self.widths[0], *cells.shape[1:])

    def give(self, placed: Any, dtype: str | None = None) -> Any:
        """Placed values in the caller's framework."""
        if isinstance(placed, list):
            return [give(p, self.like, dtype) for p in placed]
        return give(placed, self.like, dtype)

    def collect(self, given: Any, read: Any) -> np.ndarray:
        """The way back: what the caller made of placed values, by packed row. read turns the caller's object into an array."""
        rows = [read(g) for g in given] if self.ragged else list(read(given))
        if [len(r) for r in rows] != self.widths:
            raise ValueError(f"expected rows of length {self.widths}, got {[len(r) for r in rows]}")
        return np.concatenate(rows)[self.cells]

    def packed_logits(self, session: _core.Session, given: Any) -> Any:
        """The same for logits, float32. A batch without pads stays as it is, and on the session's GPU if it lies there."""
        if not self.dense or self.ragged or getattr(given, "shape", ())[:2] != (len(self), self.widths[0]):
            return self.collect(given, as_float32)
        if not (session.holds(given) and "float32" in str(given.dtype)):
            given = as_float32(given)
        given = given.detach() if hasattr(given, "detach") else given
        return given.reshape(len(self.cells), given.shape[2])

    def replace(self, given: Any, vocab: int) -> np.ndarray:
        """The caller changed the sequences: keeps them, and returns them packed."""
        rows = self.collect(given, as_ids)
        check_range(rows, self.cells, "ids", vocab)
        self.ids[self.cells] = rows
        return rows.astype(np.int32)

    def by_sequence(self, rows: np.ndarray) -> list[np.ndarray]:
        """Packed rows as columns of every sequence, order kept."""
        cells = self.cells[rows]
        owner = np.searchsorted(self.starts, cells, side="right") - 1
        return [cells[owner == b] - self.starts[b] for b in range(len(self))]


def _split(ids: Any) -> tuple[list[np.ndarray], Any, bool]:
    """(rows, an object of the caller's framework, whether they came as a list of sequences)."""
    if isinstance(ids, list | tuple) and any(hasattr(x, "__len__") for x in ids):
        rows = [as_ids(x, f"ids, row {b}") for b, x in enumerate(ids)]
        wrong = next((b for b, r in enumerate(rows) if r.ndim != 1), None)
        if wrong is not None:
            raise ValueError(f"ids, row {wrong}: expected one sequence, got shape {rows[wrong].shape}")
        lists = all(isinstance(x, list | tuple) for x in ids)
        return rows, ids[0], not (lists and len({len(r) for r in rows}) == 1)
    grid = as_ids(ids)
    grid = grid[None] if grid.ndim == 1 and grid.size else grid
    if grid.ndim != 2 or len(grid) == 0:
        raise ValueError(f"ids must be [batch, length] or a list of sequences, not shape {grid.shape}")
    return list(grid), ids, False


def _masks(rows: Sequence[np.ndarray], attention_mask: Any, ragged: bool) -> list[np.ndarray]:
    if attention_mask is None:
        return [np.ones(len(r), bool) for r in rows]
    if ragged:
        raise ValueError("attention_mask goes with a padded batch; a list of sequences has no pads")
    mask = as_array(attention_mask)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != (len(rows), len(rows[0])):
        raise ValueError(f"attention_mask has shape {mask.shape}, ids have {(len(rows), len(rows[0]))}")
    return list(mask != 0)
