"""Dream's way of generating: lengths, configurations, hooks, what comes back, and the contract of batches."""

import types

import numpy as np
import pytest
from conftest import padded, text_ids, tiny

MASK, EOS = 300, 290
SMALL = {"max_new_tokens": 6, "steps": 4, "alg": "entropy"}


def test_lengths(dream, rng):
    prompt = text_ids(rng, 7)

    def total(**options):
        return dream.diffusion_generate(prompt, steps=2, **options).shape[1]

    assert total() == 27  # the default max_length of 20 counts from the prompt's end
    assert total(max_length=10) == 10  # a given one counts the prompt
    assert total(max_length=20) == 20
    assert total(max_new_tokens=3) == 10
    assert total(max_new_tokens=3, max_length=30) == 10
    assert total(generation_config={"max_new_tokens": 4}) == 11
    assert total(generation_config={"max_length": 12}) == 12
    assert total(generation_config={"max_length": 20}) == 27
    near_the_end = text_ids(rng, 500)  # of a context of 512
    assert dream.diffusion_generate(near_the_end, steps=1).shape == (1, 512)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "max_length 3.*3 tokens", {"max_length": 3}),
        (ValueError, "max_new_tokens.*0", {"max_new_tokens": 0}),
        (RuntimeError, "best.*maskgit_plus", {"alg": "best"}),
        (TypeError, "max_tokens", {"max_tokens": 8}),
        (ValueError, "temperature.*-1", {"temperature": -1.0}),
        (ValueError, "top_p.*-0.1", {"top_p": -0.1}),
        (ValueError, "top_k.*-5", {"top_k": -5}),
        (ValueError, "alg_temp.*-1", {"alg_temp": -1}),
        (ValueError, "num_return_sequences.*0", {"num_return_sequences": 0}),
        (ValueError, "6.*multiple.*4", {"max_new_tokens": 6, "block_length": 4}),
        (ValueError, "steps 5.*2 blocks", {"max_new_tokens": 6, "block_length": 3, "steps": 5}),
        (ValueError, "steps 0", {"steps": 0}),
        (ValueError, "eps", {"eps": 2.0}),
        (ValueError, "threshold", {"alg": "origin", "threshold": 0.9}),
        (ValueError, "cache 'dkv' is not known", {"cache": "dkv"}),
        (ValueError, "seed has 1 entries for 2", {"seed": [1], "num_return_sequences": 2}),
    ],
)
def test_refused_options(dream, error, words, options):
    with pytest.raises(error, match=words):
        dream.diffusion_generate(np.array([[1, 2, 3]]), **options)


def test_no_ids(dream):
    with pytest.raises(ValueError, match="input ids"):
        dream.diffusion_generate(None)


def test_configurations(dream, rng):
    prompt = text_ids(rng, 6)
    settings = {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 20,
        "alg": "maskgit_plus",
        "alg_temp": 0.5,
        "eps": 0.01,
        "seed": 4,
        **SMALL,
    }
    expected = dream.diffusion_generate(prompt, **settings)
    config = types.SimpleNamespace(**settings, eos_token_id=[EOS], mask_token_id=MASK, unknown=1, num_return_sequences=None)
    np.testing.assert_array_equal(dream.diffusion_generate(prompt, generation_config=config), expected)
    np.testing.assert_array_equal(dream.diffusion_generate(prompt, generation_config=settings), expected)
    other = dream.diffusion_generate(prompt, generation_config={**settings, "temperature": 0.1, "seed": 9}, temperature=0.8, seed=4)
    np.testing.assert_array_equal(other, expected)
    assert (dream.diffusion_generate(prompt, **settings | {"seed": 5}) != expected).any()
    greedy = dream.diffusion_generate(prompt, generation_config=config, temperature=0.0, alg_temp=None)
    np.testing.assert_array_equal(greedy, dream.diffusion_generate(prompt, **settings | {"temperature": 0, "alg_temp": 0}))


def test_another_mask_token(dream, rng):
    """mask_token_id may come with the call; the config's mask is then a word like any other."""
    prompt = np.r_[text_ids(rng, 4), MASK]
    out = dream.diffusion_generate(prompt, mask_token_id=310, **SMALL)
    assert out[0, 4] == MASK and 310 not in out[0, :5]


def test_defaults_are_greedy_origin(dream, rng):
    prompt = text_ids(rng, 5)
    seeded = dream.diffusion_generate(prompt, max_new_tokens=8, seed=1)
    explicit = dream.diffusion_generate(prompt, max_new_tokens=8, seed=1, steps=512, temperature=0.0, alg="origin", eps=1e-3)
    np.testing.assert_array_equal(seeded, explicit)
    assert MASK not in seeded


