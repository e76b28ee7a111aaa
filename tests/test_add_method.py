"""docs/add_a_method.md is true: its toy method, added to a copy of the core as the page says, compiles and keeps every promise."""

import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ROOT / "tests" / "golden" / "base" / "models"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("make")), reason="needs gcc and make, to build the core anew")
def test_the_toy_method_of_the_page(tmp_path):
    for folder in ("csrc", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copytree(ROOT / "tests" / "c", tmp_path / "tests" / "c", ignore=shutil.ignore_patterns("build", "fuzz_*", "test_[!c]*"))
    source, line = re.findall(r"```c\n(.*?)```", (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "csrc" / "strategy_frozen.c").write_text(source)
    names = tmp_path / "csrc" / "strategy_list.c"
    before, after = re.split(r"(?<=X\(none\)) *\\\n", names.read_text(), maxsplit=1)
    names.write_text(before + " \\\n" + line + after)
    make = ["make", "-s", "-C", str(tmp_path / "tests" / "c"), "SANITIZE=", "CFLAGS=-O2", "OUT=" + str(tmp_path / "out"), "-j2"]
    subprocess.run([*make, str(tmp_path / "out" / "test_core")], check=True, timeout=300)
    core = tmp_path / "out" / "test_core"
    run = subprocess.run([core, MODELS / "llada_tiny", MODELS / "dream_tiny"], capture_output=True, text=True)
    assert re.search(r"\d+ passed, 0 failed\n$", run.stdout), run.stdout
    listed = subprocess.run([core, "--methods"], capture_output=True, text=True).stdout.split()
    assert "frozen" in listed and "dyllm" in listed
