"""The caching methods as a user names them: a name, or an object with the paper's own parameter names.

generate(model, prompt, cache="dyllm")  # the paper's setting for the model's family
generate(model, prompt, cache=SparseDLLM(keep_ratio=0.3))
generate(model, prompt, cache=DLLMCache.preset("gsm8k", "llada-instruct"))
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from . import _core

# dLLM-Cache's own evaluation settings: task -> (prompt interval, answer interval). Where the authors give two, the faster one.
_DLLM_CACHE_TASKS: dict[str, dict[str, tuple[int, int]]] = {
    "llada-base": {
        "gsm8k": (100, 6), "gpqa": (100, 8), "math": (50, 8), "mmlu": (100, 6), "mmlu-pro": (100, 6), "bbh": (50, 6),
        "mbpp": (50, 4), "humaneval": (50, 5),
    },
    "llada-instruct": {
        "gsm8k": (50, 7), "gpqa": (50, 6), "math": (50, 1), "mmlu": (100, 7), "mmlu-pro": (51, 3), "bbh": (50, 6),
        "mbpp": (100, 5), "humaneval": (50, 8), "hotpotqa": (100, 8),
    },
    "dream-base": {
        "gsm8k": (100, 8), "gpqa": (100, 8), "math": (100, 4), "mmlu": (100, 2), "mmlu-pro": (25, 2), "bbh": (25, 4),
        "mbpp": (25, 8), "humaneval": (5, 1),
    },
    "dream-instruct": {
        "gsm8k": (25, 2), "gpqa": (10, 8), "math": (50, 1), "mmlu": (100, 8), "mmlu-pro": (5, 1), "bbh": (10, 2),
        "mbpp": (10, 8), "humaneval": (50, 1),
    },
}  # fmt: skip


@dataclass(frozen=True)
class DLLMCache:
    """dLLM-Cache: refreshes the prompt every prompt_interval_steps passes and the answer every gen_interval_steps.

    In between it recomputes the share transfer_ratio of the answer whose values turned most. Under guidance, passes without the
    condition come every cfg_interval_steps after the first five. An interval of -1 means always, as in the official scripts.
    """

    prompt_interval_steps: int = 50
    gen_interval_steps: int = 7
    transfer_ratio: float = 0.25
    cfg_interval_steps: int = 1
    name: ClassVar[str] = "dllm-cache"

    def __post_init__(self) -> None:
        for field in ("prompt_interval_steps", "gen_interval_steps", "cfg_interval_steps"):
            value = getattr(self, field)
            if not isinstance(value, int) or not (value >= 1 or value == -1):
                raise ValueError(f"DLLMCache: {field} {value!r} must be 1 or more, or -1 for always")
        _in_unit("DLLMCache", "transfer_ratio", self.transfer_ratio)

    @classmethod
    def preset(cls, task: str, model: str) -> "DLLMCache":
        """The authors' setting for a task ("gsm8k", "math", ...) and model ("llada-base", "llada-instruct", "dream-base", ...)."""
        tasks = _known(_DLLM_CACHE_TASKS, model, "model")
        prompt, answer = _known(tasks, task, f"task of {model}")
        return cls(prompt, answer, 0.25)

    @classmethod
    def default(cls, family: str) -> "DLLMCache":
        """What cache="dllm-cache" means."""
        return cls(50, 7, 0.25) if family == "llada" else cls(25, 2, 0.25)

    def params(self) -> dict[str, Any]:
        """As the core takes it."""
        options = {
            "prompt_interval_steps": abs(self.prompt_interval_steps),
            "gen_interval_steps": abs(self.gen_interval_steps),
            "transfer_ratio": self.transfer_ratio,
        }
        return {"strategy": (self.name, options), "cfg_interval": abs(self.cfg_interval_steps)}


@dataclass(frozen=True)
class SparseDLLM:
    """Sparse-dLLM: from a block's third step on, its rows see themselves and the share keep_ratio of all other rows.

    These are the rows that the block's queries weighed most at its second step, after a max-pool of width kernel_size (odd; None or
    0: none). shift (Dream): who speaks for a block's first row: "carry", the row before as it was; "own" as in the official code.
    """

    keep_ratio: float = 0.5
    kernel_size: int | None = 3
    shift: str = "carry"
    name: ClassVar[str] = "sparse-dllm"

    def __post_init__(self) -> None:
        _in_unit("SparseDLLM", "keep_ratio", self.keep_ratio)
        k = self.kernel_size
        if k is not None and (not isinstance(k, int) or k < 0 or (k > 0 and k % 2 == 0)):
            raise ValueError(f"SparseDLLM: kernel_size {k!r} must be odd, or None for no pooling")
        _one_of("SparseDLLM", "shift", self.shift, ("carry", "own"))

    @classmethod
    def default(cls, family: str) -> "SparseDLLM":
        """What cache="sparse-dllm" means."""
        return cls()

    def params(self) -> dict[str, Any]:
        """As the core takes it."""
        options = {"keep_ratio": self.keep_ratio, "kernel_size": self.kernel_size or 0}
        return {"strategy": (self.name, options), "shift": self.shift}