def test_return_values(dream, rng):
    prompt, seen = text_ids(rng, 5), []
    call = {**SMALL, "callback": lambda step: seen.append(step.sequences)}
    out = dream.diffusion_generate(prompt, output_history=True, return_dict_in_generate=True, **call)
    assert out.sequences is out[0] is out["sequences"] and out.history is out[1]
    np.testing.assert_array_equal(np.array(out.history), np.array(seen))
    assert out.stats["forwards"] == 4 and out.stats["tokens"] == 6
    assert dream.diffusion_generate(prompt, return_dict_in_generate=True, **SMALL).history is None
    assert isinstance(dream.diffusion_generate(prompt, output_history=True, **SMALL), np.ndarray)
    done = []
    dream.diffusion_generate(prompt, progress=lambda *args: done.append(args), **SMALL)
    assert done == [(n, 4) for n in (1, 2, 3, 4)]


def test_num_return_sequences(dream, rng):
    ids, mask = padded([text_ids(rng, n) for n in (4, 6)], "left")
    hot = {"temperature": 1.0, "seed": 8, **SMALL}
    out = dream.diffusion_generate(ids, mask, num_return_sequences=3, **hot)
    assert out.shape == (6, 12) and len({tuple(r) for r in out.tolist()}) == 6
    np.testing.assert_array_equal(out, dream.diffusion_generate(np.repeat(ids, 3, 0), np.repeat(mask, 3, 0), **hot))
    ragged = dream.diffusion_generate([ids[0, 2:], ids[1]], num_return_sequences=3, **hot)
    assert [len(r) for r in ragged] == [10] * 3 + [12] * 3
    np.testing.assert_array_equal(np.array(ragged[3:]), out[3:])


def test_hooks(dream, rng):
    ids, mask = padded([text_ids(rng, n) for n in (4, 6)], "left")
    calls = []

    def tokens(i, x, logits):
        calls.append(("tokens", i, x.shape, None if logits is None else logits.shape))
        return x

    def logits(i, x, z):
        calls.append(("logits", i, x.shape, z.shape))
        assert z.dtype == np.float32 and x.dtype == np.int64
        return z

    hooks = {"generation_tokens_hook_func": tokens, "generation_logits_hook_func": logits}
    out = dream.diffusion_generate(ids, mask, **hooks, **SMALL)
    np.testing.assert_array_equal(out, dream.diffusion_generate(ids, mask, **SMALL))
    grid = ((2, 12), (2, 12, 320))
    expected = [("tokens", None, (2, 12), None)]
    expected += [(kind, i, *grid) for i in range(4) for kind in ("logits", "tokens")]
    assert calls == expected


def test_a_logits_hook_decides(dream, rng):
    """What it writes is what is chosen; the logits are shifted: row p tells the token of row p."""
    prompt, shown = text_ids(rng, 5), []

    def only_seven(i, x, logits):
        shown.append((x.copy(), logits.copy()))
        logits[:] = -10
        logits[..., 7] = 10
        return logits

    out = dream.diffusion_generate(prompt, generation_logits_hook_func=only_seven, **SMALL)
    assert (out[0, 5:] == 7).all()
    x, logits = shown[0]
    own = dream.forward(x)
    np.testing.assert_array_equal(logits[:, 1:], own[:, :-1])
    np.testing.assert_array_equal(logits[:, 0], own[:, 0])


def test_a_tokens_hook_writes(dream, rng):
    prompt = text_ids(rng, 5)

    def write(i, x, logits):
        x[:, -1] = 11
        return x if i is None else x.copy()

    out = dream.diffusion_generate(prompt, generation_tokens_hook_func=write, **SMALL)
    assert out[0, -1] == 11 and MASK not in out
    ragged = dream.diffusion_generate(
        [prompt, prompt[:2]], generation_tokens_hook_func=lambda i, x, z: [r.copy() for r in x], **SMALL
    )
    np.testing.assert_array_equal(ragged[0], dream.diffusion_generate(prompt, **SMALL)[0])


@pytest.mark.parametrize(
    ("error", "words", "hook"),
    [
        (ValueError, "column 0: id", lambda i, x, z: x + 320),
        (ValueError, "length", lambda i, x, z: x[:, 1:]),
        (TypeError, "float64", lambda i, x, z: x * 0.5),
        (KeyError, "mine", lambda i, x, z: {}["mine"]),
    ],
)
def test_hooks_that_go_wrong(dream, rng, error, words, hook):
    prompt = text_ids(rng, 5)
    with pytest.raises(error, match=words):
        dream.diffusion_generate(prompt, generation_tokens_hook_func=hook, **SMALL)
    assert dream.diffusion_generate(prompt, **SMALL).shape == (1, 11)


def test_top_k_one_is_greedy(dream, rng):
    prompt = text_ids(rng, 5)
    greedy = dream.diffusion_generate(prompt, max_new_tokens=6, steps=6, alg="entropy", top_k=1)
    hot = dream.diffusion_generate(prompt, max_new_tokens=6, steps=6, alg="entropy", top_k=1, temperature=2.0)
    np.testing.assert_array_equal(hot, greedy)
    tight = dream.diffusion_generate(prompt, max_new_tokens=6, steps=6, alg="entropy", top_p=1e-6, temperature=2.0)
    np.testing.assert_array_equal(tight, greedy)


