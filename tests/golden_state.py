"""What the families of the caching methods share: the arrays of a case, a run that is watched step by step, and, because a cached
session has no logits to show, the residual stream and the logits as they follow from what a session keeps."""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from golden_case import Folder

SIMILARITY = 2e-5  # of cosines; observed: 4e-6
Arrays = Mapping[str, np.ndarray]


def widen(x: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 as float32."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a file; bfloat16 widened to float32."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    kinds = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "BF16": "<u2"}
    tensors = {}
    for name, info in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = info["data_offsets"]
            x = np.frombuffer(raw[start + first : start + last], kinds[info["dtype"]]).reshape(info["shape"])
            tensors[name] = widen(x) if info["dtype"] == "BF16" else x
    return tensors


def read_arrays(folder: Folder, file: str) -> dict[str, np.ndarray]:
    """The arrays of a case that has a file of its own."""
    path = folder.path / file
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    with np.load(path) as z:
        return {k: z[k] for k in z.files}


class Weights:
    """The few matrices between what a session keeps and its logits."""

    def __init__(self, path: str) -> None:
        w = read_safetensors(pathlib.Path(path) / "model.safetensors")
        llada = "model.transformer.wte.weight" in w
        names = ("transformer.wte", "transformer.ln_f", "transformer.ff_out") if llada else ("embed_tokens", "norm", "")
        self.embed, self.norm = w[f"model.{names[0]}.weight"], w[f"model.{names[1]}.weight"]
        self.head = w[f"model.{names[2]}.weight" if llada else "lm_head.weight"]
        each = "model.transformer.blocks.{}.attn_out.weight" if llada else "model.layers.{}.self_attn.o_proj.weight"
        self.o = [w[each.format(i)] for i in range(sum(each.format(i) in w for i in range(len(w))))]
        self.eps = json.loads((pathlib.Path(path) / "config.json").read_text())["rms_norm_eps"]

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Of rows after the last layer."""
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.norm @ self.head.T


@functools.cache
def weights(path: str) -> Weights:
    return Weights(path)


def stream(w: Weights, session: Any, ids: np.ndarray, sequence: int = 0, branch: int = 0) -> np.ndarray:
    """[layers, rows, dim]: what every layer gave in the latest pass, over the ids that went in. A row of it is right if the row
    travelled."""
    x, out = w.embed[ids], []
    for layer, o in enumerate(w.o):
        kept = session.kept(sequence, layer, branch)
        x = x + (kept["attn"] if kept["context"] is None else kept["context"] @ o.T) + kept["ffn"]
        out.append(x)
    return np.array(out)


class Watch:
    """A callback that copies what every step shows, the caching method's work too."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def __call__(self, step: Any) -> None:
        def work(s: Any) -> dict[str, Any]:
            return {"mode": np.array(s.mode), "chosen": s.chosen, "seen": s.decided_by}

        shown = {"ids": as_rows(step.sequences), "tokens": as_rows(step.tokens), "confidence": as_rows(step.confidence)}
        self.steps.append(shown | {"committed": step.committed} | work(step) | {"unconditional": work(step.unconditional)})


def as_rows(x: Any) -> Any:
    return [np.array(row) for row in x] if isinstance(x, list) else np.array(x)


def scores_along(core: Any, arguments: Mapping[str, Any], ids: Iterable[Any]) -> list[dict[str, np.ndarray]]:
    """The run of a session's arguments with its ids set to the recorded ones after every step, ranking candidates in turn by
    probability, margin and entropy: three numbers that see all of a row's logits. For every step {kind: [rows, 2] (token, score)},
    NaN elsewhere."""
    from dllm_fast import _core

    ids = [np.ravel(rows).astype(np.int32) for rows in ids]
    shown: list[dict[str, np.ndarray]] = [{} for _ in ids]
    for kind in ("prob", "margin", "entropy"):
        session = _core.Session(core, {**arguments["params"], "score": kind}, arguments["prompts"])
        for after, seen in zip(ids, shown, strict=True):
            session.step()
            rows, tokens, scores, _ = session.candidates()
            seen[kind] = np.full((session.rows, 2), np.nan, np.float32)
            seen[kind][rows] = np.stack([tokens, scores], -1)
            session.set_tokens(after)
    return shown


def scores_of(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Token and score of every row by the three kinds."""
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    top = np.sort(p, -1)
    values = {"prob": top[..., -1], "margin": top[..., -1] - top[..., -2], "entropy": (p * np.log(p + 1e-10)).sum(-1)}
    return {kind: np.stack([logits.argmax(-1), v], -1) for kind, v in values.items()}
