"""What a user watches while masks turn into text: a progress bar, and a live view of the answer in a terminal."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def progress(wanted: bool | Callable[[int, int], Any], total: int) -> Iterator[Callable[[int], Any]]:
    """Gives advance(done). wanted: False, True for a bar on stderr (tqdm's if it is installed), or a function (done, total)."""
    if callable(wanted):
        yield lambda done: wanted(done, total)
    elif not wanted:
        yield lambda done: None
    else:
        bar = _bar(total)
        try:
            yield bar.advance
        finally:
            bar.close()


def _bar(total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return Bar(total, sys.stderr)
    return _Tqdm(tqdm(total=total, unit="step"))


class _Tqdm:
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def advance(self, done: int) -> None:
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class Bar:
    """[########--------] 64/128, redrawn in place on a terminal; elsewhere only the last line is written."""

    WIDTH = 32

    def __init__(self, total: int, out: TextIO) -> None:
        self.total, self.out, self.done = total, out, 0

    def advance(self, done: int) -> None:
        self.done = done
        if self.out.isatty():
            self.out.write("\r" + self.line())
            self.out.flush()

    def line(self) -> str:
        full = self.WIDTH * self.done // max(self.total, 1)
        return f"[{'#' * full}{'-' * (self.WIDTH - full)}] {self.done}/{self.total}"

    def close(self) -> None:
        self.out.write("\n" if self.out.isatty() else self.line() + "\n")
        self.out.flush()


class View:
    """The answer as it appears: masks as dots, the tokens of the latest step highlighted. Redrawn in place on a terminal."""

    MASK = "·"

    def __init__(self, piece: Callable[[int], str], mask_id: int, start: int, out: TextIO) -> None:
        self.piece, self.mask_id, self.start, self.out = piece, mask_id, start, out
        self.color = out.isatty() and "NO_COLOR" not in os.environ
        self.lines = 0

    def __call__(self, step: Any) -> None:
        """To be used as a callback of generate on one prompt."""
        if not self.out.isatty():
            return
        ids, fresh = step.sequences[0][self.start :], {int(c) - self.start for c in step.committed[0]}
        pieces = [self.MASK if t == self.mask_id else self.piece(int(t)) for t in ids]
        up = f"\x1b[{self.lines - 1}A" if self.lines > 1 else ""
        self.out.write(f"\r{up}\x1b[J" + "".join(self._paint(p, i in fresh) for i, p in enumerate(pieces)))
        self.out.flush()
        width = max(shutil.get_terminal_size().columns, 1)
        self.lines = sum(max(1, -(-len(line) // width)) for line in "".join(pieces).split("\n"))

    def _paint(self, piece: str, fresh: bool) -> str:
        return f"\x1b[1;32m{piece}\x1b[0m" if fresh and self.color else piece

    def close(self) -> None:
        """Leaves the terminal to what comes next."""
        if self.lines:
            self.out.write("\n")
            self.out.flush()
