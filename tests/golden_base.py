"""The base family: forward passes, LLaDA's generate, Dream's diffusion_generate and the likelihoods of uncached models."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import golden_pieces
import numpy as np
from golden_case import CONFIDENCE, TENSOR, Case, Check, Folder

FORWARD_ARRAYS = {"input_ids", "attention_mask", "position_ids", "logits", "hidden_states"}
FORWARD_KEYS = {
    "name", "model", "dtype", "arrays", "logits_dtype", "finite", "note", "logit_positions",
    "max_abs_diff_vs_f32", "max_abs_diff_vs_f32_nonpad", "rms_bf16_vs_f32", "max_abs_diff_vs_padded_row",
}  # fmt: skip
RUN_KEYS = {
    "name", "model", "dtype", "args", "arrays", "forwards", "note", "expect", "min_logit_gap_of_taken_tokens",
    "min_relative_confidence_gap_at_selection", "min_relative_gap_at_selection", "selection_ties", "mask_token_predicted",
    "masks_left_in_output",
}  # fmt: skip
LLADA_ARRAYS = {"prompt", "attention_mask", "output", "states", "x0", "confidence", "token_noise", "remask_noise"}
LLADA_ARGS = {
    "steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking", "logits_eos_inf", "confidence_eos_eot_inf",
}  # fmt: skip
DREAM_ARRAYS = {"input_ids", "attention_mask", "initial", "history", "sequences", "x0", "confidence", "transfer_counts"}
DREAM_ARGS = {
    "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "steps", "eps", "alg", "alg_temp", "num_return_sequences",
}  # fmt: skip
IMPLICIT = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}  # what transformers 4.x puts where a call passes nothing
LOGLIK_KEYS = {
    "name", "model", "dtype", "kind", "mc_num", "batch_size", "cfg_scale", "log_type", "nll_type", "arrays", "note", "prefix",
    "target", "result", "result_nll", "result_greedy", "result_other",
}  # fmt: skip
TOP_KEYS = {
    "about", "versions", "ids", "id_substitution", "models", "forward", "llada_generate", "dream_generate", "loglik", "pieces",
    "llada_generate_errors", "dream_api_facts", "llada_forward_process_table", "num_transfer_tokens_table", "dream_transfer_table",
    "conventions",
}  # fmt: skip
CONVENTIONS = {"logits", "bf16", "llada x0", "dream origin", "loglik", "expect"}


def widen(x: Any) -> np.ndarray:
    """As float32; bfloat16 arrives as its bits."""
    x = np.asarray(x)
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    yield Case("manifest", "manifest", functools.partial(manifest, man))
    runners = {"forward": forward, "llada_generate": llada_generate, "dream_generate": dream_generate, "loglik": loglik}
    for family, run in runners.items():
        for case in man.get(family, []):
            informational = family != "forward" and case.get("dtype") == "bfloat16"
            yield Case(family, case["name"], functools.partial(run, folder, case), informational)
    for name, info in man.get("models", {}).items():
        yield Case("loading", name, functools.partial(loading, folder, name, info))
    yield from golden_pieces.collect(folder)


def manifest(man: Mapping[str, Any], check: Check) -> None:
    check.known("manifest keys", man, TOP_KEYS)
    check.known("conventions", man.get("conventions", {}), CONVENTIONS)
    check.done += 1


# ---- forward ------------------------------------------------------------------------------------------------------------------


def hidden_states(model: Any, ids: np.ndarray) -> np.ndarray:
    """[layers + 1, B, L, dim] of unpadded ids."""
    from dllm_fast import _core

    session = _core.Session(model.core, {"answer_len": 0}, [np.ascontiguousarray(row, np.int32) for row in ids])
    hidden = widen(session.hidden())
    return hidden.reshape(hidden.shape[0], *ids.shape, hidden.shape[-1])


def forward(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = folder.arrays("forward.npz", case["name"])
    check.known("setting", case, FORWARD_KEYS)
    check.known("array", {*a, *case["arrays"]}, FORWARD_ARRAYS)
    model, ids, mask = folder.model(case["model"], case["dtype"]), a["input_ids"], a.get("attention_mask")
    logits = widen(model.forward(ids, attention_mask=mask, position_ids=a.get("position_ids")))
    keep = np.ones(ids.shape, bool) if mask is None else mask != 0
    if "logit_positions" in case:
        logits, keep = logits[:, case["logit_positions"]], keep[:, case["logit_positions"]]
    check.same("logits shape", logits.shape, a["logits"].shape)
    if case.get("finite"):
        check.same("finite logits", np.isfinite(logits[keep]).all(), True)
    if "rms_bf16_vs_f32" in case:
        rms = float(np.sqrt(np.mean((logits - a["logits"])[keep].astype(np.float64) ** 2)))
        check.close("rms to the recorded bf16 logits", rms, 0.0, 0.5 * case["rms_bf16_vs_f32"])
    elif case["dtype"] == "float32":
        check.close("logits", logits, a["logits"], TENSOR, keep[..., None])
    else:
        check.note(f"dtype {case['dtype']} without rms_bf16_vs_f32 is not understood")
    if "hidden_states" in a:
        if mask is not None or "position_ids" in a:
            check.note("hidden_states of a padded or moved sequence are not understood")
        check.close("hidden_states", hidden_states(model, ids), a["hidden_states"], TENSOR)


# ---- generate -----------------------------------------------------------------------------------------------------------------


class Recorder:
    """A callback that copies what every step shows."""

    def __init__(self) -> None:
        self.index, self.ids, self.tokens, self.confidence, self.committed = [], [], [], [], []

    def __call__(self, step: Any) -> None:
        self.index.append(int(step.index))
        self.ids.append(np.array(step.sequences))
        self.tokens.append(np.array(step.tokens))
        self.confidence.append(np.array(step.confidence))
        self.committed.append([len(row) for row in step.committed])


class Replay:
    """Recorded random numbers in call order; what is asked must have the recorded shape, and all must be asked for.

    An empty draw may be left out by either side."""

    def __init__(self, uniform: list[np.ndarray], exponential: list[np.ndarray]) -> None:
        self.left = {"uniform": list(uniform), "exponential": list(exponential)}

    def _next(self, kind: str, shape: Any) -> np.ndarray:
        shape, left = tuple(int(n) for n in shape), self.left[kind]
        while left and left[0].size == 0 and 0 not in shape:
            left.pop(0)
        if 0 in shape and not (left and left[0].shape == shape):
            return np.empty(shape, np.float32)
        if not left or left[0].shape != shape:
            raise AssertionError(f"{kind} noise of shape {shape} asked for, recorded {left[0].shape if left else 'no more'}")
        return left.pop(0)

    def uniform(self, shape: Any, dtype: Any) -> np.ndarray:
        x = self._next("uniform", shape)
        if x.size and x.dtype != np.dtype(dtype):
            raise AssertionError(f"uniform noise of {np.dtype(dtype)} asked for, recorded {x.dtype}")
        return x

    def exponential(self, shape: Any) -> np.ndarray:
        return self._next("exponential", shape)

    def finish(self, check: Check) -> None:
        for kind, left in self.left.items():
            check.same(f"{kind} draws left over", sum(x.size > 0 for x in left), 0)


def steps_agree(check: Check, r: Recorder, x0: np.ndarray, confidence: np.ndarray, where: np.ndarray, scored: bool = True) -> None:
    """Tokens and confidences of every step, wherever they are defined. scored: every such token has a recorded confidence."""
    for i in range(min(len(r.ids), len(x0))):
        check.same(f"x0 of forward {i}", r.tokens[i], x0[i], where[i])
        if scored:
            check.close(f"confidence of forward {i}", r.confidence[i], confidence[i], CONFIDENCE, where[i])
    if not scored:
        check.same("recorded confidences", np.isnan(confidence).all(), True)


def llada_generate(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    import dllm_fast

    a = folder.arrays("llada_generate.npz", case["name"])
    check.known("setting", case, RUN_KEYS)
    check.known("array", {*a, *case["arrays"]}, LLADA_ARRAYS)
    check.known("argument", case["args"], LLADA_ARGS)
    if "expect" in case:
        check.note(f"expect {case['expect']} is not understood")
    draws = [x for pair in zip(*(a[k] for k in ("token_noise", "remask_noise") if k in a), strict=True) for x in pair]
    noise = Replay(draws, []) if draws else None
    ids, r = folder.manifest["ids"], Recorder()
    out = dllm_fast.generate(
        folder.model(case["model"], case["dtype"]), a["prompt"], attention_mask=a.get("attention_mask"), mask_id=ids["mask"],
        eos_id=ids["eos"], eot_id=ids["eot"], noise=noise, callback=r, return_dict=True, output_history=True, **case["args"],
    )  # fmt: skip
    states = a["states"]
    check.same("forwards", len(r.ids), case["forwards"])
    check.same("step numbers", r.index, list(range(case["forwards"])))
    for i in range(min(len(r.ids), len(states) - 1)):
        check.same(f"ids after forward {i}", r.ids[i], states[i + 1])
    check.same("history", np.array(out.history), states[1:])
    check.same("output", out.sequences, a["output"])
    check.same("masks left", int((np.asarray(out.sequences) == ids["mask"]).sum()), case["masks_left_in_output"])
    steps_agree(check, r, a["x0"], a["confidence"], np.isfinite(a["confidence"]))
    if noise:
        noise.finish(check)


def dream_noise(a: Mapping[str, np.ndarray]) -> Replay | None:
    ordered = [[a[f"{kind}_{i}"] for i in range(sum(k.startswith(kind + "_") for k in a))] for kind in ("rand", "q")]
    return Replay(*ordered) if any(ordered) else None


def dream_generate(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = folder.arrays("dream_generate.npz", case["name"])
    check.known("setting", case, RUN_KEYS | {"token_hook_steps", "logits_hook"})
    check.known("array", {k for k in a if not k.startswith(("rand_", "q_"))}, DREAM_ARRAYS)
    check.known("array", case["arrays"], DREAM_ARRAYS | {"rand", "exponential_noise_in_call_order"})
    check.known("argument", case["args"], DREAM_ARGS)
    check.known("expect", {case.get("expect")} - {None}, {"upstream_bug", "drop_in_only"})
    args = {**(IMPLICIT if case.get("expect") == "drop_in_only" else {}), **case["args"]}
    args.update(output_history=True, return_dict_in_generate=True)
    if "logits_hook" in case:
        args["generation_logits_hook_func"] = column_hook(check, case["logits_hook"])
    run = functools.partial(folder.model(case["model"], case["dtype"]).diffusion_generate, **args)
    if case.get("expect") == "upstream_bug":
        return uneven_rows(check, run, a)

    r, noise, alg = Recorder(), dream_noise(a), args.get("alg", "origin")
    out = run(a["input_ids"], attention_mask=a.get("attention_mask"), noise=noise, callback=r)
    check.same("forwards", len(r.ids), case["forwards"])
    check.same("step numbers", r.index, list(range(case["forwards"])))
    for i in range(min(len(r.ids), len(a["history"]))):
        check.same(f"ids after forward {i}", r.ids[i], a["history"][i])
        revealed_as_recorded(check, i, sum(r.committed[i]), a, alg)
    check.same("history", np.array(out.history), a["history"])
    check.same("sequences", out.sequences, a["sequences"])
    mask_id = folder.manifest["ids"]["mask"]
    check.same("masks left", int((np.asarray(out.sequences) == mask_id).sum()), case["masks_left_in_output"])
    candidate = np.stack([a["initial"], *a["history"]])[:-1] == mask_id
    check.same("recorded x0 is where the masks are", a["x0"] != -1, candidate)
    steps_agree(check, r, a["x0"], a["confidence"], candidate, scored=alg != "origin")
    if noise:
        noise.finish(check)
    dream_hooks(check, run, a, case["token_hook_steps"])


def revealed_as_recorded(check: Check, i: int, mine: int, a: Mapping[str, np.ndarray], alg: str) -> None:
    """The recorded count is of the rows that the schedule took, a row each; a taken row may stay masked, if that is its token."""
    taken = int(a["transfer_counts"][i]) * (1 if alg == "origin" else len(a["input_ids"]))
    changed = int((np.stack([a["initial"], *a["history"]])[i] != a["history"][i]).sum())
    check.same(f"rows revealed by forward {i}", mine, changed if mine == changed else taken)


def dream_hooks(check: Check, run: Any, a: Mapping[str, np.ndarray], steps: list[int | None]) -> None:
    """The same run with a token hook sees the recorded steps and ids, and gives the recorded sequences."""
    seen: list[tuple[int | None, np.ndarray]] = []

    def hook(step: int | None, x: Any, logits: Any) -> Any:
        seen.append((step, np.array(x)))
        return x

    out = run(a["input_ids"], attention_mask=a.get("attention_mask"), noise=dream_noise(a), generation_tokens_hook_func=hook)
    check.same("token hook steps", [str(s) for s, _ in seen], [str(s) for s in steps])
    check.same("ids at the token hook", np.array([x for _, x in seen]), np.stack([a["initial"], *a["history"]]))
    check.same("sequences with a token hook", out.sequences, a["sequences"])


def column_hook(check: Check, what: Mapping[str, Any]) -> Any:
    check.known("logits_hook", what, {"column", "value"})

    def hook(step: int, x: Any, logits: Any) -> Any:
        logits[..., what["column"]] = what["value"]
        return logits

    return hook


def uneven_rows(check: Check, run: Any, a: Mapping[str, np.ndarray]) -> None:
    """The original counts by the mean over the batch, so that one row overwrites what another needs. Here a row counts its own
    masks: every row gives, step for step, what it gives alone. The recording is followed where it is defined: as long as a
    row's ids are the recorded ones, its tokens and confidences are."""
    if any(k.startswith(("rand_", "q_")) for k in a):
        return check.note("upstream_bug with recorded noise is not understood")
    mask, together = a.get("attention_mask"), Recorder()
    out = run(a["input_ids"], attention_mask=mask, callback=together)
    for b in range(len(a["input_ids"])):
        row, alone = slice(b, b + 1), Recorder()
        one = run(a["input_ids"][row], attention_mask=None if mask is None else mask[row], callback=alone)
        check.same(f"row {b} alone", out.sequences[row], one.sequences)
        check.same(f"row {b} alone, after every forward", np.array(together.ids)[:, row], np.array(alone.ids))
    fed = np.stack([a["initial"], *together.ids])[:-1]
    recorded = np.stack([a["initial"], *a["history"]])[:-1]
    same_ids = (fed == recorded).all(-1, keepdims=True)
    check.same("rows that follow the recording at first", same_ids[0].all(), True)
    steps_agree(check, together, a["x0"], a["confidence"], (a["x0"] != -1) & same_ids)


