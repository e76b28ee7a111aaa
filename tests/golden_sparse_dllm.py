"""The Sparse-dLLM family: tokens of every forward, what a block's rows looked at, and what every layer kept."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from golden_case import CONFIDENCE, TENSOR, Case, Check, Folder
from golden_state import Arrays, Watch, read_arrays, scores_along, scores_of

TOP_KEYS = {
    "format", "method", "upstream", "torch", "transformers", "numpy", "dtype", "device", "threads", "mask_id", "vocab",
    "weight_seed", "shims", "cases",
}  # fmt: skip
CASE_KEYS = {
    "name", "family", "prompt_len", "gen_length", "block_length", "steps", "keep_ratio", "kernel_size", "note", "batch", "model",
    "file", "temperature", "prompt_seed", "num_blocks", "steps_per_block", "n_candidates", "keep_num", "prompt", "final",
    "min_confidence_gap", "min_argmax_gap", "leftover_masks", "remasking", "transfers", "boundary_ties", "boundary_sets",
    "min_importance_gap", "lowest_index_kept_same", "lowest_index_tokens_same", "tokens_differing_from", "stable_final", "alg",
    "eps", "alg_temp", "top_p", "top_k", "fixed_final", "fixed_note", "prompt_masks",
}  # fmt: skip
ARRAYS = {
    "prompt", "final", "trace", "cache_state", "block_start", "kept", "importance", "importance_pooled", "stable_final",
    "stable_trace", "stable_kept", "stable_importance", "fixed_final", "fixed_trace", "fixed_kept", "block0_logits",
}  # fmt: skip
CHANGES = {"vanilla_full_forward": None, "keep_ratio_1": {"keep_ratio": 1.0}, "kernel_1": {"kernel_size": 1}}
SCHEDULE = "dream_schedule.json"
DENSE, BUILD, SPARSE = range(3)


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    yield Case(folder.family, "manifest", functools.partial(manifest, man))
    for case in man["cases"]:
        yield Case(folder.family, case["name"], functools.partial(run, folder, case))
    if (folder.path / SCHEDULE).exists():
        for table in json.loads((folder.path / SCHEDULE).read_text(encoding="utf-8"))["schedules"]:
            yield Case(folder.family, f"schedule_{table['steps_per_block']}", functools.partial(schedule, folder, table))


def manifest(man: Mapping[str, Any], check: Check) -> None:
    check.known("manifest keys", man, TOP_KEYS)
    check.same("format", man["format"], 1)


def run(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = read_arrays(folder, case["file"])
    check.known("setting", case, CASE_KEYS)
    check.known("array", a, ARRAYS)
    check.known("variant", case["tokens_differing_from"], CHANGES)
    for name in ("prompt", "final", "stable_final", "fixed_final"):
        if name in case:
            check.same(f"{name} of the manifest", a[name], case[name])
    check.same(
        "sizes",
        [*a["prompt"].shape, a["final"].shape[1]],
        [case["batch"], case["prompt_len"], case["prompt_len"] + case["gen_length"]],
    )
    check.same(
        "blocks",
        [case["num_blocks"] * n for n in (case["block_length"], case["steps_per_block"])],
        [case["gen_length"], case["steps"]],
    )
    masks = [np.flatnonzero(row == folder.manifest["mask_id"]).tolist() for row in a["prompt"]]
    check.same("prompt_masks", masks, [case.get("prompt_masks", [])] * case["batch"])
    # ties go to the lowest row, and a row's set is its own: where upstream has it otherwise, a second run is recorded
    which = "fixed_" if case["batch"] > 1 else "" if case.get("lowest_index_kept_same", True) else "stable_"
    watch = Watch()
    final = generate(folder, case, a["prompt"], watch)
    tokens(folder, case, a, check, watch, which)
    check.same("final ids", final, a[which + "final"])
    states(folder, case, a, check, which)
    selections(case, a, check, watch, which)
    if which == "":
        differing(folder, case, a, check, final)
    else:
        raw_at_first(case, a, check, watch, which)
    if which == "fixed_":
        rows_alone(folder, case, a, check, watch)
    if "block0_logits" in a:
        first_logits(folder, case, a, check)


# ---- the run -------------------------------------------------------------------------------------------------------------------


def cache_of(case: Mapping[str, Any], **change: Any) -> Any:
    import dllm_fast

    return dllm_fast.SparseDLLM(**{"keep_ratio": case["keep_ratio"], "kernel_size": case["kernel_size"], "shift": "own"} | change)


def generate(
    folder: Folder, case: Mapping[str, Any], prompt: np.ndarray, callback: Any = None, change: Mapping[str, Any] | None = {}
) -> Any:
    """The case by the official call with the method's own rule. change: other options; None: no cache."""
    import dllm_fast

    model, mask_id = folder.model(case["model"]), folder.manifest["mask_id"]
    shared = {
        "steps": case["steps"], "block_length": case["block_length"], "temperature": case["temperature"], "rule": "sparse-dllm",
        "cache": None if change is None else cache_of(case, **change), "callback": callback,
    }  # fmt: skip
    if case["family"] == "llada":
        return dllm_fast.generate(
            model, prompt, gen_length=case["gen_length"], remasking=case["remasking"], mask_id=mask_id, **shared
        )
    settings = {k: case[k] for k in ("alg", "eps", "alg_temp", "top_p", "top_k")}
    return model.diffusion_generate(prompt, max_new_tokens=case["gen_length"], mask_token_id=mask_id, **settings, **shared)


