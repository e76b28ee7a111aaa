"""LLaDA's way of generating, forward passes and loading: what goes in and comes out, and the contract of batches and threads."""

import inspect
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from conftest import MODELS, padded, text_ids, tiny

import dllm_fast
from dllm_fast import _core, generate
from dllm_fast import generate as generate_function

MASK, EOS, PAD = 300, 290, 290
SMALL = {"steps": 4, "gen_length": 8, "block_length": 4}


# ---- what goes in and comes out --------------------------------------------------------------------------------------------------


def test_arrays_and_lists(llada, rng):
    prompt = text_ids(rng, 6)
    out = generate(llada, prompt[None], **SMALL)
    assert isinstance(out, np.ndarray) and out.shape == (1, 14) and out.dtype == np.int64
    assert (out[0, :6] == prompt).all() and (out != MASK).any()
    for same in (prompt, prompt.tolist(), [prompt.tolist()], prompt[None].astype(np.int32), prompt[None].astype(np.uint16)):
        given = generate(llada, same, **SMALL)
        assert isinstance(given, np.ndarray)
        np.testing.assert_array_equal(given, out)
    (row,) = generate(llada, [prompt], **SMALL)
    assert row.shape == (14,)
    np.testing.assert_array_equal(row, out[0])


def test_tensors_come_back_as_tensors(llada, rng):
    torch = pytest.importorskip("torch")
    prompt = torch.from_numpy(text_ids(rng, 6))[None]
    expected = generate(llada, prompt.numpy(), **SMALL)
    for dtype in (torch.int64, torch.int32):
        out = generate(llada, prompt.to(dtype), **SMALL)
        assert isinstance(out, torch.Tensor) and out.dtype == torch.int64 and out.device == prompt.device
        np.testing.assert_array_equal(out.numpy(), expected)
    ragged = generate(llada, [prompt[0], prompt[0, :3]], **SMALL)
    assert [type(r) for r in ragged] == [torch.Tensor] * 2 and [len(r) for r in ragged] == [14, 11]
    step = next(dllm_fast.stream(llada, prompt, **SMALL))
    assert all(isinstance(x, torch.Tensor) for x in (step.sequences, step.masked, step.tokens, step.confidence))
    masks = [torch.ones(1, 6, dtype=d) for d in (torch.bool, torch.int64, torch.float32)]
    for mask in masks:
        np.testing.assert_array_equal(generate(llada, prompt, mask, **SMALL).numpy(), expected)


def test_lists_of_lists(llada, rng):
    rows = [text_ids(rng, n).tolist() for n in (3, 5)]
    ragged = generate(llada, rows, **SMALL)
    assert isinstance(ragged, list) and [len(r) for r in ragged] == [11, 13]
    equal = generate(llada, [rows[0], rows[1][:3]], **SMALL)
    assert isinstance(equal, np.ndarray) and equal.shape == (2, 11)
    np.testing.assert_array_equal(equal[0], ragged[0])


def test_pads_keep_their_ids(llada, rng):
    ids, mask = padded([text_ids(rng, n) for n in (4, 7)], "left")
    ids[0, :3] = (-100, 99999, 5)  # what a pad holds is nobody's business
    out = generate(llada, ids, mask, **SMALL)
    np.testing.assert_array_equal(out[:, :7], ids)


