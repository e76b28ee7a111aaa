"""The caching methods as a user meets them: batches, settings that must change nothing, what goes with what, what is refused, what
is counted."""

import itertools

import numpy as np
import pytest
from conftest import padded, text_ids, tiny

import dllm_fast
from dllm_fast import DLLMCache, DyLLM, SparseDLLM, _core, dLLMCacheConfig
from dllm_fast.caches import as_cache

MASK, EOS = 300, 290
CACHES = {
    "dllm-cache": DLLMCache(3, 2, 0.25),
    "sparse-dllm": SparseDLLM(0.5, 3),
    "dyllm": DyLLM(tau=0.95, full_steps=2, whole_interval=3),
}
FAMILIES = ("llada", "dream")


class Seen(list):
    """A callback that keeps every Step."""

    def __call__(self, step):
        self.append(step)

    def __bool__(self):
        return True


def run(model, prompt, mask=None, *, answer=8, steps=4, block=4, callback=None, **options):
    """One request by the family's own call: a GenerateOutput or DiffusionOutput."""
    if model.config["family"] == "llada":
        return dllm_fast.generate(
            model, prompt, mask, steps=steps, gen_length=answer, block_length=block, callback=callback, return_dict=True, **options
        )
    settings = {"alg": "entropy", "max_new_tokens": answer, "steps": steps, "block_length": block} | options
    return model.diffusion_generate(prompt, mask, callback=callback, return_dict_in_generate=True, **settings)


def one(family):
    return tiny(f"{family}_tiny")


def ragged(rng, lengths=(5, 9, 2)):
    return [text_ids(rng, n) for n in lengths]


# ---- a batch is its rows -------------------------------------------------------------------------------------------------------

SAMPLED = {"llada": {"temperature": 0.7}, "dream": {"temperature": 0.7, "top_p": 0.9}}
GUIDED = {"cfg_scale": 0.5}  # with more, the tiny model writes masks for ever

WAYS = [("llada", {}), ("llada", SAMPLED["llada"]), ("llada", GUIDED), ("dream", {}), ("dream", SAMPLED["dream"])]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family, options", WAYS)
def test_rows_of_a_batch_are_the_rows_alone(family, options, cache, threads, rng):
    model, rows = tiny(f"{family}_tiny", threads=threads), ragged(rng)
    shape = {"answer": 8, "steps": 8, "block": 4, "cache": CACHES[cache], **options}
    together, seen = Seen(), {}
    out = run(model, rows, seed=11, callback=together, **shape).sequences
    ids, mask = padded(rows, "left")
    left = run(model, ids, mask, seed=11, **shape).sequences
    for b, row in enumerate(rows):
        seen[b] = Seen()
        (alone,) = run(model, [row], seed=[(11, b)], callback=seen[b], **shape).sequences
        np.testing.assert_array_equal(out[b], alone)
        np.testing.assert_array_equal(left[b, ids.shape[1] - len(row) :], alone)
        for mine, his in zip(together, seen[b], strict=False):
            np.testing.assert_array_equal(mine.sequences[b], his.sequences[0])
            np.testing.assert_array_equal(mine.mode[:, b], his.mode[:, 0])
            for layer in range(model.config["layers"]):
                np.testing.assert_array_equal(mine.chosen[layer][b], his.chosen[layer][0])
    assert any(len(step.chosen[-1][0]) for step in together)


@pytest.mark.parametrize("cache", CACHES)
def test_rows_in_different_phases_share_a_batch(cache, rng):
    """With a threshold, rows of a batch come to different blocks at the same step."""
    for family in FAMILIES:
        model, rows, together = one(family), ragged(rng, (7, 3, 12)), Seen()
        shape = {"answer": 16, "steps": 16, "block": 4, "cache": CACHES[cache], "threshold": 0.1}
        out = run(model, rows, callback=together, **shape).sequences
        for b, row in enumerate(rows):
            np.testing.assert_array_equal(out[b], run(model, [row], **shape).sequences[0])
        left = np.array([[(step.masked[b]).sum() for b in range(3)] for step in together])
        assert (left != left[:, :1]).any()


@pytest.mark.parametrize("cache", CACHES)
def test_threads_do_not_change_what_comes_out(cache, rng):
    for family in FAMILIES:
        rows = ragged(rng, (20, 33))
        shape = {"answer": 16, "steps": 16, "block": 8, "cache": CACHES[cache]}
        ids = [run(tiny(f"{family}_tiny", threads=n), rows, **shape).sequences for n in (1, 2)]
        for one_thread, two in zip(*ids, strict=True):
            np.testing.assert_array_equal(one_thread, two)


