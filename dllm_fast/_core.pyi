"""The C core as Python sees it. Thin: the public face is in the modules beside this file."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str

class CheckpointError(ValueError):
    """A file or config that is there but is not a checkpoint this engine can run."""

class DeviceError(RuntimeError):
    """The device is not there or failed."""

class Model:
    """Immutable weights on a device; may be shared by sessions and threads."""

    @staticmethod
    def from_folder(
        folder: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        threads: int = 0,
        weights: str = "auto",
        int8_cache: str | os.PathLike[str] = ...,
    ) -> Model:
        """A Hugging Face checkpoint folder, mapped into memory. device may also be "cpu:c", "cpu:avx2", ... for tests.
        weights "int8": copies of the matrices, kept in the file int8_cache if it is given."""
    @staticmethod
    def from_tensors(
        config: str, tensors: Mapping[str, Any], *, dtype: str = "auto", device: str = "auto", threads: int = 0
    ) -> Model:
        """config: the text of config.json. tensors: official names to DLPack tensors or NumPy arrays; kept, not copied. On a GPU
        those that lie there; those of the host's memory are copied, not kept, and others refused."""
    config: dict[str, Any]  # fields of dllm_config by name; family is "llada" or "dream", dtype a name
    dtype: str  # of the activations: "float32", "bfloat16", "float16"
    weights: str  # dtype of the matrices: as above, or "int8"
    device: str  # "cpu", "cuda:0"
    backend: str  # "c", "avx2", "avx512f", "avx512bf16", "amx", "cuda"
    threads: int
    nbytes: int  # of all weights
    def pointers(self) -> dict[str, int]:
        """Address of every weight: "embed", "norm", "head", "layers.0.q", ... ; proves that nothing was copied."""

class _Stage(TypedDict):
    """What one stage cost. flops: of matrix products and attention. bytes: the least that must move: weights once a call, rows
    in and out, the keys and values that attention reads."""

    seconds: float
    flops: int
    bytes: int

class _Stats(TypedDict):
    """Fields of dllm_stats. The stages' seconds and flops add up to seconds and flops."""

    forwards: int
    steps: int
    tokens: int
    rows_v: int
    rows_k: int
    rows_q: int
    rows_out: int
    rows_ffn: int
    rows_head: int
    flops: int
    flops_uncached: int
    cache_bytes: int
    scratch_bytes: int
    weight_bytes: int
    seconds: float
    kernels: int  # that a GPU ran
    launches: int  # how often the host handed it some: one, or a graph of many
    waits: int  # how often the host waited for the device,
    waited: float  # and for how many of the seconds
    stages: dict[str, _Stage]  # plan embed norm v k q rope attention o gate up swiglu down add cache head predict decide

