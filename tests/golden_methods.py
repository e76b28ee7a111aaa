"""Families whose models or caching methods are not built: every case of theirs fails, with the reason."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from golden_case import Case, Check, Folder

NAMES = {"dllm_cache": "dllm-cache", "sparse_dllm": "sparse-dllm", "dyllm": "dyllm"}


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    for key in ("cases", "op_cases"):
        for case in man.get(key, []):
            if folder.family == "moe":
                yield Case("moe", case["name"], functools.partial(mixture_of_experts, folder, case))
            else:
                yield Case(folder.family, case["name"], functools.partial(not_built, NAMES[folder.family]))
    for i, _ in enumerate(man.get("invariants", [])):
        yield Case(folder.family, f"invariant_{i}", functools.partial(not_built, NAMES[folder.family]))


def not_built(cache: str, check: Check) -> None:
    check.note(f"cache={cache!r} is not built yet")


def mixture_of_experts(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    """These models are refused by name; their cases count as failed."""
    try:
        folder.model(case["model"])
        check.note("mixture of experts was loaded, and no comparison of it is built")
    except ValueError as error:
        check.note(f"not built: {error}")
