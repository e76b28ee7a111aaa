"""Why there is no CUDA, in one line, for every state that a machine can be in; drivers and plug-ins are made here."""

import ctypes
import importlib.machinery
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from dllm_fast import _core, cuda

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "golden" / "base" / "models" / "llada_tiny"
PLUGIN = pathlib.Path(_core.__file__).with_name("libdllm_cuda.so")
COMPILER = shutil.which(os.environ.get("CC", "cc"))

needs_plugin = pytest.mark.skipif(not PLUGIN.exists(), reason="libdllm_cuda.so was not built (no nvcc, or DLLM_FAST_CUDA=0)")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

ASK = """
import sys
from dllm_fast import _core
try:
    print(_core.load_cuda(sys.argv[1]))
    for device in sys.argv[3:]:
        _core.Model.from_folder(sys.argv[2], device=device)
except Exception as error:
    print(type(error).__name__, error, sep=": ")
"""


ASK_CUBLAS = """
import sys
from dllm_fast import _core, cuda
_core.load_cuda(sys.argv[1])
print(cuda._library())
try:
    _core.cuda_library("cuda", "x")
except Exception as error:
    print(type(error).__name__, error, sep=": ")
"""


def library(path, *definitions):
    subprocess.run([COMPILER, "-shared", "-fPIC", *definitions, "-o", path, HERE / "c" / "fakecuda.c"], check=True)
    return path


def ask(tmp_path, plugin, *devices, **environment):
    """What a process of its own hears; a plug-in stays loaded for the life of one."""
    return run(tmp_path, ASK, plugin, MODEL, *devices, **environment)


def run(tmp_path, code, *arguments, **environment):
    environment["PYTHONPATH"] = str(PLUGIN.parents[1])  # the very package under test, wherever it was built
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.check_output(command, text=True, cwd=tmp_path, env=os.environ | environment).splitlines()


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@needs_plugin
@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
def test_no_driver(tmp_path):
    assert ask(tmp_path, PLUGIN) == ["DeviceError: no CUDA driver: libcuda.so.1 was not found"]


@needs_plugin
@needs_compiler
def test_an_old_driver(tmp_path):
    library(tmp_path / "libcuda.so.1", "-DDRIVER=11040")
    [line] = ask(tmp_path, PLUGIN, LD_LIBRARY_PATH=str(tmp_path))
    assert line.startswith("DeviceError: the CUDA driver is too old: it supports CUDA 11.4, this build needs 1")


@needs_plugin
@needs_compiler
def test_no_device(tmp_path):
    library(tmp_path / "libcuda.so.1", "-DDRIVER=99000")
    [line] = ask(tmp_path, PLUGIN, LD_LIBRARY_PATH=str(tmp_path))
    assert line == "DeviceError: no CUDA device: the driver finds none (or CUDA_VISIBLE_DEVICES hides it)"


def test_no_plugin(tmp_path):
    [line] = ask(tmp_path, tmp_path / "libdllm_cuda.so")
    assert line.startswith("DeviceError: this installation has no CUDA plug-in") and str(tmp_path) in line


def test_a_broken_plugin(tmp_path):
    (tmp_path / "libdllm_cuda.so").write_bytes(b"not a library")
    [line] = ask(tmp_path, tmp_path / "libdllm_cuda.so")
    assert line.startswith("DeviceError: the CUDA plug-in does not load")


@needs_compiler
def test_another_library(tmp_path):
    [line] = ask(tmp_path, library(tmp_path / "libdllm_cuda.so"))
    assert line.endswith("libdllm_cuda.so is not a CUDA plug-in of dllm_fast")


@needs_compiler
def test_a_plugin_of_another_version(tmp_path):
    [line] = ask(tmp_path, library(tmp_path / "libdllm_cuda.so", "-DDEVICES=1", "-DABI=99"))
    assert "is a CUDA plug-in of another version: its table is number 99, this library reads 4" in line


@needs_compiler
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "cuda: found Fake GPU 0, but it is a picture of one"),
        ("cuda:own", "cuda:own: found Fake GPU 0, but it is a picture of one"),
        ("cuda:1:own", "cuda:1:own: found Fake GPU 1, but it is a picture of one"),
        ("cuda:1", "cuda:1: found Fake GPU 1, but it is a picture of one"),
        ("cuda:2", "cuda:2: the devices are cuda:0 to cuda:1"),
    ],
)
def test_devices_are_found(tmp_path, device, words):
    plugin = library(tmp_path / "libdllm_cuda.so", "-DDEVICES=2")
    assert ask(tmp_path, plugin, device) == ["2", f"DeviceError: {words}"]


@needs_compiler
def test_cublas_is_looked_for_by_the_plugin(tmp_path):
    plugin = library(tmp_path / "libdllm_cuda.so", "-DDEVICES=2")
    said = run(tmp_path, ASK_CUBLAS, plugin)
    assert said == ["no cuBLAS (nvidia-cublas): our own kernels multiply everything", "DeviceError: cuBLAS was not found; x"]


def test_the_package_of_cublas_is_found(tmp_path, monkeypatch):
    wheel = tmp_path / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    assert cuda._cublas() is None
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: spec)
    assert cuda._cublas() is None
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    assert cuda._cublas() == str(wheel)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:-1", "cuda:0x", "cuda:owner", "cuda:0:ow", "cpu:", "cpu:sse", "", "CPU"])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match='this machine has "cpu", "cpu:c"'):
        _core.Model.from_folder(str(MODEL), device=device)


@pytest.mark.parametrize("threads", [-1, 1025])
def test_absurd_threads(threads):
    with pytest.raises(ValueError, match=f"threads = {threads}: 1 to 1024 expected"):
        _core.Model.from_folder(str(MODEL), device="cpu", threads=threads)


def test_devices_and_threads_are_as_asked():
    for level in _core.cpu_levels():
        model = _core.Model.from_folder(str(MODEL), device=f"cpu:{level}", threads=3)
        assert (model.device, model.backend, model.threads) == ("cpu", level, 3)
    best = _core.Model.from_folder(str(MODEL), device="cpu")
    assert best.backend == _core.cpu_levels()[-1] and best.threads == _core.default_threads()
