"""The command line: what it prints where, and how it fails; the tokenizers."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import simulator
from conftest import MODELS

import dllm_fast
from dllm_fast import _core, ceilings, cli, live, tokenizer
from dllm_fast.model import DEMO

LLADA = str(MODELS / "llada_tiny")


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"dllm_fast {dllm_fast.__version__}\n")
    assert re.search(rf"^cpu:   {' '.join(_core.cpu_levels())} \(\d+ threads, (our own|borrowed from .+/lib.*omp).*\)$", out, re.M)
    assert len(re.findall(r"^cuda:  .+$", out, re.M)) == 1 and len(out.splitlines()) == 3


def test_info_of_a_model(capsys):
    assert cli.main(["info", LLADA]) == 0
    out = capsys.readouterr().out
    assert "layers 3, dim 64, heads 4" in out and "mask_id 300, eos_id 290" in out
    assert f"bytes: {dllm_fast.load(LLADA).nbytes:,}\n" in out


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """The file of the ceilings, and a list of what was measured: every measurement finds another bandwidth."""
    measured = []

    def measure(device, threads):
        measured.append((device, threads))
        return {"bytes": 1e9 * len(measured), "float32": 1e10, "bfloat16": 4e10, "int8": 8e10}

    monkeypatch.setattr(_core, "ceilings", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dllm_fast" / "ceilings.json", measured


def test_ceilings_are_measured_once(remembered, capsys):
    path, measured = remembered
    level = _core.cpu_levels()[-1]
    assert cli.main(["info"]) == 0 and not measured
    first = ceilings.ceilings(level, 2)
    assert ceilings.ceilings(level, 2) == first and measured == [(f"cpu:{level}", 2)]
    assert cli.main(["info", "--ceilings", "--threads", "2"]) == 0  # asks for a fresh one
    out = capsys.readouterr().out
    assert measured == [(f"cpu:{level}", 2)] * 2
    assert "2.0 GB/s read, 10 GFLOP/s float32, 40 GFLOP/s bfloat16, 80 GFLOP/s int8" in out
    assert ceilings.ceilings(level, 2).bytes == 2e9 != first.bytes
    assert ceilings.ceilings("c", 2).bytes == 3e9 and ceilings.ceilings(level, 2).bytes == 2e9  # each level has its own
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"KEY": {"bytes": 1}}'])
def test_ceilings_of_a_spoilt_file(remembered, text):
    path, measured = remembered
    ceilings.ceilings("c", 1)
    [key] = json.loads(path.read_text())
    path.write_text(text.replace("KEY", key))
    assert ceilings.ceilings("c", 1).bytes == 2e9 and ceilings.ceilings("c", 1).bytes == 2e9 and len(measured) == 2


def test_ceilings_without_a_cache_folder(remembered):
    path, measured = remembered
    path.parent.write_text("a file where the folder would be")
    assert ceilings.ceilings("c", 1).bytes == 1e9 and ceilings.ceilings("c", 1).bytes == 2e9


def test_ceilings_for_real():
    best = _core.ceilings("cpu", 1)
    assert best.keys() == {"bytes", "float32", "bfloat16", "int8"} and min(best.values()) > 0
    with pytest.raises(ValueError, match="z80"):
        _core.ceilings("cpu:z80", 1)


def test_bench_profile(remembered, tmp_path, capsys):
    out = tmp_path / "profile"
    arguments = ["bench", LLADA, "--cache", "dyllm", "--gen-length", "8", "--block-length", "8", "--repeats", "1", "--threads", "1"]
    assert cli.main([*arguments, "--prompt-length", "6"]) == 0
    assert "attention" not in capsys.readouterr().out
    assert cli.main([*arguments, "--prompt-length", "6", "--profile", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.with_suffix(".md").read_text().endswith(text[text.index("| | tokens/s") :])
    tables = re.split(r"\*\*(\w+)\*\*: (\d+)% of the step is inside matrix products and attention", text)
    assert [tables[1], tables[4]] == ["uncached", "dyllm"] and 0 < int(tables[2]) < 100
    for row, table in zip(json.loads(out.with_suffix(".json").read_text())["rows"], (tables[3], tables[6]), strict=True):
        stages, lines = row["stats"]["stages"], table.split("\n")
        for name, cost in stages.items():
            [line] = [line for line in lines if line.startswith(f"| {name} |")]
            if cost["seconds"]:
                cells = [float(cell.strip(" %")) for cell in line.split("|")[2:-1]]
                floor = max(cost["bytes"] / 1e9, cost["flops"] / 1e10)  # float32
                share = cost["seconds"] / row["stats"]["seconds"]
                rates = [cost["flops"] / cost["seconds"] / 1e9, cost["bytes"] / cost["seconds"] / 1e9]
                expected = [cost["seconds"] / 8 * 1e3, 100 * share, *rates, 100 * floor / cost["seconds"]]
                np.testing.assert_allclose(cells, expected, rtol=0, atol=0.51)


@pytest.mark.slow
@pytest.mark.skipif(bool(simulator.MISSING), reason=f"no GPU simulator: {simulator.MISSING}")
def test_commands_take_a_device(tmp_path, capsys):
    simulator.load()
    gpu, out = ["--device", simulator.STRICT], tmp_path / "gpu"
    small = ["--prompt-length", "6", "--gen-length", "4", "--block-length", "4", "--repeats", "1", "--dtype", "float32"]
    assert cli.main(["bench", LLADA, "--cache", "dyllm", *small, *gpu, "--out", str(out)]) == 0
    assert "float32 on cuda-sim:3 (cuda, 1 threads)" in capsys.readouterr().out
    assert [row["cache"] for row in json.loads(out.with_suffix(".json").read_text())["rows"]] == ["uncached", "dyllm"]
    assert cli.main(["info", LLADA, *gpu]) == 0 and "on cuda-sim:3" in capsys.readouterr().out
    assert cli.main(["generate", LLADA, "5 6 7", "--ids", "--gen-length", "2", *gpu]) == 0 and capsys.readouterr().out.split()
    assert cli.main(["bench", LLADA, *small, *gpu, "--profile"]) == 2
    assert "--profile times stages on a CPU; cuda-sim:3 works on" in capsys.readouterr().err
    for command in ("bench", "info"):
        assert cli.main([command, LLADA, "--device", "cuda-sim:99"]) == 2
        assert "the devices are cuda-sim:0 to cuda-sim:23" in capsys.readouterr().err


def test_generate_without_a_model(capsys):
    arguments = ["generate", "Rhello=", "--gen-length", "12", "--steps", "6"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert first.out == "olleh\n" and "no MODEL given" in first.err
    assert cli.main([*arguments, "--show", "--stats"]) == 0  # without a terminal, --show writes nothing but the last line
    second = capsys.readouterr()
    assert second.out == first.out and "12 tokens, 6 forwards" in second.err and "\x1b" not in second.err
    arguments[1] = "P="
    hot = [*arguments, "--temperature", "1", "--block-length", "6"]
    texts = []
    for seed in ("1", "1", "2"):
        assert cli.main([*hot, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_generate_with_numbers(capsys):
    assert cli.main(["generate", LLADA, "5, 6 7", "--ids", "--gen-length", "4", "--dtype", "float32", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    model = dllm_fast.load(LLADA, dtype="float32")
    expected = dllm_fast.generate(model, [5, 6, 7], steps=4, gen_length=4, block_length=4)
    assert [int(w) for w in out.split()] == expected[0, 3:].tolist() and err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "./nowhere"], "no checkpoint folder './nowhere'"),
        (["generate", LLADA, "hello"], "no tokenizer.json.*--ids"),
        (["generate", LLADA, "5 x", "--ids"], "'x'"),
        (["generate", "a", "b", "c"], "quote"),
        (["generate", "hello", "--gen-length", "10", "--block-length", "4"], "10 is not a multiple of block_length 4"),
        (["generate", "привет"], "no token"),
        (["check", "--level", "z80"], "z80"),
        (["check", "--device", "tpu"], "cuda or cuda:N expected"),
        (["check", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_errors_are_one_line(arguments, words, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert re.search(words, err[-1]) and err[-1].startswith("dllm-fast: ")


def test_check(capsys, monkeypatch):
    made = {"case": "n=3", "error": 0.5, "tolerance": 2.0, "ok": True, "seconds": 1.0, "seconds_c": 3.0}
    results = [{"kernel": "norm", **made}, {"kernel": "rope", **made}, {"kernel": "rope", **made, "error": 9.0, "ok": False}]
    asked = []
    monkeypatch.setattr(_core, "check", lambda **options: asked.append(options) or results)
    assert cli.main(["check", "--level", "c", "--seed", "5", "--timing"]) == 1
    out = capsys.readouterr().out
    assert asked == [{"level": "c", "kernel": "", "seed": 5, "timing": True}]
    assert "FAIL n=3: error 9, allowed 2" in out and "3.0 x" in out and out.endswith("2 of 3 cases agree\n")
    monkeypatch.setattr(_core, "check", lambda **options: results[:2])
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.count(" norm ") == len(_core.cpu_levels())


def test_check_for_real(capsys):
    assert cli.main(["check", "--level", "c"]) == 0
    assert re.search(r"^(\d+) of \1 cases agree$", capsys.readouterr().out, re.M)


def test_as_a_program(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(dllm_fast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "dllm_fast", "--version"], capture_output=True, text=True, env=env, cwd=tmp_path, check=True
    )
    assert done.stdout == f"dllm_fast {dllm_fast.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "dllm_fast"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 2 and "COMMAND" in done.stderr


# ---- tokenizers ------------------------------------------------------------------------------------------------------------------


def test_characters():
    words = tokenizer.of_folder(DEMO)
    text = "A12+z="
    ids = words.encode(text)
    assert words.decode(ids) == text and "".join(map(words.piece, ids)) == text
    table = json.loads(pathlib.Path(DEMO, "chars.json").read_text())
    mask = table["special"]["<mask>"]
    assert words.decode([mask, ids[0]]) == "A" and words.piece(mask) == "<mask>"
    with pytest.raises(ValueError, match="'ж'"):
        words.encode("aж")


def test_tokenizer_json(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(FileNotFoundError, match="pip install tokenizers"):
        tokenizer.of_folder(str(tmp_path))
    inner = types.SimpleNamespace(
        encode=lambda text, add_special_tokens: types.SimpleNamespace(ids=[ord(c) for c in text]),
        decode=lambda ids, skip_special_tokens: "".join(chr(i) for i in ids if i > 31 or not skip_special_tokens),
    )
    loaded = types.SimpleNamespace(from_file=lambda path: inner)
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=loaded))
    words = tokenizer.of_folder(str(tmp_path))
    assert words.encode("hi") == [104, 105] and words.decode([104, 7]) == "h" and words.piece(7) == "\x07"


# ---- the live view ---------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_view_in_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(live.shutil, "get_terminal_size", lambda: os.terminal_size((4, 24)))
    out = Terminal()
    view = live.View(chr, 300, 1, out)
    view(types.SimpleNamespace(sequences=[np.array([65, 300, 66, 300, 300, 300])], committed=[np.array([2])]))
    assert out.getvalue() == "\r\x1b[J·\x1b[1;32mB\x1b[0m···"
    out.seek(0)
    out.truncate()
    view(types.SimpleNamespace(sequences=[np.array([65, 67, 66, 300, 300, 300])], committed=[np.array([1])]))
    assert out.getvalue() == "\r\x1b[1A\x1b[J\x1b[1;32mC\x1b[0mB···"  # five cells in four columns: one line up
    view.close()
    assert out.getvalue().endswith("\n")


def test_bar_in_a_terminal(monkeypatch):
    out = Terminal()
    bar = live.Bar(4, out)
    bar.advance(1)
    bar.advance(2)
    bar.close()
    assert out.getvalue() == f"\r[{'#' * 8}{'-' * 24}] 1/4\r[{'#' * 16}{'-' * 16}] 2/4\n"
