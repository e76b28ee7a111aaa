"""The optional CUDA plug-in: a shared library beside this file, opened on first use."""

import importlib.util
import os
from functools import cache

from . import _core

LIBRARY = os.path.join(os.path.dirname(__file__), "libdllm_cuda.so")


@cache
def state() -> tuple[int, str]:
    """(number of usable GPUs, one line that says so or why not, and which library multiplies many rows)."""
    if not os.path.exists(LIBRARY):
        return 0, "this build has no CUDA plug-in"
    try:
        count = _core.load_cuda(LIBRARY)
    except _core.DeviceError as error:
        return 0, str(error)
    return count, f"{count} GPU{'s' if count != 1 else ''}, {_library()}"


def _library() -> str:
    try:
        return _core.cuda_library("cuda", _cublas())
    except _core.DeviceError:
        return "no cuBLAS (nvidia-cublas): our own kernels multiply everything"


def _cublas() -> str | None:
    """The library in the package nvidia-cublas, of this or the last CUDA; what torch has loaded comes before it."""
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        for name in ("cu13/lib/libcublas.so.13", "cublas/lib/libcublas.so.12"):
            if os.path.exists(path := os.path.join(folder, name)):
                return path
    return None


def resolve(device: str) -> str:
    """The core's name of a device. "auto" is the CPU; asking for CUDA in vain is an error."""
    device = str(device)
    if not device.startswith("cuda") or device.startswith("cuda-sim"):
        return "cpu" if device == "auto" else device
    count, line = state()
    if count:
        return device
    raise _core.DeviceError(f"device {device!r}: {line}")