def session_arguments(folder: Folder, case: Mapping[str, Any], prompt: np.ndarray) -> dict[str, Any]:
    """The same run as a session of the core takes it."""
    params = {"answer_len": case["gen_length"], "mask_id": folder.manifest["mask_id"], **cache_of(case).params()}
    params |= {"block_len": case["block_length"], "steps": case["steps"], "temperature": case["temperature"]}
    if case["family"] == "dream":
        scores = {"entropy": "entropy", "maskgit_plus": "prob", "topk_margin": "margin"}
        params |= {
            "rule": "first",
            "score": scores[case["alg"]],
            "eps": case["eps"],
            "top_p": case["top_p"],
            "top_k": case["top_k"],
        }
    return {"params": params, "prompts": [row.astype(np.int32) for row in prompt]}


# ---- comparing -----------------------------------------------------------------------------------------------------------------


def tokens(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, watch: Watch, which: str) -> None:
    """Ids after every forward, how many it wrote, and that it looked for candidates where its block is."""
    trace, mask_id, b = a[which + "trace"], folder.manifest["mask_id"], case["block_length"]
    check.same("forwards", len(watch.steps), case["steps"])
    before, moved = a["prompt"], []
    before = np.concatenate([before, np.full((len(before), case["gen_length"]), mask_id)], 1)
    for i, mine in enumerate(watch.steps[: len(trace)]):
        check.same(f"ids after forward {i}", mine["ids"], trace[i])
        moved.append(int((mine["ids"] != before).sum()))
        start, columns = a["block_start"][i], np.arange(before.shape[1])
        where = (before == mask_id) & (columns < start + b)
        if case["family"] == "dream" or a["cache_state"][i] == SPARSE:
            where &= columns >= start
        if case["family"] == "dream" and a["cache_state"][i] == DENSE:
            where &= columns == start
        check.same(f"candidates of forward {i}", mine["tokens"] != -1, where)
        before = mine["ids"]
    if which != "stable_":
        check.same("transfers", moved, case["transfers"])
        check.same("leftover_masks", int((before == mask_id).sum()), case["leftover_masks"])


def states(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, which: str) -> None:
    """Which rows went through the network: all of them twice a block, and then the block's alone, over the kept keys."""
    from dllm_fast import _core

    arguments = session_arguments(folder, case, a["prompt"])
    core = folder.model(case["model"]).core
    session, rows = _core.Session(core, arguments["params"], arguments["prompts"]), 0
    for i, state in enumerate(a["cache_state"]):
        session.step()
        check.same(f"ids after forward {i} of the session", session.tokens(), a[which + "trace"][i].ravel())
        now = session.stats()["rows_v"]
        travelled = case["block_length"] if state == SPARSE else case["prompt_len"] + case["gen_length"]
        check.same(f"rows of forward {i}", now - rows, travelled * case["batch"] * core.config["layers"])
        check.same(f"state of forward {i}", state, min(i % case["steps_per_block"], SPARSE))
        check.same(
            f"block of forward {i}", a["block_start"][i], case["prompt_len"] + i // case["steps_per_block"] * case["block_length"]
        )
        rows = now
    kept = session.kept(0, 0)
    check.same("slots a layer keeps", len(kept["k"]), case["keep_num"] + case["block_length"])


