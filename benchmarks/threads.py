"""Two requests on two Python threads of one model, beside the same two one after the other.

    python benchmarks/threads.py [MODEL] [--threads 1]

The GIL is released around every pass, so two sessions share the cores; each may use --threads of them for one kernel.
"""

import argparse
import statistics
import threading
import time

import numpy as np

import dllm_fast


def seconds(run, repeats: int = 5) -> float:
    """Median of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", help="a checkpoint folder; default: the small model of the package")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--length", type=int, default=128)
    args = p.parse_args()
    model = dllm_fast.load(args.model, threads=args.threads)
    prompts = np.random.default_rng(0).integers(0, 26, (2, 256))

    def one(i: int) -> None:
        model.generate(prompts[i : i + 1], gen_length=args.length, steps=args.length, block_length=args.length)

    def at_once() -> None:
        both = [threading.Thread(target=one, args=(i,)) for i in range(2)]
        for t in both:
            t.start()
        for t in both:
            t.join()

    one(0)
    apart, together = seconds(lambda: (one(0), one(1))), seconds(at_once)
    print(f"one after the other {apart * 1e3:.0f} ms, at once {together * 1e3:.0f} ms: {apart / together:.2f} x")


if __name__ == "__main__":
    main()