def test_empty_prompts(llada):
    free = generate(llada, [np.zeros(0, int), np.array([5])], **SMALL)
    assert [len(r) for r in free] == [8, 9]
    padded_out = generate(llada, np.array([[0], [5]]), np.array([[0], [1]]), **SMALL)
    np.testing.assert_array_equal(padded_out[0, 1:], free[0])
    np.testing.assert_array_equal(padded_out[1], free[1])
    np.testing.assert_array_equal(generate(llada, np.zeros((1, 0), int), cfg_scale=0.5, **SMALL)[0], free[0])


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "10.*multiple.*4", {"gen_length": 10, "block_length": 4, "steps": 10}),
        (ValueError, "steps 3.*2 blocks", {"gen_length": 8, "block_length": 4, "steps": 3}),
        (ValueError, "at least 1", {"gen_length": 0}),
        (ValueError, "at least 1", {"steps": 0}),
        (ValueError, "at least 1", {"gen_length": 8, "block_length": -1, "steps": 8}),
        (ValueError, "temperature.*-1", {"temperature": -1.0}),
        (ValueError, "temperature.*nan", {"temperature": float("nan")}),
        (ValueError, "cfg_scale.*-0.5", {"cfg_scale": -0.5}),
        (NotImplementedError, "high_confidence", {"remasking": "high_confidence"}),
        (ValueError, "threshold 0.9 and factor 1.0", {"threshold": 0.9, "factor": 1.0}),
        (ValueError, "threshold.*0", {"threshold": 0}),
        (ValueError, "mask_id 320.*319", {"mask_id": 320}),
        (ValueError, "eos_id -1", {"eos_id": -1}),
        (ValueError, "cache 'dkv' is not known", {"cache": "dkv"}),
        (ValueError, "rule='wino' is not known", {"rule": "wino"}),
        (ValueError, "seed has 2 entries for 1", {"seed": [1, 2]}),
        (ValueError, "2\\*\\*64", {"seed": -1}),
        (TypeError, "float", {"seed": 0.5}),
        (TypeError, "exponential", {"noise": types.SimpleNamespace(uniform=print)}),
        (TypeError, "gen_len", {"gen_len": 8}),
    ],
)
def test_refused_options(llada, error, words, options):
    with pytest.raises(error, match=words):
        generate(llada, np.array([[1, 2, 3]]), **options)


@pytest.mark.parametrize(
    ("error", "words", "ids", "mask"),
    [
        (TypeError, "float64", np.ones((1, 3)), None),
        (TypeError, "bool", np.ones((1, 3), bool), None),
        (ValueError, "row 1, column 2: id 320.*319", np.array([[1, 2, 3], [1, 2, 320]]), None),
        (ValueError, "row 0, column 0: id -1", np.array([[-1, 2, 3]]), None),
        (ValueError, r"\(1, 2\).*\(1, 3\)", np.array([[1, 2, 3]]), np.ones((1, 2))),
        (ValueError, "no pads", [[1, 2], [3]], np.ones((2, 2))),
        (ValueError, "row 1", [np.array([1]), np.array([[1]])], None),
        (ValueError, r"\(1, 1, 1\)", np.zeros((1, 1, 1), int), None),
        (ValueError, "shape", np.zeros((0, 4), int), None),
        (ValueError, "shape", [], None),
    ],
)
def test_refused_inputs(llada, error, words, ids, mask):
    with pytest.raises(error, match=words):
        generate(llada, ids, mask, **SMALL)


def test_bfloat16_is_no_id(llada):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="bfloat16"):
        generate(llada, torch.ones(1, 3, dtype=torch.bfloat16), **SMALL)


def test_the_official_order_of_arguments(llada):
    names = inspect.signature(generate_function).parameters
    official = "model prompt attention_mask steps gen_length block_length temperature cfg_scale remasking mask_id"
    assert list(names)[:10] == official.split()
    for name in ("return_dict", "output_history", "progress", "callback", "no_such_option"):
        with pytest.raises(TypeError, match=name):
            dllm_fast.stream(llada, [[5]], **{name: None})


# ---- watching a run --------------------------------------------------------------------------------------------------------------


def test_steps_tell_what_happened(llada, rng):
    ids, mask = padded([text_ids(rng, n) for n in (4, 7)], "left")
    before, steps = None, list(dllm_fast.stream(llada, ids, mask, steps=6, gen_length=12, block_length=6))
    assert [s.index for s in steps] == list(range(6))
    for step in steps:
        after = step.sequences
        was_masked = np.r_[[[False] * 7 + [True] * 12] * 2] if before is None else before == MASK
        revealed = np.zeros_like(was_masked)
        for b, columns in enumerate(step.committed):
            revealed[b, columns] = True
            scores = step.confidence[b, columns]
            assert (np.diff(scores) <= 0).all() and np.isfinite(scores).all()
        assert (revealed <= was_masked).all() and revealed.sum(1).tolist() == [2, 2]
        assert (after[revealed] == step.tokens[revealed]).all()
        np.testing.assert_array_equal(step.masked, after == MASK)
        np.testing.assert_array_equal(step.tokens == -1, np.isnan(step.confidence))
        assert was_masked[step.tokens != -1].all()
        before = after
    np.testing.assert_array_equal(steps[-1].sequences, generate(llada, ids, mask, steps=6, gen_length=12, block_length=6))