class Session:
    """One denoising timeline of a batch of prompts. See csrc/dllm.h; every method is its function."""

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Any],
        prompts: Sequence[NDArray[np.int32]],
        *,
        positions: Sequence[NDArray[np.int32]] | None = None,
        condition: Sequence[int] | None = None,
        seeds: Sequence[tuple[int, int]] | None = None,
        noise: Any = None,
    ) -> None:
        """params: fields of dllm_params by name; those not given take the family's official defaults.

        rule "quota" | "times" | "first" | "steady"; score "prob" | "margin" | "entropy" | "random" | "origin";
        shift "carry" | "own" | "flat"; strategy a name or (name, {option: value}).
        noise: uniform(shape, dtype) and exponential(shape), returning arrays; what it raises ends the step and is raised there.
        """
    rows: int
    offsets: NDArray[np.int64]  # [sequences + 1]: first packed row of every sequence, then the total
    def step(self) -> int:
        """Sequences still unfinished."""
    def forward(self) -> None: ...
    def decide(self, logits: Any = None) -> int:
        """logits: float32 [rows, vocab], an array or a tensor on the GPU of the session."""
    def tokens(self) -> NDArray[np.int32]: ...
    def set_tokens(self, ids: NDArray[np.int32]) -> None: ...
    def candidates(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """(packed rows, tokens, scores, probabilities) of the latest step."""
    def revealed(self) -> NDArray[np.int32]: ...
    def watched(self) -> tuple[NDArray[np.int8], NDArray[np.bool_], NDArray[np.float32]]:
        """With params watch, of the latest step: (mode [layers, sequences], chosen [layers, rows], decided by [layers, rows]).
        Under guidance a second set of layers follows."""
    def kept(self, sequence: int, layer: int, branch: int = 0) -> dict[str, NDArray[Any] | None]:
        """Copies of what a layer keeps of a sequence: k, v [slots, width], context, attn, ffn [rows, width]; None: not kept."""
    def logits(
        self,
        *,
        shifted: bool = False,
        dtype: str = "float32",
        like: Any = None,
        cells: NDArray[np.int32] | None = None,
        total: int = ...,
    ) -> Any:
        """[total, vocab]: packed row r in row cells[r], zeros elsewhere; without them [rows, vocab]. An array, where 16-bit dtypes
        come as uint16; or, if like lies on the session's GPU, a tensor of like's framework there, complete for every stream."""
    def holds(self, tensor: Any) -> bool:
        """Does it lie on the GPU of the session?"""
    def nll(self, rows: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]: ...
    def hidden(self) -> NDArray[Any]:
        """[layers + 1, rows, dim] in the model's dtype; 16-bit dtypes come as uint16."""
    def stats(self) -> _Stats:
        """What was computed and what is held, since the session opened."""

def to_numpy(obj: Any) -> NDArray[Any]:
    """A DLPack tensor, array, or nested list of numbers as an array; shares memory where it can. bfloat16 comes as uint16."""

def from_numpy(array: NDArray[Any], like: Any, dtype: str | None = None) -> Any:
    """The array as a tensor of like's framework, on the CPU, sharing memory; itself if like is an array or a list.
    dtype "bfloat16" or "float16" says what a uint16 array holds."""

def times(steps: int, eps: float) -> NDArray[np.float32]:
    """torch.linspace(1, eps, steps + 1)."""

def predict(
    logits: NDArray[np.float32], params: Mapping[str, Any], noise: NDArray[Any] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """(token, score, probability) of every row of logits, as a session would choose them."""

def attend_delta(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    dv: NDArray[np.float32],
    changed: NDArray[np.int32],
    old: NDArray[np.float32],
    heads: int,
    kv_heads: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """DyLLM's partial attention of one sequence in plain C: (old + softmax(q k) dv over the changed keys, its cosine with old)."""

def linear(out: Any, x: Any, w: Any, threads: int = 1, level: str = "") -> float:
    """out = x w^T by the engine's kernel; the seconds it took. out [n, m] and x [n, k] of one dtype, w [m, k]: NumPy arrays or
    tensors in float32, bfloat16 or float16. level: a name of cpu_levels(), "" for the best."""

def attend(out: Any, q: Any, k: Any, v: Any, heads: int, kv_heads: int, threads: int = 1, level: str = "") -> float:
    """Attention of one sequence, all queries over all keys, by the engine's kernel; the seconds it took. out, q [n, heads * d],
    k, v [keys, kv_heads * d], of one dtype."""

def rope_table(positions: NDArray[np.int32], head_dim: int, theta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cos, sin), each [positions, head_dim / 2]."""

def cpu_levels() -> list[str]:
    """Instruction-set levels this processor has, best last; the first is "c"."""

def strategies() -> dict[str, dict[str, dict[str, Any]]]:
    """The caching methods of the core: name to option to {"default", "help"}."""

def default_threads() -> int:
    """How many processors this process may use: its affinity mask and the quotas of its control groups."""

def thread_runtime() -> str:
    """The path of the OpenMP runtime that kernels borrow their threads from; "own": they run on a pool of our own."""

def use_threads(runtime: str) -> None:
    """Takes "auto", a runtime that the process has loaded or else a pool of our own, or "own"."""

def ceilings(device: str, threads: int) -> dict[str, float]:
    """What a CPU device could do at best, measured now: "bytes" read from memory, and operations of matrix products in "float32",
    "bfloat16" and "int8", all a second."""

def cuda_library(device: str, path: str | None) -> str:
    """Looks for cuBLAS, for devices "cuda" (or "cuda-sim") that are opened later: the copy that is loaded, the one at `path`, the
    system's. Its version and place; DeviceError names every place where it is not."""

def load_cuda(path: str) -> int:
    """Opens the CUDA plug-in; its device count. DeviceError says in one line why not."""

def load_cuda_sim(path: str) -> int:
    """Opens the GPU simulator, where the CUDA kernels run on the processor: devices "cuda-sim:0" and on. Its device count."""

def check(level: str = "", kernel: str = "", seed: int = 0, timing: bool = False) -> list[dict[str, Any]]:
    """Every kernel of a level against its C twin: kernel, case, error, tolerance, ok, why, and with timing
    seconds and seconds_c."""

def race(n: int, k: int, rows: int, laps: int, threads: int = 0, level: str = "") -> tuple[float, float]:
    """Best seconds of the product of [rows, k] with [n, k] in bfloat16, and with int8 weights; in turns, weights not in a cache."""
