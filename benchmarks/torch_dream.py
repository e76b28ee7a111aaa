"""Dream in plain torch, as the official code computes it: the rival that benchmarks/step.py measures against.

Uncached, greedy, entropy or any other confidence over the whole answer. The network is torch_llada.py's with Dream's names,
its biases, its rotation in the model's dtype, and logits that belong to the position after them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch_llada import TorchLLaDA, places, surest

DREAM_NAMES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "layer": "model.layers.{}.",
    "attn_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


class TorchDream(TorchLLaDA):
    """A Dream checkpoint."""

    names = DREAM_NAMES

    @staticmethod
    def sizes(c: dict[str, Any]) -> tuple[int, int, int, int]:
        return c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"]


def shifted(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat((rows[:, :1], rows[:, :-1]), 1)


def negative_entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.sum(p * torch.log(p + 1e-10), -1)


def predict_all(model: TorchDream, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, confidence) of the masks as the official loop has them: logits of every row there is, shifted, then those of the masks.

    Masks that a caching method left out of this pass have the confidence -inf.
    """
    rows, first = model.window(x)
    masked = x == model.mask_id
    inside = torch.zeros_like(masked)
    inside[:, first : first + rows.shape[1]] = True
    p = F.softmax(shifted(model.logits(rows))[masked[:, first : first + rows.shape[1]]], -1)
    seen, token = inside[masked], torch.zeros_like(x[masked])
    score = torch.full_like(token, -torch.inf, dtype=p.dtype)
    token[seen], score[seen] = p.max(-1).indices, negative_entropy(p)
    return token, score


def predict_candidates(model: TorchDream, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for someone who does not waste work: the head on the rows that are read only, a float32 softmax."""
    z = model.logits(shifted(model.hidden(x))[x == model.mask_id]).float()
    p = F.softmax(z, -1)
    return p.max(-1).indices, negative_entropy(p)


def denoise(
    model: TorchDream,
    prompt: torch.Tensor,
    steps: int = 512,
    max_new_tokens: int = 20,
    eps: float = 1e-3,
    block_length: int | None = None,
    predict: Any = predict_all,
) -> Iterator[torch.Tensor]:
    """Dream's loop with alg="entropy", the ids after every step. A time schedule says how many masks are revealed, on the average
    of the batch. The official loop has one block, the whole answer."""
    x = F.pad(prompt, (0, max_new_tokens), value=model.mask_id)
    block = block_length or max_new_tokens
    per_block = steps // (max_new_tokens // block)
    t = torch.linspace(1, eps, per_block + 1)
    for end in range(prompt.shape[1] + block, x.shape[1] + 1, block):
        for i in range(per_block):
            masked, open_ = x == model.mask_id, places(x) < end
            token, score = predict(model, x)
            share = 1 - t[i + 1] / t[i] if i < per_block - 1 else 1.0
            n = int((masked & open_).sum() / x.shape[0] * share)
            confidence, x0 = torch.full(x.shape, -torch.inf, dtype=score.dtype, device=x.device), x.clone()
            confidence[masked], x0[masked] = score, token
            if n:
                at = surest(torch.where(open_, confidence, -torch.inf), n)
                x = x.scatter(1, at, x0.gather(1, at))
            yield x


@torch.inference_mode()
def generate(model: TorchDream, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    """The ids after the last step; options: those of denoise."""
    *_, last = denoise(model, prompt, **options)
    return last
