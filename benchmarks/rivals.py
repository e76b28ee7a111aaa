"""dllm_fast beside what else one could use on a processor: torch and llama.cpp, on the same weights and shapes, in one run.

    python benchmarks/rivals.py --part kernels|steps|generation|methods [--family llada|dream] [--layers 4 | --model FOLDER]
    python benchmarks/rivals.py --verify

kernels     matrix products and attention against torch's, and against what the machine could do
steps       one uncached step: torch in bfloat16 and float32 as the official code does it, without its waste, and llama.cpp
generation  the whole uncached answer, one token a step: --prompt 512 --answer 128
methods     each caching method against the same method in plain torch, and against torch without one: --prompt 1024 --answer 256

Contestants take turns at every step, so that whatever else the machine does hits all of them alike. A generation is not run to its
end unless --whole says so: its steps are of a few kinds (dense, cached, refresh, ...), as many of each as the schedule says, and
the median of those timed stands for all of a kind. Uncached steps are timed here and there over the whole schedule; caching
methods, whose steps lean on each other, from the start until every kind occurred, and for at least --steps.

--verify runs the torch methods and ours to the end on the small models that come with the package, in float32, and compares the
ids. llama.cpp takes part if llama-cpp-python is installed. Numbers go to benchmarks/results/rivals-PART-FAMILY-DATE.md, .json and,
with matplotlib, .png.
"""

import argparse
import collections
import gc
import importlib.util
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rival_kernels
import torch
from make_model import make
from rival_report import report
from runs import OURS, SHAPES, Request, Runner, enough, our_runner, papers_setting, rest, uncached
from step import HERE, Contestant, our_model, timed, torch_contestants, torch_model
from step import ours as our_contestant
from torch_llada import read_folder
from torch_methods import plain

import dllm_fast
from dllm_fast import DLLMCache, DyLLM, SparseDLLM

VERIFIED = (
    None, DLLMCache(5, 3, 0.25), DLLMCache(4, 7, 0.0), SparseDLLM(0.5, 3, "own"), SparseDLLM(0.3, 5, "own"),
    DyLLM(0.95, 2, 3, shift="flat"), DyLLM(0.99, shift="flat"),
)  # fmt: skip


def torch_runner(
    name: str, rival: Any, model: Any, predict: Any, request: Request, kind: Callable[[int], str], device: str = "cpu"
) -> Runner:
    """rival: the module whose loop runs; model: its model or one with a cache, on this device of torch's."""
    computed = True

    def either(model: Any, x: torch.Tensor, *end: int) -> Any:
        if computed:
            return predict(model, x, *end)
        at = torch.arange(x.shape[1], device=x.device)
        if not end:  # Dream's: the masks alone
            return torch.zeros_like(x[x == model.mask_id]), -at[: int((x == model.mask_id).sum())].float()
        return torch.zeros_like(x), torch.where((x == model.mask_id) & (at < end[0]), -at.float(), -torch.inf)

    prompts = torch.from_numpy(request.prompts).long().to(device)
    steps = rival.denoise(model, prompts, predict=either, **request.for_torch())

    def one() -> None:
        next(steps)
        if prompts.is_cuda:
            torch.cuda.synchronize(prompts.device)

    @torch.inference_mode()
    def step(wanted: bool) -> float:
        nonlocal computed
        computed = wanted
        return timed(one)[0]

    return Runner(name, kind, step, model)


def sampled(args: argparse.Namespace) -> list[int]:
    """Uncached steps to time, after the first, which warms up: all of them, or some at all distances from their blocks' starts."""
    later = args.answer - 1
    if args.whole:
        return list(range(1, args.answer))
    return sorted({1 + int(later * ((0.5 + j * 0.6180339887) % 1)) for j in range(min(args.samples, later))})


# ---- the parts -------------------------------------------------------------------------------------------------------------------


