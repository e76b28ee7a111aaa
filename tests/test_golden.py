"""Recorded runs of the original implementations, replayed through the public API. `python tests/golden.py` is the same by hand."""

import collections
import functools
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import golden  # noqa: E402

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