def test_return_dict(llada, rng):
    seen = []
    out = generate(
        llada, text_ids(rng, 5), return_dict=True, output_history=True, callback=lambda s: seen.append(s.sequences), **SMALL
    )
    sequences, nfe = out
    assert sequences is out.sequences is out[0] and nfe == out[1] == 4
    np.testing.assert_array_equal(np.array(out.history), np.array(seen))
    np.testing.assert_array_equal(out.history[-1], sequences)
    s = out.stats
    assert s["forwards"] == s["steps"] == 4 and s["tokens"] == 8 and s["seconds"] > 0
    assert s["tokens_per_second"] == pytest.approx(8 / s["seconds"])
    assert 0 < s["flops"] <= s["flops_uncached"] and s["cache_bytes"] == 0
    assert s["peak_bytes"] > s["weight_bytes"] == llada.nbytes
    assert set(s["rows"]) == {"v", "k", "q", "out", "ffn", "head"} and s["rows"]["head"] <= 4 * 8
    assert (s["device"], s["backend"]) == ("cpu", llada.backend)
    assert generate(llada, text_ids(rng, 5), return_dict=True, **SMALL).history is None


def test_a_callback_stops(llada, rng):
    prompt = text_ids(rng, 5)
    out = generate(llada, prompt, callback=lambda step: step.index < 1, return_dict=True, output_history=True, **SMALL)
    assert len(out.history) == 2 and (out.sequences == MASK).sum() == 4
    np.testing.assert_array_equal(out.sequences, generate(llada, prompt, return_dict=True, output_history=True, **SMALL).history[1])

    def fail(step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        generate(llada, prompt, callback=fail, **SMALL)


def test_progress(llada, rng, capsys, monkeypatch):
    seen = []
    generate(llada, text_ids(rng, 5), progress=lambda done, total: seen.append((done, total)), **SMALL)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setitem(sys.modules, "tqdm", None)  # not installed
    generate(llada, text_ids(rng, 5), progress=True, **SMALL)
    assert capsys.readouterr().err == f"[{'#' * 32}] 4/4\n"
    bars = []

    class Tqdm:
        def __init__(self, total, unit):
            self.n, self.total, self.closed = 0, total, False
            bars.append(self)

        def update(self, n):
            self.n += n

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Tqdm))
    generate(llada, text_ids(rng, 5), progress=True, **SMALL)
    assert [(b.n, b.total, b.closed) for b in bars] == [(4, 4, True)]


# ---- options ---------------------------------------------------------------------------------------------------------------------


def test_guidance_needs_no_mask(llada, rng):
    prompt = text_ids(rng, 5)[None]
    guided = generate(llada, prompt, cfg_scale=1.5, **SMALL)
    np.testing.assert_array_equal(guided, generate(llada, prompt, np.ones_like(prompt), cfg_scale=1.5, **SMALL))
    assert (guided != generate(llada, prompt, **SMALL)).any()


def test_parallel_decoding_reveals_what_is_sure(llada, rng):
    prompt, length = text_ids(rng, 5), {"steps": 16, "gen_length": 16, "block_length": 16}
    one_by_one, nfe = generate(llada, prompt, threshold=1.0, return_dict=True, **length)
    assert nfe == 16
    np.testing.assert_array_equal(one_by_one, generate(llada, prompt, **length))
    for options in ({"threshold": 0.1}, {"factor": 2.0}):
        steps = list(dllm_fast.stream(llada, prompt, **options, **length))
        assert len(steps) < 16 and not steps[-1].masked.any()
        for step in steps:
            sure = step.confidence[0, step.committed[0]]
            limit = [0.1] * len(sure) if "threshold" in options else [1 - 2.0 / (n + 2) for n in range(len(sure))]
            assert (sure[1:] >= limit[1:]).all() and len(sure) >= 1


def test_early_stop_fills_with_eos(llada, rng):
    options = {"steps": 32, "gen_length": 32, "block_length": 8}
    for _ in range(20):
        prompt = text_ids(rng, 5)
        full, nfe = generate(llada, prompt, return_dict=True, **options)
        early, stopped = generate(llada, prompt, early_stop=True, return_dict=True, **options)
        answer = early[0, 5:]
        if (full[0, 5:] == EOS).any():
            end = int(np.argmax(answer == EOS))
            assert (answer[end:] == EOS)[early[0, 5 + end :] != full[0, 5 + end :]].all() and stopped <= nfe
            np.testing.assert_array_equal(answer[:end], full[0, 5 : 5 + end])
        else:
            np.testing.assert_array_equal(early, full)
    assert stopped <= nfe