class Field:
    """The models of a run, each loaded once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        cache = pathlib.Path(args.cache or pathlib.Path(tempfile.gettempdir()) / "dllm_fast-benchmarks")
        self.folder = args.model or make(cache / f"{args.family}-{args.layers}", args.family, args.layers)
        config, tensors = read_folder(self.folder)
        self.model = our_model(config, tensors, "cpu", args.threads)
        self.rival, self.bf16 = torch_model(args.family, config, tensors)

    def request(self, cache: Any = None) -> Request:
        return Request(self.args, self.model.config["mask_id"], cache)

    def f32(self) -> Any:
        return torch_model(self.args.family, *read_folder(self.folder, torch.float32))[1]

    def others(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, model, how it predicts) of everybody who runs the official loop without a cache."""
        yield "torch bf16", self.bf16, self.rival.predict_all
        yield "torch bf16, head on candidates", self.bf16, self.rival.predict_candidates
        if "torch f32" not in self.args.without:
            yield "torch f32", self.f32(), self.rival.predict_all
        if importlib.util.find_spec("llama_cpp") and "llama.cpp" not in self.args.without:
            from rival_llama_cpp import LlamaCpp

            most = self.args.prompt + max(self.args.answer, 128)
            yield "llama.cpp bf16", LlamaCpp(self.folder, self.bf16, most, self.args.threads), self.rival.predict_candidates


def steps_part(field: Field) -> Iterator[dict[str, Any]]:
    """One uncached step, again and again."""
    args = field.args
    [prompt] = field.request().prompts
    contestants = [our_contestant(field.model, prompt, args.family)]
    for name, model, predict in field.others():
        official, candidates = torch_contestants(field.rival, model, prompt, args.family)
        chosen = official if predict is field.rival.predict_all else candidates
        contestants.append(Contestant(name, chosen.step))
    gc.collect()
    for turn in range(args.repeats + 1):
        for c in contestants:
            rest()
            seconds, c.tokens = c.step()
            if turn:  # the first turn touches the weights
                c.seconds.append(seconds)
    seen = contestants[0].tokens >= 0
    for c in contestants:
        same = float((c.tokens == contestants[0].tokens)[seen].mean())
        yield {"name": c.name, "step": statistics.median(c.seconds), "fastest": min(c.seconds), "same_tokens": same}


def generation_part(field: Field) -> Iterator[dict[str, Any]]:
    """A whole uncached answer."""
    args, request = field.args, field.request()
    runners = [our_runner(field.model, request, uncached)]
    for name, model, predict in field.others():
        runners.append(torch_runner(name, field.rival, model, predict, request, uncached))
    gc.collect()
    warm(runners)
    for i in sampled(args):
        for r in runners:
            r.run(i)
    for r in runners:
        total = r.total(request.answer)
        yield {"name": r.name, "seconds": total, "step": total / request.answer, "timed_steps": len(r.seconds["uncached"])}


def warm(runners: Sequence[Runner]) -> None:
    """Everybody's first step, not counted: it touches the weights."""
    for r in runners:
        r.run(0)
        r.seconds.clear()


def methods_part(field: Field) -> Iterator[dict[str, Any]]:
    """Every caching method, ours and torch's, beside both without one."""
    args = field.args
    for name in args.methods:
        request = field.request(papers_setting(name, args.family))
        cached = plain(request.cache, field.bf16, args.prompt, args.answer, args.block)
        predict = field.rival.predict_all
        both = [
            our_runner(field.model, request, cached.kind),
            torch_runner("torch, the same method", field.rival, cached, predict, request, cached.kind),
        ]
        without = [
            our_runner(field.model, field.request(), uncached),
            torch_runner("torch, uncached", field.rival, field.bf16, predict, field.request(), uncached),
        ]
        without[0].name += ", uncached"
        warm(without)
        steps = args.answer if args.whole else enough(cached.kind, args.steps, args.answer)
        others = sampled(args)
        for i in range(steps):
            for r in both:
                r.run(i)
            while others and others[0] * steps < (i + 1) * args.answer:
                for r in without:
                    r.run(others[0])
                others.pop(0)
        yield summary(request, both, without, steps, field.model.config["layers"])


def summary(request: Request, both: list[Runner], without: list[Runner], timed_steps: int, layers: int) -> dict[str, Any]:
    total = {r.name: r.total(request.answer) for r in both + without}
    rows = {
        OURS: both[0].about.stats()["rows_ffn"] / timed_steps / layers,
        "torch": both[1].about.fresh_rows / timed_steps / layers,
    }
    kinds = collections.Counter(map(both[0].kind, range(request.answer)))
    return {
        "method": request.cache.name, "setting": repr(request.cache), "seconds": total, "timed_steps": timed_steps, "kinds": kinds,
        "median_step": {r.name: {k: statistics.median(s) for k, s in r.seconds.items()} for r in both + without}, "ffn_rows": rows,
    }  # fmt: skip


# ---- are they the same? ----------------------------------------------------------------------------------------------------------


