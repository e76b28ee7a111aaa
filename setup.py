"""Builds dllm_fast._core (C, always) and beside it the plug-in libdllm_cuda.so (when nvcc is found).

DLLM_FAST_CUDA=auto|1|0         auto: build the plug-in if possible; 1: fail if it cannot be built; 0: never
DLLM_FAST_CUDA_ARCHS="80;90"    GPU architectures; the default depends on nvcc's version
CUDA_HOME                       the CUDA toolkit; default: the nvcc on PATH
DLLM_DEBUG=1                    -O0 -g, assertions on
DLLM_SANITIZE=1                 AddressSanitizer and UndefinedBehaviorSanitizer
DLLM_WERROR=1                   warnings are errors
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CUDA = os.environ.get("DLLM_FAST_CUDA", "auto")
DEBUG, SANITIZE, WERROR = (os.environ.get(name, "0") not in ("", "0") for name in ("DLLM_DEBUG", "DLLM_SANITIZE", "DLLM_WERROR"))
SOURCES = sorted(
    path for folder in ("csrc", "kernels", "kernels/c", "kernels/x86", "kernels/check") for path in glob(f"{folder}/*.c")
)
HEADERS = sorted(glob("csrc/*.h") + glob("kernels/**/*.h", recursive=True))
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]


def version() -> str:
    return re.search(r'#define DLLM_VERSION "(.+)"', Path("csrc/dllm.h").read_text())[1]


def c_flags() -> list[str]:
    # -ffp-contract=off: the plain C kernels are the definition, so the compiler may not fuse where the source does not.
    flags = ["-std=c11", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS]
    if SANITIZE:
        flags += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", *sanitizers()]
    elif DEBUG:
        flags += ["-O0", "-g", "-UNDEBUG"]
    else:
        flags += ["-O3", "-g0"]
    return flags + ["-Werror"] * WERROR


def sanitizers() -> list[str]:
    return ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []


def find_nvcc() -> str | None:
    if CUDA not in ("auto", "1", "0"):
        raise SystemExit(f"DLLM_FAST_CUDA is auto, 1 or 0, not {CUDA!r}")
    if CUDA == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [nvcc for home in homes[:2] if home and (nvcc := shutil.which(f"{home}/bin/nvcc"))]
    nvcc = next(iter(found), None) or shutil.which("nvcc") or shutil.which(f"{homes[2]}/bin/nvcc")
    if nvcc is None and CUDA == "1":
        raise SystemExit("DLLM_FAST_CUDA=1, but nvcc was not found: put it on PATH or set CUDA_HOME")
    if nvcc is None:
        print("dllm_fast: nvcc was not found, building for the CPU only", file=sys.stderr)
    return nvcc


def nvcc_flags(nvcc: str) -> list[str]:
    text = subprocess.check_output([nvcc, "--version"], text=True)
    release = tuple(map(int, re.search(r"release (\d+)\.(\d+)", text).groups()))
    archs = os.environ.get("DLLM_FAST_CUDA_ARCHS") or ("80;90;100;120" if release >= (12, 8) else "80;90")
    targets = ["-gencode=arch=compute_80,code=compute_80"]  # PTX: what every GPU from sm_80 on can translate for itself
    targets += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs.split(";")]
    host = ",".join(["-fPIC", "-fvisibility=hidden", "-Wall", *["-Werror"] * WERROR])
    return [*targets, "-std=c++17", "-O3", "-lineinfo", "-Xfatbin=-compress-all", f"--compiler-options={host}"]


def cudart_folders(nvcc: str) -> list[str]:
    """-L for libcudart_static.a. The nvcc on PATH may be a wrapper script, and the toolkit's layout varies: ask nvcc itself."""
    asked = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull], capture_output=True, text=True)
    top = Path(re.search(r"TOP=(.*)", asked.stderr)[1])
    folders = [top / folder for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
    return [f"-L{folder}" for folder in folders if (folder / "libcudart_static.a").exists()]


class CudaLibrary(Extension):
    """A plain shared library beside the Python modules: no PyInit, no Python ABI in its name. As an Extension it goes
    wherever one goes: wheels, editable installs, --inplace."""


class BuildExt(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == "libdllm_cuda":
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        build = self.build_plugin if isinstance(ext, CudaLibrary) else self.build_core
        build(ext)

    def build_core(self, ext: Extension) -> None:
        """As the base class does, but on all cores and only what is out of date."""
        ext.depends = [*ext.depends, self.stamp("c", [*ext.sources, *ext.extra_compile_args])]
        compile_all, newest = self.compiler.compile, max(map(os.path.getmtime, ext.depends))

        def compile_one(source, output_dir=None, **options):
            [built] = self.compiler.object_filenames([source], output_dir=output_dir)
            if self.force or not is_newer(built, max(newest, os.path.getmtime(source))):
                compile_all([source], output_dir=output_dir, **options)
            return built

        def compile(sources, **options):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                return list(pool.map(lambda source: compile_one(source, **options), sources))

        self.compiler.compile = compile
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all

    def build_plugin(self, ext: CudaLibrary) -> None:
        nvcc, flags = ext.nvcc, nvcc_flags(ext.nvcc)
        newest = max(map(os.path.getmtime, [*ext.sources, *ext.depends, self.stamp("cuda", [nvcc, *ext.sources, *flags])]))
        library = Path(self.get_ext_fullpath(ext.name))
        objects = [Path(self.build_temp, source).with_suffix(".o") for source in ext.sources]

        def compile_one(source, built):
            built.parent.mkdir(parents=True, exist_ok=True)
            if self.force or not is_newer(built, newest):
                self.spawn([nvcc, "-c", source, "-o", str(built), *flags])

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, ext.sources, objects))
        library.parent.mkdir(parents=True, exist_ok=True)
        strip = [] if DEBUG else ["-Xlinker", "-s"]
        self.spawn([nvcc, "-shared", "-cudart=static", "-o", str(library), *map(str, objects), *cudart_folders(nvcc),
                    "-Xlinker", "--exclude-libs=ALL", *strip])  # fmt: skip

    def stamp(self, name: str, inputs: list[str]) -> str:
        """A file that changes with the inputs, so that a debug build after a release build is one."""
        path, text = Path(self.build_temp, f"{name}.inputs"), "\n".join(inputs)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(path)


def is_newer(path: str | Path, time: float) -> bool:
    return os.path.exists(path) and os.path.getmtime(path) >= time


core = Extension(
    "dllm_fast._core",
    SOURCES,
    depends=HEADERS,
    include_dirs=[np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION")],
    libraries=["m", "dl", "pthread"],
    extra_compile_args=c_flags(),
    extra_link_args=sanitizers(),
)
extensions = [core]
if nvcc := find_nvcc():
    plugin = CudaLibrary("dllm_fast.libdllm_cuda", sorted(glob("kernels/cuda/*.cu")), depends=HEADERS, optional=CUDA == "auto")
    plugin.nvcc = nvcc
    extensions.append(plugin)

setup(version=version(), ext_modules=extensions, cmdclass={"build_ext": BuildExt})
