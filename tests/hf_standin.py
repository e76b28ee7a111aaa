"""Stand-ins for the Hugging Face objects of LLaDA and Dream: the official class names, attribute paths and parameter names, the
same maths in plain torch, and the official decoding loops as far as the tests need them. Nothing of the remote code is here."""

import json
import pathlib
import struct
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

TYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}


def read_safetensors(path):
    raw = bytearray(pathlib.Path(path).read_bytes())
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    tensors = {}
    for name, t in header.items():
        if name != "__metadata__":
            a, b = (8 + n + x for x in t["data_offsets"])
            tensors[name] = torch.frombuffer(raw[a:b], dtype=TYPES[t["dtype"]]).reshape(t["shape"])
    return tensors


class Config(SimpleNamespace):
    """A config object: attributes, and to_dict."""

    def to_dict(self):
        return dict(vars(self))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def attention(q, k, v, heads, kv_heads, theta, positions, allowed):
    """Rotates q and k to positions [batch, length], and attends; allowed [batch, length, length] or None."""
    batch, length, wide = q.shape
    dim = wide // heads
    angle = positions[..., None].float() / theta ** (torch.arange(0, dim, 2).float() / dim)
    cos, sin = (torch.cat([t(angle)] * 2, -1)[:, None] for t in (torch.cos, torch.sin))

    def split(x, n):
        return x.view(batch, length, n, dim).transpose(1, 2)

    def rotate(x):
        a, b = x.float().chunk(2, -1)
        return (x.float() * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)

    q, k, v = rotate(split(q, heads)), rotate(split(k, kv_heads)), split(v, kv_heads)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    mask = None if allowed is None else allowed[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.nan_to_num(out).transpose(1, 2).reshape(batch, length, wide)


def linear(a, b, bias=False):
    return nn.Linear(a, b, bias=bias)


# ---- LLaDA --------------------------------------------------------------------------------------------------------------------


class LLaDALlamaBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, kv = c, c.d_model // c.n_heads * c.n_kv_heads
        self.attn_norm, self.ff_norm = RMSNorm(c.d_model, c.rms_norm_eps), RMSNorm(c.d_model, c.rms_norm_eps)
        self.q_proj, self.attn_out = linear(c.d_model, c.d_model), linear(c.d_model, c.d_model)
        self.k_proj, self.v_proj = linear(c.d_model, kv), linear(c.d_model, kv)
        self.ff_proj, self.up_proj = linear(c.d_model, c.mlp_hidden_size), linear(c.d_model, c.mlp_hidden_size)
        self.ff_out = linear(c.mlp_hidden_size, c.d_model)

    def forward(self, x, allowed):
        a, c = self.attn_norm(x), self.c
        at = torch.arange(x.shape[1])[None]
        x = x + self.attn_out(
            attention(self.q_proj(a), self.k_proj(a), self.v_proj(a), c.n_heads, c.n_kv_heads, c.rope_theta, at, allowed)
        )
        m = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(m)) * self.up_proj(m))


class LLaDAModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c.embedding_size, c.d_model),
                "blocks": nn.ModuleList(LLaDALlamaBlock(c) for _ in range(c.n_layers)),
                "ln_f": RMSNorm(c.d_model, c.rms_norm_eps),
                "ff_out": linear(c.d_model, c.embedding_size),
            }
        )


class LLaDAModelLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.model = config, LLaDAModel(config)

    def forward(self, input_ids, inputs_embeds=None, attention_mask=None):
        t = self.model.transformer
        x, allowed = t.wte(input_ids), None
        if attention_mask is not None:
            allowed = (attention_mask != 0)[:, None, :].expand(-1, input_ids.shape[1], -1)
        for block in t.blocks:
            x = block(x, allowed)
        return SimpleNamespace(logits=t.ff_out(t.ln_f(x)))