def test_eos_flags(llada, rng):
    for _ in range(10):
        prompt = text_ids(rng, 5)
        assert EOS not in generate(llada, prompt, logits_eos_inf=True, steps=8, gen_length=16, block_length=16)[0, 5:]
    steps = dllm_fast.stream(llada, prompt, confidence_eos_eot_inf=True, eot_id=304, steps=16, gen_length=16, block_length=16)
    for step in steps:
        assert (step.confidence[step.tokens == EOS] == 0).all() and (step.confidence[step.tokens == 304] == 0).all()


def test_seeds(llada, rng):
    prompts, hot = np.stack([text_ids(rng, 5)] * 3), {"temperature": 1.0, **SMALL}
    out = generate(llada, prompts, seed=11, **hot)
    np.testing.assert_array_equal(out, generate(llada, prompts, seed=np.int64(11), **hot))
    np.testing.assert_array_equal(out, generate(llada, prompts, seed=[(11, 0), (11, 1), (11, 2)], **hot))
    assert len({tuple(r) for r in out.tolist()}) == 3, "rows have streams of their own"
    same = generate(llada, prompts, seed=[11, 11, 11], **hot)
    assert (same == same[0]).all() and (same[0] == out[0]).all()
    assert (generate(llada, prompts, **hot) != generate(llada, prompts, **hot)).any(), "None is fresh randomness"
    anyhow = [generate(llada, prompts, remasking="random", seed=s, **SMALL) for s in (1, 1, 2)]
    np.testing.assert_array_equal(anyhow[0], anyhow[1])
    assert (anyhow[0] != anyhow[2]).any()


class Recorded:
    """Draws from a generator in the official shapes, and keeps them."""

    def __init__(self, rng):
        self.rng, self.shapes, self.given = rng, [], []

    def uniform(self, shape, dtype):
        self.shapes.append((tuple(shape), np.dtype(dtype).name))
        self.given.append(self.rng.random(shape).astype(dtype))
        return self.given[-1]

    def exponential(self, shape):
        self.shapes.append((tuple(shape), "exponential"))
        self.given.append(self.rng.exponential(size=shape).astype(np.float32))
        return self.given[-1]


def test_recorded_noise_covers_the_padded_grid(llada, rng):
    rows = [text_ids(rng, n) for n in (4, 7, 5)]
    ids, mask = padded(rows, "left")
    options = {"temperature": 0.9, "remasking": "random", "steps": 2, "gen_length": 6, "block_length": 6}
    noise = Recorded(np.random.default_rng(5))
    out = generate(llada, ids, mask, noise=noise, **options)
    assert noise.shapes == [((3, 13, 320), "float64"), ((3, 13), "float32")] * 2
    for b, row in enumerate(rows):
        left = iter([x[b : b + 1, 7 - len(row) :] for x in noise.given])
        replay = types.SimpleNamespace(uniform=lambda shape, dtype, left=left: next(left), exponential=print)
        alone = generate(llada, row, noise=replay, **options)
        np.testing.assert_array_equal(out[b, 7 - len(row) :], alone[0])


def test_dream_models_take_llada_decoding(dream, rng):
    prompt = text_ids(rng, 6)
    steps = list(dllm_fast.stream(dream, prompt, **SMALL))
    assert [len(s.committed[0]) for s in steps] == [2] * 4
    logits = dream.forward(np.r_[prompt, [MASK] * 8])
    assert steps[0].tokens[0, 6] == logits[0, 5].argmax(), "the row before tells the token"


# ---- batches: row i of any batch is row i alone ----------------------------------------------------------------------------------


def llada_options(rng):
    """Random settings of generate that fit together."""
    block, blocks, per_block = (int(rng.integers(1, n)) for n in (5, 4, 4))
    options = {"gen_length": block * blocks, "block_length": block, "steps": blocks * per_block}
    options["temperature"] = float(rng.choice([0, 0, 0.7]))
    options["cfg_scale"] = float(rng.choice([0, 0, 0.8]))
    options["remasking"] = str(rng.choice(["low_confidence", "low_confidence", "random"]))
    options |= [{}, {}, {"threshold": 0.15}, {"factor": 1.5}][rng.integers(4)]
    options |= {name: bool(rng.random() < 0.2) for name in ("early_stop", "logits_eos_inf", "confidence_eos_eot_inf")}
    return options


