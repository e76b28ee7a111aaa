"""Recorded runs of the original implementations, replayed through the public API. `python tests/golden.py` is the same by hand."""

import collections
import functools
import pathlib
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import golden  # noqa: E402
import golden_dllm_cache  # noqa: E402
import golden_sparse_dllm  # noqa: E402
import golden_state  # noqa: E402

import dllm_fast  # noqa: E402

CASES = list(golden.collect(HERE / "golden"))


@pytest.mark.parametrize("case", CASES, ids=[f"{c.family}/{c.name}" for c in CASES])
def test_recorded_run(case, record_property):
    word, check = case.result()
    if word == "info":  # ran and was compared; what it gives is not defined bit for bit
        assert case.informational and check.done
        record_property("differs", "; ".join(check))
        return
    assert word == "ok", "\n".join(check)


def test_every_family_is_there():
    count = collections.Counter(c.family for c in CASES)
    runs = {"forward": 18, "llada_generate": 23, "dream_generate": 20, "loglik": 12, "pieces": 52, "tables": 3, "loading": 5}
    runs |= {"dllm_cache": 37, "sparse_dllm": 33, "dyllm": 31}
    assert {family: count[family] for family in runs} == runs


@pytest.mark.parametrize("name", ["llada_moe_tiny", "llada2_tiny"])
def test_mixtures_of_experts_are_refused_by_name(name):
    with pytest.raises(dllm_fast.CheckpointError, match="(?i)moe|expert"):
        dllm_fast.load(HERE / "golden" / "base" / "models" / name)


def test_a_difference_is_a_failure():
    """The runner itself: a recording that says something else, or something unknown, must fail its case."""
    good = next(c for c in CASES if c.name == "basic_16")
    folder, recording = good.run.args
    wrong = {**recording, "forwards": recording["forwards"] + 1}
    strange = {**recording, "args": {**recording["args"], "colour": "red"}}
    for changed in (wrong, strange):
        case = golden.Case("llada_generate", "changed", functools.partial(good.run.func, folder, changed))
        word, check = case.result()
        assert word == "FAIL" and check
    assert golden.Case("x", "empty", lambda check: None).result()[0] == "FAIL"


# ---- the runner of the caching methods: whatever it is shown, it must look at ----------------------------------------------------

PLANTED = {
    "sparse_dllm": {
        "dream_b8_r30_k1": "prompt final trace cache_state block_start kept importance importance_pooled",
        "llada_b8_tie": "trace stable_final stable_trace stable_kept stable_importance",
        "dream_b8_batch2": "fixed_final fixed_trace fixed_kept importance trace",
        "llada_b8_r50_k3": "block0_logits",
    },
    "dllm_cache": {
        "L03_kp5_kr2_r25": "prompt_ids final_ids trace_ids x0 conf n_transfer mode sel_idx sel_gap sel_cos block_out final_logits",
        "L21_cfg_kp5_kr2_r25": "mode_cfg sel_idx_cfg sel_gap_cfg final_logits",
        "D11_kp5_kr2_r25_origin": "uniforms timesteps x0 conf",
        "D13_batch2_leftpad_kp5_kr2_r25": "attention_mask trace_ids sel_idx",
        "D23_kp5_kr7_r50_UPSTREAM_BUG_k_width": "mode trace_ids sel_idx",
    },
}
MODULES = {"sparse_dllm": golden_sparse_dllm, "dllm_cache": golden_dllm_cache}
ERRORS = [(f, name, array) for f, cases in PLANTED.items() for name, arrays in cases.items() for array in arrays.split()]


def case_named(family, name):
    return next(c for c in CASES if c.family == family and c.name == name)


def spoilt(x):
    """Off by one, or by 1 %; coins and masks turned over."""
    if x.dtype.kind != "f":
        return 1 - x if set(np.unique(x)) == {0, 1} else x + 1
    return 1 - x if np.nanmin(x) >= 0 and np.nanmax(x) < 1 else x * 1.01 + 0.01


@pytest.mark.parametrize("family, name, array", ERRORS, ids=["/".join(e) for e in ERRORS])
def test_a_planted_error_is_found(family, name, array, monkeypatch):
    case = case_named(family, name)

    def read(folder, file):
        arrays = golden_state.read_arrays(folder, file)
        return arrays | {array: spoilt(arrays[array])}

    monkeypatch.setattr(MODULES[family], "read_arrays", read)
    assert case.result()[0] == "FAIL"


