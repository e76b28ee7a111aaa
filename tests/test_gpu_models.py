"""benchmarks/gpu_models.py and its report run to the end without a GPU: rows are complete and agree with each other."""

import csv
import importlib
import json
import pathlib
import subprocess
import sys

import pytest
import simulator
from conftest import HERE

BENCHMARKS = HERE.parent / "benchmarks"
METHODS = ["uncached", "dllm-cache", "sparse-dllm", "dyllm"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_models")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_report")


def measured(benchmark, path, *more):
    """(what was measured on what, rows)."""
    assert benchmark.main(["--tiny", "--compile", "eager", "--out", str(path), *more]) == 0
    about, *rows = map(json.loads, path.read_text().splitlines())
    return about, rows


def check_rows(rows, answer=16):
    for r in rows:
        assert "why" not in r and r["answer"] == answer
        assert sum(k["steps"] for k in r["kinds"].values()) == answer
        assert sum(k["timed"] for k in r["kinds"].values()) == r["timed_steps"] >= 2
        assert r["seconds"] == pytest.approx(sum(k["steps"] * k["seconds"] for k in r["kinds"].values()))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_everybody_is_measured(benchmark, family, tmp_path):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    about, rows = measured(benchmark, tmp_path / "m", "--family", family, "--device", "cpu", "--cells", "12x1,9x2")
    torch.set_num_threads(threads)
    assert (about["family"], about["device"], about["weights"]) == (family, "cpu", "torch's own") and about["bandwidth"] > 0
    assert about["product_rate"] > 0 and 0.8 < about["same_tokens"] <= 1
    assert 0.5 * about["weight_bytes"] < about["read_bytes"] < about["weight_bytes"]
    expected = [(12, 1, who, m) for who in ("dllm_fast", "torch") for m in METHODS]
    expected += [(12, 1, "torch.compile", "uncached")] + [(9, 2, "dllm_fast", m) for m in METHODS] + [(9, 2, "torch", "uncached")]
    assert [(r["prompt"], r["batch"], r["who"], r["method"]) for r in rows] == expected
    check_rows(rows)
    ours = [r for r in rows if r["who"] == "dllm_fast"]
    assert all(r["peak_bytes"] > about["weight_bytes"] for r in ours)
    for mine, theirs in zip(rows[:4], rows[4:8], strict=True):  # the same kinds of steps, as often
        assert {n: k["steps"] for n, k in mine["kinds"].items()} == {n: k["steps"] for n, k in theirs["kinds"].items()}
    dense = ours[0]["kinds"]["uncached"]["product_flops"]
    assert ours[2]["kinds"]["sparse"]["product_flops"] < 0.6 * dense < dense < ours[4]["kinds"]["uncached"]["product_flops"]


@pytest.mark.skipif(bool(simulator.MISSING), reason=f"no GPU simulator: {simulator.MISSING}")
def test_alone_on_a_device(benchmark, tmp_path):
    simulator.load()
    only = ["--without", "torch", "--cells", "6x1", "--answer", "8", "--block", "4", "--methods", "sparse-dllm"]
    about, rows = measured(benchmark, tmp_path / "m", "--device", simulator.STRICT, *only)
    assert (about["weights"], about["bandwidth"], about["torch"]) == ("from a folder", None, None)
    assert [(r["who"], r["method"]) for r in rows] == [("dllm_fast", "uncached"), ("dllm_fast", "sparse-dllm")]
    check_rows(rows, 8)
    kinds = rows[1]["kinds"]
    assert all(k["kernels"] > 10 * about["layers"] and k["waits"] >= 1 for r in rows for k in r["kinds"].values())
    assert kinds["dense, selecting"]["kernels"] > kinds["dense"]["kernels"]


