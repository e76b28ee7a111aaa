"""Small pieces of the base family: filters, confidences, noise, schedules and tables, seen through the extension's functions."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from golden_case import Case, Check, Folder

Arrays = Mapping[str, np.ndarray]
TIED_ROWS = (3, 4)  # of filter/logits: which of equal logits top_p keeps depends on the sort, so only how many is defined


def collect(folder: Folder) -> Iterator[Case]:
    man = folder.manifest
    lists = {
        "num_transfer_tokens_table": ("tables", quota_table), "dream_transfer_table": ("tables", times_table),
        "llada_forward_process_table": ("tables", mask_table), "llada_generate_errors": ("facts", llada_errors),
        "dream_api_facts": ("facts", dream_facts),
    }  # fmt: skip
    for name, (family, run) in lists.items():
        if name in man:
            yield Case(family, name, functools.partial(run, folder, man[name]))
    if not (folder.path / "pieces.npz").exists():
        return
    z = dict(folder.npz("pieces.npz"))
    part_of = lambda key: key.rsplit("/", 1)[0]  # noqa: E731
    for part, keys in itertools.groupby(sorted(z, key=part_of), key=part_of):
        mine = {k.rsplit("/", 1)[1]: z[k] for k in keys}
        run = PIECES.get(part.split("/")[0], strange)
        yield Case("pieces", part, functools.partial(run, folder, part, mine, z), informational="bfloat16/top_p" in part)


def strange(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    check.note(f"piece {part} is not understood")


# ---- logits to tokens -----------------------------------------------------------------------------------------------------------


def round_to(kind: str, x: np.ndarray) -> np.ndarray:
    """float32, or the nearest bfloat16 kept as float32."""
    if kind == "float32":
        return x
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def predict(logits: np.ndarray, params: Mapping[str, Any], noise: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    from dllm_fast import _core

    off = {"gumbel": False, "score": "prob", "temperature": 0.0, "top_p": 1.0, "top_k": 0, "mask_id": 0}
    return _core.predict(np.ascontiguousarray(logits, np.float32), {**off, **params}, noise)


def gumbel(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    """The token is the largest of the recorded noisy logits; its probability comes from the clean ones."""
    if part == "gumbel":
        return inputs(check, part, a, {"logits", "uniform"})
    check.known("array", a, {"result", "argmax"})
    _, kind, temperature = part.split("/")
    logits = round_to(kind, z["gumbel/logits"])
    params = {"gumbel": True, "temperature": float(temperature[1:])}
    token, score, _ = predict(logits, params, z["gumbel/uniform"])
    check.same("token", token, a["argmax"])
    check.same("token of the noisy logits", token, a["result"].argmax(-1))
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    check.close("score", score, np.take_along_axis(p / p.sum(-1, keepdims=True), token[:, None].astype(int), -1)[:, 0], 1e-6)


def inputs(check: Check, part: str, a: Arrays, names: set[str]) -> None:
    check.known(f"input of {part}", a, names)
    check.same(f"inputs of {part}", sorted(a), sorted(names))


def distribution(logits: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """The filtered distribution of every row. Exponential noise that is tiny at one token draws it if and only if the filters
    kept it, and its score is its probability."""
    n, vocab = logits.shape
    noise = np.ones((n, vocab, vocab), np.float32)
    noise[:, np.arange(vocab), np.arange(vocab)] = 1e-30
    params = {**params, "temperature": params.get("temperature") or 1.0}
    token, score, _ = predict(np.repeat(logits, vocab, 0), params, noise.reshape(-1, vocab))
    drawn = np.asarray(token).reshape(n, vocab) == np.arange(vocab)
    return np.where(drawn, np.asarray(score).reshape(n, vocab), 0)


def kept(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    """Which entries top_p and top_k leave."""
    if part == "filter":
        return inputs(check, part, a, {"logits"})
    check.known("array", a, {"kept"})
    _, kind, setting = part.split("/")
    name, number = setting[:5], setting[5:]
    params = {"top_p": float(number)} if name == "top_p" else {"top_k": int(number)}
    mine = distribution(round_to(kind, z["filter/logits"]), params) > 0
    check.same("how many are kept", mine.sum(-1), a["kept"].sum(-1))
    whole = np.ones(len(mine), bool)
    whole[list(TIED_ROWS if name == "top_p" else ())] = False
    check.same("kept", mine, a["kept"], whole[:, None])


def sample(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    """The filtered distribution, the token and every kind of confidence."""
    _, setting, *score = part.split("/")
    t, p, k = (None if word[1:] == "None" else float(word[1:]) for word in setting.split("_"))
    params: dict[str, Any] = {"temperature": t}
    params.update({"top_p": p} if p is not None else {})
    params.update({"top_k": int(k)} if k is not None else {})
    logits = z["filter/logits"][[0, 1, 2, 5]]
    if score:
        names = {"maskgit_plus": "prob", "topk_margin": "margin", "entropy": "entropy"}
        check.known("array", a, {"confidence"})
        check.close("confidence", predict(logits, {**params, "score": names[score[0]]})[1], a["confidence"], 1e-5)
        return
    check.known("array", a, {"probs", "x0", "q", "x0_given_q"})
    check.close("probabilities", distribution(logits, params), a["probs"], 1e-6)
    if "x0" in a:
        check.same("x0", predict(logits, params)[0], a["x0"])
    if "q" in a:
        check.same("x0 given q", predict(logits, params, a["q"])[0], a["x0_given_q"])


def rope(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    from dllm_fast import _core

    check.known("array", a, {"cos", "sin"})
    config = folder.model(part.split("/")[1]).core.config
    n, dim = a["cos"].shape
    check.same("head_dim", config["head_dim"], dim)
    tables = _core.rope_table(np.arange(n, dtype=np.int32), dim, config["rope_theta"])
    for name, mine in zip(("cos", "sin"), tables, strict=True):
        check.close(name, np.tile(mine, 2), a[name], 1e-5)


def timesteps(folder: Folder, part: str, a: Arrays, z: Arrays, check: Check) -> None:
    from dllm_fast import _core

    for name, table in a.items():
        steps, eps = name.removeprefix("steps").split("_eps")
        check.same(name, _core.times(int(steps), float(eps)), table)


PIECES = {"gumbel": gumbel, "filter": kept, "sample": sample, "rope": rope, "timesteps": timesteps}

# ---- tables ---------------------------------------------------------------------------------------------------------------------


def smallest(folder: Folder, family: str | None = None) -> Any:
    """The smallest of the manifest's models, of a family if one is asked for."""
    models = [folder.model(name) for name in folder.manifest["models"]]
    return min((m for m in models if family in (None, m.core.config["family"])), key=lambda m: m.core.nbytes)