@dataclass(frozen=True)
class DyLLM:
    """DyLLM: after full_steps full steps, feed-forward and K/V only for rows whose attention context turned.

    A row turned if the cosine of its context with what it was is below tau. Partial steps leave the prompt out but every
    whole_interval-th. refresh_interval: a full step so often after the first ones; 0: never. exact: a test mode in which every row
    is salient and every step whole, which equals the uncached model. shift (Dream): who speaks for the first answer row when the
    prompt stays out: "carry", the row before as it was; "flat" as in the official code.

    Not in the paper, cheap, and worth trying where answers suffer: keep_seed: a row whose token is new is salient in every layer of
    the step that first sees it, even if its context stood still, as Dream's often does; seed_all: the first layer's attention is
    exact in every step.
    """

    tau: float = 0.99
    full_steps: int = 4
    whole_interval: int = 4
    refresh_interval: int = 0
    exact: bool = False
    shift: str = "carry"
    keep_seed: bool = False
    seed_all: bool = False
    name: ClassVar[str] = "dyllm"

    def __post_init__(self) -> None:
        if not self.tau > -2:
            raise ValueError(f"DyLLM: tau {self.tau!r} must be a number above -2; a cosine never exceeds 1")
        for field, lowest in (("full_steps", 0), ("whole_interval", 1), ("refresh_interval", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"DyLLM: {field} {value!r} must be a whole number of at least {lowest}")
        _one_of("DyLLM", "shift", self.shift, ("carry", "flat"))

    @classmethod
    def default(cls, family: str) -> "DyLLM":
        """What cache="dyllm" means."""
        return cls(0.99 if family == "llada" else 0.995)

    def params(self) -> dict[str, Any]:
        """As the core takes it."""
        options: dict[str, float] = {
            "tau": self.tau,
            "full_steps": self.full_steps,
            "whole_interval": self.whole_interval,
            "refresh_interval": self.refresh_interval,
            "keep_seed": float(self.keep_seed),
            "seed_all": float(self.seed_all),
        }
        if self.exact:
            options |= {"tau": float("inf"), "whole_interval": 1, "seed_all": 1}
        return {"strategy": (self.name, options), "shift": self.shift}


@dataclass(frozen=True)
class CoreMethod:
    """A method that the core knows and this file has no class for: name and options as the core lists them."""

    name: str
    options: tuple[tuple[str, float], ...] = ()

    def params(self) -> dict[str, Any]:
        """As the core takes it."""
        return {"strategy": (self.name, dict(self.options))}


CACHES: dict[str, Any] = {c.name: c for c in (DLLMCache, SparseDLLM, DyLLM)}

# How the official repositories spell it: their class, and their names of what is called otherwise here.
_SPELLINGS: dict[str, str] = {"num_full_steps": "full_steps", "threshold": "tau"}


def dLLMCacheConfig(  # noqa: N802  (the name that dLLM-Cache's users type)
    prompt_interval_steps: int = 1, gen_interval_steps: int = 1, transfer_ratio: float = 0.0, cfg_interval_steps: int = 1
) -> DLLMCache:
    """DLLMCache with the official class's defaults; as there, a ratio outside 0..1 switches partial updates off."""
    ratio = transfer_ratio if 0 < transfer_ratio <= 1 else 0.0
    return DLLMCache(prompt_interval_steps, gen_interval_steps, ratio, cfg_interval_steps)


def as_cache(cache: Any, family: str) -> Any:
    """None, a name, a dict {"name": ..., option: value}, or a cache object, as a cache object or None."""
    if cache is None or isinstance(cache, (CoreMethod, *CACHES.values())):
        return cache
    if isinstance(cache, dict):
        options = {_SPELLINGS.get(k, k): v for k, v in cache.items() if k != "name"}
        if _only_core(cache.get("name")):
            return CoreMethod(cache["name"], tuple(options.items()))
        kind = _known(CACHES, cache.get("name"), "cache")
        strange = sorted(set(options) - set(kind.__dataclass_fields__))
        if strange:
            raise TypeError(f"{kind.name} has no option {strange[0]!r}; it has {', '.join(kind.__dataclass_fields__)}")
        return kind(**options)
    if isinstance(cache, str):
        if _only_core(cache):
            return CoreMethod(cache)
        return _known(CACHES, cache, "cache").default(family)
    raise TypeError(f"cache={cache!r}: a name ({', '.join(CACHES)}), DLLMCache, SparseDLLM or DyLLM expected")


def _only_core(name: Any) -> bool:
    return name not in CACHES and name != "none" and name in _core.strategies()


def _known(table: dict[Any, Any], key: Any, what: str) -> Any:
    if key not in table:
        raise ValueError(f"{what} {key!r} is not known; there is {', '.join(map(str, table))}")
    return table[key]


def _in_unit(owner: str, field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {field} {value!r} must lie in 0..1")


def _one_of(owner: str, field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {field} {value!r} must be one of {', '.join(map(repr, allowed))}")
