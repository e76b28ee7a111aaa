"""Models: weights that the core can run, from a folder, a hub id, or tensors that are already in memory."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core, cuda
from .inputs import Batch, is_tensor
from .threads import thread_count

DEMO = os.path.join(os.path.dirname(__file__), "data", "llada-tiny")  # trained on puzzles by benchmarks/train_tiny.py

INT8_CACHE = "dllm_fast-int8.bin"


def load(
    path_or_hub_id: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    weights: str = "auto",
    int8_cache: bool | str | os.PathLike[str] = False,
) -> "Model":
    """Loads a LLaDA or Dream checkpoint: a folder with config.json and *.safetensors, or a hub id. None: the one shipped here.

    Runs no code of the checkpoint, and needs neither torch nor transformers. The files are mapped, not copied.
    dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16". device: "auto" (the CPU), "cpu", "cuda", "cuda:1"; a
    GPU gets a copy of the weights.
    threads: None for as many as this process may use, and as torch uses if it is loaded; thread_runtime() tells whose.

    weights: "auto", as they are stored and exactly; or "int8" (CPU only): half the memory of bfloat16 and about twice the speed
    of its matrix products, at the price of small errors. The matrices of the layers and the head are rounded while they load,
    one scale a row; in every product each row of activations is rounded too. Embedding and norms stay. The copies take memory of
    their own; nothing else is held.
    int8_cache: True keeps the copies in the folder, as dllm_fast-int8.bin, a path in that file: the next load maps it and is
    done. A file made of other weights (told by names, sizes, times of change) is replaced; one that is something else: OSError.
    """
    if weights == "int8" and str(device).startswith("cuda"):
        raise ValueError(f"weights='int8' runs on the CPU, not on device {device!r}")
    folder, device = folder_of(path_or_hub_id), "cpu" if weights == "int8" and device == "auto" else cuda.resolve(device)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "threads": thread_count(threads), "weights": weights}
    if int8_cache is not False:
        options["int8_cache"] = os.path.join(folder, INT8_CACHE) if int8_cache is True else int8_cache
    return Model(_core.Model.from_folder(folder, **options))


def folder_of(path_or_hub_id: str | os.PathLike[str] | None) -> str:
    """The folder itself, or the folder that a hub id is downloaded to; None: the folder of the model shipped here."""
    name = DEMO if path_or_hub_id is None else os.fspath(path_or_hub_id)
    if os.path.isdir(name):
        return name
    if os.path.isabs(name) or name.startswith(".") or name.count("/") != 1:
        raise FileNotFoundError(f"no checkpoint folder {name!r}, and it is not a hub id of the form owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"no checkpoint folder {name!r}; to fetch it as a hub id, install huggingface_hub (pip install huggingface_hub)"
        ) from None
    return str(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))


class Model:
    """A LLaDA or Dream model. Immutable; any number of threads may generate with it at once."""

    def __init__(self, core: _core.Model) -> None:
        self.core = core

    @classmethod
    def from_tensors(
        cls, config: str, tensors: Mapping[str, Any], dtype: str = "auto", device: str = "auto", threads: int | None = None
    ) -> "Model":
        """config: the text of config.json. tensors: official parameter names to tensors or arrays: shared and kept, not copied.

        device="cuda:1": tensors on that GPU are shared, those in the host's memory are copied to it; others are refused.
        """
        device = cuda.resolve(device)
        return cls(_core.Model.from_tensors(config, tensors, dtype=dtype, device=device, threads=thread_count(threads)))

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says, under the core's names: family, layers, heads, dim, vocab, mask_id, ..."""
        return self.core.config

    @property
    def dtype(self) -> str:
        """Of the activations."""
        return self.core.dtype

    @property
    def weights(self) -> str:
        """dtype of the matrices: "bfloat16", ..., or "int8"."""
        return self.core.weights

    @property
    def device(self) -> str:
        return self.core.device

    @property
    def backend(self) -> str:
        """Which kernels run: "c", "avx2", ..., "cuda"."""
        return self.core.backend

    @property
    def threads(self) -> int:
        return self.core.threads

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        return self.core.nbytes

    def __repr__(self) -> str:
        c = self.config
        shape = f"{c['layers']} layers of {c['dim']}, vocabulary {c['vocab']}, {self.nbytes / 1e9:.3g} GB"
        dtype = f"{self.dtype} with int8 weights" if self.weights == "int8" else self.dtype
        return f"<dllm_fast.Model {c['family']}: {shape}, {dtype} on {self.device} ({self.backend}, {self.threads} threads)>"

    def forward(self, ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:
        """Logits [batch, length, vocab] of one uncached pass, not shifted; 0 at pads. A list of sequences gives a list.

        Tensors in give a tensor of the model's dtype; arrays and lists give float32. position_ids None: LLaDA counts columns,
        Dream counts real tokens if the mask has a 0.
        """
        return self._passes(ids, attention_mask, position_ids, hidden=False)[0]

    def _passes(self, ids: Any, attention_mask: Any, position_ids: Any, hidden: bool) -> tuple[Any, Any]:
        """(logits, hidden states [layers + 1] or None), in the caller's shape and framework."""
        batch = Batch(ids, attention_mask, vocab=self.config["vocab"])
        empty = next((b for b, prompt in enumerate(batch.prompts) if not len(prompt)), None)
        if empty is not None:
            raise ValueError(f"row {empty} of {len(batch)} has no tokens: its attention_mask is all 0, or the sequence is empty")
        positions = batch.column_positions(self.config["family"], position_ids)
        session = _core.Session(self.core, {"answer_len": 0}, batch.prompts, positions=positions)
        logits = batch.logits(session, self.dtype if is_tensor(batch.like) else "float32")
        states = [batch.give(batch.place(h), self.dtype) for h in session.hidden()] if hidden else None
        return logits, states

    def generate(self, prompt: Any, attention_mask: Any = None, **options: Any) -> Any:
        """dllm_fast.generate(self, prompt, ...)."""
        from .generate import generate

        return generate(self, prompt, attention_mask, **options)

    def diffusion_generate(self, ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Dream's way of generating, with DreamGenerationConfig's own defaults: max_length=20, max_new_tokens=None, steps=512,
        temperature=0., top_p=None, top_k=None, alg="origin", alg_temp=None, eps=1e-3, ...; dllm_fast.diffusion tells the rest.
        """
        from .diffusion import diffusion_generate

        return diffusion_generate(self, ids, attention_mask, **options)

    def log_likelihood(self, prefix: Any, target: Any, **options: Any) -> float:
        """dllm_fast.log_likelihood(self, prefix, target, ...)."""
        from .likelihood import log_likelihood

        return log_likelihood(self, prefix, target, **options)


def as_model(model: Any) -> Model:
    """A Model, or the Model behind a Hugging Face object."""
    if isinstance(model, Model):
        return model
    from .hf import engine

    return engine(model)


def token(model: Model, name: str, given: int | None) -> int:
    """A special token: the caller's, else the config's; -1 if neither says."""
    if given is None:
        return int(model.config[name])
    if not 0 <= int(np.int64(given)) < model.config["vocab"]:
        raise ValueError(f"{name} {given} is outside 0..{model.config['vocab'] - 1}")
    return int(given)


def mask_token(model: Model, given: int | None) -> int:
    """The mask id, which every request needs."""
    mask_id = token(model, "mask_id", given)
    if mask_id < 0:
        raise ValueError("config.json does not say mask_token_id: pass mask_id=")
    return mask_id
