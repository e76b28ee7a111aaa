"""Hugging Face objects that are already in memory: their weights, shared; and their own methods, run by the core.

`engine` makes a Model of such an object without copying a byte. `accelerate` replaces methods of the object (instance attributes,
nothing in its class), `restore` removes them again.
"""

import json
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .caches import as_cache
from .diffusion import DEFAULTS, merge, run_options
from .model import Model
from .rules import check_rule

# object -> (fingerprint of its weights, Model), and object -> its own attributes that accelerate replaced
_engines: "weakref.WeakKeyDictionary[Any, tuple[Any, Model]]" = weakref.WeakKeyDictionary()
_replaced: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()
_OWN = object()  # the object had no such instance attribute: its class answered


# ---- weights ------------------------------------------------------------------------------------------------------------------


def engine(hf: Any) -> Model:
    """The Model that shares hf's weights; made again if the object's weights have moved since."""
    hf = _unwrap(hf)
    tensors = _weights(hf)
    fingerprint = tuple((name, t.data_ptr(), t.dtype) for name, t in tensors.items())
    known = _engines.get(hf)
    if known is None or known[0] != fingerprint:
        first = next(iter(tensors.values()))
        model = Model.from_tensors(_config_text(hf), tensors, dtype=_dtype_name(first), device=_device_name(first))
        known = _engines[hf] = (fingerprint, model)
    return known[1]


def _unwrap(hf: Any) -> Any:
    """Takes off a data-parallel wrapper, and refuses what is no LLaDA or Dream object by name."""
    if "DataParallel" in type(hf).__name__:
        hf = hf.module
    if type(hf).__name__.startswith("Peft"):
        raise ValueError(f"{type(hf).__name__}: adapters are not run; merge them first: hf = hf.merge_and_unload()")
    if not callable(getattr(hf, "state_dict", None)) or not hasattr(getattr(hf, "config", None), "to_dict"):
        raise TypeError(f"expected a dllm_fast.Model or a Hugging Face LLaDA or Dream object, got {type(hf).__name__}")
    return hf


def _weights(hf: Any) -> dict[str, Any]:
    """The object's parameters by their official names, sharing its memory."""
    tensors = {name: t.detach() for name, t in hf.state_dict().items()}
    if not tensors:
        raise ValueError(f"{type(hf).__name__} has no weights")
    places: dict[str, str] = {}
    for name, t in tensors.items():
        if "lora_" in name:
            raise ValueError(f"{name}: adapters are not run; merge them first: hf = hf.merge_and_unload()")
        if t.device.type == "meta":
            raise ValueError(f"{name} is on the meta device: it has no values. Load the model without offloading its weights")
        places.setdefault(str(t.device), name)
    if len(places) > 1:
        raise ValueError(f"weights on several devices: {', '.join(f'{n} on {d}' for d, n in places.items())}; load them on one")
    return tensors


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _device_name(tensor: Any) -> str:
    return str(tensor.device)


def _config_text(hf: Any) -> str:
    """hf.config as the text of a config.json."""
    config = dict(hf.config.to_dict())
    config["architectures"] = config.get("architectures") or [type(hf).__name__]
    rope = config.get("rope_parameters")
    if "rope_theta" not in config and isinstance(rope, dict) and "rope_theta" in rope:  # where transformers 5 keeps it
        config["rope_theta"] = rope["rope_theta"]
    return json.dumps(config, default=str)


# ---- methods ------------------------------------------------------------------------------------------------------------------


def accelerate(hf: Any, cache: Any = None, rule: str | None = None, threshold: float | None = None, weights: str = "auto") -> Any:
    """Makes hf(...) and, for Dream, hf.diffusion_generate(...) run in the C core, on hf's own weights. Returns hf.

    cache, rule, threshold: what hf.diffusion_generate uses unless a call says otherwise. `restore(hf)` puts everything back.
    weights: only "auto", because they are shared; `load` knows "int8".
    """
    if weights != "auto":
        raise ValueError(
            f"weights={weights!r}: an accelerated object shares its own weights, which stay as they are; "
            "int8 copies are made from files: dllm_fast.load(folder, weights='int8')"
        )
    check_rule(rule)
    inner = _unwrap(hf)
    model = engine(inner)
    cache = as_cache(cache, model.config["family"])
    restore(inner)
    dream = model.config["family"] == "dream"
    methods: dict[str, Callable[..., Any]] = {"forward": _dream_forward(model) if dream else _llada_forward(model)}
    if dream:
        chosen = {"cache": cache, "rule": rule, "threshold": threshold}
        methods["diffusion_generate"] = _diffusion_generate(model, inner.config, chosen)
    _replaced[inner] = {name: vars(inner).get(name, _OWN) for name in methods}
    for name, method in methods.items():
        setattr(inner, name, method)
    return hf


