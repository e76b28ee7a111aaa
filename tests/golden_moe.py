"""Mixtures of experts: not built. Every case of theirs fails, with the reason."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from golden_case import Case, Check, Folder


def collect(folder: Folder) -> Iterator[Case]:
    for key in ("cases", "op_cases"):
        for case in folder.manifest.get(key, []):
            yield Case("moe", case["name"], functools.partial(mixture_of_experts, folder, case))


def mixture_of_experts(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    """These models are refused by name; their cases count as failed."""
    try:
        folder.model(case["model"])
        check.note("mixture of experts was loaded, and no comparison of it is built")
    except ValueError as error:
        check.note(f"not built: {error}")
