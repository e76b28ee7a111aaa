"""Replays recorded runs of the original implementations through dllm_fast and compares every step.

    python tests/golden.py --cases DIR [--models DIR] [--device cpu] [-k PATTERN] [-v]
    python tests/golden.py --cases tests/golden --device cuda-sim     all of it with the CUDA kernels on the processor, in minutes

DIR holds a manifest, or folders that do. Models are looked up beside the cases, then under --models. Prints one line a failing
case and closes with `N passed, N failed`. Whatever a manifest says that this program does not understand fails the case: a
recording must never be passed over in silence. How to read a manifest is in tests/golden/README.md; a family of recordings
is one golden_*.py file with a `collect(folder)` that yields cases.
"""

import argparse
import collections
import importlib
import json
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import simulator
from golden_case import Case, Folder

MANIFESTS = ("manifest.json", "manifest_moe.json")


def family_of(manifest: Mapping[str, Any], file: str) -> str:
    """Which golden_*.py reads this manifest, from what it holds."""
    if file == "manifest_moe.json":
        return "moe"
    method = str(manifest.get("method", "")) + str(manifest.get("what", "")) + str(manifest.get("about", ""))
    for name, mark in (("sparse_dllm", "Sparse-dLLM"), ("dllm_cache", "dLLM-Cache"), ("dyllm", "DyLLM")):
        if mark in method:
            return name
    return "base"


def collect(cases: str | pathlib.Path, models: str | pathlib.Path | None = None, device: str = "cpu") -> Iterator[Case]:
    """Every case of every family at or under `cases`."""
    root = pathlib.Path(cases)
    places = [root] if any((root / m).exists() for m in MANIFESTS) else sorted(p for p in root.glob("*") if p.is_dir())
    found = [p / m for p in places for m in MANIFESTS if (p / m).exists()]
    if not found:
        raise FileNotFoundError(f"no manifest.json in {root} or in a folder in it")
    for file in found:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        family = family_of(manifest, file.name)
        folder = Folder(file.parent, manifest, pathlib.Path(models) if models else None, family, device)
        yield from importlib.import_module(f"golden_{family}").collect(folder)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--cases", required=True, help="a folder with manifest.json, or a folder of such folders")
    p.add_argument("--models", help="where the models are if not beside the cases")
    p.add_argument("--device", default="cpu", help="cpu, cpu:c (the plain C kernels), cpu:avx2, ..., cuda, cuda-sim")
    p.add_argument("-k", default="", metavar="PATTERN", help="run only cases whose family/name matches this regular expression")
    p.add_argument("-v", action="store_true", help="also print passing cases and everything that differs")
    args = p.parse_args(argv)

    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    if args.device.startswith("cuda-sim"):
        simulator.load()
    for case in collect(args.cases, args.models, simulator.STRICT if args.device == "cuda-sim" else args.device):
        if not re.search(args.k, f"{case.family}/{case.name}"):
            continue
        start = time.perf_counter()
        word, check = case.result()
        tally[case.family][word] += 1
        if word != "ok" or args.v:
            told = check if args.v else check[:3]
            more = f" (and {len(check) - len(told)} more)" if len(check) > len(told) else ""
            spent = f" {time.perf_counter() - start:.2f}s" if args.v else ""
            print(f"{word} {case.family} {case.name}:{spent} {'; '.join(told)}{more}".rstrip(": "), flush=True)
    for family, count in tally.items():
        extra = f", {count['info']} of them informational and different" if count["info"] else ""
        print(f"{family}: {count['ok'] + count['info']} of {sum(count.values())} passed{extra}")
    failed = sum(count["FAIL"] for count in tally.values())
    passed = sum(count["ok"] + count["info"] for count in tally.values())
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    raise SystemExit(main())
