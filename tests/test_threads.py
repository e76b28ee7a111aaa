"""Whose threads kernels run on, and how many: with torch loaded before, after and never, and in the children of forks."""

import os
import subprocess
import sys
import types

import pytest
from conftest import MODELS
from test_generate import environment

import dllm_fast
from dllm_fast import _core
from dllm_fast.threads import thread_count

# ids(): what a model of 2 threads makes of one prompt, in this thread
START = f"""
import multiprocessing, os, sys, threading, numpy as np, dllm_fast
model = dllm_fast.load({str(MODELS / "llada_tiny")!r}, dtype="float32", device="cpu", threads=2)
def ids(out=None):
    found = model.generate(np.arange(20, 120)[None], steps=4, gen_length=8, block_length=8).tolist()
    return found if out is None else out.append(found)
def in_threads(n):
    out, threads = [], []
    for _ in range(n): threads.append(threading.Thread(target=ids, args=(out,)))
    [t.start() for t in threads]; [t.join() for t in threads]
    return out
def in_child(work):
    with multiprocessing.get_context("fork").Pool(1) as pool: return pool.apply(work)
runtime = dllm_fast.thread_runtime
"""


def run(code):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment(), cwd=MODELS, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def test_torch_after_and_before(rng):
    pytest.importorskip("torch")
    code = """
first = ids()
print(runtime())
import torch
big = torch.randn(300, 3000)
for use in ("auto", "own", "auto"):
    runtime(use)
    for _ in range(3):
        torch.softmax(big, -1)
        assert ids() == first
    assert in_threads(4) == [first] * 4
    print(runtime(), in_child(ids) == first, in_child(runtime))
"""
    after = run(START + code)
    before = run("import torch\n" + START + code)
    assert after[0] == "own" and after[1:] == before[1:] and before[0] == before[1].split()[0] != "own"
    borrowed = os.path.basename(before[0])
    assert "omp" in borrowed
    assert before[1:] == [f"{before[0]} True own", "own True own", f"{before[0]} True own"]


def test_a_child_that_meets_the_core_first():
    """The parent has torch's team; the child, which lost its threads, loads the core."""
    pytest.importorskip("torch")
    code = """
import multiprocessing, torch
torch.softmax(torch.randn(300, 3000), -1)
def work():
    space = {}
    exec(START, space)
    return space["runtime"](), len(space["ids"]()[0])
with multiprocessing.get_context("fork").Pool(1) as pool: print(pool.apply(work))
"""
    assert run(f"START = {START!r}{code}") == ["('own', 108)"]


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT=1", "OMP_NUM_THREADS=1", "OMP_DYNAMIC=true"])
def test_settings_of_openmp(variable):
    """Whatever they do to the team, all of the work is done."""
    pytest.importorskip("torch")
    name, _, value = variable.partition("=")
    set_it = f"import os; os.environ[{name!r}] = {value!r}\n"
    code = "print(runtime() == 'own', ids())\n"
    plain, limited = run(START + code), run(set_it + "import torch\n" + START + code)
    assert plain[0].startswith("True ") and limited == [plain[0].replace("True", "False")]


def test_how_many(monkeypatch):
    allowed = _core.default_threads()
    assert 1 <= allowed <= len(os.sched_getaffinity(0))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (thread_count(), thread_count(0), thread_count(7)) == (allowed, allowed, 7)
    for n in (1, 1000):
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(get_num_threads=lambda n=n: n))
        assert (thread_count(), thread_count(7)) == (min(n, allowed), 7)
    assert dllm_fast.load(MODELS / "llada_tiny", device="cpu").threads == allowed
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert thread_count() == allowed


def test_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nimport dllm_fast; print(dllm_fast.load().threads)"
    assert run(code) == ["1"]


def test_unknown_runtimes_are_refused():
    with pytest.raises(ValueError, match="elsewhere"):
        dllm_fast.thread_runtime("elsewhere")