def test_what_finds_no_time_or_memory_is_named(benchmark, tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError("session: out of memory for keys: 2 x 2 bytes, after 0 bytes were taken")

    only = ["--without", "torch", "--device", "cpu", "--cells", "6x1", "--methods", "dyllm"]
    _, rows = measured(benchmark, tmp_path / "m", *only, "--seconds", "-1")
    assert [r["why"] for r in rows] == ["no time"] * 2 and not any("seconds" in r for r in rows)
    monkeypatch.setattr(benchmark, "our_runner", refuse)
    _, rows = measured(benchmark, tmp_path / "m", *only)
    assert all("out of memory for keys" in r["why"] and not r["failed"] for r in rows)
    monkeypatch.setattr(benchmark, "our_runner", lambda *_: 1 / 0)
    assert benchmark.main(["--tiny", "--out", str(tmp_path / "m"), *only]) == 1


def test_the_command_knows_its_parts():
    said = subprocess.run(["bash", str(BENCHMARKS / "gpu.sh"), "check", "chekc"], capture_output=True, text=True)
    assert said.returncode == 1 and said.stderr.startswith("gpu.sh: unknown part chekc: check golden sessions") and not said.stdout


def test_a_machine_without_torch_will_do(tmp_path):
    ask = f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_models, gpu_report"
    subprocess.run([sys.executable, "-c", ask + "; assert gpu_models.torch_place('cuda:0') == ''"], check=True, cwd=tmp_path)


# ---- the report ------------------------------------------------------------------------------------------------------------------

ABOUT = {
    "about": "models", "family": "llada", "model": "LLaDA-8B", "layers": 32, "device": "cuda:0", "weights": "torch's own",
    "weight_bytes": 16e9, "read_bytes": 15e9, "bandwidth": 4e12, "answer": 256, "block": 32, "torch": "2 on cuda:0",
    "product_rate": 7.9e14, "same_tokens": 0.97,
}  # fmt: skip


def row(prompt, batch, who, method, step, **more):
    kind = {"sparse-dllm": "sparse"}.get(method, method)
    k = {"steps": 256, "timed": 9, "seconds": step, **more}
    about = {"prompt": prompt, "batch": batch, "who": who, "method": method, "family": "llada", "setting": "", "answer": 256}
    return about | {"kinds": {kind: k}, "timed_steps": 9, "seconds": 256 * step, "peak_bytes": 2e10}


def ours(prompt, batch, method, step):
    counted = {"kernels": 400, "launches": 1, "waits": 2, "host_seconds": 1e-3, "product_flops": 18e12, "ffn_rows": 1024}
    return row(prompt, batch, "dllm_fast", method, step, **counted)


def reported(report, folder, lines, kernels=""):
    results, parts, file = folder / "gpu-x", folder / "parts", folder / "models"
    parts.write_text("| check | passed | 1 | 9 passed |\n")
    file.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"prompt": 64, "ba')  # and one that was cut off
    pathlib.Path(str(results) + ".csv").write_text(kernels)
    report.main(str(results), "NVIDIA H200, 580, 143771 MiB", "abc", str(parts), str(file))
    text = pathlib.Path(str(results) + ".md").read_text()
    wanted = [line.split(" | ") for line in text.splitlines() if line.startswith("| LLaDA-8B | ")]
    return text, {w[1]: (w[2], w[3].removesuffix(" |").strip()) for w in wanted}


def test_the_report_judges(report, tmp_path):
    lines = [ABOUT, ours(1024, 1, "uncached", 0.04), ours(1024, 1, "sparse-dllm", 0.004), ours(1024, 1, "dyllm", 0.05)]
    lines += [ours(1024, 32, "sparse-dllm", 0.0065), row(1024, 1, "torch", "uncached", 0.05)]
    lines += [row(1024, 1, "torch", "sparse-dllm", 0.009)]
    lines += [row(64, 1, "torch", "dllm-cache", 0.01) | {"seconds": None, "why": "no | time"}]
    kernels = "device,kernel,case,seconds,bytes,operations\n"
    for shape, n, k in (("4096 x 4096", 4096, 4096), ("12288 x 4096", 12288, 4096), ("4096 x 12288", 4096, 12288)):
        for device, rate in (("cuda:0", 0.7 * 989e12), ("cuda:0:own", 0.1 * 989e12)):
            kernels += f"{device},linear,1280 rows by {shape},{2 * 1280 * n * k / rate},{2 * n * k},{2 * 1280 * n * k}\n"
    text, wanted = reported(report, tmp_path, lines, kernels + "cuda:0,copy,4096 x 12288,0.0001,2000")
    assert wanted["batch 1, 32 active rows (Sparse-dLLM, prompt 1024): 220 steps/s"] == ("yes", "250.0 steps/s")
    [products] = [w for name, w in wanted.items() if "matrix products" in name]
    assert products == ("yes", "70 % alone, 46 % of the whole step's time")
    assert wanted["sparse-dllm, prompt 1024: 2.5 x as fast as torch running the same"] == ("no", "2.25 x")
    assert wanted["sparse-dllm, prompt 1024: 10 x as fast as torch uncached"] == ("yes", "12.50 x")
    assert wanted["dllm-cache, prompt 1024: 10 x as fast as torch uncached"] == ("not measured", "")
    assert wanted["no cached run slower than uncached"] == ("no", "0.80 x as fast at the least (dyllm, prompt 1024, batch 1), of 2")
    assert wanted["batch 32: 5000 tokens/s"] == ("no", "4923 tokens/s (sparse-dllm, prompt 1024)")
    assert (
        "| 1024 | 1 | sparse-dllm | dllm_fast | 250.0 | 250 | 2.25 | 12.50 | 4.00 | 94 % | 400 | 1 | 2 | 1.00 | 20.0 | 9 |" in text
    )
    assert "at 790 TFLOP/s. In an uncached step 97% of the masks" in text
    assert "| 64 | 1 | dllm-cache | torch | no   time |" in text
    [numbers] = tmp_path.glob("gpu-x-models.csv")
    found = list(csv.DictReader(numbers.open(newline="")))
    assert [(r["method"], r["kind"]) for r in found][1] == ("sparse-dllm", "sparse") and len(found) == len(lines) - 1
    assert float(found[1]["tokens_per_second"]) == pytest.approx(250) and found[1]["product_flops"] == "18000000000000.0"


@pytest.mark.slow
def test_the_report_reads_what_is_measured(benchmark, report, tmp_path):
    only = ["--without", "torch", "--device", "cpu", "--cells", "6x1,5x2", "--answer", "8", "--block", "4"]
    about, rows = measured(benchmark, tmp_path / "m", *only, "--family", "dream")
    text, _ = reported(report, tmp_path, [about, *rows])
    assert text.count("| dllm_fast |") == len(rows) + sum(len(r["kinds"]) for r in rows[:4])
    assert "torch: takes no part" in text and "data sheet" in text
    columns = {line.count("|") for line in text.splitlines() if " | dllm_fast | " in line}
    assert columns == {17, 9}
    assert sys.modules["gpu_models_report"].Models(tmp_path / "none", (None, None)).rows == []
