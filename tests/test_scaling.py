"""benchmarks/scaling.py: steps are held against what their operations and bytes say."""

import importlib
import json
import sys

import pytest
from conftest import HERE, MODELS

from dllm_fast import ceilings


@pytest.fixture
def scaling(monkeypatch):
    """The benchmark, on a machine that needs a second for 1 GB and for 10 GFLOP."""
    monkeypatch.syspath_prepend(str(HERE.parent / "benchmarks"))
    monkeypatch.setattr(ceilings, "measure", lambda backend, threads: ceilings.Ceilings(1e9, 1e10, 1e10, 1e10))
    yield importlib.import_module("scaling")
    sys.modules.pop("scaling")


def test_the_command_reports_every_point(scaling, tmp_path):
    small = [
        "--model",
        str(MODELS / "llada_tiny"),
        "--lengths",
        "16,32",
        "--batches",
        "1,2",
        "--batch-length",
        "24",
        "--rows",
        "4,8",
    ]
    small += [
        "--prompt",
        "8",
        "--block",
        "4",
        "--threads-length",
        "16",
        "--threads",
        "2",
        "--repeats",
        "1",
        "--results",
        str(tmp_path),
    ]
    scaling.main(small)
    [written] = tmp_path.glob("*.json")
    result = json.loads(written.read_text())
    rows = result["rows"]
    expected = [
        ("length", 16),
        ("length", 32),
        ("batch", 1),
        ("batch", 2),
        ("rows", 4),
        ("rows", 8),
        ("threads", 1),
        ("threads", 2),
    ]
    assert [(r["series"], r["at"]) for r in rows] == expected and all(len(r["all"]) == 1 for r in rows)
    flops = [r["flops"] for r in rows]
    assert flops[0] < flops[1] and 1.9 < flops[3] / flops[2] < 2.1 and flops[4] < flops[5] and flops[6] == flops[7]
    for series, share in result["efficiency"].items():
        mine = [r for r in rows if r["series"] == series]
        for r in mine:
            assert r["seconds"] * share / r["floor"] - 1 == pytest.approx(r["deviation"])
        assert (1 + mine[0]["deviation"]) * (1 + mine[1]["deviation"]) == pytest.approx(1)
    text = written.with_suffix(".md").read_text()
    assert text.count("\n| ") == len(rows) + 4 and "target 15%" in text


def test_a_law_that_holds_deviates_nowhere(scaling):
    rows = [{"series": s, "at": n, "seconds": 3.0 * n, "floor": 2.0 * n} for s in (*scaling.NAMES, "threads") for n in (1, 2, 8)]
    shares = scaling.fit(rows)
    assert all(share == pytest.approx(2 / 3) for share in shares.values())
    assert all(r["deviation"] == pytest.approx(0) for r in rows if r["series"] != "threads")
    rows[1]["seconds"] *= 1.21
    scaling.fit(rows)
    assert [r["deviation"] for r in rows[:3]] == pytest.approx([1 / 1.1 - 1, 0.1, 1 / 1.1 - 1])


@pytest.mark.parametrize("arguments, says", [(["--lengths", "32"], "32 tokens"), (["--rows", "3"], "4 rows")])
def test_what_cannot_be_measured_is_refused(scaling, capsys, arguments, says):
    with pytest.raises(SystemExit):
        scaling.main(arguments)
    assert says in capsys.readouterr().err
