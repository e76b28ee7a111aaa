"""The command dllm-fast: info, check, generate, bench."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from . import __version__, _core, ceilings, cuda, live, tokenizer
from .caches import CACHES
from .generate import generate
from .model import Model, folder_of, load
from .threads import thread_count, thread_runtime

SHAPE = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab", "max_len")
SPECIAL = ("mask_id", "eos_id", "eot_id", "pad_id", "bos_id")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, NotImplementedError) as error:
        print(f"dllm-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dllm-fast", description="Masked diffusion language models (LLaDA, Dream), fast.")
    parser.add_argument("--version", action="version", version=f"dllm_fast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what runs here; with MODEL, what it is made of")
    info.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint folder or hub id")
    info.add_argument("--ceilings", action="store_true", help="measure anew what the cores and the memory can do at best")
    info.add_argument("--device", default="auto", help="where MODEL is to lie: auto, cpu, cuda, cuda:1")
    info.add_argument("--threads", type=int, help="for the ceilings; default: all")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="every kernel against its plain C twin")
    check.add_argument("--level", default="", help="an instruction-set level; default: all of this processor's")
    check.add_argument("--device", help="a GPU instead: cuda, cuda:1, cuda:1:own (without cuBLAS)")
    check.add_argument("--kernel", default="", help="only kernels whose name starts so")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--timing", action="store_true", help="also time both")
    check.set_defaults(run=_check)

    bench = commands.add_parser("bench", help="every caching method against the uncached run")
    bench.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint folder or hub id; default: the one shipped here")
    bench.add_argument("--cache", default="all", help="methods, by commas; default: all")
    bench.add_argument("--prompt-length", type=int, default=64, help="random tokens (default 64)")
    bench.add_argument("--gen-length", type=int, default=64)
    bench.add_argument("--block-length", type=int, default=32)
    bench.add_argument("--steps", type=int, help="default: one a token")
    bench.add_argument("--batch", type=int, default=1)
    bench.add_argument("--repeats", type=int, default=3, help="the fastest of so many runs counts")
    bench.add_argument("--dtype", default="auto")
    bench.add_argument("--weights", default="auto", help="int8: rounded while they load")
    bench.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    bench.add_argument("--threads", type=int)
    bench.add_argument("--profile", action="store_true", help="also every stage of a step beside the ceilings of this machine")
    bench.add_argument("--out", metavar="FILE", help="also write FILE.md, FILE.json and, with matplotlib, FILE.png")
    bench.set_defaults(run=_bench)

    gen = commands.add_parser("generate", help="answer a prompt")
    gen.usage = "dllm-fast generate [MODEL] PROMPT [options]"
    gen.add_argument(
        "words",
        nargs="+",
        metavar="MODEL PROMPT",
        help="a checkpoint folder or hub id (default: the small one shipped here); the prompt",
    )
    gen.add_argument("--steps", type=int, help="forward passes; default: one a token")
    gen.add_argument("--gen-length", type=int, default=64, help="tokens to write (default 64)")
    gen.add_argument("--block-length", type=int, help="tokens that are revealed together; default: all")
    gen.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy")
    gen.add_argument("--cfg-scale", type=float, default=0.0, help="classifier-free guidance")
    gen.add_argument("--cache", choices=list(CACHES), help="a caching method, with its paper's setting")
    gen.add_argument("--threshold", type=float, help="reveal whatever has at least this probability")
    gen.add_argument("--seed", type=int, help="for a temperature; default: fresh randomness")
    gen.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    gen.add_argument("--weights", default="auto", help="int8: rounded while they load; half the memory, faster, less exact")
    gen.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    gen.add_argument("--threads", type=int, help="default: all")
    gen.add_argument("--ids", action="store_true", help="the prompt and the answer are token numbers")
    gen.add_argument("--show", action="store_true", help="watch the masks turn into text")
    gen.add_argument("--stats", action="store_true", help="also print what it cost")
    gen.set_defaults(run=_generate)
    return parser


# ---- info -----------------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    levels = _core.cpu_levels()
    print(f"dllm_fast {__version__}")
    print(f"cpu:   {' '.join(levels)} ({thread_count()} threads, {_whose(thread_runtime())})")
    count, line = cuda.state()
    print(f"cuda:  {line if count else 'unavailable: ' + line}")
    if args.ceilings:
        backend, n = levels[-1], thread_count(args.threads)
        print(f"best:  {ceilings.measure(backend, n)} ({backend}, {n} threads; kept in {ceilings.store()})")
    if args.model:
        _describe(load(args.model, device=args.device))
    return 0


def _whose(runtime: str) -> str:
    return "our own, or those of torch where torch is loaded" if runtime == "own" else f"borrowed from {runtime}"


def _describe(model: Model) -> None:
    c = model.config
    print(f"model: {model!r}")
    print("shape: " + ", ".join(f"{name} {c[name]}" for name in SHAPE))
    print("ids:   " + ", ".join(f"{name} {c[name]}" for name in SPECIAL if c[name] >= 0))
    print(f"bytes: {model.nbytes:,}")


# ---- check ----------------------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    bad = total = 0
    if args.device and not args.device.startswith("cuda"):
        raise ValueError(f"--device {args.device!r}: cuda or cuda:N expected; --level picks kernels of the processor")
    levels = [cuda.resolve(args.device)] if args.device else [args.level] if args.level else _core.cpu_levels()
    for level in levels:
        results = _core.check(level=level, kernel=args.kernel, seed=args.seed, timing=args.timing)
        for kernel in dict.fromkeys(r["kernel"] for r in results):
            cases = [r for r in results if r["kernel"] == kernel]
            _print_kernel(level, kernel, cases, args.timing)
            bad += sum(not r["ok"] for r in cases)
            total += len(cases)
    print(f"{total - bad} of {total} cases agree")
    return 1 if bad or not total else 0


def _print_kernel(level: str, kernel: str, cases: list[dict], timing: bool) -> None:
    worst = max(cases, key=lambda r: r["error"])
    line = f"{level:11} {kernel:16} {len(cases):5} cases  error {worst['error']:.2g} of {worst['tolerance']:.2g} allowed"
    if timing:
        slow, fast = (sum(r[key] for r in cases) for key in ("seconds_c", "seconds"))
        line += f"  {slow / fast:6.1f} x" if fast else ""
    print(line)
    for r in cases:
        if not r["ok"]:
            print(f"    FAIL {r['case']}: error {r['error']:.3g}, allowed {r['tolerance']:.3g}")


# ---- bench ----------------------------------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    from . import bench

    model = load(args.model, dtype=args.dtype, device=args.device, threads=args.threads, weights=args.weights)
    if args.profile and model.backend == "cuda":
        raise ValueError(f"--profile times stages on a CPU; {model.device} works on while the host goes on to the next stage")
    c, caches = model.config, list(CACHES) if args.cache == "all" else args.cache.split(",")
    random = np.random.default_rng(0)
    words = np.setdiff1d(np.arange(c["vocab"]), [c[name] for name in SPECIAL])
    prompt = random.choice(words, (args.batch, args.prompt_length))
    lengths = {"gen_length": args.gen_length, "block_length": args.block_length, "steps": args.steps or args.gen_length}
    rows = bench.run(model, prompt, caches, args.repeats, **lengths)
    dtype = f"{model.dtype} with int8 weights" if model.weights == "int8" else model.dtype
    where = f"{dtype} on {model.device} ({model.backend}, {model.threads} threads)"
    shape = f"prompt {args.prompt_length}, answer {args.gen_length}, block {args.block_length}, {lengths['steps']} steps"
    about = f"{c['family']}, {c['layers']} layers of {c['dim']}, {where}; batch {args.batch}, {shape}"
    stages = ceilings.profile([(r.cache, r.stats) for r in rows], model) + "\n" if args.profile else ""
    more = "\n" + stages if stages else ""
    print(f"{about}\n\n{bench.markdown(rows)}\n{more}", end="")
    if args.out:
        bench.write(rows, about, pathlib.Path(args.out), more)
    return 0


# ---- generate -------------------------------------------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> int:
    if len(args.words) > 2:
        raise ValueError(f"expected [MODEL] PROMPT, got {len(args.words)} words: quote the prompt")
    *path, prompt = args.words
    folder = folder_of(path[0] if path else None)
    if not path:
        print(
            "dllm-fast: no MODEL given: a small one that solves puzzles: A123+456= (add), Rhello= (reverse), P= (palindrome)",
            file=sys.stderr,
        )
    model = load(folder, dtype=args.dtype, device=args.device, threads=args.threads, weights=args.weights)
    words: tokenizer.Tokenizer = tokenizer.NumberTokenizer() if args.ids else tokenizer.of_folder(folder)
    ids = np.array([words.encode(prompt)], np.int64)
    view = live.View(words.piece, model.config["mask_id"], ids.shape[1], sys.stderr) if args.show else None
    try:
        out = generate(
            model,
            ids,
            steps=args.steps or args.gen_length,
            gen_length=args.gen_length,
            block_length=args.block_length or args.gen_length,
            temperature=args.temperature,
            cfg_scale=args.cfg_scale,
            cache=args.cache,
            threshold=args.threshold,
            seed=args.seed,
            return_dict=True,
            callback=view,
        )
    finally:
        if view:
            view.close()
    print(words.decode(out.sequences[0][ids.shape[1] :].tolist()))
    if args.stats:
        s = out.stats
        print(f"{s['tokens']} tokens, {s['forwards']} forwards, {s['tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    return 0