def verify(folder: pathlib.Path, family: str, cache: Any, prompt: np.ndarray, answer: int = 24, block: int = 8) -> bool:
    """Does the torch method give the ids that dllm_fast gives, in float32?

    Dream in half as many steps: at one token a step its schedule begins a block with none, and after a step that changed nothing
    dLLM-Cache chooses between values that are equal but for rounding.
    """
    model = dllm_fast.load(folder, dtype="float32", device="cpu", threads=1)
    rival, plain_model = torch_model(family, *read_folder(folder, torch.float32))
    length = {"gen_length" if family == "llada" else "max_new_tokens": answer}
    each = 1 if family == "llada" else 2
    options = {"steps": answer // each, "block_length": block, **length}
    theirs = plain(cache, plain_model, len(prompt), answer, block, block // each) if cache else plain_model
    ids = rival.generate(theirs, torch.from_numpy(prompt).long()[None], **options).numpy()
    if family == "llada":
        return bool((model.generate(prompt[None], cache=cache, **options) == ids).all())
    return bool((model.diffusion_generate(prompt[None], cache=cache, alg="entropy", **options) == ids).all())


def verify_all() -> int:
    """On the models of the package. Returns how many settings failed."""
    torch.set_num_threads(1)  # they are tiny
    failed = 0
    for family in SHAPES:
        folder = pathlib.Path(dllm_fast.__file__).parent / "data" / f"{family}-tiny"
        for cache in VERIFIED:
            prompts = np.random.default_rng(0).integers(0, 26, (4, 21))
            same = sum(verify(folder, family, cache, prompt) for prompt in prompts)
            print(f"{family}, {cache or 'uncached'}: {same} of {len(prompts)} prompts give the same ids")
            failed += same < len(prompts)
    return failed


# ---- the command line ------------------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def shapes(text: str) -> list[tuple[int, int]]:
    return [(int(n), int(k)) for n, k in (s.split("x") for s in text.split(",") if s)]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", choices=("kernels", "steps", "generation", "methods"))
    p.add_argument("--verify", action="store_true", help="compare ids in place of times")
    p.add_argument("--family", choices=tuple(SHAPES), default="llada")
    p.add_argument("--layers", type=int, default=4, help="of the random model that is made")
    p.add_argument("--model", type=pathlib.Path, help="a checkpoint folder of the family, in place of the random model")
    p.add_argument("--prompt", type=int, help="tokens; default 1024 for methods, 384 for steps, else 512")
    p.add_argument("--answer", type=int, help="tokens; default 256 for methods, else 128")
    p.add_argument("--block", type=int, default=32)
    p.add_argument("--methods", type=lambda s: s.split(","), default=["dllm-cache", "sparse-dllm", "dyllm"])
    p.add_argument("--steps", type=int, default=64, help="methods: so many first steps are run, or more until every kind occurred")
    p.add_argument("--samples", type=int, default=8, help="uncached steps that are timed, of a whole answer")
    p.add_argument("--whole", action="store_true", help="run every step of every contestant")
    p.add_argument("--repeats", type=int, default=7, help="turns, in kernels and steps")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--without", type=lambda s: s.split(","), default=[], help='contestants to leave out: "torch f32,llama.cpp"')
    p.add_argument(
        "--shapes", type=shapes, default=shapes("4096x4096,12288x4096,4096x12288,126464x4096"), help="kernels: of weights"
    )
    p.add_argument("--rows", type=numbers, default=numbers("1,2,4,8,16,32,64,128,512"), help="kernels: of the other factor")
    p.add_argument("--queries", type=numbers, default=numbers("8,32,64,128"), help="kernels: of attention")
    p.add_argument("--keys", type=numbers, default=numbers("1024,4096"), help="kernels: of attention")
    p.add_argument("--cache", help="where the random model is kept; default: the system's temporary directory")
    p.add_argument("--results", default=str(HERE / "results"), help="where the numbers go; '' for nowhere")
    args = p.parse_args(given)
    if not args.verify and not args.part:
        p.error("--part kernels|steps|generation|methods, or --verify, expected")
    args.prompt = args.prompt or {"methods": 1024, "steps": 384}.get(args.part, 512)
    args.answer = args.answer or (256 if args.part == "methods" else 128)
    return args


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    if args.verify:
        return verify_all()
    torch.set_num_threads(args.threads)
    if args.part == "kernels":
        report(args, *rival_kernels.measure(args))
        return 0
    part = {"steps": steps_part, "generation": generation_part, "methods": methods_part}[args.part]
    report(args, list(part(Field(args))), {})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
