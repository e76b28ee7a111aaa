"""The DyLLM family: what every step commits, which rows every layer found salient, what is kept; and the attention operator
alone."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from golden_case import TENSOR, Case, Check, Folder
from golden_state import SIMILARITY, Arrays, Watch, stream, weights, widen

TOP_KEYS = {
    "about", "conventions", "dumps", "ops", "op_cases", "invariants", "llada_official_generate_equals_baseline", "torch", "cases",
    "method",
}  # fmt: skip
CONVENTIONS = {
    "step", "pos", "kind", "seed", "salient", "pos_tok_order", "cos", "tau2", "fragile", "alt_final_ids_row0_carry", "margins",
    "live", "n_cand", "dream_row0_candidate", "settings.threshold", "eos_token_id", "invariants", "ops",
}  # fmt: skip
CASE_KEYS = {
    "name", "family", "model", "prompts", "settings", "eos_token_id", "mask_token_id", "final_ids", "n_steps", "steps", "margins",
    "generated_tokens_equal_to_baseline", "checks", "fragile", "alt_final_ids_row0_carry", "cos_arrays", "tensor_dump",
}  # fmt: skip
SETTINGS = {"max_new_tokens", "steps", "num_full_steps", "block_size", "threshold", "confidence_threshold", "ignore_eos"}
STEP_KEYS = {"step", "kind", "live", "seqs"}
SEQUENCE_KEYS = {"pos", "tok", "n_cand", "seed", "salient", "window_start", "dream_row0_candidate"}
INVARIANT_KEYS = {
    "family", "prompt_seed", "tau", "seed_all_rows_at_layer0", "whole_window_every_step", "equals_baseline",
    "generated_tokens_equal",
}  # fmt: skip
OP_ARRAYS = {"q", "k", "v_old", "c_old", "v_new_rows", "c_new", "cos", "cu_q", "cu_k", "cu_sal", "idx_q", "idx_k"}
MODES = {"full": -1, "whole": 1, "response": 2}  # of Step.mode: a full step asks the method nothing
OPERATOR = 2e-5  # float32 against float64 of bfloat16 inputs; observed: 4e-6


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    yield Case(folder.family, "manifest", functools.partial(manifest, man))
    for case in man["cases"]:
        yield Case(folder.family, case["name"], functools.partial(run, folder, case))
    for case in man.get("op_cases", []):
        yield Case(folder.family, case["name"], functools.partial(operator, folder, case))
    for i, setting in enumerate(man.get("invariants", [])):
        yield Case(folder.family, f"invariant_{i}_{setting['family']}", functools.partial(invariant, folder, setting))
    if "llada_official_generate_equals_baseline" in man:
        yield Case(folder.family, "official_generate", functools.partial(official, folder))


def manifest(man: Mapping[str, Any], check: Check) -> None:
    check.known("manifest keys", man, TOP_KEYS)
    check.known("conventions", man.get("conventions", ()), CONVENTIONS)
    check.done += 1


def run(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    understood(check, case)
    watch = Watch()
    final = generate(folder, case, watch)
    check.same("n_steps", len(watch.steps), case["n_steps"])
    check.same("recorded steps", [e["step"] for e in case["steps"]], list(range(1, case["n_steps"] + 1)))
    for mine, e in zip(watch.steps, case["steps"], strict=False):
        kinds(case, check, mine, e)
    if case["fragile"]:  # its sets and tokens hang on the last bits: only the schedule is defined
        return
    for i, (mine, e) in enumerate(zip(watch.steps, case["steps"], strict=False)):
        step(folder, case, check, watch, i, mine, e)
    for b, ids in enumerate(case["final_ids"]):
        check.same(f"final ids, sequence {b}", final[b], ids)
    if case["alt_final_ids_row0_carry"]:
        for b, (ids, sane) in enumerate(zip(generate(folder, case, shift="carry"), case["alt_final_ids_row0_carry"], strict=True)):
            check.same(f"final ids with the carried row, sequence {b}", ids, sane)
    if case["generated_tokens_equal_to_baseline"] is not None:
        uncached = generate(folder, case, cache=None)
        equal = (np.array(final[0]) == uncached[0])[len(case["prompts"][0]) :]
        check.same("generated_tokens_equal_to_baseline", int(equal.sum()), case["generated_tokens_equal_to_baseline"])
    if case["tensor_dump"]:
        dumps(folder, case, check)
    if len(case["prompts"]) > 1:
        rows_alone(folder, case, check)


def understood(check: Check, case: Mapping[str, Any]) -> None:
    check.known("setting", case, CASE_KEYS)
    check.known("setting", case["settings"], SETTINGS)
    for e in case["steps"]:
        check.known("step", e, STEP_KEYS)
        check.known("kind", {e["kind"]}, MODES)
        for g in e["seqs"]:
            check.known("sequence", g, SEQUENCE_KEYS)


def baseline(folder: Folder, family: str) -> Mapping[str, Any]:
    return next(c for c in folder.manifest["cases"] if c["name"] == family + "_baseline")


# ---- the run -------------------------------------------------------------------------------------------------------------------


def options(case: Mapping[str, Any], shift: str) -> dict[str, Any]:
    o = case["settings"]
    return {"tau": float("inf") if o["threshold"] == 2 else o["threshold"], "full_steps": o["num_full_steps"], "shift": shift}


def generate(
    folder: Folder, case: Mapping[str, Any], callback: Any = None, shift: str = "flat", only: slice = slice(None), **other: Any
) -> list[np.ndarray]:
    """The case by the official call, with the method's own rule. other: options in place of the case's."""
    import dllm_fast

    o, model = case["settings"], folder.model(case["model"])
    shared = {
        "steps": o["steps"], "cache": dllm_fast.DyLLM(**options(case, shift)), "rule": "dyllm", "block_length": o["block_size"],
        "threshold": o["confidence_threshold"], "early_stop": not o["ignore_eos"], "callback": callback,
    } | other  # fmt: skip
    prompts = [np.array(p) for p in case["prompts"][only]]
    if case["family"] == "llada":
        ids = {"eos_id": case["eos_token_id"], "mask_id": case["mask_token_id"]}
        return dllm_fast.generate(model, prompts, gen_length=o["max_new_tokens"], **ids, **shared)
    ids = {"eos_token_id": case["eos_token_id"], "mask_token_id": case["mask_token_id"]}
    return model.diffusion_generate(prompts, max_new_tokens=o["max_new_tokens"], alg="entropy", **ids, **shared)


def session_of(folder: Folder, case: Mapping[str, Any], **change: Any) -> Any:
    """The same run as a session of the core."""
    from dllm_fast import DyLLM, _core

    o, params = case["settings"], DyLLM(**options(case, "flat")).params()
    name, given = params["strategy"]
    params |= {
        "strategy": (name, given | change),
        "answer_len": o["max_new_tokens"],
        "steps": o["steps"],
        "block_len": o["block_size"],
        "watch": True,  # what the last layer keeps is recorded for every row
    }
    params |= {"rule": "steady", "gumbel": False, "argmax": True, "score": "entropy" if case["family"] == "dream" else "prob"}
    params |= {"threshold": o["confidence_threshold"], "early_stop": not o["ignore_eos"]}
    params |= {"eos_id": case["eos_token_id"], "mask_id": case["mask_token_id"]}
    return _core.Session(folder.model(case["model"]).core, params, [np.array(p, np.int32) for p in case["prompts"]])


# ---- steps ---------------------------------------------------------------------------------------------------------------------


def kinds(case: Mapping[str, Any], check: Check, mine: Mapping[str, Any], e: Mapping[str, Any]) -> None:
    """Full, whole or response: by what the method did, and by the rows it looked at."""
    for b in range(len(case["prompts"])):
        here, live = f"step {e['step']}, sequence {b}", b in e["live"]
        mode = MODES[e["kind"]] if live else -1
        check.same(f"kind, {here}", mine["mode"][:, b], np.full(len(mine["mode"]), mode))
        rows, start = len(mine["ids"][b]), len(case["prompts"][b]) if e["kind"] == "response" else 0
        for layer, seen in enumerate(mine["seen"]):
            check.same(f"window of layer {layer}, {here}", ~np.isnan(seen[b]), (np.arange(rows) >= start) & (mode >= 0))


def step(
    folder: Folder, case: Mapping[str, Any], check: Check, watch: Watch, i: int, mine: Mapping[str, Any], e: Mapping[str, Any]
) -> None:
    traces = folder.npz("traces.npz") if case["cos_arrays"] else {}
    check.same(f"sequences of step {e['step']}", len(e["seqs"]), len(e["live"]))
    for b in set(range(len(case["prompts"]))) - set(e["live"]):
        check.same(f"a finished sequence at step {e['step']}", [len(mine["committed"][b]), (mine["tokens"][b] != -1).sum()], [0, 0])
    for b, g in zip(e["live"], e["seqs"], strict=True):
        here, candidates = f"sequence {b}, step {e['step']}", mine["tokens"][b] != -1
        check.same(f"pos, {here}", mine["committed"][b], g["pos"])
        check.same(f"tok, {here}", np.array(mine["ids"][b])[np.array(g["pos"], int)], g["tok"])
        check.same(f"n_cand, {here}", int(candidates.sum()), g["n_cand"])
        p = len(case["prompts"][b])
        row0 = case["family"] == "dream" and e["kind"] == "response" and bool(candidates[p])
        check.same(f"dream_row0_candidate, {here}", row0, g.get("dream_row0_candidate", False))
        if e["kind"] == "full":
            continue
        before = [m["committed"][b].tolist() for m in watch.steps[:i] if len(m["committed"][b])]
        check.same(f"seed, {here}", before[-1] if before else [], g["seed"])
        check.same(f"window_start, {here}", p if e["kind"] == "response" else 0, g["window_start"])
        check.same(f"layers, {here}", len(g["salient"]), len(mine["chosen"]))
        for layer, gold in enumerate(g["salient"]):
            rows = range(g["window_start"], len(candidates)) if gold == "all" else gold
            check.same(f"salient, {here}, layer {layer}", mine["chosen"][layer][b], list(rows))
            if case["cos_arrays"]:
                cos = traces[f"{case['name']}/s{e['step']}/b{b}/l{layer}/cos"]
                check.close(f"cos, {here}, layer {layer}", mine["seen"][layer][b][g["window_start"] :], cos, SIMILARITY)


def rows_alone(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    """With the sane shift, sequences of a batch do not see each other."""
    together = generate(folder, case, shift="carry")
    for b in range(len(together)):
        (alone,) = generate(folder, case, shift="carry", only=slice(b, b + 1))
        check.same(f"sequence {b} alone", together[b], alone)


# ---- dumps: what is kept before and after a step, of sequence 0 ----------------------------------------------------------------


def dumps(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a, layers = folder.arrays("dumps.npz", case["name"]), folder.model(case["model"]).core.config["layers"]
    session, used = session_of(folder, case), set()
    w = weights(folder.model_path(case["model"]))
    for e in case["steps"]:
        here, before, kept = f"s{e['step']}/", session.tokens(), [session.kept(0, layer) for layer in range(layers)]
        session.step()
        if e["kind"] == "full":
            continue
        start, changed = e["seqs"][0]["window_start"], e["seqs"][0]["seed"]
        for layer in range(layers):
            if f"{here}l{layer}/q" in a or f"{here}l{layer}/c_new" in a:
                one_layer(
                    check,
                    a,
                    f"{here}l{layer}/",
                    kept[layer],
                    session.kept(0, layer),
                    start,
                    sorted(r for r in changed if r >= start),
                    used,
                )
            salient = e["seqs"][0]["salient"][layer]
            changed = range(start, len(before)) if salient == "all" else salient
        if f"{here}logits" in a:
            logits = w.logits(stream(w, session, before)[-1][start:])
            check.close(f"{here}logits", logits, a[f"{here}logits"], 1.5 * TENSOR)
            used.add(f"{here}logits")
        cache(check, a, f"cache_after_{here}", session, layers, used)
    check.known("dump", set(a) - used, ())
    check.same("dumps are there", bool(used), True)


def cache(check: Check, a: Arrays, prefix: str, session: Any, layers: int, used: set[str]) -> None:
    for layer in range(layers):
        for name, mine in (("K", "k"), ("V", "v"), ("C", "context"), ("F", "ffn")):
            key = f"{prefix}l{layer}/{name}"
            if key in a:
                check.close(key, session.kept(0, layer)[mine], a[key], TENSOR)
                used.add(key)


def one_layer(
    check: Check,
    a: Arrays,
    key: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    start: int,
    changed: list[int],
    used: set[str],
) -> None:
    """k, dv, c_old and c_new are kept or follow from it. q is not kept: that it is the same shows in the contexts that attention
    over the kept keys and values gives with the recorded one."""
    mine = {"k": new["k"], "dv": new["v"] - old["v"], "c_old": old["context"][start:], "c_new": new["context"][start:]}
    for name, value in mine.items():
        if key + name in a:
            check.close(key + name, value, a[key + name].reshape(value.shape), TENSOR)
            used.add(key + name)
    if key + "q" not in a:
        return
    used.add(key + "q")
    q = a[key + "q"]
    heads, width = q.shape[1], q.shape[2]
    kv_heads, flat = new["k"].shape[1] // width, q.reshape(len(q), -1)
    exact = np.isin(np.arange(start, start + len(q)), changed)
    context = np.empty_like(flat)
    context[exact] = attend(flat[exact], new["k"], new["v"], heads, kv_heads)
    moved = np.array(changed, np.int32)
    context[~exact] = partial(flat[~exact], new["k"], mine["dv"][moved], moved, mine["c_old"][~exact], heads, kv_heads)[0]
    check.close(key + "q, by its contexts", context, mine["c_new"], TENSOR)


def partial(q: np.ndarray, k: np.ndarray, dv: np.ndarray, changed: np.ndarray, old: np.ndarray, heads: int, kv_heads: int) -> Any:
    from dllm_fast import _core

    arrays = [np.ascontiguousarray(x, np.float32) for x in (q, k, dv, old)]
    return _core.attend_delta(*arrays[:3], np.ascontiguousarray(changed, np.int32), arrays[3], heads, kv_heads)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """Ordinary attention: all values moved, from nothing."""
    return partial(q, k, v, np.arange(len(k)), np.zeros_like(q), heads, kv_heads)[0]


# ---- the operator alone --------------------------------------------------------------------------------------------------------


def operator(folder: Folder, case: Mapping[str, Any], check: Check) -> None:
    a = folder.arrays("ops.npz", case["name"])
    check.known("setting", case, {"name", "H", "Hkv", "D", "seqs", "scale"})
    check.known("array", a, OP_ARRAYS)
    heads, kv_heads, width = case["H"], case["Hkv"], case["D"]
    check.close("scale", case["scale"], width**-0.5, 1e-12)
    q, old = (widen(a[x]).reshape(-1, heads * width) for x in ("q", "c_old"))
    k, v, fresh = (widen(a[x]).reshape(-1, kv_heads * width) for x in ("k", "v_old", "v_new_rows"))
    for b, e in enumerate(case["seqs"]):
        check.known("setting", e, {"N", "W", "salient"})
        rows, keys, some = (slice(*a[x][b : b + 2]) for x in ("cu_q", "cu_k", "cu_sal"))
        check.same("W, N", [rows.stop - rows.start, keys.stop - keys.start], [e["W"], e["N"]])
        check.same("idx_k", a["idx_k"][some] - keys.start, e["salient"])
        check.same("idx_q", a["idx_q"][some] - rows.start, np.array(e["salient"], int) - (e["N"] - e["W"]))
        order = np.argsort(e["salient"], kind="stable")
        changed, values = np.sort(np.array(e["salient"], np.int32)), v[keys].copy()
        dv = fresh[some][order] - values[changed]
        values[changed] = fresh[some][order]
        new, cos = partial(q[rows], k[keys], dv, changed, old[rows], heads, kv_heads)
        exact = np.isin(np.arange(e["W"]), changed - (e["N"] - e["W"]))
        new[exact] = attend(q[rows][exact], k[keys], values, heads, kv_heads)
        here, gold = f"sequence {b}", a["c_new"][rows].reshape(e["W"], -1)
        check.close(f"c_new, {here}", new, gold, OPERATOR)
        check.close(f"cos, {here}", cos, a["cos"][rows], OPERATOR, ~exact)
        lengths = np.linalg.norm(new, axis=1) * np.linalg.norm(old[rows], axis=1)
        check.close(f"cos of exact rows, {here}", (new * old[rows]).sum(1) / lengths, a["cos"][rows], OPERATOR, exact)


# ---- what must equal the uncached run, and what must not -----------------------------------------------------------------------


def invariant(folder: Folder, setting: Mapping[str, Any], check: Check) -> None:
    """Everything salient, every step whole and every row changed at the first layer is the uncached model; less is not."""
    check.known("setting", setting, INVARIANT_KEYS)
    check.same("tau", setting["tau"], "inf")
    base = baseline(folder, setting["family"])
    prompt, gold = len(base["prompts"][0]), np.array(base["final_ids"][0])
    case = {**base, "settings": {**base["settings"], "num_full_steps": 4}}
    all_rows, whole = setting["seed_all_rows_at_layer0"], setting["whole_window_every_step"]
    session = session_of(folder, case, seed_all=int(all_rows), whole_interval=1 if whole else 4)
    while session.step():
        pass
    found = [session.tokens()]
    if all_rows and whole:
        import dllm_fast

        found.append(generate(folder, case, cache=dllm_fast.DyLLM(exact=True))[0])
    for ids in found:
        check.same("equals_baseline", np.array_equal(ids, gold), setting["equals_baseline"])
        check.same("generated_tokens_equal", int((ids == gold)[prompt:].sum()), setting["generated_tokens_equal"])


def official(folder: Folder, check: Check) -> None:
    """LLaDA's own generate gives the baseline's ids."""
    import dllm_fast

    base = baseline(folder, "llada")
    o = base["settings"]
    check.same("the recorded fact", folder.manifest["llada_official_generate_equals_baseline"], True)
    out = dllm_fast.generate(
        folder.model(base["model"]), base["prompts"], steps=o["steps"], gen_length=o["max_new_tokens"],
        block_length=o["block_size"], mask_id=base["mask_token_id"],
    )  # fmt: skip
    check.same("ids", out, base["final_ids"])
