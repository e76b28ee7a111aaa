"""Models in memory: no byte is copied, the same logits and ids as the object's own code, and everything is put back."""

import gc
import json
import sys
import types
import weakref

import numpy as np
import pytest
from conftest import MODELS, padded, text_ids

torch = pytest.importorskip("torch")

import hf_standin  # noqa: E402

import dllm_fast  # noqa: E402
from dllm_fast.hf import engine  # noqa: E402

CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.fixture
def hf_llada():
    return hf_standin.load(MODELS / "llada_tiny")


@pytest.fixture
def hf_dream():
    return hf_standin.load(MODELS / "dream_tiny")


def prompts(rng, *lengths):
    return torch.from_numpy(np.stack([text_ids(rng, n) for n in lengths]))


@pytest.mark.parametrize("name", ["llada_tiny", "dream_tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_shared_not_copied(name, dtype):
    hf = hf_standin.load(MODELS / name, dtype)
    model = engine(hf)
    assert model.dtype == str(dtype).removeprefix("torch.")
    theirs = sorted(p.data_ptr() for p in hf.parameters())
    assert sorted(model.core.pointers().values()) == theirs
    assert model.nbytes == sum(p.numel() * p.element_size() for p in hf.parameters())


def test_a_change_of_the_weights_is_seen(hf_llada, rng):
    ids = prompts(rng, 6)
    before = engine(hf_llada).forward(ids)
    with torch.no_grad():
        hf_llada.model.transformer.ff_out.weight *= 2
    torch.testing.assert_close(engine(hf_llada).forward(ids), 2 * before, rtol=1e-5, atol=1e-5)
    first = engine(hf_llada)
    assert engine(hf_llada) is first
    hf_llada.to(torch.bfloat16)  # the weights move: the shared ones would be stale
    assert engine(hf_llada) is not first and engine(hf_llada).dtype == "bfloat16"


@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_logits_of_an_accelerated_object(family, side, rng, request):
    hf = request.getfixturevalue("hf_llada" if family == "llada" else "hf_dream")
    ids, mask = (torch.from_numpy(x) for x in padded([text_ids(rng, n) for n in (5, 9, 7)], side))
    if family == "llada":
        args = {"attention_mask": mask}
    else:
        real = mask != 0
        args = {"attention_mask": real[:, None, :, None] & real[:, None, None, :]}
        args["position_ids"] = torch.where(real, real.cumsum(1) - 1, 1)
    expected = hf(ids, **args).logits
    with dllm_fast.accelerated(hf):
        given = hf(ids, **args).logits
    assert given.dtype == torch.float32 and given.shape == expected.shape
    torch.testing.assert_close(given[mask != 0], expected[mask != 0], **CLOSE)
    assert (given[mask == 0] == 0).all()


@pytest.mark.parametrize("options", [{}, {"block_length": 4}, {"steps": 4}, {"cfg_scale": 0.7}])
def test_llada_generate_three_ways(hf_llada, rng, options):
    ids, mask = (torch.from_numpy(x) for x in padded([text_ids(rng, n) for n in (6, 9)], "left"))
    settings = {"steps": 8, "gen_length": 8, "block_length": 8, **options}
    expected = hf_standin.llada_generate(hf_llada, ids, mask, **settings)
    ours = dllm_fast.generate(hf_llada, ids, mask, **settings)
    assert ours.dtype == torch.int64 and torch.equal(ours, expected)
    with dllm_fast.accelerated(hf_llada):  # the user's own copy of the loop, on our forward
        assert torch.equal(hf_standin.llada_generate(hf_llada, ids, mask, **settings), expected)


@pytest.mark.parametrize("alg", ["entropy", "maskgit_plus"])
@pytest.mark.parametrize("steps", [8, 3])
def test_dream_generates_what_its_own_loop_does(hf_dream, rng, alg, steps):
    ids, mask = (torch.from_numpy(x) for x in padded([text_ids(rng, n) for n in (6, 9)], "left"))
    settings = {"attention_mask": mask, "max_new_tokens": 8, "steps": steps, "alg": alg}
    expected = hf_dream.diffusion_generate(ids, **settings)
    with dllm_fast.accelerated(hf_dream):
        assert torch.equal(hf_dream.diffusion_generate(ids, **settings), expected)
        own_loop = types.MethodType(hf_standin.DreamModel.diffusion_generate, hf_dream)
        assert torch.equal(own_loop(ids, **settings), expected)


def test_dream_hooks_see_what_the_original_shows(hf_dream, rng):
    def recorder(seen):
        def tokens(i, x, logits):
            seen.append((i, x.clone(), None if logits is None else logits.clone()))
            if i == 2:
                x[:, -1] = 7  # hooks may write
            return x

        def logits(i, x, logits):
            logits[..., 36] -= 3.0 * i
            return logits

        return {"generation_tokens_hook_func": tokens, "generation_logits_hook_func": logits}

    ids, expected, seen = prompts(rng, 7), [], []
    out = hf_dream.diffusion_generate(ids, max_new_tokens=6, steps=6, **recorder(expected))
    with dllm_fast.accelerated(hf_dream):
        ours = hf_dream.diffusion_generate(ids, max_new_tokens=6, steps=6, alg="entropy", **recorder(seen))
    assert torch.equal(ours, out) and len(seen) == len(expected) == 7
    for (i, x, logits), (j, y, theirs) in zip(seen, expected, strict=True):
        assert i == j and torch.equal(x, y) and x.dtype == torch.int64
        assert (logits is None) == (theirs is None)
        if logits is not None:
            torch.testing.assert_close(logits, theirs, **CLOSE)


def test_implicit_sampling_defaults(rng):
    """transformers 4 keeps temperature 1, top_p 1 and top_k 50 in the model config, and the original reads them there."""
    four = hf_standin.load(MODELS / "dream_tiny", temperature=1.0, top_p=1.0, top_k=50)
    ids, call = prompts(rng, 5), {"max_new_tokens": 8, "steps": 8, "alg": "entropy", "seed": 3}
    model = engine(four)
    with dllm_fast.accelerated(four):
        assert torch.equal(four.diffusion_generate(ids, **call), model.diffusion_generate(ids, temperature=1.0, top_k=50, **call))
        assert torch.equal(four.diffusion_generate(ids, top_k=None, **call), model.diffusion_generate(ids, temperature=1.0, **call))
        config = types.SimpleNamespace(temperature=0.0, top_p=None, top_k=None, max_new_tokens=8, steps=8, alg="entropy", seed=3)
        assert torch.equal(four.diffusion_generate(ids, config), model.diffusion_generate(ids, **call))
    five = hf_standin.load(MODELS / "dream_tiny")
    with dllm_fast.accelerated(five):
        assert torch.equal(five.diffusion_generate(ids, **call), engine(five).diffusion_generate(ids, **call))


def test_accelerated_objects_ignore_unknown_options_as_the_original(hf_dream, rng):
    ids = prompts(rng, 5)
    with dllm_fast.accelerated(hf_dream):
        a = hf_dream.diffusion_generate(ids, max_new_tokens=4, steps=4, alg="entropy", unheard_of=1)
        assert torch.equal(a, hf_dream.diffusion_generate(ids, max_new_tokens=4, steps=4, alg="entropy"))
        with pytest.raises(ValueError, match="input ids"):
            hf_dream.diffusion_generate(max_new_tokens=4)


def test_restore_puts_everything_back(hf_dream, rng):
    ids, before = prompts(rng, 5), dict(vars(hf_dream))
    assert dllm_fast.accelerate(hf_dream) is hf_dream
    assert {"forward", "diffusion_generate"} <= set(vars(hf_dream))
    dllm_fast.accelerate(hf_dream)  # twice is once
    assert dllm_fast.restore(hf_dream) is hf_dream and dict(vars(hf_dream)) == before
    assert dllm_fast.restore(hf_dream) is hf_dream and dict(vars(hf_dream)) == before

    def hooked(input_ids, **kwargs):  # what an instance attribute of somebody else looks like
        return "theirs"

    hf_dream.forward = hooked
    with pytest.raises(KeyError, match="inside"), dllm_fast.accelerated(hf_dream):
        assert hf_dream(ids).logits.shape == (1, 5, 320)
        raise KeyError("inside")
    assert hf_dream.forward is hooked and "diffusion_generate" not in vars(hf_dream)


def test_objects_are_not_kept_alive(hf_dream, rng):
    dllm_fast.accelerate(hf_dream)
    hf_dream.diffusion_generate(prompts(rng, 4), max_new_tokens=2, steps=2)
    known, storage = weakref.ref(hf_dream), engine(hf_dream)
    fresh = hf_standin.load(MODELS / "dream_tiny")
    gone = weakref.ref(fresh)
    dllm_fast.generate(fresh, prompts(rng, 4), steps=2, gen_length=2, block_length=2)
    del fresh
    gc.collect()
    assert gone() is None and known() is hf_dream and storage.nbytes > 0


def test_weights_outlive_the_object(hf_llada, rng):
    ids, model = prompts(rng, 6), engine(hf_llada)
    expected = model.forward(ids)
    del hf_llada
    gc.collect()
    _ = [torch.full((64, 64), 1e9) for _ in range(50)]
    assert torch.equal(model.forward(ids), expected)


def test_output_object(hf_llada, hf_dream, rng):
    ids = prompts(rng, 6)
    with dllm_fast.accelerated(hf_llada), dllm_fast.accelerated(hf_dream):
        out = hf_llada(ids, output_hidden_states=True)
        assert out[0] is out.logits is out["logits"] and out.past_key_values is None and out.loss is None
        assert [h.shape for h in out.hidden_states] == [(1, 6, 64)] * 4
        logits, past, states = hf_llada(ids, return_dict=False)
        assert torch.equal(logits, out.logits) and past is None and states is None
        full = hf_dream(ids, "full").logits
        assert torch.equal(hf_dream(ids, num_logits_to_keep=2).logits, full[:, -2:])
        assert torch.equal(hf_dream(ids, torch.ones_like(ids)).logits, full)
        shifted = hf_dream(ids, None, torch.arange(3, 9)[None]).logits
        torch.testing.assert_close(shifted, full, rtol=0, atol=1e-3)  # rotary positions are relative
        assert not torch.equal(shifted, full)


def test_transformers_output_classes_are_used_where_loaded(hf_llada, hf_dream, rng, monkeypatch):
    made = []

    def record(name):
        return lambda **fields: made.append((name, sorted(fields))) or types.SimpleNamespace(**fields)

    outputs = types.SimpleNamespace(**{n: record(n) for n in ("CausalLMOutputWithPast", "MaskedLMOutput")})
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(modeling_outputs=outputs))
    with dllm_fast.accelerated(hf_llada), dllm_fast.accelerated(hf_dream):
        assert hf_llada(prompts(rng, 4)).logits.shape == hf_dream(prompts(rng, 4)).logits.shape == (1, 4, 320)
    assert made == [(n, ["hidden_states", "logits"]) for n in ("CausalLMOutputWithPast", "MaskedLMOutput")]


@pytest.mark.parametrize(
    "refused",
    [{"inputs_embeds": 1}, {"past_key_values": ()}, {"output_attentions": True}, {"attention_bias": 1}, {"use_cache": True}],
)
def test_what_the_core_does_not_do_is_refused(hf_llada, rng, refused):
    with dllm_fast.accelerated(hf_llada), pytest.raises(ValueError, match=next(iter(refused))):
        hf_llada(prompts(rng, 4), **refused)


def test_other_attention_patterns_are_refused(hf_dream, rng):
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    with dllm_fast.accelerated(hf_dream), pytest.raises(ValueError, match="4-D"):
        hf_dream(prompts(rng, 5), causal)


class DistributedDataParallel(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class PeftModelForCausalLM(DistributedDataParallel):
    pass


def test_wrappers(hf_llada, rng):
    ids, ddp = prompts(rng, 5), DistributedDataParallel(hf_llada)
    assert engine(ddp) is engine(hf_llada)
    with dllm_fast.accelerated(ddp):
        assert torch.equal(ddp(ids).logits, engine(hf_llada).forward(ids))
    assert "forward" not in vars(hf_llada)
    with pytest.raises(ValueError, match="merge_and_unload"):
        engine(PeftModelForCausalLM(hf_llada))
    with pytest.raises(TypeError, match="got int"):
        dllm_fast.generate(7, ids)
    with pytest.raises(TypeError, match="got Linear"):
        dllm_fast.accelerate(torch.nn.Linear(2, 2))


def test_weights_that_cannot_be_shared(hf_llada, hf_dream):
    with torch.device("meta"):
        hf_llada.model.transformer.ln_f.weight = torch.nn.Parameter(torch.ones(64))
    with pytest.raises(ValueError, match="model.transformer.ln_f.weight is on the meta device"):
        engine(hf_llada)
    hf_dream.lm_head.weight = torch.nn.Parameter(torch.zeros(319, 64))
    with pytest.raises(dllm_fast.CheckpointError, match="lm_head.weight"):
        engine(hf_dream)
    hf_dream.lm_head.weight = torch.nn.Parameter(torch.zeros(320, 64, dtype=torch.float64))
    with pytest.raises((TypeError, ValueError), match="lm_head.weight"):
        engine(hf_dream)


def test_config_of_transformers_5(hf_dream):
    del hf_dream.config.rope_theta
    hf_dream.config.rope_parameters = {"rope_type": "default", "rope_theta": 1000000.0}
    assert engine(hf_dream).config["rope_theta"] == 1e6


def test_from_tensors_takes_plain_arrays(rng):
    text = (MODELS / "llada_tiny" / "config.json").read_text()
    tensors = {k: v.float().numpy() for k, v in hf_standin.read_safetensors(MODELS / "llada_tiny" / "model.safetensors").items()}
    model = dllm_fast.Model.from_tensors(text, tensors, dtype="float32", device="cpu")
    loaded = dllm_fast.load(MODELS / "llada_tiny", dtype="float32", device="cpu")
    ids = text_ids(rng, 6)[None]
    np.testing.assert_array_equal(model.forward(ids), loaded.forward(ids))
    with pytest.raises(dllm_fast.CheckpointError, match="moe|experts|LLaDAMoE"):
        bad = json.dumps({**json.loads(text), "architectures": ["LLaDAMoEModelLM"], "num_experts": 8})
        dllm_fast.Model.from_tensors(bad, tensors)