def pooled_over(score: np.ndarray, kernel: int | None) -> np.ndarray:
    half = (kernel or 1) // 2
    padded = np.pad(score, half, constant_values=-np.inf)
    return np.max([padded[t : t + len(score)] for t in range(2 * half + 1)], 0)


def selections(case: Mapping[str, Any], a: Arrays, check: Check, watch: Watch, which: str) -> None:
    """Sets, and what they were chosen by, of every block, layer and row. Nothing is chosen at other forwards."""
    per_block, n, ties = case["steps_per_block"], case["keep_num"], []
    check.same("kept sets are recorded", which + "kept" in a, per_block > BUILD)
    for i, mine in enumerate(watch.steps):
        block, layers = i // per_block, len(mine["chosen"])
        if i % per_block != BUILD:
            check.same(f"kept at forward {i}", [len(r) for layer in mine["chosen"] for r in layer], [0] * layers * case["batch"])
            continue
        start = a["block_start"][i]
        outside = np.setdiff1d(np.arange(mine["ids"].shape[1]), np.arange(start, start + case["block_length"]))
        check.same("n_candidates", len(outside), case["n_candidates"])
        for layer in range(layers):
            for b in range(case["batch"]):
                at, here = (block, layer, b) if case["batch"] > 1 else (block, layer), f"block {block}, layer {layer}, row {b}"
                score = mine["seen"][layer][b][outside]
                pooled = pooled_over(score, case["kernel_size"])
                check.same(f"keep_num, {here}", len(mine["chosen"][layer][b]), n)
                check.same(f"kept, {here}", mine["chosen"][layer][b], np.sort(a[which + "kept"][at]))
                if which != "fixed_":
                    check.close(f"importance, {here}", score, a[which + "importance"][at], TENSOR)
                if which == "" or block == 0 and (which == "fixed_" or layer == 0):  # as long as the recorded run is the same
                    check.close(f"importance, {here}", score, a["importance"][at], TENSOR)
                    check.close(f"importance_pooled, {here}", pooled, a["importance_pooled"][at], TENSOR)
                order = np.sort(pooled)[::-1]
                ties.append(0 < n < len(order) and order[n - 1] == order[n])
    if which == "" and "boundary_sets" in case:
        check.same("boundary ties, boundary sets", [sum(ties), len(ties)], [case["boundary_ties"], case["boundary_sets"]])


def differing(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, final: np.ndarray) -> None:
    """How many tokens change if the method is switched off or altered: the recordings can tell these apart, and so can this
    program."""
    for name, count in case["tokens_differing_from"].items():
        other = generate(folder, case, a["prompt"], change=CHANGES[name])
        check.same(f"tokens differing from {name}", int((other != final)[:, case["prompt_len"] :].sum()), count)


def raw_at_first(case: Mapping[str, Any], a: Arrays, check: Check, watch: Watch, which: str) -> None:
    """The raw run is the same until it first reads what it chose otherwise: up to a block's second forward."""
    other = [
        b for b in range(case["num_blocks"]) if not np.array_equal(np.sort(a["kept"][b], -1), np.sort(a[which + "kept"][b], -1))
    ]
    same = other[0] * case["steps_per_block"] + SPARSE if other else case["steps"]
    if which == "fixed_":  # whose sets may be equal, and read by the wrong heads
        same = min(same, SPARSE)
    check.same("ids of the raw run, as long as it is the same", [m["ids"] for m in watch.steps[:same]], a["trace"][:same])


