"""Shared by the tests: where the tiny models are, and models loaded once."""

import functools
import pathlib
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
MODELS = HERE / "golden" / "base" / "models"
sys.path.insert(0, str(HERE))  # helpers beside the tests: hf_standin, golden


@functools.cache
def tiny(name, dtype="float32", threads=1):
    """A tiny model of the recordings."""
    import dllm_fast

    return dllm_fast.load(MODELS / name, dtype=dtype, device="cpu", threads=threads)


@pytest.fixture
def llada():
    return tiny("llada_tiny")


@pytest.fixture
def dream():
    return tiny("dream_tiny")


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def text_ids(rng, n):
    """n ids that are no special tokens of the tiny models."""
    return rng.integers(0, 280, n)


def padded(rows, side, pad=290):
    """(ids, attention_mask) of ragged rows, padded on the left or right, or at random places."""
    rng, width = np.random.default_rng(sum(map(len, rows))), max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), int)
    for b, row in enumerate(rows):
        at = {"left": width - len(row) + np.arange(len(row)), "right": np.arange(len(row))}.get(side)
        at = np.sort(rng.permutation(width)[: len(row)]) if at is None else at
        ids[b, at], mask[b, at] = row, 1
    return ids, mask
