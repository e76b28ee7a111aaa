"""Decoding rules by name: when to reveal how many tokens. None is the call's official one: LLaDA's quota, Dream's schedule."""

from typing import Any

RULES = ("dyllm", "sparse-dllm")


def check_rule(rule: str | None) -> None:
    """None or a name of RULES, or ValueError."""
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule={rule!r} is not known; there is None, {', '.join(map(repr, RULES))}")


def quota_params(rule: str | None, early_stop: bool | None) -> dict[str, Any]:
    """How LLaDA's `generate` decodes under a rule.

    Sparse-dLLM's own LLaDA code has the official one; DyLLM's reveals a constant number of tokens a step, takes the best token at
    any temperature, and stops at EOS.
    """
    check_rule(rule)
    if rule == "dyllm":
        return {"rule": "steady", "gumbel": False, "argmax": True, "early_stop": early_stop is not False}
    return {"rule": "quota", "gumbel": True, "early_stop": bool(early_stop)}


def times_params(rule: str | None, early_stop: bool | None, alg: str, block_length: int | None) -> dict[str, Any]:
    """How Dream's `diffusion_generate` decodes under a rule. The methods' own codes decode in blocks of 32, DyLLM's by entropy."""
    check_rule(rule)
    if rule == "dyllm":
        score = {"rule": "steady", "score": "entropy" if alg == "origin" else ALGS[alg]}
        return score | {"early_stop": early_stop is not False, "block_len": block_length or 32}
    if rule == "sparse-dllm":
        return {"rule": "first", "score": ALGS[alg], "early_stop": bool(early_stop), "block_len": block_length or 32}
    return {"rule": "times", "score": ALGS[alg], "early_stop": bool(early_stop), "block_len": block_length or 0}


# alg -> what the core ranks candidates by
ALGS = {"origin": "origin", "maskgit_plus": "prob", "topk_margin": "margin", "entropy": "entropy"}
