"""Tensors that lie on the GPU of a model: weights are borrowed, logits stay there. The GPUs are simulated and strict: what the host
touches there faults, and what another stream has not been made to wait for has not happened."""

import gc
import json
import threading
import types
import weakref

import numpy as np
import pytest
import simulator
from conftest import MODELS, padded, text_ids, tiny

if simulator.MISSING:
    pytest.skip(f"no GPU simulator: {simulator.MISSING}", allow_module_level=True)

import gpu_standin  # noqa: E402

import dllm_fast  # noqa: E402
from dllm_fast import _core  # noqa: E402
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


def test_weights_that_were_just_changed(arrays, expected):
    """A session sees what the framework's current stream was asked before it opened."""
    tensors = on_gpu(arrays, gpu_standin.Exchanged)
    model = dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT)
    tensors[NORM].fill(2 * arrays[NORM])
    np.testing.assert_allclose(model.forward(expected[0]), 2 * expected[1], atol=2e-4)


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


# ---- results --------------------------------------------------------------------------------------------------------------------


def on_its_gpu(arrays):
    """A model there, not as a fixture: pytest would keep it until all is counted."""
    return dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays), device=simulator.STRICT)


@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
def test_logits_stay_on_the_gpu(kind, arrays, expected):
    """No copy of them comes to the host: the result's numbers are read back by the framework alone."""
    (ids, want), model = expected, on_its_gpu(arrays)
    got = model.forward(kind(GPU, ids))
    assert type(got) is kind and (got.gpu, got.dtype, got.shape) == (GPU, "float32", want.shape)
    assert type(got.owner) is gpu_standin.Given
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)
    del model
    gc.collect()
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)  # it outlives the model


@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_pads_become_zeros(kind, side, arrays, rng):
    ids, mask = padded([text_ids(rng, n) for n in (5, 9, 7)], side)
    got, want = on_its_gpu(arrays).forward(kind(GPU, ids), mask), tiny(FOLDER.name).forward(ids, mask)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)
    assert (got.numpy()[mask == 0] == 0).all()


def test_lists_of_sequences(arrays, rng):
    rows = [text_ids(rng, n) for n in (4, 7)]
    got, want = on_its_gpu(arrays).forward([gpu_standin.Tensor(GPU, r) for r in rows]), tiny(FOLDER.name).forward(rows)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-4)


@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_of_16_bits(kind, dtype, arrays, rng):
    """The same bits as on the way over the host, of more rows than the head takes at once there."""
    ids = text_ids(rng, 70)[None]
    model = dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays), dtype=dtype, device=simulator.STRICT)
    got = model.forward(kind(GPU, ids))
    session = _core.Session(model.core, {"answer_len": 0}, [ids[0].astype(np.int32)])
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.numpy()[0].view(np.uint16), session.logits(dtype=dtype))


def test_guided_and_shifted_logits(rng):
    """Dream: the row before speaks for a row; guided: two passes."""
    prompts = [text_ids(rng, n).astype(np.int32) for n in (5, 1, 9)]
    for guided in (0.0, 0.7):
        params = {"answer_len": 0, "cfg_scale": guided, "mask_id": 300}
        got = []
        for device in (simulator.STRICT, "cpu:c"):
            core = dllm_fast.load(MODELS / "dream_tiny", dtype="float32", device=device).core
            like = gpu_standin.Exchanged(GPU, prompts[0])
            cells = np.random.default_rng(1).permutation(20)[:15].astype(np.int32)
            session = _core.Session(core, params, prompts, condition=[2, 1, 3])
            got.append(session.logits(shifted=True, like=like, cells=cells, total=20))
        assert isinstance(got[1], np.ndarray)
        np.testing.assert_allclose(got[0].numpy(), got[1], atol=2e-4)
        assert (np.delete(got[1], cells, 0) == 0).all()


def test_cells_that_make_no_sense(arrays, expected):
    session = _core.Session(on_its_gpu(arrays).core, {"answer_len": 0}, [expected[0][0].astype(np.int32)])
    for cells, total, words in (
        (np.arange(9) + 1, 9, "row 8 of logits goes to row 9 of 9"),
        (np.zeros(9), 9, "rows 0 and 1 of logits both go to row 0"),
        (np.arange(8), 9, "8 cells for 9 rows"),
        (None, 8, r"logits \[8, 320\] wanted, the session gives \[9, 320\]"),
        (None, 0, "total = 0"),
    ):
        with pytest.raises(ValueError, match=words):
            session.logits(cells=None if cells is None else cells.astype(np.int32), total=total)
    assert session.logits().shape == (9, 320)


def test_no_room_for_logits(arrays, expected):
    ids, model, before = gpu_standin.Exchanged(GPU, expected[0]), on_its_gpu(arrays), gpu_standin.held()
    with gpu_standin.nothing_left(), pytest.raises(MemoryError) as failure:
        model.forward(ids)
    said = "cuda-sim:3: no room for logits: [9, 320] in float32, 11520 bytes: MemoryError: nothing left here"
    assert str(failure.value) == said
    del failure
    gc.collect()
    assert gpu_standin.held() == before
    np.testing.assert_allclose(model.forward(ids).numpy(), expected[1], atol=1e-4)


def test_ids_of_another_place_give_logits_there(arrays, expected):
    """On the host here: the caller's device is not the model's."""
    model = on_its_gpu(arrays)
    got = model.forward(expected[0])
    assert isinstance(got, np.ndarray)
    session = _core.Session(model.core, {"answer_len": 0}, [expected[0][0].astype(np.int32)])
    assert isinstance(session.logits(like=gpu_standin.Tensor(GPU + 1, expected[0])), np.ndarray)


