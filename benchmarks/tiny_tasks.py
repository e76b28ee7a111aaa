"""What the tiny models of the package are trained on: small puzzles over characters, as ids, with what makes an answer right.

A prompt is an upper-case letter, the puzzle and "="; the answer is followed by end tokens up to any length. Most answers lean on
tokens that were decoded before: a free palindrome has to mirror letters that nobody gave it. All puzzles that are made together are
of one length, so that prompts and answers are plain arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CHARS = "0123456789abcdefghijklmnopqrstuvwxyz+-=ADPRSW"
EOS = len(CHARS)
MASK = EOS + 1
VOCAB = EOS + 2
ANSWER = 32  # ids that hold every answer and its end tokens

Rng = np.random.Generator
Puzzles = tuple[np.ndarray, np.ndarray]  # prompts [n, prompt length], one right answer each [n, answer length]


@dataclass(frozen=True)
class Task:
    """make(rng, n, size) gives puzzles; size is the longest one's, and shortest is where training starts."""

    title: str
    make: Callable[[Rng, int, int], Puzzles]
    size: int
    shortest: int
    free: bool = False  # many answers are right: what counts is that the answer agrees with itself


def encode(text: str) -> list[int]:
    return [CHARS.index(c) for c in text]


def decode(ids: np.ndarray) -> str:
    """Up to the first end token; a mask that is left shows as "_"."""
    text = "".join(CHARS[i] if i < EOS else "|_"[i - EOS] for i in ids)
    return text.split("|")[0]


def _letters(rng: Rng, n: int, size: int) -> np.ndarray:
    return rng.integers(CHARS.index("a"), CHARS.index("z") + 1, (n, size))


def _frame(letter: str, *parts: np.ndarray) -> np.ndarray:
    n = len(parts[0])
    ends = [np.full((n, 1), CHARS.index(c)) for c in (letter, "=")]
    return np.concatenate([ends[0], *parts, ends[1]], axis=1)


def _palindrome(rng: Rng, n: int, size: int) -> Puzzles:
    half = _letters(rng, n, size // 2)
    return _frame("P", half[:, :0]), np.concatenate([half, half[:, ::-1]], axis=1)


def _doubled(rng: Rng, n: int, size: int) -> Puzzles:
    word = _letters(rng, n, size // 2)
    return _frame("D", word[:, :0]), np.concatenate([word, word], axis=1)


def _walk(rng: Rng, n: int, size: int) -> Puzzles:
    start, up = rng.integers(0, 26, (n, 1)), rng.integers(0, 2, (n, size))
    signs = np.where(up, CHARS.index("+"), CHARS.index("-"))
    path = (start + np.cumsum(2 * up - 1, axis=1)) % 26
    return _frame("W", start + CHARS.index("a"), signs), path + CHARS.index("a")


def _digits(numbers: np.ndarray, width: int) -> np.ndarray:
    return numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10


def _addition(rng: Rng, n: int, size: int) -> Puzzles:
    a, b = rng.integers(0, 10**size, (2, n))
    plus = np.full((n, 1), CHARS.index("+"))
    return _frame("A", _digits(a, size), plus, _digits(b, size)), _digits(a + b, size + 1)


def _sorting(rng: Rng, n: int, size: int) -> Puzzles:
    letters = _letters(rng, n, size)
    return _frame("S", letters), np.sort(letters, axis=1)


def _reverse(rng: Rng, n: int, size: int) -> Puzzles:
    letters = _letters(rng, n, size)
    return _frame("R", letters), letters[:, ::-1]


TASKS = {
    "palindrome": Task("palindrome of 24 letters, free choice", _palindrome, 24, 24, free=True),
    "doubled": Task("12 letters written twice, free choice", _doubled, 24, 24, free=True),
    "walk": Task("20 steps up and down the alphabet", _walk, 20, 4),
    "addition": Task("sum of two three-digit numbers", _addition, 3, 3),
    "sorting": Task("10 letters in order", _sorting, 10, 4),
    "reverse": Task("16 letters backwards", _reverse, 16, 4),
}


def puzzles(name: str, n: int, seed: int) -> Puzzles:
    """n of the longest puzzles of a task; the same seed gives the same ones."""
    task = TASKS[name]
    return task.make(np.random.default_rng([list(TASKS).index(name), seed]), n, task.size)


def padded(answers: np.ndarray, width: int = ANSWER) -> np.ndarray:
    """With end tokens up to the width."""
    return np.pad(answers, ((0, 0), (0, width - answers.shape[1])), constant_values=EOS)


def right(name: str, answers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each row of answers, [n, any width], whether it is right: the letters and an end token after them, if there is room."""
    size = wanted.shape[1]
    text, rest = answers[:, :size], answers[:, size : size + 1]
    ended = (rest == EOS).all(axis=1)
    if not TASKS[name].free:
        return ended & (text == wanted).all(axis=1)
    half, other = text[:, : size // 2], text[:, size // 2 :]
    letters = (text >= CHARS.index("a")) & (text <= CHARS.index("z"))
    return ended & letters.all(axis=1) & (half == (other[:, ::-1] if name == "palindrome" else other)).all(axis=1)