@torch.no_grad()
def llada_generate(model, prompt, attention_mask=None, steps=8, gen_length=8, block_length=8, cfg_scale=0.0, mask_id=300):
    """LLaDA's greedy loop: anything with model(x, attention_mask=...).logits."""
    batch, start = prompt.shape
    x = torch.full((batch, start + gen_length), mask_id)
    x[:, :start] = prompt
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones(batch, gen_length, dtype=attention_mask.dtype)], 1)
    is_prompt, blocks = x != mask_id, gen_length // block_length
    per_block = steps // blocks
    for block in range(blocks):
        high = start + (block + 1) * block_length
        masks = (x[:, high - block_length : high] == mask_id).sum(1)
        for step in range(per_block):
            logits = model(x, attention_mask=attention_mask).logits
            if cfg_scale > 0:
                blank = model(torch.where(is_prompt, mask_id, x), attention_mask=attention_mask).logits
                logits = blank + (cfg_scale + 1) * (logits - blank)
            token = logits.argmax(-1)
            sure = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
            sure = torch.where(x == mask_id, sure, -torch.inf)
            sure[:, high:] = -torch.inf
            for b in range(batch):
                count = int(masks[b]) // per_block + (step < int(masks[b]) % per_block)
                best = sure[b].topk(count).indices
                x[b, best] = token[b, best]
    return x


# ---- Dream --------------------------------------------------------------------------------------------------------------------


class DreamAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, kv = c, c.hidden_size // c.num_attention_heads * c.num_key_value_heads
        self.q_proj, self.o_proj = linear(c.hidden_size, c.hidden_size, True), linear(c.hidden_size, c.hidden_size)
        self.k_proj, self.v_proj = linear(c.hidden_size, kv, True), linear(c.hidden_size, kv, True)

    def forward(self, x, positions, allowed):
        c = self.c
        heads = c.num_attention_heads, c.num_key_value_heads
        return self.o_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), *heads, c.rope_theta, positions, allowed))


class DreamMLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj, self.up_proj = linear(c.hidden_size, c.intermediate_size), linear(c.hidden_size, c.intermediate_size)
        self.down_proj = linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DreamDecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(c.hidden_size, c.rms_norm_eps), DreamAttention(c)
        self.post_attention_layernorm, self.mlp = RMSNorm(c.hidden_size, c.rms_norm_eps), DreamMLP(c)

    def forward(self, x, positions, allowed):
        x = x + self.self_attn(self.input_layernorm(x), positions, allowed)
        return x + self.mlp(self.post_attention_layernorm(x))


class DreamBaseModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DreamDecoderLayer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class DreamModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.model = config, DreamBaseModel(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        """attention_mask: "full" or [batch, 1, length, length] of booleans."""
        x = self.model.embed_tokens(input_ids)
        at = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        allowed = None if attention_mask is None or isinstance(attention_mask, str) else attention_mask[:, 0]
        for layer in self.model.layers:
            x = layer(x, at, allowed)
        return SimpleNamespace(logits=self.lm_head(self.model.norm(x)))

    @torch.no_grad()
    def diffusion_generate(
        self, inputs, attention_mask=None, max_new_tokens=8, steps=8, alg="entropy", eps=1e-3,
        generation_tokens_hook_func=lambda i, x, logits: x, generation_logits_hook_func=lambda i, x, logits: logits,
    ):  # fmt: skip
        """Dream's greedy loop for maskgit_plus and entropy."""
        mask_id = self.config.mask_token_id
        x, mask, at = F.pad(inputs, (0, max_new_tokens), value=mask_id), "full", None
        if attention_mask is not None and (attention_mask == 0).any():
            real = F.pad(attention_mask, (0, max_new_tokens), value=1) != 0
            at = torch.where(real, real.cumsum(1) - 1, 1)
            mask = real[:, None, :, None] & real[:, None, None, :]
        times = torch.linspace(1, eps, steps + 1)
        x = generation_tokens_hook_func(None, x, None)
        for i in range(steps):
            hidden = x == mask_id
            logits = self(x, mask, at).logits
            logits = generation_logits_hook_func(i, x, torch.cat([logits[:, :1], logits[:, :-1]], 1))
            p = logits.softmax(-1)
            sure, token = p.max(-1)
            if alg == "entropy":
                sure = (p * torch.log(p + 1e-10)).sum(-1)
            left = hidden.sum() / len(x)
            count = int(left * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(left)
            best = torch.where(hidden, sure, -torch.inf).topk(count).indices
            x = x.scatter(1, best, token.gather(1, best))
            x = generation_tokens_hook_func(i, x, logits)
        return x


CLASSES = {"llada": LLaDAModelLM, "Dream": DreamModel}


def load(folder, dtype=torch.float32, **extra):
    """A stand-in with a checkpoint's weights. extra: more attributes of its config."""
    folder = pathlib.Path(folder)
    config = Config(**{**json.loads((folder / "config.json").read_text()), **extra})
    hf = CLASSES[config.model_type](config)
    hf.load_state_dict(read_safetensors(folder / "model.safetensors"))
    return hf.to(dtype).eval().requires_grad_(False)
