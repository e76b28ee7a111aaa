"""The kernels as compiled, without a GPU: registers, stack and shared memory of each beside tests/cuda_kernels.csv, the
architectures inside the plug-in, and the instructions that it promises.

The CSV's limits are those of nvcc 13.0, rounded up to the eight registers that a GPU hands out at once. More of them are no
error in themselves, but somebody should have wanted them: `pytest -s -k resources` prints the new numbers."""

import csv
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
from collections import Counter
from functools import cache

import pytest

from dllm_fast import _core

HERE = pathlib.Path(__file__).parent
PLUGIN = pathlib.Path(_core.__file__).with_name("libdllm_cuda.so")
ARCHS = (os.environ.get("DLLM_FAST_CUDA_ARCHS") or "80;90;100;120").split(";")
REGISTERS, RESERVED_SHARED = 65536, 1024  # of a multiprocessor; of a block, by the system, from sm_90 on
TENSOR_CORES = {"dense_mma": ("stream", "head_tile"), "attention_mma": ("attend_tile",)}  # {file: its kernels}


def find_cuobjdump():
    """On PATH, in the toolkit, or from the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    wheels = importlib.util.find_spec("nvidia")
    folders = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    folders += [f"{folder}/cu13/bin" for folder in (wheels.submodule_search_locations or [] if wheels else [])]
    return shutil.which("cuobjdump") or next(filter(None, (shutil.which(f"{folder}/cuobjdump") for folder in folders)), None)


CUOBJDUMP = find_cuobjdump()

pytestmark = [
    pytest.mark.skipif(not PLUGIN.exists(), reason="libdllm_cuda.so was not built (no nvcc, or DLLM_FAST_CUDA=0)"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"),
]


def cuobjdump(*arguments, cwd=None):
    path = os.path.dirname(CUOBJDUMP) + os.pathsep + os.environ["PATH"]  # where it looks for nvdisasm
    return subprocess.check_output([CUOBJDUMP, *arguments], text=True, cwd=cwd, env=os.environ | {"PATH": path})


def readable(symbol):
    """_Z6streamIL10dllm_dtype1ELi4EEv... -> stream<1,4>"""
    begin = re.match(r"_Z(\d+)", symbol)
    if not begin:
        return symbol
    end = begin.end() + int(begin[1])
    arguments = re.match(r"I((?:L(?:\d+dllm_dtype|[a-z])\d+E)+)E", symbol[end:])
    values = re.findall(r"L(?:\d+dllm_dtype|[a-z])(\d+)E", arguments[1]) if arguments else []
    return symbol[begin.end() : end] + (f"<{','.join(values)}>" if values else "")


@cache
def resources():
    """{kernel: {architecture: (registers, stack, static shared memory)}}"""
    found, arch, kernel = {}, "", ""
    for line in cuobjdump("--dump-resource-usage", PLUGIN).splitlines():
        if m := re.match(r"arch = sm_(\d+)", line):
            arch = m[1]
        elif m := re.match(r" Function (\w+):", line):
            kernel = readable(m[1])
        elif m := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, m.groups())
            found.setdefault(kernel, {})[arch] = (registers, stack + local, max(0, shared - RESERVED_SHARED * (int(arch) >= 90)))
    return found


def promised():
    with open(HERE / "cuda_kernels.csv", newline="") as file:
        return {row["kernel"]: row for row in csv.DictReader(file)}


def test_architectures():
    inside = re.findall(r"(\w+)\.sm_(\d+)\.cubin", cuobjdump("--list-elf", PLUGIN))
    assert {arch for name, arch in inside if name != "1"} == set(ARCHS)  # 1: nothing, from the linker
    assert set(re.findall(r"sm_(\d+)\.ptx", cuobjdump("--list-ptx", PLUGIN))) == {"80"}


def test_the_table_has_every_kernel():
    assert not {kernel: numbers for kernel, numbers in resources().items() if kernel not in promised()}
    assert not set(promised()) - set(resources())


@pytest.mark.parametrize("kernel", sorted(promised()))
def test_resources(kernel):
    row, here = promised()[kernel], resources().get(kernel, {})
    print(kernel, {arch: here[arch] for arch in ARCHS})
    bound = min(255, REGISTERS // (int(row["threads"]) * int(row["blocks"])) // 8 * 8)
    for arch in ARCHS:
        registers, stack, shared = here[arch]
        limit = int(row[f"sm_{arch}"])
        assert registers <= min(limit, bound), f"sm_{arch}: {limit} in the table; {bound} leave room for its blocks"
        assert stack <= int(row["stack"]), f"sm_{arch}: spills, or an array that no register holds"
        assert shared == 0, f"sm_{arch}: shared memory that no launch asks for"
    assert not int(row["stack"]) or row["why"], "a stack wants a reason"


@pytest.mark.parametrize("file", sorted(TENSOR_CORES))
@pytest.mark.parametrize("arch", ARCHS)
def test_instructions(tmp_path, file, arch):
    cuobjdump("--extract-elf", f"{file}.sm_{arch}", PLUGIN, cwd=tmp_path)
    [cubin] = tmp_path.iterdir()
    seen = {}
    for part in cuobjdump("--dump-sass", cubin).split("Function : ")[1:]:
        name = readable(part.split(None, 1)[0])
        seen[name] = Counter(re.findall(r"\b(HMMA|LDGSTS|LDSM|STL|LDL)\b", part))
    assert {name.split("<")[0] for name in seen} == set(TENSOR_CORES[file])
    for name, count in seen.items():
        print(name, dict(count))
        assert count["HMMA"] and count["LDGSTS"] and count["LDSM"] and not count["STL"] + count["LDL"], name
