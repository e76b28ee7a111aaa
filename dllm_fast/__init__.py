"""dllm_fast: masked diffusion language models (LLaDA, Dream), fast.

    import dllm_fast
    model = dllm_fast.load("GSAI-ML/LLaDA-8B-Instruct")
    ids = dllm_fast.generate(model, prompt_ids, steps=128, gen_length=128, block_length=32)
    ids = dllm_fast.generate(model, prompt_ids, steps=128, gen_length=128, block_length=32, cache="dyllm")
    ids = model.diffusion_generate(prompt_ids, max_new_tokens=128, steps=128, alg="entropy")  # Dream's way

    dllm_fast.accelerate(hf)  # a Hugging Face model in memory: weights are shared, nothing is copied

Tensors in give tensors out; NumPy arrays and lists of ids work too, and torch is not needed.
"""

from ._core import CheckpointError, DeviceError, __version__
from .caches import DLLMCache, DyLLM, SparseDLLM, dLLMCacheConfig
from .generate import generate, stream
from .hf import accelerate, accelerated, restore
from .likelihood import log_likelihood, suffix_greedy
from .loop import GenerateOutput, Step
from .model import Model, load
from .threads import thread_runtime

__all__ = [
    "CheckpointError",
    "DLLMCache",
    "DeviceError",
    "DyLLM",
    "GenerateOutput",
    "Model",
    "SparseDLLM",
    "Step",
    "__version__",
    "accelerate",
    "accelerated",
    "dLLMCacheConfig",
    "generate",
    "load",
    "log_likelihood",
    "restore",
    "stream",
    "suffix_greedy",
    "thread_runtime",
]