def rows_alone(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, together: Watch) -> None:
    for b, prompt in enumerate(a["prompt"]):
        alone = Watch()
        generate(folder, case, prompt[None], alone)
        check.same(f"row {b} alone", [m["ids"][0] for m in alone.steps], [m["ids"][b] for m in together.steps])


def first_logits(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check) -> None:
    """Block rows' logits of the first forwards, by their best token, probability, margin and entropy wherever a mask asks for them.
    All masks of the block are asked: what is revealed is then set to what is recorded."""
    arguments = session_arguments(folder, case, a["prompt"])
    arguments["params"] |= {"rule": "quota", "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    trace = a["trace"][: len(a["block0_logits"])]
    start, b = case["prompt_len"], case["block_length"]
    for i, seen in enumerate(scores_along(folder.model(case["model"]).core, arguments, trace)):
        gold, compared = scores_of(a["block0_logits"][i]), 0
        for kind, mine in seen.items():
            mine = mine[start : start + b]
            if (
                case["family"] == "dream"
            ):  # rows speak for the next one; but the block's first for itself where its neighbour stays out
                own = mine[:1] if a["cache_state"][i] == SPARSE else np.full((1, 2), np.nan)
                own = np.where(np.isnan(mine[1:2]), own, mine[1:2])
                mine = np.concatenate([own, mine[2:], np.full((1, 2), np.nan)])
            asked = ~np.isnan(mine[:, 0])
            check.same(f"best token, forward {i}", mine[:, 0], gold[kind][:, 0], asked)
            check.close(f"{kind} of forward {i}", mine[:, 1], gold[kind][:, 1], CONFIDENCE, asked)
            compared += int(asked.sum())
        check.same(f"some rows of forward {i} are asked", compared > 0, True)


# ---- the schedule --------------------------------------------------------------------------------------------------------------


def schedule(folder: Folder, table: Mapping[str, Any], check: Check) -> None:
    """Time steps bit for bit; how many of m masks every forward moves: in float32 from these times, and for some m by the core
    itself."""
    from dllm_fast import _core

    check.known("setting", table, {"steps_per_block", "eps", "timesteps_f32_hex", "first_step", "moved"})
    steps, moved = table["steps_per_block"], np.array(table["moved"])
    times = _core.times(steps, table["eps"])
    check.same("timesteps", [float(t) for t in times], [float.fromhex(t) for t in table["timesteps_f32_hex"]])
    check.same("first_step, steps", [table["first_step"], len(moved)], [1, steps - 1])
    share = 1 - times[2:] / times[1:-1]
    share[-1] = 1
    masks = np.arange(moved.shape[1], dtype=np.float32)
    check.same("moved", (masks * share[:, None]).astype(np.int32), moved)
    some = [m for m in (1, 8, 31) if m < moved.shape[1]]
    model = folder.model(next(c["model"] for c in folder.manifest["cases"] if c["family"] == "dream")).core
    check.same("moved by the core", moved_by_core(model, some, steps, table["eps"], folder.manifest["mask_id"]), moved[:, some])


def moved_by_core(model: Any, masks: list[int], steps: int, eps: float, mask_id: int) -> np.ndarray:
    """A sequence for every number of masks, of which so many are put back after each step; the first forward writes the block's
    first row."""
    from dllm_fast import _core

    answer = max(masks) + 1
    params = {
        "answer_len": answer,
        "block_len": answer,
        "steps": steps,
        "rule": "first",
        "score": "prob",
        "eps": eps,
        "mask_id": mask_id,
    }
    session, mine = _core.Session(model, params, [np.array([5], np.int32)] * len(masks)), []
    logits = np.zeros((session.rows, model.config["vocab"]), np.float32)
    logits[:, 7] = 3
    ids = np.full((len(masks), answer + 1), 7, np.int32)
    for b, m in enumerate(masks):
        ids[b, 2 : 2 + m] = mask_id
    for _ in range(steps):
        session.forward()
        session.decide(logits)
        mine.append(np.bincount(session.revealed() // (answer + 1), minlength=len(masks)))
        session.set_tokens(ids.ravel())
    if not (mine[0] == 1).all():
        raise AssertionError(f"the first forward wrote {mine[0].tolist()} rows, not one each")
    return np.array(mine[1:])
