"""How likely a text is: the Monte Carlo and chain-rule estimates of LLaDA's and Dream's evaluation code."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import _core
from .generate import stream
from .inputs import as_array, as_float32, as_row
from .model import Model, as_model, mask_token

BATCH = {"llada": 16, "dream": 32}
LOG_TYPES = ("ftb", "btf", "union")
NLL_TYPES = ("mc", "ar_ftb", "ar_btf")
Masks = Iterable[tuple[np.ndarray, np.ndarray]]


def log_likelihood(
    model: Any,
    prefix: Any,
    target: Any,
    mc_num: int = 128,
    batch_size: int | None = None,
    cfg_scale: float = 0.0,
    nll_type: str = "mc",
    log_type: str = "ftb",
    eps: float = 1e-3,
    mask_id: int | None = None,
    seed: int | None = None,
    masks: Masks | None = None,
) -> float:
    """log p(target | prefix), estimated as the model family's own evaluation code does. No eos is appended.

    LLaDA: mc_num samples in batches of batch_size (default 16), each with an antithetic number of masks; cfg_scale for guidance.
    Dream: nll_type "mc" (batches of 32) or the chain rule "ar_ftb" / "ar_btf"; log_type "ftb" scores the target given the prefix,
    "btf" the prefix given the target, "union" both, per token. mc_num // batch_size batches are run, at least one.
    masks: recorded (noisy, p_mask) pairs of [batch_size, length], one a batch, instead of fresh draws.
    """
    model = as_model(model)
    mask_id, family = mask_token(model, mask_id), model.config["family"]
    prefix, target = (as_row(x, name, model.config["vocab"]) for x, name in ((prefix, "prefix"), (target, "target")))
    _check(family, target, mc_num, batch_size, nll_type, log_type)
    batch_size = batch_size or min(BATCH[family], mc_num)
    text, split = np.concatenate([prefix, target]), len(prefix)
    score = _Scorer(model, text, split, cfg_scale, mask_id)
    if nll_type != "mc":
        return -score.chain(nll_type, log_type, batch_size)

    side = slice(split, None) if family == "llada" or log_type == "ftb" else slice(split) if log_type == "btf" else slice(None)
    if masks is None:
        rng, batches = np.random.default_rng(seed), max(mc_num // batch_size, 1)
        draw = _llada_masks if family == "llada" else _dream_masks
        masks = (draw(text, split, side, batch_size, mask_id, eps, rng) for _ in range(batches))
    losses = [score.weighted(noisy, p_mask, side) for noisy, p_mask in masks]
    return -float(np.mean(losses)) / (len(text) if family == "dream" and log_type == "union" else 1)


def _check(family: str, target: np.ndarray, mc_num: int, batch_size: int | None, nll_type: str, log_type: str) -> None:
    if not len(target):
        raise ValueError("target is empty")
    if mc_num < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"mc_num {mc_num} and batch_size {batch_size} must be at least 1")
    for name, value, known in (("nll_type", nll_type, NLL_TYPES), ("log_type", log_type, LOG_TYPES)):
        if value not in known:
            raise ValueError(f"{name}={value!r}; there is {', '.join(map(repr, known))}")
    if family == "llada" and (nll_type, log_type) != ("mc", "ftb"):
        raise ValueError(f"nll_type={nll_type!r}, log_type={log_type!r}: LLaDA has nll_type='mc', log_type='ftb' only")
    if nll_type != "mc" and log_type == "union":
        raise ValueError(f"nll_type={nll_type!r} goes with log_type 'ftb' or 'btf', not 'union'")


class _Scorer:
    """Cross entropies of one text at masked positions."""

    def __init__(self, model: Model, text: np.ndarray, split: int, cfg_scale: float, mask_id: int) -> None:
        self.model, self.text, self.split, self.mask_id = model, text, split, mask_id
        # without a prefix there is nothing to blank out: guidance changes nothing
        self.params = {"answer_len": 0, "cfg_scale": cfg_scale if split else 0.0, "mask_id": mask_id}

    def nll(self, noisy: np.ndarray, at: np.ndarray) -> np.ndarray:
        """-log p of the text at every True of `at` [batch, length], in row-major order."""
        session = _core.Session(self.model.core, self.params, list(noisy), condition=[self.split] * len(noisy))
        rows = np.flatnonzero(at).astype(np.int32)
        return session.nll(rows, np.tile(self.text, len(noisy))[rows])

    def weighted(self, noisy: Any, p_mask: Any, side: slice) -> float:
        """Sum over masked positions of cross entropy / p_mask, a sequence."""
        noisy, p_mask = as_array(noisy), as_float32(p_mask)
        if noisy.shape[1:] != self.text.shape or noisy.shape != p_mask.shape:
            raise ValueError(f"masks: noisy {noisy.shape} and p_mask {p_mask.shape} must be [batch, {len(self.text)}]")
        at = np.zeros(noisy.shape, bool)
        at[:, side] = noisy[:, side] == self.mask_id
        return float(np.sum(self.nll(noisy.astype(np.int32), at) / p_mask[at], dtype=np.float64) / len(noisy))

    def chain(self, nll_type: str, log_type: str, batch_size: int) -> float:
        """The chain rule, one pass a token: token r is scored with itself and all later ones (ar_btf: all earlier ones) masked."""
        low, high = (self.split, len(self.text)) if log_type == "ftb" else (0, self.split)
        columns, total = np.arange(len(self.text)), 0.0
        for first in range(low, high, batch_size):
            scored = np.arange(first, min(first + batch_size, high))[:, None]
            hidden = (columns >= scored) & (columns < high) if nll_type == "ar_ftb" else (columns >= low) & (columns <= scored)
            noisy = np.where(hidden, np.int32(self.mask_id), self.text)
            total += float(np.sum(self.nll(noisy, columns == scored), dtype=np.float64))
        return total


def _llada_masks(
    text: np.ndarray, split: int, side: slice, rows: int, mask_id: int, eps: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random subsets of the answer, of sizes spread evenly over 1..n."""
    n, noisy = len(text) - split, np.tile(text, (rows, 1))
    counts = mask_counts(n, rows, int(rng.integers(1, n + 1)))
    for row, count in zip(noisy, counts, strict=True):
        row[split + rng.permutation(n)[:count]] = mask_id
    return noisy, np.repeat((counts / n).astype(np.float32)[:, None], len(text), 1)


