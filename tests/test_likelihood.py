"""Likelihoods against their definitions, written out with forward passes; the greedy check; what is refused."""

import numpy as np
import pytest
from conftest import text_ids, tiny

import dllm_fast
from dllm_fast import log_likelihood
from dllm_fast.likelihood import mask_counts, suffix_greedy

MASK = 300


def cross_entropy(model, noisy, text, shifted, blank=0, cfg_scale=0.0):
    """-log p of text at every position of every noisy row."""
    logits = model.forward(noisy).astype(np.float64)
    if cfg_scale:
        without = noisy.copy()
        without[:, :blank] = MASK
        other = model.forward(without).astype(np.float64)
        logits = other + (cfg_scale + 1) * (logits - other)
    if shifted:
        logits = np.concatenate([logits[:, :1], logits[:, :-1]], 1)
    top = logits.max(-1, keepdims=True)
    every = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return every - np.take_along_axis(logits, np.tile(text, (len(noisy), 1))[..., None], -1)[..., 0]


def draws(rng, text, split, rows, side):
    """Some masks on one side, and weights."""
    noisy, p_mask = np.tile(text, (rows, 1)), rng.uniform(0.2, 1, (rows, len(text))).astype(np.float32)
    hit = rng.random(noisy.shape) < 0.5
    if side != "union":
        hit[:, slice(split) if side == "ftb" else slice(split, None)] = False
    noisy[hit] = MASK
    return noisy, p_mask


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
def test_llada_monte_carlo(llada, rng, cfg_scale):
    prefix, target = text_ids(rng, 6), text_ids(rng, 5)
    text = np.r_[prefix, target]
    masks = [draws(rng, text, 6, 4, "ftb") for _ in range(3)]
    losses = []
    for noisy, p_mask in masks:
        ce = cross_entropy(llada, noisy, text, False, 6, cfg_scale)
        losses.append((ce / p_mask)[noisy == MASK].sum() / 4)
    given = log_likelihood(llada, prefix, target, cfg_scale=cfg_scale, masks=masks)
    assert isinstance(given, float) and given == pytest.approx(-np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("log_type", ["ftb", "btf", "union"])
def test_dream_monte_carlo(dream, rng, log_type):
    prefix, target = text_ids(rng, 6), text_ids(rng, 5)
    text = np.r_[prefix, target]
    masks = [draws(rng, text, 6, 4, log_type) for _ in range(2)]
    expected = np.mean([(cross_entropy(dream, n, text, True) / p)[n == MASK].sum() / 4 for n, p in masks])
    if log_type == "union":
        expected /= len(text)
    assert log_likelihood(dream, prefix, target, log_type=log_type, masks=masks) == pytest.approx(-expected, rel=1e-4)


@pytest.mark.parametrize("nll_type", ["ar_ftb", "ar_btf"])
@pytest.mark.parametrize("log_type", ["ftb", "btf"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_dream_chain_rule(dream, rng, nll_type, log_type, batch_size):
    prefix, target = text_ids(rng, 6), text_ids(rng, 5)
    text, low, high = np.r_[prefix, target], *((6, 11) if log_type == "ftb" else (0, 6))
    expected = 0.0
    for at in range(low, high):
        noisy = text.copy()
        noisy[slice(at, high) if nll_type == "ar_ftb" else slice(low, at + 1)] = MASK
        expected += cross_entropy(dream, noisy[None], text, True)[0, at]
    given = log_likelihood(dream, prefix, target, nll_type=nll_type, log_type=log_type, batch_size=batch_size)
    assert given == pytest.approx(-expected, rel=1e-4)


def test_one_token_is_exact(llada, rng):
    """With one answer token every draw is the same, so the estimate is the conditional probability itself."""
    prefix, target = text_ids(rng, 6), text_ids(rng, 1)
    ce = cross_entropy(llada, np.r_[prefix, MASK][None], np.r_[prefix, target], False)[0, 6]
    for options in ({"mc_num": 1}, {"mc_num": 32, "seed": 1}, {"mc_num": 5, "batch_size": 2}):
        assert log_likelihood(llada, prefix, target, **options) == pytest.approx(-ce, rel=1e-4)
    assert log_likelihood(llada, [], target, cfg_scale=0.5) == pytest.approx(log_likelihood(llada, [], target), rel=1e-5)


def test_fresh_draws(llada, dream, rng):
    prefix, target = text_ids(rng, 4), text_ids(rng, 6)
    for model in (llada, dream):
        first, again, other, free = (log_likelihood(model, prefix, target, mc_num=8, seed=s) for s in (1, 1, 2, None))
        assert first == again != other and np.isfinite([first, other, free]).all() and first < 0
        many = [log_likelihood(model, prefix, target, mc_num=256, seed=s) for s in (1, 2)]
        assert many[0] == pytest.approx(many[1], rel=0.15)  # an estimate: observed spread 3 %


def test_draws_have_the_right_shape(monkeypatch, dream, llada):
    """LLaDA masks counts spread evenly over the answer; Dream never masks the ends, and only the scored side."""
    from dllm_fast import likelihood

    text, rng = np.arange(20, 32, dtype=np.int32), np.random.default_rng(3)
    noisy, p_mask = likelihood._llada_masks(text, 4, slice(4, None), 8, MASK, 0.0, rng)
    hit = noisy == MASK
    assert not hit[:, :4].any() and sorted(hit.sum(1)) == list(range(1, 9))
    np.testing.assert_allclose(p_mask, np.repeat(hit.sum(1)[:, None] / 8, 12, 1), rtol=1e-6)
    noisy, p_mask = likelihood._dream_masks(text, 4, slice(None), 2000, MASK, 0.1, rng)
    hit = noisy == MASK
    assert not hit[:, [0, -1]].any() and 0.1 <= p_mask.min() and p_mask.max() <= 1
    assert abs(hit[:, 1:-1].mean() - 0.55) < 0.01 and abs(p_mask.mean() - 0.55) < 0.01
    assert not (likelihood._dream_masks(text, 4, slice(4, None), 50, MASK, 0.1, rng)[0][:, :4] == MASK).any()


@pytest.mark.parametrize(("n", "rows", "k"), [(5, 4, 3), (3, 16, 1), (11, 8, 7), (1, 4, 1)])
def test_mask_counts(n, rows, k):
    counts = mask_counts(n, rows, k)
    assert counts[0] == k and counts.min() >= 1 and counts.max() <= n
    if rows >= n:
        assert set(counts) == set(range(1, n + 1))


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_greedy_check(llada, rng, cfg_scale):
    settings = {"steps": 5, "gen_length": 5, "block_length": 5, "cfg_scale": cfg_scale}
    found = 0
    for _ in range(8):
        prefix = text_ids(rng, 6)
        answer = dllm_fast.generate(llada, prefix, **settings)[0, 6:]
        found += MASK not in answer
        assert suffix_greedy(llada, prefix, answer, cfg_scale) == (MASK not in answer) or MASK in answer
        for at in range(5):
            wrong = answer.copy()
            wrong[at] = (wrong[at] + 1) % 280
            assert not suffix_greedy(llada, prefix, wrong, cfg_scale)
    assert found
    assert suffix_greedy(llada, prefix, [])


@pytest.mark.parametrize(
    ("name", "words", "options"),
    [
        ("llada", "target is empty", {"target": []}),
        ("llada", "ar_ftb.*LLaDA", {"nll_type": "ar_ftb"}),
        ("llada", "union.*LLaDA", {"log_type": "union"}),
        ("dream", "nll_type='exact'", {"nll_type": "exact"}),
        ("dream", "log_type='both'", {"log_type": "both"}),
        ("dream", "not 'union'", {"nll_type": "ar_ftb", "log_type": "union"}),
        ("dream", "mc_num 0", {"mc_num": 0}),
        ("dream", "batch_size -1", {"batch_size": -1}),
        ("llada", "id 320.*319", {"target": [320]}),
        ("llada", r"\(1, 3\)", {"masks": [(np.zeros((1, 3)), np.ones((1, 3)))]}),
        ("llada", "one sequence", {"prefix": np.zeros((2, 2), int)}),
    ],
)
def test_refused(name, words, options):
    with pytest.raises(ValueError, match=words):
        log_likelihood(tiny(f"{name}_tiny"), **{"prefix": [1, 2], "target": [3, 4], **options})


def test_tensors_and_batches_of_one(dream, rng):
    torch = pytest.importorskip("torch")
    prefix, target = text_ids(rng, 4), text_ids(rng, 3)
    expected = log_likelihood(dream, prefix, target, nll_type="ar_ftb")
    assert log_likelihood(dream, torch.from_numpy(prefix)[None], target.tolist(), nll_type="ar_ftb") == expected
    with pytest.raises(TypeError, match="float"):
        log_likelihood(dream, prefix.astype(float), target)