def revealed(model: Any, masks: int, steps: int, params: Mapping[str, Any]) -> list[int]:
    """How many rows every step of a session reveals, the same token being predicted everywhere."""
    from dllm_fast import _core

    answer = max(masks, 1)
    session = _core.Session(model.core, {"answer_len": answer, "block_len": 0, "steps": steps, **params}, [np.array([5], np.int32)])
    if not masks:
        session.set_tokens(np.full(session.rows, 5, np.int32))
    logits = np.zeros((session.rows, model.core.config["vocab"]), np.float32)
    logits[:, 7] = 3
    counts = []
    for _ in range(steps):
        session.forward()
        unfinished = session.decide(logits)
        counts.append(len(session.revealed()))
        if not unfinished:
            break
    return counts + [0] * (steps - len(counts))


def quota_table(folder: Folder, table: Sequence[Mapping[str, Any]], check: Check) -> None:
    model = smallest(folder)
    for e in table:
        check.known("setting", e, {"masks", "steps", "counts"})
        mine = revealed(model, e["masks"], e["steps"], {"rule": "quota", "score": "prob"})
        check.same(f"{e['masks']} masks, {e['steps']} steps", mine, e["counts"])


def times_table(folder: Folder, table: Sequence[Mapping[str, Any]], check: Check) -> None:
    model = smallest(folder)
    for e in table:
        check.known("setting", e, {"masks", "steps", "eps", "counts_rle_value_times"})
        mine = revealed(model, e["masks"], e["steps"], {"rule": "times", "score": "prob", "eps": e["eps"]})
        check.same(f"{e['masks']} masks, {e['steps']} steps, eps {e['eps']}", mine,
                   [value for value, times in e["counts_rle_value_times"] for _ in range(times)])  # fmt: skip