@pytest.mark.parametrize("family, name", [("dllm_cache", "L19_zero_pick_g3_r25"), ("sparse_dllm", "llada_b8_spb2")])
def test_an_unknown_array_or_setting_is_found(family, name, monkeypatch):
    case, module = case_named(family, name), MODULES[family]
    folder, recording = case.run.args
    strange = functools.partial(case.run.func, folder, {**recording, "colour": "red"})
    assert golden.Case(family, "changed", strange).result()[0] == "FAIL"
    monkeypatch.setattr(module, "read_arrays", lambda *a: golden_state.read_arrays(*a) | {"colour": np.zeros(3)})
    assert case.result()[0] == "FAIL"


def put(recording, path, change):
    """A copy of a recording in which what lies at the path is changed."""
    if not path:
        return change(recording)
    copy = recording.copy()
    copy[path[0]] = put(copy[path[0]], path[1:], change)
    return copy


@pytest.mark.parametrize(
    "name, path, change",
    [
        ("llada_tps3_leftover", ["final_ids", 0, -1], lambda x: x + 1),
        ("llada_tps3_leftover", ["n_steps"], lambda x: x + 1),
        ("llada_tps3_leftover", ["settings", "colour"], lambda x: "red"),
        ("llada_tps3_leftover", ["steps", -1, "kind"], lambda x: "response"),
        ("llada_tps3_leftover", ["steps", -1, "live"], lambda x: []),
        ("llada_tps3_leftover", ["steps", 2, "seqs", 0, "pos"], lambda x: x[::-1]),
        ("llada_tps3_leftover", ["steps", 2, "seqs", 0, "tok", 0], lambda x: x + 1),
        ("llada_tps3_leftover", ["steps", 2, "seqs", 0, "n_cand"], lambda x: x + 1),
        ("llada_tps3_leftover", ["steps", 5, "seqs", 0, "seed"], lambda x: x[:-1]),
        ("llada_tps3_leftover", ["steps", 5, "seqs", 0, "window_start"], lambda x: x + 1),
        ("llada_tps3_leftover", ["steps", 5, "seqs", 0, "salient", 1], lambda x: x[:-1]),
        ("llada_prompt1", ["generated_tokens_equal_to_baseline"], lambda x: -1),
        ("dream_row0", ["alt_final_ids_row0_carry", 0, -1], lambda x: x + 1),
        ("llada_t1.0", ["steps", -1, "kind"], lambda x: "response"),
        ("invariant_0_llada", ["generated_tokens_equal"], lambda x: x + 1),
        ("invariant_7_dream", ["equals_baseline"], lambda x: not x),
        ("op_mha128_all", ["seqs", 0, "salient"], lambda x: x[::-1]),
    ],
)
def test_a_planted_error_in_dyllms_manifest_is_found(name, path, change):
    case = case_named("dyllm", name)
    folder, recording = case.run.args
    recording = put(recording, path[:-1], lambda x: x | {"colour": ""}) if path[-1] == "colour" else recording
    run = functools.partial(case.run.func, folder, put(recording, path, change))
    assert golden.Case("dyllm", "changed", run).result()[0] == "FAIL"


@pytest.mark.parametrize(
    "name, file", [("llada_tps2", "traces.npz"), ("dream_t0.995", "dumps.npz"), ("op_gqa64_resp_b2", "ops.npz")]
)
def test_a_planted_error_in_dyllms_arrays_is_found(name, file):
    """One array after the other."""
    case = case_named("dyllm", name)
    folder, recording = case.run.args
    archive = folder.npz(file)
    arrays = {k: archive[k] for k in archive.files if k.startswith(name + "/")}
    for key in list(arrays)[:: 40 if file == "traces.npz" else 1]:
        other = golden.Folder(folder.path, folder.manifest, folder.models, folder.family, folder.device)
        changed = arrays | {key: spoilt(arrays[key])}
        if key.endswith(("q", "k", "v_old", "c_old", "v_new_rows")) and file == "ops.npz":  # bits of bfloat16
            changed[key] = arrays[key] ^ 0x8000
        other._files[file] = type("Archive", (dict,), {"files": list(changed)})(changed)
        run = functools.partial(case.run.func, other, recording)
        assert golden.Case("dyllm", "changed", run).result()[0] == "FAIL", key
