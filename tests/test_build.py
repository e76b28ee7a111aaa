"""What was built and installed: one version, no needless dependencies, nothing exported by accident."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import dllm_fast
from dllm_fast import _core

ROOT = pathlib.Path(__file__).parents[1]
PLUGIN = pathlib.Path(_core.__file__).with_name("libdllm_cuda.so")
COMPILER = shutil.which(os.environ.get("CC", "cc"))

needs_plugin = pytest.mark.skipif(not PLUGIN.exists(), reason="libdllm_cuda.so was not built (no nvcc, or DLLM_FAST_CUDA=0)")
needs_binutils = pytest.mark.skipif(not (shutil.which("nm") and shutil.which("readelf")), reason="no binutils")


def exports(library):
    lines = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True).splitlines()
    return {line.split()[-1] for line in lines}


def needs(library):
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", subprocess.check_output(["readelf", "-d", library], text=True)))


def test_one_version():
    header = re.search(r'#define DLLM_VERSION "(.+)"', (ROOT / "csrc" / "dllm.h").read_text())[1]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert {header, newest, dllm_fast.__version__, _core.__version__} == {header}


def test_the_installed_version():
    try:
        assert importlib.metadata.version("dllm-fast") == _core.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("built in place, not installed")


@pytest.mark.parametrize("module", ["dllm_fast", "dllm_fast.cli"])
def test_neither_torch_nor_transformers_is_needed(module, tmp_path):
    blocked = ["torch", "transformers", "huggingface_hub", "safetensors", "tokenizers"]
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport {module}"
    environment = os.environ | {"PYTHONPATH": str(PLUGIN.parents[1])}  # the very package under test, wherever it was built
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path, env=environment)


@needs_binutils
def test_the_extension_exports_its_init_function_alone():
    if "libasan" in " ".join(needs(_core.__file__)):
        pytest.skip("a sanitizer build exports what its sanitizer wants")
    assert exports(_core.__file__) == {"PyInit__core"}


@needs_binutils
def test_the_extension_needs_only_the_system():
    allowed = r"(libc|libm|libdl|libpthread|libpython.*|libasan|libubsan|ld-linux.*)\.so.*"
    assert not [name for name in needs(_core.__file__) if not re.fullmatch(allowed, name)]


@needs_plugin
@needs_binutils
def test_the_plugin_is_one_symbol_and_needs_no_nvidia_library():
    assert exports(PLUGIN) == {"dllm_cuda_get"}
    allowed = r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux.*)\.so.*"
    assert not [name for name in needs(PLUGIN) if not re.fullmatch(allowed, name)]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("header", ["csrc/dllm.h", "kernels/ops.h", "kernels/threads.h", "kernels/cuda/cuda.h"])
def test_headers_stand_alone(header, language):
    command = [COMPILER, "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", language, "-include", ROOT / header, os.devnull]
    subprocess.run(command, check=True)


def test_the_build_refuses_what_it_does_not_know():
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"DLLM_FAST_CUDA": "maybe"}, capture_output=True, text=True)
    assert done.returncode != 0 and "DLLM_FAST_CUDA is auto, 1 or 0, not 'maybe'" in done.stderr
