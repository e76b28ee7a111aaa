"""The two small models of the package were trained, not drawn: they solve their puzzles, with every caching method."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

import dllm_fast
from dllm_fast.model import DEMO

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SAMPLES = 24


@pytest.fixture(scope="module")
def tasks():
    spec = importlib.util.spec_from_file_location("tiny_tasks", BENCHMARKS / "tiny_tasks.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(model, prompts, length, cache):
    if model.config["family"] == "dream":
        out = model.diffusion_generate(prompts, max_new_tokens=length, steps=length, alg="entropy", cache=cache)
    else:
        out = model.generate(prompts, gen_length=length, steps=length, block_length=length, cache=cache)
    return out[:, prompts.shape[1] :]


# What is sure to be right uncached; caches may cost a little. Every letter of these prompts counts, so Sparse-dLLM has to keep all.
CACHES = [(None, 0.95), ("dllm-cache", 0.8), (dllm_fast.SparseDLLM(keep_ratio=1.0), 0.8), ("dyllm", 0.8)]


@pytest.mark.parametrize(("cache", "right"), CACHES, ids=["uncached", "dllm-cache", "sparse-dllm", "dyllm"])
@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_puzzles(name, cache, right, tasks):
    model = dllm_fast.load(pathlib.Path(DEMO).with_name(name), dtype="float32")
    rng, found = np.random.default_rng(5), []
    for task in (tasks.TASKS["addition"], tasks.TASKS["reverse"]):
        prompts, expected = task.make(rng, SAMPLES, task.size)
        found.append((answers(model, prompts, expected.shape[1], cache) == expected).all(axis=1))
    share = float(np.mean(found))
    assert share >= right, f"{name} with {cache}: {share:.0%} of {2 * SAMPLES} right"
