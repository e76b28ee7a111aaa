"""llama.cpp's uncached pass of LLaDA or Dream, by way of llama-cpp-python, as a model for the same loops as torch.

`pip install llama-cpp-python` compiles it for this processor. It reads a file format of its own: the weights are written to it
once, in bfloat16. Only rows whose logits are read are asked for, which is more than its own diffusion example does for itself.
"""

import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch_dream import TorchDream
from torch_llada import TorchLLaDA

GGUF, ALIGNMENT, F32, BF16 = 0x46554747, 32, 0, 30  # the file's magic number, and names of types in it
NAMES = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "ffn_norm": "ffn_norm",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


class LlamaCpp:
    """hidden() gives positions in place of vectors; logits() of positions runs the pass and returns the logits of those alone."""

    def __init__(self, folder: str | pathlib.Path, model: TorchLLaDA, most_rows: int, threads: int) -> None:
        self.mask_id, self.vocab = model.mask_id, len(model.head)
        file = pathlib.Path(folder) / "model.gguf"
        if not file.exists():
            write(file, model)
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        how = llama_cpp.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = most_rows
        how.n_threads = how.n_threads_batch = threads
        where = llama_cpp.llama_model_default_params()
        where.use_mmap = False  # nor do the others' weights leave memory
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), where)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {file}")
        self._context = llama_cpp.llama_init_from_model(self._model, how)
        llama_cpp.llama_set_causal_attn(self._context, False)
        self._batch = llama_cpp.llama_batch_init(most_rows, 0, 1)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        self._ids = ids[0].tolist()
        return torch.arange(ids.shape[1])[None, :, None]

    def logits(self, positions: torch.Tensor) -> torch.Tensor:
        wanted = positions.flatten().tolist()
        batch, asked = self._batch, set(wanted)
        batch.n_tokens = len(self._ids)
        for i, token in enumerate(self._ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
            batch.logits[i] = i in asked
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, i), (self.vocab,)) for i in wanted]
        return torch.from_numpy(np.stack(rows)).view(*positions.shape[:-1], self.vocab)


# ---- the file --------------------------------------------------------------------------------------------------------------------


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s)) + s.encode()


def field(name: str, value: Any) -> bytes:
    kind, data = {
        bool: (7, lambda: struct.pack("<?", value)),
        int: (4, lambda: struct.pack("<I", value)),
        float: (6, lambda: struct.pack("<f", value)),
        str: (8, lambda: text(value)),
    }[type(value)]
    return text(name) + struct.pack("<I", kind) + data()


def fields(model: TorchLLaDA) -> dict[str, Any]:
    arch = "dream" if isinstance(model, TorchDream) else "llada"
    ffn = len(model.w[model.names["layer"].format(0) + model.names["gate"] + ".weight"])
    own = {
        "context_length": 4096, "embedding_length": model.dim, "block_count": model.layers, "feed_forward_length": ffn,
        "attention.head_count": model.heads, "attention.head_count_kv": model.kv_heads, "attention.causal": False,
        "attention.layer_norm_rms_epsilon": float(model.eps), "rope.freq_base": float(model.theta),
        "rope.dimension_count": model.head_dim, "vocab_size": len(model.head),
    }  # fmt: skip
    return {"general.architecture": arch, "tokenizer.ggml.model": "no_vocab"} | {f"{arch}.{k}": v for k, v in own.items()}


def tensors(model: TorchLLaDA) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices in bfloat16, vectors in float32. LLaDA's heads turn neighbouring channels there, so their rows change places."""
    yield "token_embd.weight", model.w[model.names["embed"] + ".weight"].bfloat16()
    yield "output_norm.weight", model.w[model.names["norm"] + ".weight"].float()
    yield "output.weight", model.head.bfloat16()
    for i in range(model.layers):
        for mine, theirs in NAMES.items():
            for part in ("weight", "bias"):
                w = model.w.get(f"{model.names['layer'].format(i)}{model.names[mine]}.{part}")
                if w is None:
                    continue
                if mine in ("q", "k") and not isinstance(model, TorchDream):
                    w = w.view(-1, 2, model.head_dim // 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)
                yield f"blk.{i}.{theirs}.{part}", w.bfloat16() if w.dim() > 1 else w.float()


def write(file: pathlib.Path, model: TorchLLaDA) -> None:
    """Header, fields, table of tensors, tensors. The name comes last, so a file that has it is whole."""
    at, table, all_ = 0, b"", list(tensors(model))
    for name, w in all_:
        kind = BF16 if w.dtype == torch.bfloat16 else F32
        table += text(name) + struct.pack(f"<I{w.dim()}QIQ", w.dim(), *reversed(w.shape), kind, at)
        at += padded(w.nbytes)
    told = fields(model)
    head = struct.pack("<IIQQ", GGUF, 3, len(all_), len(told)) + b"".join(field(k, v) for k, v in told.items()) + table
    part = file.with_suffix(".part")
    with open(part, "wb") as out:
        out.write(head.ljust(padded(len(head)), b"\0"))
        for _, w in all_:
            out.write(w.contiguous().view(torch.uint8).numpy().data)
            out.write(bytes(padded(w.nbytes) - w.nbytes))
    part.rename(file)


def padded(n: int) -> int:
    return math.ceil(n / ALIGNMENT) * ALIGNMENT