def random_rows(rng):
    """Prompts of random lengths, now and then with masks inside."""
    rows = [text_ids(rng, int(rng.integers(1, 13))) for _ in range(rng.integers(2, 6))]
    for row in rows:
        row[rng.random(len(row)) < 0.1 * (rng.random() < 0.3)] = MASK
    return rows


def assert_batch_is_its_rows(run, rows, form, seed, what):
    """run(ids, mask, seed) on a batch gives every row what the row alone gives."""
    if form == "ragged":
        together = run(rows, None, seed)
    else:
        ids, mask = padded(rows, form)
        out = run(ids, mask, seed)
        answer = np.ones((len(rows), out.shape[1] - ids.shape[1]), bool)
        together = [o[k] for o, k in zip(out, np.c_[mask != 0, answer], strict=True)]
    for b, row in enumerate(rows):
        alone = run(row[None], None, [(seed, b)])[0]
        if form == "holes":  # a row with a hole is compared with itself, without its neighbours
            alone = run(ids[b : b + 1], mask[b : b + 1], [(seed, b)])[0][np.r_[mask[b] != 0, answer[b]]]
        np.testing.assert_array_equal(together[b], alone, err_msg=f"row {b} of {what}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", ["ragged", "left", "right", "holes"])
def test_batches(form, threads):
    model, alone = tiny("llada_tiny", threads=threads), tiny("llada_tiny", threads=1)
    rng = np.random.default_rng([threads, len(form)])
    for i in range(40):
        options, rows, seed = llada_options(rng), random_rows(rng), int(rng.integers(2**63))

        def run(ids, mask, seed, options=options):
            return generate(model if len(ids) > 1 else alone, ids, mask, seed=seed, **options)

        assert_batch_is_its_rows(run, rows, form, seed, f"batch {i}: {options}")


def test_forward_of_batches(llada, dream, rng):
    for model in (llada, dream):
        rows = [text_ids(rng, n) for n in (5, 1, 12)]
        alone = [model.forward(row[None])[0] for row in rows]
        ragged = model.forward(rows)
        assert isinstance(ragged, list)
        for a, b in zip(ragged, alone, strict=True):
            np.testing.assert_array_equal(a, b)
        for side in ("left", "right", "holes"):
            ids, mask = padded(rows, side)
            logits = model.forward(ids, mask)
            assert logits.shape == (3, 12, 320) and (logits[mask == 0] == 0).all()
            for b, row in enumerate(alone):
                if side == "right" or model is dream:
                    np.testing.assert_array_equal(logits[b, mask[b] != 0], row)
                elif side == "left":  # LLaDA counts columns: the same up to rounding, rotary positions being relative
                    np.testing.assert_allclose(logits[b, mask[b] != 0], row, rtol=0, atol=2e-4)


def test_forward_positions(llada, dream, rng):
    ids = text_ids(rng, 6)[None]
    for model in (llada, dream):
        np.testing.assert_array_equal(model.forward(ids, position_ids=np.arange(6)), model.forward(ids))
        np.testing.assert_array_equal(
            model.forward(ids, position_ids=np.arange(6)[None] * 3), model.forward([ids[0]], None, [np.arange(6) * 3])[0][None]
        )
        assert (model.forward(ids, position_ids=np.arange(6) * 3) != model.forward(ids)).any()
        with pytest.raises(ValueError, match="position_ids"):
            model.forward(ids, position_ids=np.arange(5))


def test_forward_dtypes(rng):
    torch = pytest.importorskip("torch")
    ids = torch.from_numpy(text_ids(rng, 6))[None]
    for name in ("float32", "bfloat16", "float16"):
        model = tiny("llada_tiny", name)
        logits = model.forward(ids)
        assert logits.dtype == getattr(torch, name) and logits.shape == (1, 6, 320)
        plain = model.forward(ids.numpy())
        assert plain.dtype == np.float32
        torch.testing.assert_close(logits.float(), torch.from_numpy(plain), rtol=1e-2, atol=0)


