"""Dream's way of generating: diffusion_generate, with DreamGenerationConfig's names and defaults."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .caches import as_cache
from .generate import check_lengths, surest
from .inputs import Batch
from .loop import Run
from .model import Model, mask_token, token
from .rules import ALGS, times_params

DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "max_new_tokens": None,
    "steps": 512,
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "alg": "origin",
    "alg_temp": None,
    "eps": 1e-3,
    "block_length": None,
    "cache": None,
    "rule": None,
    "threshold": None,
    "seed": None,
    "noise": None,
    "num_return_sequences": 1,
    "output_history": False,
    "return_dict_in_generate": False,
    "mask_token_id": None,
    "eos_token_id": None,
    "early_stop": None,
    "progress": False,
    "callback": None,
    "generation_tokens_hook_func": None,
    "generation_logits_hook_func": None,
}
_NOT_NONE = {name for name, value in DEFAULTS.items() if value is not None}


@dataclass
class DiffusionOutput:
    """sequences; history: the sequences after every step, or None; stats: forwards, tokens, seconds, ..."""

    sequences: Any
    history: list[Any] | None
    stats: dict[str, Any]

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else (self.sequences, self.history)[key]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.sequences, self.history))


def diffusion_generate(model: Model, ids: Any, attention_mask: Any = None, generation_config: Any = None, **options: Any) -> Any:
    """Appends masks up to the total length and fills every mask, the prompt's too; returns the ids, prompts included.

    ids: [batch, length] with an attention_mask if some are pads, or a list of 1-D sequences, which gives a list.
    max_new_tokens: how many masks; else max_length: the total length, with its default of 20 counted from the prompt's end.
    steps: over the time schedule from 1 down to eps. alg: "origin", "maskgit_plus", "topk_margin" or "entropy".
    temperature, top_p, top_k: how tokens are drawn; alg_temp: how positions are drawn, None for the highest scores.
    num_return_sequences: every prompt so many times. generation_config: an object or dict with these names; what is passed wins.
    generation_tokens_hook_func(i, ids, logits), generation_logits_hook_func(i, ids, logits): called with i None, 0, 1, ... and
    0, 1, ...; logits are those of every position, shifted. Each returns its object, changed or not.
    return_dict_in_generate: a DiffusionOutput with sequences, history (if output_history) and stats.
    Beyond Dream's own: block_length, threshold, early_stop, seed, noise, progress, callback, as in dllm_fast.generate.
    """
    strange = sorted(set(options) - set(DEFAULTS))
    if strange:
        raise TypeError(f"diffusion_generate() got an unexpected keyword argument {strange[0]!r}; it knows {', '.join(DEFAULTS)}")
    return run_options(model, ids, attention_mask, merge(generation_config, options))


def merge(generation_config: Any, options: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> dict[str, Any]:
    """What is passed, over what the config says, over the defaults. None means the default where None means nothing."""
    if generation_config is None:
        given = {}
    elif isinstance(generation_config, Mapping):
        given = {k: generation_config[k] for k in DEFAULTS if k in generation_config}
    else:
        given = {k: getattr(generation_config, k) for k in DEFAULTS if hasattr(generation_config, k)}
    merged = dict(defaults) | given | dict(options)
    merged |= {k: DEFAULTS[k] for k in _NOT_NONE if merged[k] is None}
    if options.get("max_length") is None and merged["max_length"] == DEFAULTS["max_length"]:
        merged["max_length"] = None  # nobody's wish
    return merged


def run_options(model: Model, ids: Any, attention_mask: Any, o: Mapping[str, Any]) -> Any:
    """diffusion_generate with every option settled."""
    if ids is None:
        raise ValueError("diffusion_generate needs input ids")
    run = _run(model, ids, attention_mask, o)
    keep = bool(o["return_dict_in_generate"] and o["output_history"])
    out = run.finish(keep, o["progress"], o["callback"])
    return DiffusionOutput(out.sequences, out.history, out.stats) if o["return_dict_in_generate"] else out.sequences


def _run(model: Model, ids: Any, attention_mask: Any, o: Mapping[str, Any]) -> Run:
    _check(o)
    cache = as_cache(o["cache"], model.config["family"])
    decoding = times_params(o["rule"], o["early_stop"], o["alg"], o["block_length"])
    mask_id = mask_token(model, o["mask_token_id"])
    prompt = Batch(ids, attention_mask, vocab=model.config["vocab"])
    answer_len = _answer_length(model, prompt, o)
    if o["rule"] != "dyllm":  # which has its own idea of blocks; the core checks its lengths
        check_lengths(o["steps"], answer_len, decoding["block_len"] or answer_len, "the number of new tokens")
    batch = Batch(
        ids,
        attention_mask,
        vocab=model.config["vocab"],
        answer_len=answer_len,
        mask_id=mask_id,
        repeat=o["num_return_sequences"],
    )
    eos = o["eos_token_id"]
    params = {
        "answer_len": answer_len,
        "steps": o["steps"],
        "gumbel": False,
        "temperature": o["temperature"],
        "top_p": 1.0 if o["top_p"] is None else o["top_p"],
        "top_k": o["top_k"] or 0,
        "alg_temp": o["alg_temp"] or 0.0,
        "eps": o["eps"],
        "cfg_scale": 0.0,
        **surest(o["threshold"], None, o["rule"]),
        **decoding,
        **(cache.params() if cache else {}),
        "mask_id": mask_id,
        "eos_id": token(model, "eos_id", eos[0] if isinstance(eos, list | tuple) else eos),
    }
    hooks: dict[str, Callable[..., Any] | None] = {
        "tokens_hook": o["generation_tokens_hook_func"],
        "logits_hook": o["generation_logits_hook_func"],
    }
    return Run(model, batch, params, seed=o["seed"], noise=o["noise"], watch=o["callback"] is not None, **hooks)


def _check(o: Mapping[str, Any]) -> None:
    if o["alg"] not in ALGS:
        raise RuntimeError(f"unknown alg {o['alg']!r}; there is {', '.join(map(repr, ALGS))}")
    for name in ("temperature", "top_p", "top_k", "alg_temp"):
        if o[name] is not None and not o[name] >= 0:
            raise ValueError(f"{name} must be 0 or more, not {o[name]}")
    if o["num_return_sequences"] < 1:
        raise ValueError(f"num_return_sequences must be at least 1, not {o['num_return_sequences']}")


def _answer_length(model: Model, prompt: Batch, o: Mapping[str, Any]) -> int:
    """Masks to append. The rules are Hugging Face's: max_length counts the prompt, but its default counts from the prompt's end."""
    if o["max_new_tokens"] is not None:
        if o["max_new_tokens"] < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {o['max_new_tokens']}")
        return int(o["max_new_tokens"])
    longest = max(prompt.widths)
    total = o["max_length"]
    if total is None:
        total = min(longest + DEFAULTS["max_length"], model.config["max_len"] or sys.maxsize)
    if total <= longest:
        raise ValueError(f"max_length {total} leaves no room for an answer: the prompt has {longest} tokens")
    return int(total - longest)
