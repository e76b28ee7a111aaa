"""Sessions beside each other on one device: two threads at once get what each gets alone, and what is closed is given back.

    python tests/gpu_sessions.py --device cuda:0 [--laps 60]

Closes with `N passed, N failed`. Memory in use is what nvidia-smi says of a GPU, on which nobody else should work meanwhile, and
otherwise this process's own.
"""

import argparse
import pathlib
import re
import resource
import subprocess
import threading
from collections.abc import Callable

import numpy as np
import simulator

import dllm_fast

MODELS = pathlib.Path(__file__).parent / "golden" / "base" / "models"
CACHES = (None, "dllm-cache", "sparse-dllm", "dyllm")
SLACK = 48 << 20  # of memory: allocators and libraries keep some, once


def used(device: str) -> int:
    """Bytes in use."""
    if device.startswith("cuda") and not device.startswith("cuda-sim"):
        number = (re.findall(r"\d+", device) or ["0"])[0]
        ask = ["nvidia-smi", f"--id={number}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.check_output(ask, text=True)) << 20
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def answer(model: dllm_fast.Model, seed: int, cache: str | None) -> np.ndarray:
    prompt = np.random.default_rng(seed).integers(0, 280, (2, 9 + 4 * seed))
    options = {"max_new_tokens": 8, "alg": "entropy"} if model.config["family"] == "dream" else {"gen_length": 8}
    run = model.diffusion_generate if "alg" in options else model.generate
    return run(prompt, steps=8, block_length=4, cache=cache, **options)


def at_once(model: dllm_fast.Model, cache: str | None, laps: int) -> bool:
    """Do two threads, each with an own request again and again, always get what they get alone?"""
    alone, wrong = [answer(model, seed, cache) for seed in range(2)], []

    def again(seed: int) -> None:
        try:
            if not all((answer(model, seed, cache) == alone[seed]).all() for _ in range(laps)):
                wrong.append("other tokens")
        except Exception as error:  # a thread's own would be lost
            wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=again, args=(seed,)) for seed in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if wrong:
        print(f"two threads at once: {wrong}")
    return not wrong


def gives_back(device: str, run: Callable[[], object], laps: int) -> bool:
    """Is as much memory in use after many laps as after a few?"""
    for _ in range(3):
        run()
    before = used(device)
    for _ in range(laps):
        run()
    grown = used(device) - before
    if grown > SLACK:
        print(f"{grown >> 20} MiB more in use after {laps} laps")
    return grown <= SLACK


def main(given: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--laps", type=int, default=60)
    args = p.parse_args(given)
    if args.device.startswith("cuda-sim"):
        simulator.load()
    results = []
    for name in ("llada_tiny", "dream_tiny"):
        model = dllm_fast.load(MODELS / name, device=args.device)
        results += [at_once(model, cache, max(2, args.laps // 10)) for cache in CACHES]
        results += [gives_back(args.device, lambda m=model, c=cache: answer(m, 0, c), args.laps) for cache in CACHES]
        results.append(gives_back(args.device, lambda n=name: dllm_fast.load(MODELS / n, device=args.device), args.laps))
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