def mask_counts(target_len: int, batch: int, k: int) -> np.ndarray:
    from dllm_fast import likelihood

    return np.asarray(likelihood.mask_counts(target_len, batch, k))


def mask_table(folder: Folder, table: Sequence[Mapping[str, Any]], check: Check) -> None:
    for e in table:
        check.known("setting", e, {"target_len", "b", "k", "x"})
        check.same(f"length {e['target_len']}, batch {e['b']}, k {e['k']}", mask_counts(e["target_len"], e["b"], e["k"]), e["x"])


# ---- facts about the calls ------------------------------------------------------------------------------------------------------


def refused(check: Check, what: str, run: Any) -> None:
    try:
        run()
        check.note(f"{what}: accepted")
    except (ValueError, TypeError, RuntimeError) as error:
        check.same(f"{what}: a message", bool(str(error)), True)


def llada_errors(folder: Folder, facts: Mapping[str, str], check: Check) -> None:
    """What does not divide is refused; guidance without a mask, which the original cannot do, just works."""
    import dllm_fast

    model, prompt = smallest(folder, "llada"), np.arange(20, 26, dtype=np.int32)[None]
    for what in facts:
        if what.startswith("{"):
            refused(check, what, lambda: dllm_fast.generate(model, prompt, **json.loads(what)))  # noqa: B023
        elif what == "cfg_scale>0 and attention_mask=None":
            run = functools.partial(dllm_fast.generate, model, prompt, steps=4, gen_length=4, block_length=4, cfg_scale=0.5)
            check.same(what, run(), run(attention_mask=np.ones_like(prompt)))
        else:
            check.note(f"{what!r} is not understood")


def dream_facts(folder: Folder, facts: Mapping[str, Any], check: Check) -> None:
    """What diffusion_generate returns and refuses."""
    check.known("fact", facts, {
        "default_return", "return_dict_no_history", "output_history_without_return_dict", "max_length_10_shape",
        "no_length_args_shape", "num_return_sequences_3_shape", "unknown_alg", "max_length<=prompt", "no inputs",
        # these hold for an accelerated transformers object, not for a Model
        "unknown_kwarg", "effective_config_without_generation_config_argument",
        "effective_config_with_model.generation_config_argument", "generation_config_class",
        "model.generation_config.mask_token_id",
    })  # fmt: skip
    n = facts["no_length_args_shape"][1] - 20
    prompt = np.arange(20, 20 + n, dtype=np.int32)[None]
    run = functools.partial(smallest(folder, "dream").diffusion_generate, steps=2)
    check.same("max_length 10", np.shape(run(prompt, max_length=10)), facts["max_length_10_shape"])
    check.same("no length", np.shape(run(prompt)), facts["no_length_args_shape"])
    check.same("default", np.shape(run(prompt, max_new_tokens=10 - n)), facts["default_return"][1])
    three = run(prompt, max_length=10, num_return_sequences=3)
    check.same("three sequences", np.shape(three), facts["num_return_sequences_3_shape"])
    check.same("history alone", np.shape(run(prompt, max_length=10, output_history=True)), (1, 10))
    check.same("no history", run(prompt, max_length=10, return_dict_in_generate=True).history is None, True)
    refused(check, "unknown alg", lambda: run(prompt, max_length=10, alg="best"))
    refused(check, "max_length <= prompt", lambda: run(prompt, max_length=n))
    refused(check, "no inputs", lambda: run(None))
