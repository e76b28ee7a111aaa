"""torch's own tensors on real GPUs: weights borrowed, logits that stay, streams, leaks. tests/test_cuda_tensors.py says the same of
simulated ones, in more ways."""

import gc

import numpy as np
import pytest
from conftest import MODELS, text_ids

torch = pytest.importorskip("torch")

import hf_standin  # noqa: E402

import dllm_fast  # noqa: E402
from dllm_fast import cuda  # noqa: E402
from dllm_fast.hf import engine  # noqa: E402

if not torch.cuda.is_available() or not cuda.state()[0]:
    pytest.skip("torch or the plug-in finds no GPU", allow_module_level=True)

CLOSE = {"rtol": 0, "atol": 5e-4}
SETTINGS = {"gen_length": 8, "steps": 4, "block_length": 8}


@pytest.fixture(params=[f"cuda:{i}" for i in range(min(torch.cuda.device_count(), 2))])
def device(request):
    return request.param


@pytest.fixture
def pair(device):
    """The same object on the GPU and on the host."""
    return hf_standin.load(MODELS / "llada_tiny").to(device), hf_standin.load(MODELS / "llada_tiny")


def prompt(rng, n=9):
    return torch.from_numpy(text_ids(rng, n)[None])


def test_weights_are_borrowed_and_logits_stay(pair, device, rng):
    ids, current = prompt(rng), torch.cuda.current_device()
    model, want = engine(pair[0]), pair[1](ids).logits
    assert sorted(model.core.pointers().values()) == sorted(p.data_ptr() for p in pair[0].parameters())
    got = model.forward(ids.to(device))
    assert str(got.device) == device and got.dtype == torch.float32
    torch.testing.assert_close(got.cpu(), want, **CLOSE)
    torch.testing.assert_close(model.forward(ids), want, **CLOSE)  # ids on the host: so are the logits
    assert torch.cuda.current_device() == current


def test_streams(pair, device, rng):
    """What torch is asked on its current stream before a call has happened for the call, and the other way round."""
    ids, model = prompt(rng), engine(pair[0])
    want = 2 * pair[1](ids).logits
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        torch.cuda._sleep(100_000_000)
        pair[0].model.transformer.ff_out.weight *= 2
        from_host, got = model.forward(ids), model.forward(ids.to(device))
        twice = got + got
    torch.cuda.synchronize(device)
    torch.testing.assert_close(from_host, want, **CLOSE)
    torch.testing.assert_close(twice.cpu(), 2 * want, **CLOSE)


def test_answers(pair, device, rng):
    ids = prompt(rng)
    for cache in (None, "dllm-cache", "sparse-dllm", "dyllm"):
        got, want = (dllm_fast.generate(hf, i, cache=cache, **SETTINGS) for hf, i in zip(pair, (ids.to(device), ids), strict=True))
        assert str(got.device) == device
        np.testing.assert_array_equal(got.cpu(), want)


def test_nothing_leaks(pair, device, rng):
    ids = prompt(rng, 200).to(device)

    def use():
        model = dllm_fast.load(MODELS / "llada_tiny", dtype="float32", device=device)
        for m in (model, engine(pair[0])):
            m.forward(ids)
            next(iter(dllm_fast.stream(m, ids, cache="dyllm", **SETTINGS)))
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]

    use()
    before = use()
    assert min(use() for _ in range(20)) >= before - (4 << 20)  # what others on the GPU may take meanwhile
