"""The engine's kernels one at a time, as benchmarks call them."""

import numpy as np
import pytest

from dllm_fast import _core

LEVELS = _core.cpu_levels()


@pytest.mark.parametrize("level", LEVELS)
def test_linear_is_the_matrix_product(level, rng):
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((5, 96), (33, 96)))
    out = np.full((5, 33), np.nan, np.float32)
    assert _core.linear(out, x, w, threads=2, level=level) > 0
    np.testing.assert_allclose(out, x @ w.T, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_attend_is_softmax_attention(level, rng):
    heads, kv_heads, d = 4, 2, 32
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in ((3, heads * d), (11, kv_heads * d), (11, kv_heads * d)))
    out = np.full_like(q, np.nan)
    assert _core.attend(out, q, k, v, heads, kv_heads, threads=2, level=level) > 0
    for h in range(heads):
        at, kv = slice(h * d, (h + 1) * d), slice(h // 2 * d, (h // 2 + 1) * d)
        p = np.exp(q[:, at] @ k[:, kv].T / np.sqrt(d))
        np.testing.assert_allclose(out[:, at], p @ v[:, kv] / p.sum(1, keepdims=True), atol=1e-4)


def test_bfloat16_comes_as_torch_tensors(rng):
    import torch

    x, w = (torch.from_numpy(rng.standard_normal(shape, np.float32)).bfloat16() for shape in ((7, 64), (48, 64)))
    out = torch.empty(7, 48, dtype=torch.bfloat16)
    _core.linear(out, x, w)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, w), atol=0.1, rtol=0.01)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda a: _core.linear(a, a, a[:, :3]), r"\[4, 4\].*\[4, 3\]"),
        (lambda a: _core.linear(a.astype(np.float16), a, a), "types"),
        (lambda a: _core.attend(a, a, a, a, 3, 1), "3 heads"),
        (lambda a: _core.attend(a, a, a[:2], a, 1, 1), r"k \[2, 4\]"),
        (lambda a: _core.linear(a, a, a, level="sse"), "'sse'"),
        (lambda a: _core.linear(a, a, a, threads=0), "0 threads"),
        (lambda a: _core.linear(np.broadcast_to(a[:1], (4, 4)), a, a), "'out'"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(np.ones((4, 4), np.float32))
