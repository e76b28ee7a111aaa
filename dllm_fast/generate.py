"""LLaDA's way of generating: the function `generate`, and the same as an iterator, `stream`."""

import math
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

from .caches import as_cache
from .inputs import Batch
from .loop import Run, Step
from .model import as_model, mask_token, token
from .rules import quota_params

SCORES = {"low_confidence": "prob", "random": "random"}
AROUND_THE_RUN = ("return_dict", "output_history", "progress", "callback")  # options that do not shape the ids


def generate(
    model: Any,
    prompt: Any,
    attention_mask: Any = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int | None = None,
    eos_id: int | None = None,
    eot_id: int | None = None,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    cache: Any = None,
    rule: str | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    seed: Any = None,
    noise: Any = None,
    return_dict: bool = False,
    output_history: bool = False,
    progress: bool | Callable[[int, int], Any] = False,
    callback: Callable[[Step], Any] | None = None,
    early_stop: bool | None = None,
) -> Any:
    """Appends gen_length masks to every prompt and reveals them, block by block; returns the ids, prompts included.

    model: a dllm_fast.Model, or a Hugging Face LLaDA or Dream object, whose weights are shared.
    prompt: [batch, length] ids with an attention_mask if some are pads, or a list of 1-D sequences, which gives a list.
    steps: over all blocks, which must divide it. temperature: 0 is greedy, else Gumbel noise is added.
    cfg_scale: classifier-free guidance. remasking: reveal the surest first ("low_confidence"), or any ("random").
    logits_eos_inf: never write EOS. confidence_eos_eot_inf: write EOS and EOT last.
    threshold: also reveal whatever has at least this probability; factor: Fast-dLLM's rule instead.
    early_stop: end a sequence once everything before its first EOS is fixed; the rest becomes EOS. None: as the rule has it.
    cache: None, "dllm-cache", "sparse-dllm", "dyllm", or a DLLMCache, SparseDLLM or DyLLM object.
    rule: None, the official one, or "dyllm", "sparse-dllm": how that method's own code decodes.
    seed: an int (row i uses stream i of it), or a list with an int or a (seed, stream) pair a row; None: fresh randomness.
    noise: an object with uniform(shape, dtype) and exponential(shape) that replays recorded draws instead.
    return_dict: a GenerateOutput with sequences, history (if output_history) and stats, which unpacks as (sequences, nfe).
    progress: True for a bar on stderr, or a function (done, total). callback(step): sees every Step; returning False stops.
    """
    run = _run(locals(), watch=callback is not None)
    out = run.finish(output_history, progress, callback)
    return out if return_dict else out.sequences


def stream(model: Any, prompt: Any, attention_mask: Any = None, **options: Any) -> Iterator[Step]:
    """`generate` as an iterator: yields a Step after every forward pass. Takes the options of `generate` that shape the ids."""
    given = signature(generate).bind(model, prompt, attention_mask, **options)
    for name in given.arguments.keys() & AROUND_THE_RUN:
        raise TypeError(f"stream() has no {name}: it yields every step")
    given.apply_defaults()
    return _run(given.arguments, watch=True).steps()


def _run(o: Mapping[str, Any], watch: bool) -> Run:
    model = as_model(o["model"])
    cache, decoding = as_cache(o["cache"], model.config["family"]), quota_params(o["rule"], o["early_stop"])
    if o["rule"] != "dyllm":  # which has its own idea of blocks; the core checks its lengths
        check_lengths(o["steps"], o["gen_length"], o["block_length"], "gen_length")
    if o["remasking"] not in SCORES:
        raise NotImplementedError(f"remasking={o['remasking']!r}; there is {', '.join(map(repr, SCORES))}")
    for name in ("temperature", "cfg_scale"):
        if not o[name] >= 0:
            raise ValueError(f"{name} must be 0 or more, not {o[name]}")
    params: dict[str, Any] = {
        "answer_len": o["gen_length"],
        "block_len": o["block_length"],
        "steps": o["steps"],
        "score": SCORES[o["remasking"]],
        "temperature": o["temperature"],
        "top_p": 1.0,
        "top_k": 0,
        "alg_temp": 0.0,
        "cfg_scale": o["cfg_scale"],
        **surest(o["threshold"], o["factor"], o["rule"]),
        **decoding,
        **(cache.params() if cache else {}),
        "logits_eos_inf": o["logits_eos_inf"],
        "confidence_eos_eot_inf": o["confidence_eos_eot_inf"],
        "mask_id": mask_token(model, o["mask_id"]),
        "eos_id": token(model, "eos_id", o["eos_id"]),
        "eot_id": token(model, "eot_id", o["eot_id"]),
    }
    needs_eos = [n for n in ("early_stop", "logits_eos_inf", "confidence_eos_eot_inf") if params[n] and params["eos_id"] < 0]
    if needs_eos:
        raise ValueError(f"{needs_eos[0]} needs an end token, and config.json does not say eos_token_id: pass eos_id=")
    batch = Batch(
        o["prompt"], o["attention_mask"], vocab=model.config["vocab"], answer_len=o["gen_length"], mask_id=params["mask_id"]
    )
    return Run(model, batch, params, seed=o["seed"], noise=o["noise"], watch=watch)


def check_lengths(steps: int, length: int, block_length: int, name: str) -> None:
    """Blocks divide the answer, and divide the steps."""
    if length < 1 or block_length < 1 or steps < 1:
        raise ValueError(f"steps {steps}, {name} {length} and block_length {block_length} must be at least 1")
    if length % block_length:
        raise ValueError(f"{name} {length} is not a multiple of block_length {block_length}")
    blocks = length // block_length
    if steps % blocks:
        raise ValueError(f"steps {steps} is not a multiple of the {blocks} blocks ({name} {length} / block_length {block_length})")


def surest(threshold: float | None, factor: float | None, rule: str | None) -> dict[str, float]:
    """The two rules of parallel decoding, as the core takes them.

    A threshold is a probability; under DyLLM's own rule it is whatever that rule orders by, for Dream a negative entropy.
    """
    if threshold is not None and factor is not None:
        raise ValueError(f"threshold {threshold} and factor {factor} are two rules: give one")
    for name, value, lowest in (("threshold", threshold, -math.inf if rule == "dyllm" else 0), ("factor", factor, 0)):
        if value is not None and not value > lowest:
            raise ValueError(f"{name} must be more than {lowest}, not {value}")
    return {"threshold": -math.inf if threshold is None else threshold, "factor": factor or 0.0}
