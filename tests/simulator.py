"""The simulator that runs the CUDA kernels on the processor, for tests. Devices "cuda-sim:3" to "cuda-sim:5" are strict: the host
cannot touch their memory, and kernels run no sooner than it waits for them. "cuda-sim:18" and on have half a MiB of memory."""

import functools
import os
import pathlib
import platform
import shutil
import subprocess

HERE = pathlib.Path(__file__).parent
STRICT = "cuda-sim:3"
MISSING = next((f"no {tool} to build it" for tool in ("make", "c++") if shutil.which(tool) is None), "")
if platform.machine() not in ("x86_64", "AMD64"):
    MISSING = "it is written for x86-64"


@functools.cache
def load() -> None:
    """Opens the library that DLLM_FAST_CUDA_SIM names, or else the one that is built here."""
    from dllm_fast import _core

    _core.load_cuda_sim(path())


@functools.cache
def path() -> str:
    return os.environ.get("DLLM_FAST_CUDA_SIM") or str(build())


def build() -> pathlib.Path:
    """Without sanitizers, and quick: `make -C tests/c check` runs it with them."""
    library = "build/plain/libdllm_cuda_sim.so"
    subprocess.run(["make", "-s", "-C", HERE / "c", library, "OUT=build/plain", "SANITIZE=", "CFLAGS=-O2"], check=True)
    return HERE / "c" / library