# ---- likelihood ---------------------------------------------------------------------------------------------------------------


def loglik(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = folder.arrays("loglik.npz", case["name"])
    check.known("setting", case, LOGLIK_KEYS)
    kinds = {
        "llada get_log_likelihood": llada_mc, "eval_llada suffix_greedy_prediction": llada_greedy,
        "Dream _eval_target_nll_mc": dream_mc, "Dream _eval_target_nll_ar (deterministic)": dream_ar,
    }  # fmt: skip
    if case["kind"] not in kinds:
        return check.note(f"kind {case['kind']!r} is not understood")
    kinds[case["kind"]](check, folder.model(case["model"], case.get("dtype", "float32")), case, a, folder.manifest["ids"]["mask"])


def likelihood(*args: Any, **kwargs: Any) -> float:
    import dllm_fast

    return float(np.asarray(dllm_fast.log_likelihood(*args, **kwargs)).reshape(()))


def llada_mc(check: Check, model: Any, case: Mapping[str, Any], a: Mapping[str, np.ndarray], mask_id: int) -> None:
    check.known("array", a, {"prompt", "answer", "noisy", "p_mask", "loss", "k"})
    b, common = case["batch_size"], {"batch_size": case["batch_size"], "cfg_scale": case["cfg_scale"], "mask_id": mask_id}
    masks = list(zip(a["noisy"], a["p_mask"], strict=True))
    mine = likelihood(model, a["prompt"], a["answer"], mc_num=case["mc_num"], masks=masks, **common)
    check.close("result", mine, case["result"], TENSOR, relative=1)
    losses = [-likelihood(model, a["prompt"], a["answer"], mc_num=b, masks=[m], **common) for m in masks]
    check.close("loss of every iteration", losses, a["loss"], TENSOR, relative=1)
    n, p = len(a["answer"]), len(a["prompt"])
    for noisy, p_mask, k in zip(a["noisy"], a["p_mask"], a["k"], strict=True):
        counts = golden_pieces.mask_counts(n, b, int(k))
        check.same("masked answer tokens", (noisy[:, p:] == mask_id).sum(1), counts)
        check.close("p_mask", p_mask, np.repeat(np.divide(counts, n)[:, None], noisy.shape[1], 1), 1e-7)


def llada_greedy(check: Check, model: Any, case: Mapping[str, Any], a: Mapping[str, np.ndarray], mask_id: int) -> None:
    """Greedy unmasking is generate() with one block and one token a step."""
    import dllm_fast
    from dllm_fast import likelihood as package

    check.known("array", a, {"prefix", "states", "target_greedy", "target_other"})
    n, r = len(a["target_greedy"]), Recorder()
    settings = {"steps": n, "gen_length": n, "block_length": n, "cfg_scale": case["cfg_scale"], "mask_id": mask_id}
    out = np.asarray(dllm_fast.generate(model, a["prefix"][None], callback=r, **settings))[0, -n:]
    states = np.concatenate([np.concatenate([a["prefix"], np.full(n, mask_id)])[None], *r.ids])
    check.same("states", states, a["states"])
    for name in ("greedy", "other"):
        target, expected = a[f"target_{name}"], case[f"result_{name}"]
        check.same(f"result_{name}", bool((out == target).all()), expected)
        check.same(
            f"suffix_greedy, {name}", package.suffix_greedy(model, a["prefix"], target, case["cfg_scale"], mask_id), expected
        )


def dream_mc(check: Check, model: Any, case: Mapping[str, Any], a: Mapping[str, np.ndarray], mask_id: int) -> None:
    check.known("array", a, {"prefix", "target", "noisy_full", "p_mask", "model_input"})
    args = {k: case[k] for k in ("mc_num", "batch_size", "log_type")}
    masks = list(zip(a["model_input"], a["p_mask"], strict=True))
    mine = -likelihood(model, a["prefix"], a["target"], nll_type="mc", masks=masks, mask_id=mask_id, **args)
    # of a union, log_likelihood is the mean over all tokens, and the recorded number the sum
    total = len(a["prefix"]) + len(a["target"]) if case["log_type"] == "union" else 1
    check.close("nll", mine * total, case["result_nll"], TENSOR, relative=1)


def dream_ar(check: Check, model: Any, case: Mapping[str, Any], a: Mapping[str, np.ndarray], mask_id: int) -> None:
    check.known("array", a, ())
    prefix, target = np.array(case["prefix"], np.int32), np.array(case["target"], np.int32)
    mine = -likelihood(model, prefix, target, nll_type=case["nll_type"], log_type=case["log_type"], mask_id=mask_id)
    check.close("nll", mine, case["result_nll"], TENSOR, relative=1)


# ---- loading ------------------------------------------------------------------------------------------------------------------


def loading(folder: Folder, name: str, info: Mapping[str, Any], check: Check) -> None:
    """All weights are found, in as many bytes as the tensors have, and a sharded twin computes the same."""
    check.known("model", info, {"family", "dtype", "shards", "tensors", "note"})
    model = folder.model(name)
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[info["dtype"]]
    check.same("bytes of all weights", model.core.nbytes, size * sum(int(np.prod(shape)) for shape in info["tensors"].values()))
    check.same("family", model.core.config["family"], info["family"])
    ids = np.arange(40, dtype=np.int32)[None] * 7 % 300
    for twin in folder.manifest["models"]:
        if name.startswith(twin + "_") and "shard" in name:
            check.same(f"logits = {twin}", model.forward(ids), folder.model(twin).forward(ids))
