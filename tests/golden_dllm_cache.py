"""The dLLM-Cache family: tokens, refreshes and V-verify's choices of every pass, of both branches under guidance."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from golden_case import CONFIDENCE, TENSOR, Case, Check, Folder
from golden_state import SIMILARITY, Arrays, Watch, read_arrays, scores_of, stream, weights

TOP_KEYS = {
    "what", "upstream", "torch", "transformers", "vocab", "mask_id", "pad_id", "eos_id", "tensors", "shims", "cases", "core",
    "expect",
}  # fmt: skip
CASE_KEYS = {
    "name", "model", "file", "B", "P", "gen_length", "steps", "block_length", "cfg_scale", "cfg_interval_steps", "remasking",
    "temperature", "cfg_forwards", "cache", "prompt_ids", "final_ids", "margins", "core", "tensors", "note", "expect", "alg",
    "alg_temp", "eps", "hook", "top_p", "top_k", "seed", "attention_mask",
}  # fmt: skip
CACHE_KEYS = {"prompt_interval_steps", "gen_interval_steps", "transfer_ratio"}
ARRAYS = {
    "prompt_ids", "final_ids", "trace_ids", "x0", "conf", "n_transfer", "mode", "sel_idx", "sel_gap", "sel_cos", "mode_cfg",
    "sel_idx_cfg", "sel_gap_cfg", "sel_cos_cfg", "block_out", "final_logits", "uniforms", "timesteps", "attention_mask",
}  # fmt: skip
NO_RATIO = "ValueError for the ratio; the recorded run equals transfer_ratio 0"
PARTIAL = 2  # modes from here on update the answer in part


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    yield Case(folder.family, "manifest", functools.partial(manifest, man))
    for case in man["cases"]:
        yield Case(folder.family, case["name"], functools.partial(run, folder, case))


def manifest(man: Mapping[str, Any], check: Check) -> None:
    check.known("manifest keys", man, TOP_KEYS)
    check.known("tensors", man.get("tensors", ()), ARRAYS)
    check.done += 1


def run(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = read_arrays(folder, case["file"])
    understood(check, case, a)
    kind = case.get("expect")
    if kind is None:
        replay(folder, case, a, check)
    elif kind == NO_RATIO:
        refused(folder, case, check)
        replay(folder, {**case, "cache": {**case["cache"], "transfer_ratio": 0.0}}, a, check)
    elif kind == "upstream_bug" and "attention_mask" in a:
        padding_unseen(folder, case, a, check)
    elif kind == "upstream_bug" and case["hook"] == "pristine":
        narrow_keys(folder, case, a, check)
    else:
        check.note(f"expect {kind!r} is not understood")


def understood(check: Check, case: Mapping[str, Any], a: Arrays) -> None:
    check.known("setting", case, CASE_KEYS)
    check.known("array", {*a, *case.get("tensors", ())}, ARRAYS)
    check.known("cache", case["cache"] or {}, CACHE_KEYS)
    check.known("hook", {case.get("hook", "pristine")}, {"pristine", "fixedwidth"})
    check.known(
        "array (of a pass without the condition)", {k for k in a if k.endswith("_cfg")} if not case.get("cfg_scale") else (), ()
    )
    for name in ("prompt_ids", "final_ids", *(["attention_mask"] if "attention_mask" in case else [])):
        check.same(f"{name} of the manifest", a[name], case[name])
    check.same("sizes", [*a["prompt_ids"].shape, a["final_ids"].shape[1]], [case["B"], case["P"], case["P"] + case["gen_length"]])


# ---- the run -------------------------------------------------------------------------------------------------------------------


def cache_of(case: Mapping[str, Any]) -> Any:
    """The case's cache as a user gives it. Guidance that is asked less often is dLLM-Cache's, with or without its feature cache."""
    import dllm_fast

    every = case.get("cfg_interval_steps", 1)
    if case["cache"] is None:
        return dllm_fast.DLLMCache(1, 1, 0.0, every) if every != 1 else None
    return dllm_fast.DLLMCache(**case["cache"], cfg_interval_steps=every)


class Coins:
    """The recorded uniforms, drawn at the masks in row-major order; a step without masks draws none."""

    def __init__(self, recorded: np.ndarray) -> None:
        self.left = [u[~np.isnan(u)] for u in recorded]

    def uniform(self, shape: Any, dtype: Any) -> np.ndarray:
        return self.left.pop(0).reshape(shape)

    def exponential(self, shape: Any) -> np.ndarray:
        raise AssertionError("no exponential numbers are recorded")


def generate(folder: Folder, case: Mapping[str, Any], a: Arrays, callback: Any, rows: slice = slice(None)) -> Any:
    """The case, or only some of its rows, by the official call: an output with sequences and stats."""
    import dllm_fast

    model, mask_id, cache = folder.model(case["model"]), folder.manifest["mask_id"], cache_of(case)
    mask = a["attention_mask"][rows] if "attention_mask" in a else None
    shared = {"steps": case["steps"], "temperature": case["temperature"], "cache": cache, "callback": callback}
    if "alg" not in case:
        return dllm_fast.generate(
            model, a["prompt_ids"][rows], mask, gen_length=case["gen_length"], block_length=case["block_length"], mask_id=mask_id,
            cfg_scale=case["cfg_scale"], remasking=case["remasking"], return_dict=True, **shared,
        )  # fmt: skip
    settings = {k: case[k] for k in ("alg", "alg_temp", "eps", "top_p", "top_k")}
    return model.diffusion_generate(
        a["prompt_ids"][rows], mask, max_new_tokens=case["gen_length"], mask_token_id=mask_id, return_dict_in_generate=True,
        noise=Coins(a["uniforms"][:, rows]) if "uniforms" in a else None, **settings, **shared,
    )  # fmt: skip


def replay(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, whole_rows: Sequence[int] | None = None) -> Watch:
    """The whole case, compared in the rows named (all): what the rows of a batch give does not depend on the others."""
    rows, watch = list(range(case["B"]) if whole_rows is None else whole_rows), Watch()
    out = generate(folder, case, a, watch)
    check.same("final_ids", out.sequences[rows], a["final_ids"][rows])
    forwards = case["steps"] + case.get("cfg_forwards", 0)
    if case.get("alg") == "origin" and not case["cache"]:  # an uncached pass is left out if the coins reveal nothing
        forwards = int((a["n_transfer"] > 0).sum())
    check.same("forwards", out.stats["forwards"], forwards)
    check.same("steps", len(watch.steps), case["steps"])
    first_steps(folder, case, a, check, watch, rows, range(min(len(watch.steps), case["steps"])))
    if "timesteps" in a:
        from dllm_fast import _core

        check.same("timesteps", _core.times(case["steps"], case["eps"]), a["timesteps"])
    if whole_rows is None and ({"final_logits", "block_out"} & set(a) or case.get("alg") == "origin"):
        inside(folder, case, a, check)
    return watch


def first_steps(
    folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check, watch: Watch, rows: Sequence[int], steps: Sequence[int]
) -> None:
    """Ids after, tokens and scores at the candidates of, and the method's work in these steps."""
    p, unguided = case["P"], 0
    for i in steps:
        mine, where = watch.steps[i], candidates(folder, case, a, i)[rows]
        check.same(f"ids after forward {i}", mine["ids"][rows, p:], a["trace_ids"][i + 1][rows])
        if case.get("alg") != "origin":  # whose tokens and scores `inside` sees
            check.same(f"x0 of forward {i}", mine["tokens"][rows, p:], a["x0"][i][rows], where)
            check.close(f"conf of forward {i}", mine["confidence"][rows, p:], a["conf"][i][rows], CONFIDENCE, where)
        check.same(f"n_transfer of forward {i}", [len(mine["committed"][b]) for b in rows],
                   np.broadcast_to(a["n_transfer"][i], case["B"])[rows])  # fmt: skip
        if "mode" in a:
            work(check, f"forward {i}", mine, a, i, "", p, rows)
        if "mode_cfg" in a and (mine["unconditional"]["mode"] >= 0).any():
            work(check, f"unconditional pass {unguided}", mine["unconditional"], a, unguided, "_cfg", p, rows)
            unguided += 1
    if "mode_cfg" in a and len(steps) == case["steps"]:
        check.same("unconditional passes", unguided, len(a["mode_cfg"]))


