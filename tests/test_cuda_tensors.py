"""Tensors that lie on the GPU of a model: weights are borrowed. The GPUs are simulated and strict: what the host
touches there faults, and what another stream has not been made to wait for has not happened."""

import gc
import json
import types
import weakref

import numpy as np
import pytest
import simulator
from conftest import MODELS, text_ids, tiny

if simulator.MISSING:
    pytest.skip(f"no GPU simulator: {simulator.MISSING}", allow_module_level=True)

import gpu_standin  # noqa: E402

import dllm_fast  # noqa: E402
from dllm_fast.hf import engine  # noqa: E402

GPU = gpu_standin.number(simulator.STRICT)
FOLDER = MODELS / "llada_tiny_2shard_f32"
CONFIG = (FOLDER / "config.json").read_text(encoding="utf-8")
KINDS = [gpu_standin.Tensor, gpu_standin.Old, gpu_standin.Exchanged]
NORM = "model.transformer.ln_f.weight"


@pytest.fixture(autouse=True)
def nothing_is_kept():
    """Whatever a test does, at its end all memory of all GPUs is free again."""
    simulator.load()
    gpu_standin.stream(GPU), gpu_standin.stream(GPU + 1)
    gc.collect()
    before = gpu_standin.held()
    yield
    gc.collect()
    assert gpu_standin.held() == before and not gpu_standin.exported


@pytest.fixture(scope="module")
def arrays():
    from test_cuda_session import tensors_of

    return dict(tensors_of(FOLDER))


@pytest.fixture
def expected(rng):
    ids = text_ids(rng, 9)[None]
    return ids, tiny(FOLDER.name).forward(ids)


def on_gpu(arrays, kind=gpu_standin.Tensor, gpu=GPU):
    return {name: kind(gpu, array) for name, array in arrays.items()}


# ---- weights --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_borrowed(kind, arrays, expected):
    tensors = on_gpu(arrays, kind)
    before = gpu_standin.held()
    model = dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT)
    assert gpu_standin.held().device == before.device
    assert sorted(model.core.pointers().values()) == sorted(t.data_ptr() for t in tensors.values())
    tensors.clear()
    gc.collect()  # the model keeps what it borrowed
    np.testing.assert_allclose(model.forward(expected[0]), expected[1], atol=1e-4)
    assert len(gpu_standin.exported) == len(arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_with_gaps_stay_where_they_are(kind, arrays, expected):
    gaps = {k: np.concatenate([v, np.full_like(v, np.nan)], axis=-1)[..., : v.shape[-1]] for k, v in arrays.items()}
    tensors = on_gpu(gaps, kind)
    model = dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT)
    assert sorted(model.core.pointers().values()) == sorted(t.data_ptr() for t in tensors.values())
    np.testing.assert_allclose(model.forward(expected[0]), expected[1], atol=1e-4)


def test_what_lies_on_the_host_is_copied_and_let_go(arrays, expected):
    tensors = on_gpu(arrays) | {NORM: arrays[NORM].copy()}
    host, before = weakref.ref(tensors[NORM]), gpu_standin.held()
    model = dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT)
    assert gpu_standin.held().device == before.device + arrays[NORM].nbytes
    del tensors
    assert host() is None and len(gpu_standin.exported) == len(arrays) - 1
    np.testing.assert_allclose(model.forward(expected[0]), expected[1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_another_gpu_are_refused(kind, arrays):
    tensors = on_gpu(arrays, kind) | {NORM: kind(GPU + 1, arrays[NORM])}
    with pytest.raises(ValueError, match=f"'{NORM}' is on cuda:4, but the model is on cuda-sim:3: all must be on one device"):
        dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT)
    with pytest.raises(ValueError, match="is on cuda:3, but the model is on cpu: all must be on one device"):
        dllm_fast.Model.from_tensors(CONFIG, tensors)
    with pytest.raises(dllm_fast.CheckpointError, match="is missing"):
        dllm_fast.Model.from_tensors(CONFIG, {k: v for k, v in tensors.items() if k != NORM}, device=simulator.STRICT)


# ---- objects that are already loaded --------------------------------------------------------------------------------------------


class LLaDAModelLM:
    """A Hugging Face object whose weights are those tensors."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.config = types.SimpleNamespace(to_dict=lambda: json.loads(CONFIG))

    def state_dict(self):
        return self.tensors

    def forward(self, ids):
        raise AssertionError("its own forward runs")


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_runs_where_the_weights_are(kind, arrays, expected):
    hf = LLaDAModelLM(on_gpu(arrays, kind))
    dllm_fast.accelerate(hf)
    assert engine(hf).device == simulator.STRICT
    assert sorted(engine(hf).core.pointers().values()) == sorted(t.data_ptr() for t in hf.tensors.values())
    np.testing.assert_allclose(hf.forward(expected[0]).logits, expected[1], atol=1e-4)
    dllm_fast.restore(hf)


def test_a_model_on_several_devices_is_refused(arrays):
    split = on_gpu(arrays) | {NORM: gpu_standin.Tensor(GPU + 1, arrays[NORM])}
    with pytest.raises(ValueError, match=rf"several devices: .* on cuda-sim:3, {NORM} on cuda-sim:4; load them on one"):
        dllm_fast.accelerate(LLaDAModelLM(split))
    meta = types.SimpleNamespace(device=types.SimpleNamespace(type="meta"), detach=lambda: meta)
    with pytest.raises(ValueError, match=f"{NORM} is on the meta device: it has no values"):
        dllm_fast.accelerate(LLaDAModelLM(on_gpu(arrays) | {NORM: meta}))


# ---- the caller's own GPU -------------------------------------------------------------------------------------------------------


def test_the_current_gpu_stays_the_callers(arrays, expected):
    current = gpu_standin.library().dllm_sim_current
    before = current()
    model = dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays), device=simulator.STRICT)
    assert model.forward(expected[0]).shape == expected[1].shape
    assert current() == before != GPU