@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
def test_hooks_see_logits_on_the_gpu(kind, rng):
    """And what they return, on the framework's own stream, is what the step decides on."""
    ids, runs = text_ids(rng, 6)[None], []
    for device, give in ((simulator.STRICT, lambda a: kind(GPU, a)), ("cpu", lambda a: a)):
        seen = []

        def hook(step, x, logits, give=give, seen=seen):
            seen.append(logits)
            changed = (logits.numpy() if isinstance(logits, kind) else logits).copy()
            changed[..., 36] -= 3.0 * step
            return give(changed)

        model = dllm_fast.load(MODELS / "dream_tiny", dtype="float32", device=device)
        settings = {"max_new_tokens": 6, "steps": 6, "alg": "entropy", "generation_logits_hook_func": hook}
        out = model.diffusion_generate(give(ids), **settings)
        runs.append((out.numpy() if device == simulator.STRICT else out, seen))
    (gpu, seen), (cpu, want) = runs
    np.testing.assert_array_equal(gpu, cpu)
    assert all(type(s) is kind for s in seen) and len(seen) == len(want) == 6
    for a, b in zip(seen, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=2e-4)


# ---- many at once, and for long --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
def test_sessions_of_several_threads(kind, arrays, rng):
    """Each with a stream of its own, on borrowed weights, some decoding and some computing logits into the framework's memory."""
    model, cpu, got = dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays, kind), device=simulator.STRICT), tiny(FOLDER.name), {}
    prompts = [text_ids(rng, n)[None] for n in (5, 9, 7, 8)]
    settings = {"gen_length": 6, "steps": 3, "block_length": 6}

    def decode(i):
        got[i] = dllm_fast.generate(model, kind(GPU, prompts[i]), cache="dyllm", **settings).numpy()

    def compute(i):
        got[i] = [model.forward(kind(GPU, prompts[i])).numpy() for _ in range(3)]

    threads = [threading.Thread(target=(decode, compute)[i % 2], args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in (0, 2):
        np.testing.assert_array_equal(got[i], dllm_fast.generate(cpu, prompts[i], cache="dyllm", **settings))
    for i in (1, 3):
        for logits in got[i]:
            np.testing.assert_allclose(logits, cpu.forward(prompts[i]), atol=1e-4)
    del decode, compute, threads


class Failure(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", [gpu_standin.Tensor, gpu_standin.Exchanged])
def test_nothing_leaks(kind, arrays, rng):
    """Models opened and closed; runs that end, that are left in the middle, that a callback or a source of noise breaks."""
    ids, settings = kind(GPU, text_ids(rng, 5)[None]), {"gen_length": 4, "steps": 4, "block_length": 4}

    def fail(*_):
        raise Failure

    def use():
        model = dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays, kind), device=simulator.STRICT)
        for cache in (None, "dllm-cache", "sparse-dllm", "dyllm"):
            dllm_fast.generate(model, ids, cache=cache, **settings)
            next(iter(dllm_fast.stream(model, ids, cache=cache, **settings)))
            with pytest.raises(Failure):
                dllm_fast.generate(model, ids, cache=cache, callback=fail, **settings)
        with pytest.raises(Failure):
            dllm_fast.generate(model, ids, temperature=1.0, noise=types.SimpleNamespace(uniform=fail, exponential=fail), **settings)
        with pytest.raises(ValueError, match="outside"):
            model.forward(kind(GPU, np.array([[5, 5000]])))
        return model.forward(ids)

    use()
    gc.collect()
    before = gpu_standin.held()
    for _ in range(3):
        use()
        gc.collect()
        assert gpu_standin.held() == before


@pytest.mark.slow  # tests/c/test_cuda_memory.c runs under sanitizers
def test_out_of_memory_at_every_request(arrays, expected):
    """Of model and pass, by the simulator's own count of requests; the framework's, whose allocator may be refused, among them."""
    tensors, ids = on_gpu(arrays, gpu_standin.Exchanged) | {NORM: arrays[NORM]}, gpu_standin.Exchanged(GPU, expected[0])
    refuse, left = gpu_standin.library().dllm_sim_refuse, gpu_standin.library().dllm_sim_until_refusal
    before, said, n, logits = gpu_standin.held(), set(), 0, None
    while logits is None:
        n += 1
        refuse(n)
        try:
            logits = dllm_fast.Model.from_tensors(CONFIG, tensors, device=simulator.STRICT).forward(ids)
        except (MemoryError, RuntimeError) as failure:
            assert left() == 0 and "out of memory" in str(failure) or "no room" in str(failure)
            said.add(str(failure).split(":")[0])
        refuse(0)
        gc.collect()
        assert logits is not None or gpu_standin.held() == before
    assert n > 40 and said >= {"session", "logits", "model", "cuda-sim"}
    np.testing.assert_allclose(logits.numpy(), expected[1], atol=1e-4)


# ---- the caller's own GPU -------------------------------------------------------------------------------------------------------


def test_the_current_gpu_stays_the_callers(arrays, expected):
    current = gpu_standin.library().dllm_sim_current
    before = current()
    model = dllm_fast.Model.from_tensors(CONFIG, on_gpu(arrays), device=simulator.STRICT)
    assert model.forward(expected[0]).shape == expected[1].shape
    assert current() == before != GPU