def candidates(folder: Folder, case: Mapping[str, Any], a: Arrays, i: int) -> np.ndarray:
    """Where x0 and conf are defined: at masks, for LLaDA up to the current block's end."""
    block, g = case.get("block_length", case["gen_length"]), case["gen_length"]
    end = (i // (case["steps"] // (g // block)) + 1) * block
    return (a["trace_ids"][i] == folder.manifest["mask_id"]) & (np.arange(g) < end)


def work(check: Check, what: str, mine: Mapping[str, Any], a: Arrays, i: int, suffix: str, p: int, rows: Sequence[int]) -> None:
    """Modes; sets where a gap separates them, or where everything is chosen; similarities and gaps themselves."""
    check.same(f"mode of {what}", mine["mode"][:, rows], np.repeat(a["mode" + suffix][i][:, None], len(rows), 1))
    index, gaps = a["sel_idx" + suffix][i], a["sel_gap" + suffix][i]
    for layer in range(len(index)):
        for b in rows:
            here, gold = f"{what}, layer {layer}, row {b}", set(index[layer, b].tolist()) - {-1}
            seen, gap = mine["seen"][layer][b][p:], gaps[layer, b]
            chosen = set((mine["chosen"][layer][b] - p).tolist())
            check.same(f"how many are chosen, {here}", len(chosen), len(gold))
            if gap > 1e-6 or len(gold) in (0, len(seen)):
                check.same(f"chosen, {here}", sorted(chosen), sorted(gold))
            if not np.isnan(gap):
                order = np.sort(seen)
                check.close(f"sel_gap, {here}", order[len(gold)] - order[len(gold) - 1], gap, SIMILARITY)
            if "sel_cos" + suffix in a:
                check.close(f"sel_cos, {here}", seen, a["sel_cos" + suffix][i][layer, b], SIMILARITY)


# ---- inside: the residual stream and the logits --------------------------------------------------------------------------------


def inside(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check) -> None:
    """The same run as a session of the core: block_out and final_logits as they follow from what it keeps, and, for the origin
    rule, the token and score of every mask, which its coins hide. An uncached run is the one that keeps everything and refreshes it
    always."""
    from dllm_fast import DLLMCache, _core

    model, cache, p, g = folder.model(case["model"]), cache_of(case) or DLLMCache(1, 1, 0.0), case["P"], case["gen_length"]
    keep = a["attention_mask"] != 0 if "attention_mask" in a else np.ones_like(a["prompt_ids"], bool)
    prompts = [row[k].astype(np.int32) for row, k in zip(a["prompt_ids"], keep, strict=True)]
    params: dict[str, Any] = {"answer_len": g, "steps": case["steps"], "mask_id": folder.manifest["mask_id"], **cache.params()}
    params["watch"] = True  # what the last layer keeps is recorded for every row
    dream = "alg" in case
    names = {"entropy": "entropy", "origin": "origin", "maskgit_plus": "prob", "topk_margin": "margin"}
    params |= (
        {"score": names[case["alg"]], "eps": case["eps"]}
        if dream
        else {"block_len": case["block_length"], "cfg_scale": case["cfg_scale"]}
    )
    session = _core.Session(model.core, params, prompts, noise=Coins(a["uniforms"]) if "uniforms" in a else None)
    origin = case.get("alg") == "origin"
    shadow = _core.Session(model.core, {**params, "score": "entropy"}, prompts) if origin else None
    residual: list[Any] = [None] * case["B"]
    for i in range(case["steps"]):
        before, at = session.tokens(), session.offsets
        forwards = session.stats()["forwards"]
        session.step()
        due = session.stats()["forwards"] - forwards > 1
        for b in range(case["B"]):
            mine = slice(at[b], at[b + 1])
            check.same(f"ids after forward {i} of the session, row {b}", session.tokens()[mine][-g:], a["trace_ids"][i + 1][b])
            if "block_out" in a and i < len(a["block_out"]):
                blocks(
                    folder, case, check, session, before[mine], b, i, a["block_out"][i, :, b, p - len(prompts[b]) :], a["mode"][i]
                )
            logits = answer_logits(folder, case, session, before[mine], b)
            if "final_logits" in a and case.get("cfg_scale"):
                blank = before[mine].copy()
                blank[: len(prompts[b])] = params["mask_id"]
                residual[b] = logits - answer_logits(folder, case, session, blank, b, 1) if due else residual[b]
                logits = logits - residual[b] + (case["cfg_scale"] + 1) * residual[b]
            if "final_logits" in a and i == case["steps"] - 1:
                check.close(f"final_logits, row {b}", logits, a["final_logits"][b], TENSOR)
        if shadow is not None:
            coinless(check, shadow, a, i, g, candidates(folder, case, a, i))
            shadow.set_tokens(session.tokens())
    if "final_logits" in a:
        recorded_alike(folder, case, a, check)


def answer_logits(folder: Folder, case: Mapping[str, Any], session: Any, ids: np.ndarray, b: int, branch: int = 0) -> np.ndarray:
    w, g = weights(folder.model_path(case["model"])), case["gen_length"]
    x = stream(w, session, ids, b, branch)[-1]
    return w.logits(x[-g - 1 : -1] if "alg" in case else x[-g:])


def blocks(
    folder: Folder,
    case: Mapping[str, Any],
    check: Check,
    session: Any,
    ids: np.ndarray,
    b: int,
    i: int,
    gold: np.ndarray,
    mode: Any,
) -> None:
    """Rows of the answer and, for Dream, the one before; the prompt's only where it was refreshed: else its rows do not travel
    here."""
    mine = stream(weights(folder.model_path(case["model"])), session, ids, b)
    rows = np.arange(len(ids)) >= len(ids) - case["gen_length"] - ("alg" in case)
    rows |= mode[-1] in (0, 2)
    check.close(f"block_out of forward {i}, row {b}", mine, gold, TENSOR, rows[:, None])


def coinless(check: Check, shadow: Any, a: Arrays, i: int, g: int, where: np.ndarray) -> None:
    """Token and entropy of all masks. (The recorded conf is the entropy, whatever the coins did.)"""
    shadow.step()
    rows, tokens, scores, _ = shadow.candidates()
    seen = np.full((2, shadow.rows), np.nan)
    seen[:, rows] = tokens, scores
    for b, end in enumerate(shadow.offsets[1:]):
        check.same(f"x0 of forward {i}", seen[0, end - g : end], a["x0"][i][b], where[b])
        check.close(f"conf of forward {i}", seen[1, end - g : end], a["conf"][i][b], CONFIDENCE, where[b])


def recorded_alike(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check) -> None:
    """The recording agrees with itself: x0 and conf of its last step are those of its logits."""
    last, where = case["steps"] - 1, candidates(folder, case, a, case["steps"] - 1)
    kind = {"maskgit_plus": "prob", "topk_margin": "margin"}.get(case["alg"], "entropy") if "alg" in case else "prob"
    told = scores_of(a["final_logits"])[kind]
    check.same("x0 of final_logits", told[..., 0], a["x0"][last], where)
    check.close("conf of final_logits", told[..., 1], a["conf"][last], CONFIDENCE, where)


# ---- what is not to be reproduced ----------------------------------------------------------------------------------------------


def refused(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    """The ratio is refused, with its number; the official class's spelling takes it for "off", as there."""
    import dllm_fast

    ratio = case["cache"]["transfer_ratio"]
    try:
        dllm_fast.DLLMCache(**case["cache"])
        check.note(f"transfer_ratio {ratio} was accepted")
    except ValueError as error:
        check.same("the number in the message", str(ratio) in str(error), True)
    check.same("the official spelling", dllm_fast.dLLMCacheConfig(**case["cache"]).transfer_ratio, 0.0)


def padding_unseen(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check) -> None:
    """The original lets a cached row attend to its pads. Here every row gives, step for step, what it gives alone; rows without
    pads are as recorded."""
    whole = [b for b in range(case["B"]) if a["attention_mask"][b].all()]
    together = replay(folder, case, a, check, whole)
    for b in range(case["B"]):
        alone, kept = Watch(), a["attention_mask"][b] != 0
        bare = {k: (v[:, kept] if v.shape[1] == case["P"] else v) for k, v in a.items() if k in ("prompt_ids", "attention_mask")}
        generate(folder, case, bare, alone, slice(b, b + 1))
        for i in range(case["steps"]):
            check.same(
                f"row {b} alone, ids after forward {i}",
                together.steps[i]["ids"][b, -case["gen_length"] :],
                alone.steps[i]["ids"][0, -case["gen_length"] :],
            )
            check.same(f"row {b} alone, mode of forward {i}", together.steps[i]["mode"][:, b], alone.steps[i]["mode"][:, 0])
            for layer, chosen in enumerate(together.steps[i]["chosen"]):
                check.same(
                    f"row {b} alone, chosen in forward {i}", chosen[b] - case["P"], alone.steps[i]["chosen"][layer][0] - kept.sum()
                )


def narrow_keys(folder: Folder, case: Mapping[str, Any], a: Arrays, check: Check) -> None:
    """The original overwrites only dim // 7 columns of the chosen keys. The recording is right until a partial update first sees
    other ids than the pass before: its tokens up to there; in that pass the choices of the first two layers, which precede the
    harm; all modes. If the same case without the bug is recorded too, everything is compared with that."""
    config = folder.model(case["model"]).config
    check.same("a bug of this shape", config["dim"] // 7 < config["kv_heads"] * config["head_dim"], True)
    changed = [not np.array_equal(x, y) for x, y in zip(a["trace_ids"][1:-1], a["trace_ids"][:-2], strict=True)]
    first = next(i + 1 for i, moved in enumerate(changed) if moved and a["mode"][i + 1].max() >= PARTIAL)
    watch = Watch()
    generate(folder, case, a, watch)
    first_steps(folder, case, a, check, watch, range(case["B"]), range(first))
    check.same("steps", len(watch.steps), case["steps"])
    for i in range(min(len(watch.steps), case["steps"])):
        check.same(f"mode of forward {i}", watch.steps[i]["mode"], np.repeat(a["mode"][i][:, None], case["B"], 1))
    partial = {k: a[k][:, :2] for k in a if k.startswith("sel_")}
    begin = {**watch.steps[first], "mode": watch.steps[first]["mode"][:2]}
    work(check, f"forward {first}", begin, {**partial, "mode": a["mode"][:, :2]}, first, "", case["P"], range(case["B"]))
    same = {k: case[k] for k in ("model", "gen_length", "steps", "cache", "alg", "eps", "temperature", "prompt_ids")}
    for twin in folder.manifest["cases"]:
        if "expect" not in twin and all(twin.get(k) == v for k, v in same.items()):
            replay(folder, {**case, "final_ids": twin["final_ids"]}, read_arrays(folder, twin["file"]), check)