def test_blocks_are_filled_left_to_right(dream, rng):
    options = {"max_new_tokens": 12, "steps": 6, "block_length": 4, "alg": "maskgit_plus"}
    out = dream.diffusion_generate(text_ids(rng, 5), output_history=True, return_dict_in_generate=True, **options)
    assert len(out.history) == 6
    for i, ids in enumerate(out.history):
        answer, block = ids[0, 5:] == MASK, i // 2
        assert not answer[: 4 * block].any() and answer[4 * (block + 1) :].all()
    assert MASK not in out.sequences


def test_threshold(dream, rng):
    options = {"max_new_tokens": 12, "steps": 12, "alg": "maskgit_plus", "return_dict_in_generate": True}
    sure = dream.diffusion_generate(text_ids(rng, 5), threshold=0.2, **options)
    assert sure.stats["steps"] < 12 and MASK not in sure.sequences


def test_recorded_noise(dream, rng):
    """Tokens are drawn for the masked rows of the whole batch, places for the padded grid, in the order of the official loop."""
    rows = [text_ids(rng, n) for n in (4, 6)]
    ids, mask = padded(rows, "left")
    options = {"max_new_tokens": 4, "steps": 2, "alg": "entropy", "temperature": 0.8, "alg_temp": 0.5, "eps": 0.25}
    shapes, given, source = [], [], np.random.default_rng(6)

    def draw(shape):
        shapes.append(tuple(shape))
        given.append(source.exponential(size=shape).astype(np.float32))
        return given[-1]

    out = dream.diffusion_generate(ids, mask, noise=types.SimpleNamespace(uniform=print, exponential=draw), **options)
    assert shapes == [(8, 320), (2, 10), (6, 320), (2, 10)]  # 4 * (1 - 0.625) is 1 of 4 masks a row, then the rest
    for b, row in enumerate(rows):
        half, pads = [len(x) // 2 for x in given], 6 - len(row)
        mine = [x[b * h : (b + 1) * h] if x.shape[1] == 320 else x[b : b + 1, pads:] for x, h in zip(given, half, strict=True)]
        left = iter(mine)
        replay = types.SimpleNamespace(uniform=print, exponential=lambda shape, left=left: next(left))
        np.testing.assert_array_equal(out[b, pads:], dream.diffusion_generate(row, noise=replay, **options)[0])


def test_recorded_coins(dream, rng):
    """The origin rule flips a coin a masked row: all heads fill everything at once."""
    prompt, shapes = text_ids(rng, 5), []

    def coins(shape, dtype):
        shapes.append((tuple(shape), np.dtype(dtype)))
        return np.zeros(shape, dtype)

    noise = types.SimpleNamespace(uniform=coins, exponential=print)
    call = {"max_new_tokens": 6, "steps": 3, "output_history": True, "return_dict_in_generate": True}
    out = dream.diffusion_generate(prompt, noise=noise, **call)
    assert shapes[0] == ((6,), np.float32) and MASK not in out.history[0]


def test_llada_models_take_dream_decoding(llada, rng):
    prompt = text_ids(rng, 6)
    out = llada.diffusion_generate(prompt, max_new_tokens=4, steps=1, alg="maskgit_plus")
    logits = llada.forward(np.r_[prompt, [MASK] * 4])
    np.testing.assert_array_equal(out[0, 6:], logits[0, 6:].argmax(-1))  # LLaDA's logits are not shifted


# ---- batches: row i of any batch is row i alone ----------------------------------------------------------------------------------


def dream_options(rng):
    """Random settings of diffusion_generate that fit together."""
    block, blocks, per_block = (int(rng.integers(1, n)) for n in (5, 4, 4))
    options = {"max_new_tokens": block * blocks, "steps": blocks * per_block, "eps": float(rng.choice([1e-3, 0.2]))}
    options["alg"] = str(rng.choice(["origin", "maskgit_plus", "topk_margin", "entropy"]))
    options["block_length"] = [None, block][rng.integers(2)]
    options["temperature"] = float(rng.choice([0, 0, 0.7]))
    options |= [{}, {"top_p": 0.8}, {"top_k": 7}][rng.integers(3)]
    if options["alg"] != "origin":
        options |= [{}, {}, {"alg_temp": 0.4}, {"threshold": 0.15}][rng.integers(4)]
    options["early_stop"] = bool(rng.random() < 0.2)
    return options


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", ["ragged", "left", "right", "holes"])
def test_batches(form, threads):
    from test_generate import assert_batch_is_its_rows, random_rows

    model, alone = tiny("dream_tiny", threads=threads), tiny("dream_tiny", threads=1)
    rng = np.random.default_rng([threads, len(form)])
    for i in range(40):
        options, rows, seed = dream_options(rng), random_rows(rng), int(rng.integers(2**63))

        def run(ids, mask, seed, options=options):
            return (model if len(ids) > 1 else alone).diffusion_generate(ids, mask, seed=seed, **options)

        assert_batch_is_its_rows(run, rows, form, seed, f"batch {i}: {options}")
