"""The rivals of benchmarks/rivals.py do the same work as we do: in float32 they give the same ids."""

import importlib
import json
import sys

import numpy as np
import pytest
from conftest import HERE, MODELS

import dllm_fast
from dllm_fast import DLLMCache, DyLLM, SparseDLLM

CACHES = [
    None,
    DLLMCache(5, 3, 0.25),
    DLLMCache(4, 7, 0.0),
    SparseDLLM(0.5, 3, "own"),
    SparseDLLM(0.3, 5, "own"),
    DyLLM(0.95, 2, 3, shift="flat"),
    DyLLM(0.99, shift="flat"),
]


@pytest.fixture(scope="module")
def rivals():
    sys.path.insert(0, str(HERE.parent / "benchmarks"))
    yield importlib.import_module("rivals")
    sys.path.remove(str(HERE.parent / "benchmarks"))


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_torch_methods_give_our_ids(rivals, family, cache):
    for seed in range(3):
        prompt = np.random.default_rng(seed).integers(0, 280, 13 + 4 * seed)
        assert rivals.verify(MODELS / f"{family}_tiny", family, cache, prompt)


def test_a_method_with_another_setting_gives_other_ids(rivals):
    """So that the test above can fail."""
    folder, prompt = MODELS / "llada_tiny", np.random.default_rng(0).integers(0, 280, 21)
    llada, model = rivals.torch_model("llada", *rivals.read_folder(folder, rivals.torch.float32))
    for one, other in zip(CACHES[1:], [*CACHES[2:], None], strict=True):
        mine = dllm_fast.load(folder, dtype="float32").generate(prompt[None], steps=24, gen_length=24, block_length=8, cache=one)
        stand_in = rivals.plain(other, model, 21, 24, 8) if other else model
        theirs = llada.generate(stand_in, rivals.torch.from_numpy(prompt)[None], steps=24, gen_length=24, block_length=8)
        assert (theirs.numpy() != mine).any(), (one, other)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_torch_computes_where_the_weights_lie(rivals, family):
    """Tensors without data refuse to meet those of the processor, as a GPU's do."""
    import torch.fx.experimental._config

    module, loaded = rivals.torch_model(family, *rivals.read_folder(MODELS / f"{family}_tiny"))
    model = type(loaded)(loaded.config, {name: w.to("meta") for name, w in loaded.w.items()})
    x = torch.zeros((2, 24), dtype=torch.long, device="meta")
    with torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True):
        for predict in (module.predict_all, module.predict_candidates):
            assert all(t.is_meta for t in predict(model, x, *[16] * (family == "llada")))
        for cache in CACHES[1:4:2]:  # the values of the others' passes say which rows come next
            stand_in = rivals.plain(cache, model, 16, 8, 8)
            assert all(stand_in.window(x[:1])[0].is_meta for _ in range(4))
        delta = rivals.plain(DyLLM(0.95, 1, 3), model, 16, 8, 8)
        rows, first = delta.window(x[:1])
        assert all(t.is_meta for t in delta.partial_layer(rows[0, 16:], 0, 16, delta.rows(17, 20)))


def test_a_schedule_is_scaled_by_its_kinds(rivals):
    kinds = ["dense", "sparse", "sparse", "dense", "sparse", "sparse"]
    spent = iter([5.0, 1.0, 2.0])
    runner = rivals.Runner("x", kinds.__getitem__, lambda computed: next(spent) if computed else 0.0)
    runner.run(0)
    runner.run(1)
    runner.run(4)
    assert runner.total(6) == 2 * 5.0 + 4 * 1.5
    assert rivals.enough(kinds.__getitem__, 1, 6) == 2


def test_the_command_reports_every_contestant(rivals, tmp_path):
    small = ["--model", str(MODELS / "llada_tiny"), "--prompt", "8", "--answer", "8", "--block", "4", "--threads", "1"]
    small += ["--without", "llama.cpp", "--samples", "2", "--steps", "4", "--results", str(tmp_path)]
    for part in ("generation", "methods"):
        assert rivals.main(["--part", part, *small]) == 0
    generation, methods = (json.loads(f.read_text())["rows"] for f in sorted(tmp_path.glob("*.json")))
    names = ["dllm_fast", "torch bf16", "torch bf16, head on candidates", "torch f32"]
    assert [r["name"] for r in generation] == names and all(r["timed_steps"] == 2 for r in generation)
    assert [r["method"] for r in methods] == ["dllm-cache", "sparse-dllm", "dyllm"]
    for r in methods:
        assert list(r["seconds"]) == ["dllm_fast", "torch, the same method", "dllm_fast, uncached", "torch, uncached"]
        assert sum(r["kinds"].values()) == 8 and set(r["median_step"]["dllm_fast"]) == set(r["kinds"])