def test_forward_refuses_empty_rows(llada):
    with pytest.raises(ValueError, match="row 1 of 2"):
        llada.forward(np.ones((2, 3), int), np.array([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="row 0 of 1"):
        llada.forward(np.ones((1, 0), int))


# ---- threads, interrupts, loading ------------------------------------------------------------------------------------------------


def test_two_threads_two_sessions(llada, rng):
    jobs = [(text_ids(rng, 6), seed) for seed in range(6)]
    expected = [generate(llada, p, temperature=0.8, seed=s, **SMALL) for p, s in jobs]
    results = [None] * len(jobs)

    def work(i):
        for _ in range(5):
            results[i] = generate(llada, jobs[i][0], temperature=0.8, seed=jobs[i][1], **SMALL)
            np.testing.assert_array_equal(results[i], expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for given, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(given, right)


def test_one_session_used_twice_at_once(llada):
    """While a step runs (here: while it asks for noise), the session is nobody else's."""
    errors = []

    class Intruder(Recorded):
        def uniform(self, shape, dtype):
            for use in (session.step, session.tokens):
                thread = threading.Thread(target=self.attempt, args=(use,))
                thread.start()
                thread.join()
            return super().uniform(shape, dtype)

        def attempt(self, use):
            try:
                use()
            except RuntimeError as error:
                errors.append(str(error))

    params = {"answer_len": 4, "block_len": 4, "steps": 2, "temperature": 1.0}
    session = _core.Session(llada.core, params, [np.array([1, 2], np.int32)], noise=Intruder(np.random.default_rng(1)))
    assert session.step() == 1
    assert len(errors) == 2 and all(errors)
    assert session.step() == 0 and len(errors) == 4


INTERRUPTED = """
import signal, sys, numpy as np, dllm_fast
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started in the background ignores it
model = dllm_fast.load(sys.argv[1], dtype="float32", device="cpu", threads=2)
prompt, small = np.arange(20, 26)[None], dict(steps=2, gen_length=4, block_length=4)
before = dllm_fast.generate(model, prompt, **small)
def callback(step):
    if step.index == 3:
        print("running", flush=True)
try:
    dllm_fast.generate(model, prompt, steps=100000, gen_length=200, block_length=200, callback=callback)
except KeyboardInterrupt:
    print("stopped", (dllm_fast.generate(model, prompt, **small) == before).all())
"""


def test_ctrl_c_leaves_the_model_usable():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(MODELS / "llada_tiny")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=MODELS,
    )
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert rest == "stopped True\n" and process.returncode == 0


def environment():
    """So that a child imports the dllm_fast that is being tested."""
    return {**os.environ, "PYTHONPATH": str(pathlib.Path(dllm_fast.__file__).parents[1])}


def test_import_is_light():
    heavy = ("torch", "transformers", "huggingface_hub", "tqdm", "argparse")
    code = f"import sys, dllm_fast; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), cwd=MODELS)
    assert out.stdout == "[]\n"


def test_load(tmp_path, monkeypatch, rng):
    folder, ids = MODELS / "llada_tiny", text_ids(rng, 4)[None]
    model = dllm_fast.load(str(folder))
    assert (model.dtype, model.device, model.config["family"], model.config["mask_id"]) == ("bfloat16", "cpu", "llada", MASK)
    assert "llada" in repr(model) and "3 layers" in repr(model)
    assert dllm_fast.load(folder, dtype="float32", device="cpu", threads=1).threads == 1
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        dllm_fast.load("./nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        dllm_fast.load(tmp_path / "nowhere")
    with pytest.raises((FileNotFoundError, dllm_fast.CheckpointError), match="config.json"):
        dllm_fast.load(tmp_path)
    with pytest.raises(ValueError, match="int3"):
        dllm_fast.load(folder, dtype="int3")
    with pytest.raises(ValueError, match="tpu"):
        dllm_fast.load(folder, device="tpu")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="nobody/nothing.*huggingface_hub"):
        dllm_fast.load("nobody/nothing")
    asked = []
    hub = types.SimpleNamespace(snapshot_download=lambda name, allow_patterns: asked.append(name) or str(folder))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    np.testing.assert_array_equal(dllm_fast.load("somebody/llada").forward(ids), model.forward(ids))
    assert asked == ["somebody/llada"]


def test_cuda_in_vain():
    from dllm_fast import cuda

    if cuda.state()[0]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(dllm_fast.DeviceError, match="cuda:1") as caught:
        dllm_fast.load(MODELS / "llada_tiny", device="cuda:1")
    assert "\n" not in str(caught.value)


def test_methods_of_the_model(llada, rng):
    prompt = text_ids(rng, 5)
    np.testing.assert_array_equal(llada.generate(prompt, **SMALL), generate(llada, prompt, **SMALL))
    assert llada.log_likelihood([1, 2], [3], mc_num=1) == dllm_fast.log_likelihood(llada, [1, 2], [3], mc_num=1)