# ---- settings that must equal the uncached run ---------------------------------------------------------------------------------

DEGENERATE = {
    "every pass refreshes": (DLLMCache(1, 1, 0.0), {}), "every pass refreshes, with a ratio": (DLLMCache(-1, -1, 0.25), {}),
    "every answer row is chosen": (DLLMCache(1, 7, 1.0), {}), "two steps a block": (SparseDLLM(0.3, 5), {"steps": 4}),
    "one step a block": (SparseDLLM(0.0, None), {"steps": 2}), "only full steps": (DyLLM(full_steps=16), {}),
    "always due": (DyLLM(full_steps=1, refresh_interval=1), {}), "exact": (DyLLM(exact=True), {}),
    "exact after one full step": (DyLLM(full_steps=0, exact=True), {}),
    "exact by its parts": (DyLLM(tau=float("inf"), whole_interval=1, seed_all=True, keep_seed=True), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("family, options", WAYS)
def test_degenerate_settings_equal_the_uncached_run(family, options, name, rng):
    """Ids and scores of every step, bit for bit."""
    cache, steps = DEGENERATE[name]
    model, rows = one(family), ragged(rng)
    shape = {"answer": 8, "steps": 8, "block": 4, "seed": 5, **steps, **options}
    cached, plain = Seen(), Seen()
    run(model, rows, cache=cache, callback=cached, **shape)
    run(model, rows, callback=plain, **shape)
    assert len(cached) == len(plain) == shape["steps"]
    for mine, his in zip(cached, plain, strict=True):
        for b in range(len(rows)):
            np.testing.assert_array_equal(mine.sequences[b], his.sequences[b])
            np.testing.assert_array_equal(mine.confidence[b], his.confidence[b])


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_settings_with_grouped_heads(name, rng):
    cache, steps = DEGENERATE[name]
    model, shape = tiny("llada_odd_gqa"), {"answer": 8, "steps": 8, "block": 4, **steps}
    rows = [row % 280 for row in ragged(rng, (4, 6))]
    for mine, his in zip(run(model, rows, cache=cache, **shape).sequences, run(model, rows, **shape).sequences, strict=True):
        np.testing.assert_array_equal(mine, his)


@pytest.mark.parametrize("cache", CACHES)
def test_other_settings_do_change_something(cache, rng):
    """Else the tests above prove nothing."""
    for family in FAMILIES:
        rows = ragged(rng, (12, 7))
        plain, cached = (run(one(family), rows, answer=24, steps=24, block=8, cache=c).sequences for c in (None, CACHES[cache]))
        assert any((a != b).any() for a, b in zip(plain, cached, strict=True))


# ---- everything goes with everything, or says why not --------------------------------------------------------------------------

PARALLEL = ({}, {"threshold": 0.2}, {"factor": 1.5})


def reason(cache, rule):
    """What is refused, and a word of the reason; None: it runs."""
    if rule == "dyllm" and cache == "sparse-dllm":
        return "one open block"
    return None


def walk(family, cache, rule, prompts, **options):
    """Runs it, and checks what every run must keep: prompts, one write a cell, no id outside the vocabulary, steps that end."""
    model, steps = one(family), Seen()
    out = run(model, prompts, cache=CACHES.get(cache), rule=rule, callback=steps, seed=3, **options)
    before = [np.r_[row, np.full(8, MASK)] for row in prompts]
    for step in steps:
        for b, ids in enumerate(step.sequences):
            changed = np.flatnonzero(ids != before[b])
            assert (before[b][changed] == MASK).all() and (changed >= len(prompts[b])).all()
            assert set(changed) <= set(step.committed[b]) or options["early_stop"]
            assert ((0 <= ids) & (ids < model.config["vocab"])).all()
        before = step.sequences
    for b, ids in enumerate(out.sequences):
        np.testing.assert_array_equal(ids, before[b])
    assert 1 <= len(steps) <= 16
    if not options["early_stop"]:  # some predict the mask id, which leaves its place masked
        assert out.stats["tokens"] == sum((ids[-8:] != MASK).sum() for ids in out.sequences) > 0


@pytest.mark.parametrize("cache", [None, *CACHES])
@pytest.mark.parametrize("rule", [None, "dyllm", "sparse-dllm"])
def test_every_method_goes_with_every_way_of_decoding_llada(cache, rule, rng):
    prompts, ran = ragged(rng, (3,)), 0
    table = itertools.product((4, 8), PARALLEL, (0.0, 0.5), (False, True), (0.0, 0.8), ("low_confidence", "random"))
    for block, parallel, cfg, early, temperature, remasking in table:
        if remasking == "random" and (parallel or early or cfg):
            continue
        o = {"block": block, "steps": 32 // block if rule != "dyllm" else 4, "cfg_scale": cfg, "early_stop": early}
        o |= {"temperature": temperature, "remasking": remasking, **parallel}
        why = reason(cache, rule)
        if why is None:
            walk("llada", cache, rule, prompts, **o)
            ran += 1
            continue
        with pytest.raises(ValueError, match=why):
            walk("llada", cache, rule, prompts, **o)
    assert ran or (cache, rule) == ("sparse-dllm", "dyllm")


@pytest.mark.parametrize("cache", [None, *CACHES])
@pytest.mark.parametrize("rule", [None, "dyllm", "sparse-dllm"])
def test_every_method_goes_with_every_way_of_decoding_dream(cache, rule, rng):
    prompts, ran = ragged(rng, (3,)), 0
    algs = ("entropy", "maskgit_plus", "topk_margin", "origin")
    table = itertools.product((4, 8), PARALLEL[:2], algs, (False, True), ({}, {"temperature": 0.6, "top_p": 0.9, "alg_temp": 0.5}))
    for block, parallel, alg, early, sampling in table:
        o = {
            "block": block,
            "steps": 32 // block if rule != "dyllm" else 4,
            "alg": alg,
            "early_stop": early,
            **parallel,
            **sampling,
        }
        why = reason(cache, rule)
        if alg == "origin" and (rule == "sparse-dllm" or (parallel and rule is None)):
            why = "origin"
        if why is None:
            walk("dream", cache, rule, prompts, **o)
            ran += 1
            continue
        with pytest.raises(ValueError, match=why):
            walk("dream", cache, rule, prompts, **o)
    assert ran or (cache, rule) == ("sparse-dllm", "dyllm")


def test_early_stop_ends_a_cached_run(rng):
    """The end token is whatever the first run wrote early; the second run must end there."""
    for cache, family in itertools.product(CACHES, FAMILIES):
        model, (row,) = one(family), ragged(rng, (6,))
        shape = {"answer": 16, "steps": 16, "block": 16 if family == "dream" else 4, "cache": CACHES[cache]}
        (first,) = run(model, [row], **shape).sequences
        name, end = ("eos_id" if family == "llada" else "eos_token_id"), int(first[len(row)])
        stopped = run(model, [row], early_stop=True, **{name: end}, **shape)
        (ids,) = stopped.sequences
        assert ids[len(row)] == end and stopped.stats["steps"] < 16
        after = ids[len(row) + 1 :]
        assert ((after == end) | (after == first[len(row) + 1 :])).all()


# ---- refusals ------------------------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: DLLMCache(prompt_interval_steps=0), ValueError, "prompt_interval_steps 0"),
    (lambda: DLLMCache(gen_interval_steps=-2), ValueError, "gen_interval_steps -2"),
    (lambda: DLLMCache(gen_interval_steps=2.5), ValueError, "gen_interval_steps 2.5"),
    (lambda: DLLMCache(cfg_interval_steps=0), ValueError, "cfg_interval_steps 0"),
    (lambda: DLLMCache(transfer_ratio=1.5), ValueError, "transfer_ratio 1.5"),
    (lambda: DLLMCache(transfer_ratio=-0.1), ValueError, "transfer_ratio -0.1"),
    (lambda: DLLMCache(transfer_ratio=float("nan")), ValueError, "transfer_ratio nan"),
    (lambda: SparseDLLM(keep_ratio=1.01), ValueError, "keep_ratio 1.01"),
    (lambda: SparseDLLM(keep_ratio=-0.5), ValueError, "keep_ratio -0.5"),
    (lambda: SparseDLLM(kernel_size=4), ValueError, "kernel_size 4 must be odd"),
    (lambda: SparseDLLM(kernel_size=-3), ValueError, "kernel_size -3"),
    (lambda: SparseDLLM(shift="flat"), ValueError, "shift 'flat'"),
    (lambda: DyLLM(tau=float("nan")), ValueError, "tau nan"),
    (lambda: DyLLM(full_steps=-1), ValueError, "full_steps -1"),
    (lambda: DyLLM(whole_interval=0), ValueError, "whole_interval 0"),
    (lambda: DyLLM(refresh_interval=-4), ValueError, "refresh_interval -4"),
    (lambda: DyLLM(shift="own"), ValueError, "shift 'own'"),
    (lambda: DLLMCache.preset("gsm9k", "llada-base"), ValueError, "gsm9k.*gsm8k"),
    (lambda: DLLMCache.preset("gsm8k", "llama"), ValueError, "llama.*llada-base"),
]  # fmt: skip


@pytest.mark.parametrize("make, error, words", REFUSED, ids=[words for _, _, words in REFUSED])
def test_options_that_make_no_sense_are_refused_with_their_numbers(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_core_checks_for_itself():
    """Whoever calls it without the Python classes."""
    core, prompt = one("llada").core, [np.arange(5, dtype=np.int32)]
    table = [
        (("dllm-cache", {"prompt_interval_steps": 0}), "prompt_interval_steps 0: 1 to"),
        (("dllm-cache", {"transfer_ratio": 1.5}), "transfer_ratio 1.5: 0 to 1"),
        (("sparse-dllm", {"kernel_size": 4}), "kernel_size 4 is even"),
        (("sparse-dllm", {"kernel_size": 2.5}), "kernel_size 2.5"),
        (("sparse-dllm", {"keep_ratio": -1}), "keep_ratio -1: 0 to 1"),
        (("dyllm", {"whole_interval": 0}), "whole_interval 0: 1 to"),
        (("dyllm", {"tau": float("nan")}), "tau nan"),
        (("dyllm", {"colour": 1}), "dyllm has no option 'colour'"),
        ("best-cache", "no caching method 'best-cache'"),
    ]  # fmt: skip
    for strategy, words in table:
        with pytest.raises(ValueError, match=words):
            _core.Session(core, {"answer_len": 8, "block_len": 8, "steps": 8, "strategy": strategy}, prompt)
    session = _core.Session(core, {"answer_len": 8, "block_len": 8, "steps": 8, "strategy": "dyllm", "mask_id": MASK}, prompt)
    ids = session.tokens()
    ids[3] = MASK
    with pytest.raises(ValueError, match="sequence 0: row 3 of the prompt cannot become a mask under dyllm"):
        session.set_tokens(ids)


def test_what_a_call_refuses(rng):
    llada, dream, prompt = one("llada"), one("dream"), text_ids(rng, 5)[None]
    for cache in CACHES:
        for hook in ("generation_logits_hook_func", "generation_tokens_hook_func"):
            with pytest.raises(ValueError, match="hooks see the logits of all positions.*cache=None"):
                run(dream, prompt, cache=cache, **{hook: lambda i, x, logits: x})
    with pytest.raises(ValueError, match="'fast-dllm' is not known; there is dllm-cache, sparse-dllm, dyllm"):
        run(llada, prompt, cache="fast-dllm")
    with pytest.raises(TypeError, match="cache=3"):
        run(llada, prompt, cache=3)
    with pytest.raises(TypeError, match="sparse-dllm has no option 'tau'; it has keep_ratio"):
        run(llada, prompt, cache={"name": "sparse-dllm", "tau": 0.9})
    with pytest.raises(ValueError, match="rule='quick' is not known"):
        run(llada, prompt, rule="quick")
    with pytest.raises(ValueError, match="3 steps do not divide the answer length 8"):
        run(llada, prompt, rule="dyllm", steps=3)
    with pytest.raises(ValueError, match="one open block"):
        run(llada, prompt, rule="dyllm", cache="sparse-dllm")


# ---- names, presets, spellings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_is_the_papers_setting(family, rng):
    meant = {
        "dllm-cache": DLLMCache(50, 7, 0.25) if family == "llada" else DLLMCache(25, 2, 0.25),
        "sparse-dllm": SparseDLLM(0.5, 3),
        "dyllm": DyLLM(0.99 if family == "llada" else 0.995, 4, 4),
    }
    prompt = text_ids(rng, 8)[None]
    for name, cache in meant.items():
        shape = {"answer": 24, "steps": 24, "block": 8}
        ids = [run(one(family), prompt, cache=c, **shape).sequences for c in (name, cache, {"name": name})]
        np.testing.assert_array_equal(ids[0], ids[1])
        if name != "dyllm" or family == "llada":  # a dict without options has the class's defaults
            assert cache.name == name
    assert [c.name for c in meant.values()] == list(meant)


def test_presets_are_the_authors_tables():
    assert DLLMCache.preset("gsm8k", "llada-instruct") == DLLMCache(50, 7, 0.25)
    assert DLLMCache.preset("hotpotqa", "llada-instruct") == DLLMCache(100, 8, 0.25)
    assert DLLMCache.preset("math", "llada-base") == DLLMCache(50, 8, 0.25)
    assert DLLMCache.preset("mmlu-pro", "dream-instruct") == DLLMCache(5, 1, 0.25)
    assert DLLMCache.preset("gpqa", "dream-base") == DLLMCache(100, 8, 0.25)


def test_upstream_spellings(rng):
    assert dLLMCacheConfig() == DLLMCache(1, 1, 0.0, 1)
    assert dLLMCacheConfig(prompt_interval_steps=100, gen_interval_steps=7, transfer_ratio=0.25, cfg_interval_steps=2) == DLLMCache(
        100, 7, 0.25, 2
    )
    assert dLLMCacheConfig(transfer_ratio=1.5).transfer_ratio == 0
    prompt, shape = text_ids(rng, 8)[None], {"answer": 16, "steps": 16, "block": 8}
    pairs = [
        ({"name": "dyllm", "num_full_steps": 2, "threshold": 0.9}, DyLLM(tau=0.9, full_steps=2)),
        ({"name": "sparse-dllm", "keep_ratio": 0.3, "kernel_size": None}, SparseDLLM(0.3, 0)),
        ({"name": "dllm-cache", "prompt_interval_steps": -1, "gen_interval_steps": 4, "transfer_ratio": 0.5}, DLLMCache(1, 4, 0.5)),
    ]
    for spelled, cache in pairs:
        np.testing.assert_array_equal(*(run(one("llada"), prompt, cache=c, **shape).sequences for c in (spelled, cache)))


# ---- what a callback sees ------------------------------------------------------------------------------------------------------


def test_what_a_step_shows(rng):
    """Modes and sets by the schedules of the papers; without a cache there is nothing to show."""
    model, prompt = one("llada"), text_ids(rng, 9)[None]
    layers, shape = model.config["layers"], {"answer": 16, "steps": 16, "block": 8}
    seen = {name: Seen() for name in (None, *CACHES)}
    for name, steps in seen.items():
        run(model, prompt, cache=CACHES.get(name), callback=steps, **shape)
    assert all(step.mode.shape == (0, 1) and step.chosen == [] and step.decided_by == [] for step in seen[None])
    for t, step in enumerate(seen["dllm-cache"]):
        above = (2 if t % 2 else 0) + (1 if t % 3 else 0)
        assert step.mode[1:, 0].tolist() == [above] * (layers - 1)
        assert [len(c[0]) for c in step.chosen] == [0] + [4 if t % 2 else 0] * (layers - 1)
        assert all((c[0] >= 9).all() for c in step.chosen)
    for t, step in enumerate(seen["sparse-dllm"]):
        assert [len(c[0]) for c in step.chosen] == [8 if t % 8 == 1 else 0] * layers  # half of 25 - 8
        assert [(~np.isnan(s)).any() for s in step.decided_by] == [t % 8 == 1] * layers
    for t, step in enumerate(seen["dyllm"], 1):
        mode = -1 if t <= 2 else 1 if t <= 4 or t % 3 == 0 else 2
        assert step.mode[:, 0].tolist() == [mode] * layers
        for chosen, cos in zip(step.chosen, step.decided_by, strict=True):
            assert chosen[0].tolist() == (np.flatnonzero(cos[0] < 0.95).tolist() if mode > 0 else [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tau", [-1.5, 0.95])
def test_a_new_token_stays_salient_if_asked(family, tau, rng):
    """In every layer: what turned, and the rows written last; in a batch as alone."""
    model, rows, shape = one(family), ragged(rng), {"answer": 16, "steps": 16, "block": 8}
    cache, steps = DyLLM(tau, full_steps=2, keep_seed=True), Seen()
    out = run(model, rows, cache=cache, callback=steps, **shape)
    added, written = 0, steps[1].committed
    for before, step in zip(steps[1:], steps[2:], strict=False):
        written = [new if len(new) else old for new, old in zip(before.committed, written, strict=True)]
        for chosen, cosines in zip(step.chosen, step.decided_by, strict=True):
            for b in range(len(rows)):
                turned = np.flatnonzero(cosines[b] < tau)
                assert chosen[b].tolist() == np.union1d(turned, written[b]).tolist()
                added += len(chosen[b]) - len(turned)
    assert added > 0
    for row, ids in zip(rows, out.sequences, strict=True):
        np.testing.assert_array_equal(run(model, row[None], cache=cache, **shape).sequences[0], ids)


def test_guidance_has_a_cache_of_its_own(rng):
    model, prompt, steps = one("llada"), text_ids(rng, 9)[None], Seen()
    shape = {"answer": 16, "steps": 16, "block": 8, "cfg_scale": 0.5}
    out = run(model, prompt, cache=DLLMCache(3, 2, 0.25, cfg_interval_steps=4), callback=steps, **shape)
    due = [t for t in range(16) if t < 5 or t % 4 == 0]
    assert [t for t, step in enumerate(steps) if (step.unconditional.mode >= 0).any()] == due
    assert out.stats["forwards"] == 16 + len(due)
    for n, t in enumerate(due):  # its refreshes go by its own passes
        assert steps[t].unconditional.mode[1, 0] == (2 if n % 2 else 0) + (1 if n % 3 else 0)
    both = [(steps[t].decided_by[-1][0, 9:], steps[t].unconditional.decided_by[-1][0, 9:]) for t in (1, 3)]
    assert any((mine != his).any() for mine, his in both)


def test_a_callback_stops_a_cached_run(rng):
    for cache in CACHES:
        stats = run(one("llada"), text_ids(rng, 6)[None], cache=cache, steps=8, callback=lambda step: step.index < 2).stats
        assert stats["steps"] == 3


# ---- what is counted -----------------------------------------------------------------------------------------------------------


class Cost:
    """Multiply-adds, counted as two operations, of rows through the stages of a layer. Looking (cosines, importance) is not
    counted."""

    def __init__(self, model):
        c = model.config
        self.c, self.d, self.kv = c, c["dim"], c["kv_heads"] * c["head_dim"]
        self.total = 0

    def layer(self, v, k, q, out, ffn, scored, summed):
        wide = self.c["heads"] * self.c["head_dim"]
        self.total += 2 * (
            self.d * (self.kv * (v + k) + wide * (q + out)) + wide * (scored + summed) + 3 * self.d * self.c["ffn_dim"] * ffn
        )

    def rows(self, n, keys, nv=None):
        """The same n rows everywhere, over so many keys."""
        self.layer(n if nv is None else nv, n, n, n, n, n * keys, n * keys)

    def last(self, n, keys, asked, queried=None):
        """A last layer that keeps nothing: past the keys and values only the asked rows go on."""
        queried = asked if queried is None else queried
        self.layer(n, n, queried, asked, asked, queried * keys, queried * keys)

    def head(self, n):
        self.total += 2 * n * self.d * self.c["vocab"]


def asked(steps):
    """Candidates of every step: so many rows of the head."""
    return [int((step.tokens[0] != -1).sum()) for step in steps]


P, G, S, B = 11, 16, 16, 8


def counted(family, cache, rng, **options):
    model, steps = one(family), Seen()
    out = run(model, text_ids(rng, P)[None], answer=G, steps=S, block=B, cache=cache, callback=steps, **options)
    return model, steps, out.stats


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_dllm_cache(family, rng):
    """Per layer and pass n (a + ff) + nV v + 2 n L d, with n = L, G, P + m or m by mode; the layer-0 rule on travelling rows
    alone."""
    kp, kr, ratio = 4, 3, 0.3
    model, steps, stats = counted(family, DLLMCache(kp, kr, ratio), rng)
    cost, m, layers = Cost(model), int(G * ratio), model.config["layers"]
    speaker = int(family == "dream")  # the last prompt row travels, as it speaks for the first answer row
    for t, n in enumerate(asked(steps)):
        prompt, answer = t % kp == 0, t % kr == 0
        cost.rows(P + G if prompt else G + speaker, P + G)
        for _ in range(1, layers):
            cost.rows((P if prompt else 0) + (G if answer else m), P + G, nv=(P if prompt else 0) + G)
        cost.head(n)
    assert stats["flops"] == cost.total


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_sparse_dllm(family, rng):
    """F_D twice a block, then F_S; past the last layer's keys and values only what is asked."""
    ratio = 0.4
    model, steps, stats = counted(family, SparseDLLM(ratio, 3), rng, rule="sparse-dllm")
    cost, layers, length, kept = Cost(model), model.config["layers"], P + G, int((P + G - B) * ratio)
    heads = 0
    for t, n in enumerate(asked(steps)):
        state = min(t % (S * B // G), 2)
        rows, keys = (length, length) if state < 2 else (B, kept + B)
        for _ in range(1, layers):
            cost.rows(rows, keys)
        block = P + t // (S * B // G) * B
        # the row before the block, which later steps leave out, is asked only as long as the block's first row is a mask
        sources = set(np.flatnonzero(steps[t].tokens[0] != -1) - (family == "dream"))
        inspected = sources | set(range(block, block + B)) if state == 1 else sources
        cost.last(rows, keys, len(sources), len(inspected))
        cost.head(n)
        heads += n
    assert stats["rows"]["head"] == heads
    assert stats["flops"] == cost.total


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_dyllm(family, rng):
    """4 W d^2 + 4 |A| d dkv + 2 W N d + 2 (|A| N + (W - |A|) |A|) d + 6 |A'| d ff: changed rows A come in, salient rows A' go on.

    The paper's own sum counts the scores of A twice, and their values at delta rows too: it is an upper bound."""
    full = 3
    model, steps, stats = counted(family, DyLLM(tau=0.97, full_steps=full), rng)
    cost, bound, layers, length = Cost(model), 0, model.config["layers"], P + G
    for t, n in enumerate(asked(steps), 1):
        start = P if t > 4 and t % 4 else 0
        if t <= full:
            for _ in range(layers):
                cost.rows(length, length)
        else:
            window = length - start
            changed = previous(steps, t, start)
            for layer in range(layers):
                salient = len(steps[t - 1].chosen[layer][0])
                cost.layer(
                    changed, changed, window, window, salient, window * length, changed * length + (window - changed) * changed
                )
                wide, d = cost.c["heads"] * cost.c["head_dim"], cost.d
                bound += (
                    4 * window * d * wide
                    + 4 * changed * d * cost.kv
                    + wide * (4 * changed * length + 2 * window * (length + changed))
                )
                bound += 6 * salient * d * cost.c["ffn_dim"]
                changed = salient
        cost.head(n)
    assert stats["flops"] == cost.total
    heads = Cost(model)
    heads.head(stats["rows"]["head"])
    for _ in range(full * layers):
        heads.rows(length, length)
    assert 0.8 * bound < stats["flops"] - heads.total <= bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", [DLLMCache(4, 3, 0.3), DyLLM(tau=0.97, full_steps=3)], ids=str)
def test_the_last_layer_leaves_out_rows_that_nobody_asks(family, cache, rng):
    """Unless somebody watches: then it costs their queries, attention, output projection and feed-forward, and changes no id."""
    prompt = text_ids(rng, P)[None]
    shape = {"answer": G, "steps": S, "block": B, "cache": cache}
    model, steps = one(family), Seen()
    watched, alone = run(model, prompt, callback=steps, **shape), run(model, prompt, **shape)
    np.testing.assert_array_equal(watched.sequences, alone.sequences)
    cost, length, low = Cost(model), P + G, P - (family == "dream")  # Dream's last prompt row speaks for the first answer row
    for t in range(S):
        # where dLLM-Cache picks rows of the answer the host does not know them, and leaves none out
        if cache.name == "dllm-cache" and t % 12 == 0 or cache.name == "dyllm" and t < 3:
            cost.layer(0, 0, low, low, low, low * length, low * length)
        elif cache.name == "dyllm" and (t == 3 or (t + 1) % 4 == 0):
            changed, salient = (steps[t].chosen[layer][0] for layer in (-2, -1))
            low_changed, low_salient = ((rows < low).sum() for rows in (changed, salient))
            summed = low_changed * length + (low - low_changed) * len(changed)
            cost.layer(0, 0, low, low, low_salient, low * length, summed)
    assert watched.stats["flops"] - alone.stats["flops"] == cost.total > 0


def previous(steps, t, start):
    """How many rows the latest step that wrote anything wrote, in the window."""
    wrote = [step.committed[0] for step in steps[: t - 1] if len(step.committed[0])]
    return int((wrote[-1] >= start).sum()) if wrote else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_the_uncached_run(family, rng):
    model, steps, stats = counted(family, None, rng)
    cost, length = Cost(model), P + G
    for n in asked(steps):
        for _ in range(1, model.config["layers"]):
            cost.rows(length, length)
        cost.last(length, length, n)
        cost.head(n)
    assert stats["flops"] == stats["flops_uncached"] == cost.total


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_uncached_is_what_an_uncached_run_of_these_steps_costs(family, rng):
    """Every row in every layer but the last, which has the rows that were asked; the head as it was."""
    for cache in (CACHES["dllm-cache"], CACHES["dyllm"]):
        model, steps, stats = counted(family, cache, rng)
        cost, length = Cost(model), P + G
        for t, n in enumerate(asked(steps), 1):
            for _ in range(1, model.config["layers"]):
                cost.rows(length, length)
            whole = cache.name == "dyllm" and (t <= 4 or t % cache.whole_interval == 0)
            first = P if cache.name == "dyllm" and not whole else 0  # the row before is not asked again where it does not travel
            speakers = {max(int(r) - (family == "dream"), first) for r in np.flatnonzero(steps[t - 1].tokens[0] != -1)}
            cost.last(length, length, len(speakers))
            cost.head(n)
        assert stats["flops_uncached"] == cost.total > stats["flops"] / 0.95


@pytest.mark.parametrize("family, options", [("llada", {}), ("llada", GUIDED), ("dream", {})])
@pytest.mark.parametrize("cache", [None, *CACHES])
def test_stages_add_up(family, options, cache, rng):
    """Every product's operations are twice its rows times its matrix; the stages together are the step."""
    model, steps, stats = counted(family, CACHES.get(cache), rng, **options)
    stages, rows, c = stats["stages"], stats["rows"], model.config
    dim, wide, kv, ffn = c["dim"], c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"], c["ffn_dim"]
    products = {
        **{"v": rows["v"] * dim * kv, "k": rows["k"] * dim * kv, "q": rows["q"] * dim * wide, "o": rows["out"] * dim * wide},
        **dict.fromkeys(("gate", "up", "down"), rows["ffn"] * dim * ffn),
        "head": rows["head"] * dim * c["vocab"],
    }
    assert {name: stages[name]["flops"] for name in products} == {name: 2 * n for name, n in products.items()}
    assert sum(cost["flops"] for cost in stages.values()) == stats["flops"]
    assert stages["attention"]["flops"] == stats["flops"] - 2 * sum(products.values()) > 0
    assert sum(cost["seconds"] for cost in stages.values()) == pytest.approx(stats["seconds"])
    assert (stages["cache"]["bytes"] > 0) == (cache is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_an_uncached_pass(family, rng):
    """Weights once, rows in and out; attention reads every key and value once."""
    model = tiny(f"{family}_tiny", "float32")  # the weights are bfloat16
    c, n, layers = model.config, 19, model.config["layers"]
    session = _core.Session(model.core, {"answer_len": 0}, [text_ids(rng, n).astype(np.int32)])
    session.hidden()
    dim, wide, kv, ffn = c["dim"], c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"], c["ffn_dim"]
    bias = family == "dream"
    numbers = {  # of weights, of activations
        "embed": (n * dim, n * dim + n),
        "norm": ((2 * layers + 1) * dim, (2 * layers + 1) * 2 * n * dim),
        "v": (layers * (dim + bias) * kv, layers * n * (dim + kv)),
        "k": (layers * (dim + bias) * kv, layers * n * (dim + kv)),
        "q": (layers * (dim + bias) * wide, layers * n * (dim + wide)),
        "rope": (0, layers * n * (2 * wide + 2 * kv + 2 * c["head_dim"])),
        "attention": (0, layers * n * (2 * wide + 2 * kv)),
        "o": (layers * dim * wide, layers * n * (wide + dim)),
        **dict.fromkeys(("gate", "up", "down"), (layers * dim * ffn, layers * n * (dim + ffn))),
        "swiglu": (0, layers * n * 3 * ffn),
        "add": (0, layers * n * 6 * dim),
    }
    moved = {name: cost["bytes"] for name, cost in session.stats()["stages"].items() if cost["bytes"]}
    assert moved == {name: 2 * weights + 4 * rest for name, (weights, rest) in numbers.items()}


@pytest.mark.parametrize("family, dtype", [("llada", "float32"), ("dream", "float32"), ("llada", "bfloat16")])
def test_cache_bytes_are_the_memory_formulas(family, dtype, rng):
    model, prompt, answer, block = tiny(f"{family}_tiny", dtype), 400, 64, 8
    c, size = model.config, {"float32": 4, "bfloat16": 2}[dtype]
    kv, length = c["kv_heads"] * c["head_dim"], prompt + answer
    every_row = (2 * kv + 2 * c["dim"]) * c["layers"] * length * size
    formulas = {
        "dllm-cache": every_row,
        "dyllm": every_row,
        "sparse-dllm": 2 * c["layers"] * int((length - block) * 0.5) * kv * size,
    }
    for name, formula in formulas.items():
        for branches in (1, 2):
            params = {"answer_len": answer, "steps": answer, "block_len": block, "score": "prob", "cfg_scale": branches - 1.0}
            session = _core.Session(model.core, params | as_cache(name, family).params(), [text_ids(rng, prompt).astype(np.int32)])
            kept = session.stats()["cache_bytes"]
            assert abs(kept / (branches * formula) - 1) < 0.05, name
    for name in (None, *formulas):
        stats = run(model, text_ids(rng, 20)[None], cache=name).stats
        assert stats["peak_bytes"] >= stats["cache_bytes"] and (stats["cache_bytes"] > 0) == (name is not None)