def mask_counts(n: int, rows: int, k: int) -> np.ndarray:
    """How many of n answer tokens each row masks, after the draw k: float32 steps of n / rows, rounded half to even, modulo n."""
    spread = np.linspace(k, k + (rows - 1) * (n / rows), rows).astype(np.float32)
    return (np.rint(spread).astype(int) - 1) % n + 1


def _dream_masks(
    text: np.ndarray, split: int, side: slice, rows: int, mask_id: int, eps: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Independent masks with probabilities spread evenly over eps..1; the first and the last token are never masked."""
    t = (rng.random() + np.arange(rows) / rows) % 1
    p_mask = np.repeat(((1 - eps) * t + eps)[:, None], len(text), 1).astype(np.float32)
    hit = np.zeros(p_mask.shape, bool)
    hit[:, side] = (rng.random(p_mask.shape) < p_mask)[:, side]
    hit[:, [0, -1]] = False
    return np.where(hit, np.int32(mask_id), text), p_mask


def suffix_greedy(model: Any, prefix: Any, target: Any, cfg_scale: float = 0.0, mask_id: int | None = None) -> bool:
    """Whether target is what greedy unmasking after prefix writes, one token a step. Stops at the first token that differs."""
    model = as_model(model)
    prefix, target = (as_row(x, name, model.config["vocab"]) for x, name in ((prefix, "prefix"), (target, "target")))
    if not len(target):
        return True
    lengths = {name: len(target) for name in ("steps", "gen_length", "block_length")}
    for step in stream(model, prefix[None], cfg_scale=cfg_scale if len(prefix) else 0.0, mask_id=mask_id, **lengths):
        columns = step.committed[0]
        fixed = columns[columns >= len(prefix)]
        if (step.sequences[0][fixed] != target[fixed - len(prefix)]).any():
            return False
    return bool((step.sequences[0][len(prefix) :] == target).all())