def restore(hf: Any) -> Any:
    """Undoes accelerate: the object answers with its own methods again. Does nothing to other objects. Returns hf."""
    inner = _unwrap(hf)
    for name, before in _replaced.pop(inner, {}).items():
        if before is _OWN:
            delattr(inner, name)
        else:
            setattr(inner, name, before)
    return hf


@contextmanager
def accelerated(hf: Any, **options: Any) -> Iterator[Any]:
    """`with dllm_fast.accelerated(hf): ...` is accelerate, and restore at the end, come what may."""
    accelerate(hf, **options)
    try:
        yield hf
    finally:
        restore(hf)


@dataclass
class ModelOutput:
    """Stands in for transformers' output classes where transformers is not loaded."""

    logits: Any
    hidden_states: Any = None
    loss: Any = None
    past_key_values: Any = None

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return getattr(self, key)
        return tuple(v for v in (self.loss, self.logits, self.hidden_states) if v is not None)[key]


def _output(name: str, **fields: Any) -> Any:
    if "transformers" not in sys.modules:
        return ModelOutput(**fields)
    from transformers import modeling_outputs

    return getattr(modeling_outputs, name)(**fields)


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} is not supported on an accelerated model; dllm_fast.restore(hf) gives the original back")


def _llada_forward(model: Model) -> Callable[..., Any]:
    def forward(
        input_ids: Any = None,
        inputs_embeds: Any = None,
        attention_mask: Any = None,
        attention_bias: Any = None,
        past_key_values: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Any = None,
    ) -> Any:
        """LLaDAModelLM.forward, run by dllm_fast."""
        _refuse(
            inputs_embeds=inputs_embeds,
            attention_bias=attention_bias,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
        )
        if labels is not None:
            warnings.warn("LLaDA computes no loss from labels", stacklevel=2)
        logits, states = model._passes(input_ids, attention_mask, None, bool(output_hidden_states))
        states = tuple(states) if states else None
        if return_dict is False:
            return logits, None, states
        return _output("CausalLMOutputWithPast", logits=logits, hidden_states=states)

    return forward


def _dream_forward(model: Model) -> Callable[..., Any]:
    def forward(
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Any = None,
        num_logits_to_keep: int = 0,
        **ignored: Any,
    ) -> Any:
        """DreamModel.forward, run by dllm_fast."""
        _refuse(inputs_embeds=inputs_embeds, past_key_values=past_key_values, labels=labels, output_attentions=output_attentions)
        logits, states = model._passes(input_ids, _flat_mask(attention_mask), position_ids, bool(output_hidden_states))
        logits, states = logits[:, -num_logits_to_keep:], tuple(states) if states else None
        if return_dict is False:
            return (logits, states) if states else (logits,)
        return _output("MaskedLMOutput", logits=logits, hidden_states=states)

    return forward


def _flat_mask(mask: Any) -> Any:
    """Dream's masks: "full" or None, [batch, length], or [batch, 1, length, length] that is `key is real and query is real`."""
    if mask is None or isinstance(mask, str):
        return None
    if mask.ndim != 4:
        return mask
    square = np.asarray(mask.detach().cpu().bool() if hasattr(mask, "detach") else mask, bool)[:, 0]
    flat = np.diagonal(square, axis1=1, axis2=2)
    if (square != flat[:, None, :] & flat[:, :, None]).any():
        raise ValueError("a 4-D attention_mask must be that of padding (query is real and key is real); other patterns are not run")
    return flat


def _diffusion_generate(model: Model, config: Any, chosen: dict[str, Any]) -> Callable[..., Any]:
    def diffusion_generate(inputs: Any = None, generation_config: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        """DreamModel.diffusion_generate, run by dllm_fast. Options it does not know are ignored, as the original does."""
        # Without a generation_config the original reads the model config, where transformers 4 keeps temperature 1.0, top_p 1.0
        # and top_k 50, and transformers 5 keeps nothing.
        implicit = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k") if hasattr(config, name)}
        defaults = DEFAULTS | chosen | (implicit if generation_config is None else {})
        known = {name: value for name, value in options.items() if name in DEFAULTS}
        return run_options(model, inputs, attention_mask, merge(generation_config, known, defaults))

    return diffusion_generate
