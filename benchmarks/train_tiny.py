"""Trains the tiny models of the package: python benchmarks/train_tiny.py --family llada --out DIR --steps 11000

One thread of a CPU, the puzzles of tiny_tasks.py, the masked diffusion loss: a share t of the answer is masked, t uniform in 0..1,
or a share of a block of it and all that follows, as when an answer is written block by block; the model fills it in. The folder is
a checkpoint like the official ones (their names, bfloat16), with train.json beside: how it was made and how often it is right. The
same seed and the same --steps give the same weights on one machine.
"""

import argparse
import json
import os
import struct
import time

import numpy as np
import tiny_tasks as tasks
import torch
from torch import Tensor
from torch.nn import functional as F

DIM, LAYERS, HEADS, FFN, THETA, MAX_LEN = 128, 4, 4, 384, 10000.0, 256
HEAD = DIM // HEADS
RATE, BATCH, WARMUP = 1.5e-3, 48, 50
END_WEIGHT = 0.2  # of an end token in the loss: there are many, and they are easy
LONGEST_BLOCK = 16
# Two tasks a step, in rotation, the hard ones more often. All of them at once, in smaller batches, do not learn the hard ones.
PAIRS = tuple(pair for easy in ("palindrome", "doubled", "reverse") for pair in (("sorting", "walk"), ("addition", easy)))

LLADA = {
    "embed": "model.transformer.wte.weight",
    "norm": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
    "layer": "model.transformer.blocks.{}.",
    "norm1": "attn_norm.weight",
    "q": "q_proj.weight",
    "k": "k_proj.weight",
    "v": "v_proj.weight",
    "o": "attn_out.weight",
    "norm2": "ff_norm.weight",
    "gate": "ff_proj.weight",
    "up": "up_proj.weight",
    "down": "ff_out.weight",
}
DREAM = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layer": "model.layers.{}.",
    "norm1": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o": "self_attn.o_proj.weight",
    "norm2": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


class Net:
    """Either family's transformer over a flat table of tensors under their official names."""

    def __init__(self, family: str, generator: torch.Generator) -> None:
        self.names = DREAM if family == "dream" else LLADA
        self.shift = family == "dream"  # the logits at p - 1 are those of p
        self.kv_heads = HEADS // 2 if family == "dream" else HEADS
        self.eps = 1e-6 if family == "dream" else 1e-5
        self.weights = self._fresh(generator)
        angles = torch.arange(MAX_LEN)[:, None] / THETA ** (torch.arange(0, HEAD, 2) / HEAD)
        self.cos, self.sin = (torch.cat([f(angles)] * 2, dim=1) for f in (torch.cos, torch.sin))

    def _fresh(self, generator: torch.Generator) -> dict[str, Tensor]:
        kv = self.kv_heads * HEAD
        shapes = {"embed": (tasks.VOCAB, DIM), "norm": (DIM,), "head": (tasks.VOCAB, DIM)}
        inner = {"norm1": (DIM,), "q": (DIM, DIM), "k": (kv, DIM), "v": (kv, DIM)}
        inner |= {"q_bias": (DIM,), "k_bias": (kv,), "v_bias": (kv,)}
        inner |= {"o": (DIM, DIM), "norm2": (DIM,), "gate": (FFN, DIM), "up": (FFN, DIM), "down": (DIM, FFN)}
        weights = {self.names[role]: _start(role, shape, generator) for role, shape in shapes.items()}
        for i in range(LAYERS):
            weights |= {self._name(role, i): _start(role, s, generator) for role, s in inner.items() if role in self.names}
        return weights

    def _name(self, role: str, layer: int) -> str:
        return self.names["layer"].format(layer) + self.names[role]

    def _stack(self, roles: tuple[str, ...], layer: int) -> Tensor | None:
        parts = [self.weights[self._name(role, layer)] for role in roles if role in self.names]
        return torch.cat(parts) if parts else None

    def logits(self, ids: Tensor, first: int) -> Tensor:
        """[batch, columns from first on, vocabulary], of the tokens in these columns whatever the family."""
        x = F.embedding(ids, self.weights[self.names["embed"]])
        for i in range(LAYERS):
            x = x + self._attend(self._norm(x, self._name("norm1", i)), i)
            x = x + self._feed(self._norm(x, self._name("norm2", i)), i)
        x = x[:, first - 1 : -1] if self.shift else x[:, first:]
        return F.linear(self._norm(x, self.names["norm"]), self.weights[self.names["head"]])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (DIM,), self.weights[name], self.eps)

    def _attend(self, x: Tensor, layer: int) -> Tensor:
        batch, length, _ = x.shape
        rows = F.linear(x, self._stack(("q", "k", "v"), layer), self._stack(("q_bias", "k_bias", "v_bias"), layer))
        rows = rows.view(batch, length, -1, HEAD).transpose(1, 2)
        turned, v = rows.split([HEADS + self.kv_heads, self.kv_heads], dim=1)
        q, k = self._rotate(turned).split([HEADS, self.kv_heads], dim=1)
        groups = HEADS // self.kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (k, v))
        shares = (q @ k.transpose(-1, -2) * HEAD**-0.5).softmax(-1)  # written out: the fused one's gradient is slow here
        context = shares.to(v.dtype) @ v
        return F.linear(context.transpose(1, 2).reshape(batch, length, DIM), self.weights[self._name("o", layer)])

    def _rotate(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        n = x.shape[2]
        return x * self.cos[:n].to(x.dtype) + torch.cat([-high, low], dim=-1) * self.sin[:n].to(x.dtype)

    def _feed(self, x: Tensor, layer: int) -> Tensor:
        gate, up = F.linear(x, self._stack(("gate", "up"), layer)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.weights[self._name("down", layer)])


def _start(role: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return (torch.zeros if role.endswith("bias") else torch.ones)(shape).requires_grad_()
    scale = 0.02 if role in ("embed", "head") else shape[1] ** -0.5 * (0.5 if role in ("o", "down") else 1.0)
    return (torch.randn(shape, generator=generator) * scale).requires_grad_()


# ---- training -------------------------------------------------------------------------------------------------------------------


def loss_of(net: Net, name: str, rng: np.random.Generator) -> Tensor:
    """Of one batch of a task: often the longest puzzles, else shorter ones, with few or many end tokens."""
    task = tasks.TASKS[name]
    size = task.size if rng.random() < 0.5 else int(rng.integers(task.shortest, task.size + 1))
    prompts, answers = task.make(rng, BATCH, size)
    spare = (int(rng.integers(1, 5)), tasks.ANSWER - answers.shape[1], 2 * tasks.ANSWER - answers.shape[1])
    answers = tasks.padded(answers, answers.shape[1] + int(rng.choice(spare, p=(0.5, 0.45, 0.05))))
    masked, asked = masks(rng, *answers.shape)
    ids = torch.from_numpy(np.concatenate([prompts, np.where(masked, tasks.MASK, answers)], axis=1))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.logits(ids, prompts.shape[1])
    wanted, chosen = torch.from_numpy(answers), torch.from_numpy(asked)
    losses = F.cross_entropy(logits[chosen].float(), wanted[chosen], reduction="none")
    weights = torch.where(wanted[chosen] == tasks.EOS, END_WEIGHT, 1.0)
    return (losses * weights).sum() / weights.sum()


def masks(rng: np.random.Generator, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(masked, asked for). In half of the rows everything right of a block is masked too, and only the block is asked for."""
    share = (np.arange(rows)[:, None] + rng.random()) / rows
    column, first = np.arange(width), rng.integers(0, width, (rows, 1))
    inside = (column >= first) & (column < first + rng.integers(1, LONGEST_BLOCK + 1, (rows, 1)))
    drawn, blocks = rng.random((rows, width)) < share, rng.random((rows, 1)) < 0.5
    masked = np.where(blocks, (column >= first) & (drawn | ~inside), drawn)
    return masked, masked & (inside | ~blocks)


class Schedule:
    """Full speed for the first half, then down to 0. The half is a number of steps, or the step that half the minutes lead to."""

    def __init__(self, minutes: float, steps: int | None) -> None:
        self.steps, self.half_time = steps, time.monotonic() + 30 * minutes

    def rate(self, step: int) -> float | None:
        if self.steps is None and time.monotonic() >= self.half_time:
            self.steps = 2 * step
        if self.steps is None or 2 * step < self.steps:
            return RATE * min(1.0, (step + 1) / WARMUP)
        return RATE * 2 * (1 - step / self.steps) if step < self.steps else None


def train(net: Net, schedule: Schedule, seed: int, report: "Report") -> int:
    """Returns the number of steps."""
    rng = np.random.default_rng(seed)
    decayed = [w for w in net.weights.values() if w.ndim > 1]
    plain = [w for w in net.weights.values() if w.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    step = 0
    while (rate := schedule.rate(step)) is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name in PAIRS[step % len(PAIRS)]:
            loss = loss_of(net, name, rng)
            (loss / 2).backward()
            report.add(name, loss.item())
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        report.maybe(net, step, rate)
    return step


class Report:
    """A line on standard output every now and then, and a checkpoint, in case that the rest never comes."""

    def __init__(self, family: str, out: str, every: float) -> None:
        self.family, self.out, self.every = family, out, every
        self.losses: dict[str, float] = {}
        self.last = self.start = time.monotonic()

    def add(self, name: str, loss: float) -> None:
        self.losses[name] = 0.98 * self.losses.get(name, loss) + 0.02 * loss

    def maybe(self, net: Net, step: int, rate: float) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in self.losses.items())
        scores = " ".join(f"{name} {100 * accuracy(net, name, 2, 24, 1):.0f}" for name in tasks.TASKS)
        print(f"{now - self.start:.0f} s, step {step}, rate {rate:.2e}; loss {losses}; right at 2 a step {scores}", flush=True)
        export(net, self.family, self.out)
        self.last = time.monotonic()


# ---- how good it is -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def solve(net: Net, prompts: np.ndarray, each: int, free: bool, seed: int, block: int = tasks.ANSWER) -> np.ndarray:
    """The answers: each token that is surest, `each` a step, block by block; drawn at temperature 1 if free."""
    generator = torch.Generator().manual_seed(seed)
    rows, start = prompts.shape
    ids = torch.cat([torch.from_numpy(prompts), torch.full((rows, tasks.ANSWER), tasks.MASK)], dim=1)
    for end in range(start + block, ids.shape[1] + 1, block):
        for _ in range(0, block, each):
            logits = net.logits(ids, start)[:, : end - start].float()
            logits[..., tasks.MASK] = -torch.inf
            shares = logits.softmax(-1)
            drawn = torch.multinomial(shares.flatten(0, 1), 1, generator=generator).view(shares.shape[:2])
            token = drawn if free else shares.argmax(-1)
            sure = shares.gather(-1, token[..., None])[..., 0].masked_fill(ids[:, start:end] != tasks.MASK, -1.0)
            best = sure.topk(min(each, block), dim=1).indices
            ids[:, start:end] = ids[:, start:end].scatter(1, best, token.gather(1, best))
    return ids[:, start:].numpy()


def accuracy(net: Net, name: str, each: int, count: int, seed: int) -> float:
    prompts, wanted = tasks.puzzles(name, count, seed)
    return float(tasks.right(name, solve(net, prompts, each, tasks.TASKS[name].free, seed), wanted).mean())


# ---- the checkpoint -------------------------------------------------------------------------------------------------------------


def config(family: str) -> dict:
    ids = {"mask_token_id": tasks.MASK, "eos_token_id": tasks.EOS, "pad_token_id": tasks.EOS}
    if family == "dream":
        shape = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
        shape |= {"intermediate_size": FFN, "vocab_size": tasks.VOCAB, "max_position_embeddings": MAX_LEN}
        rest = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": THETA, "tie_word_embeddings": False}
        rest |= {"attention_dropout": 0.0, "use_cache": True, "use_mrope": False, "use_sliding_window": False}
        return {"architectures": ["DreamModel"], "model_type": "Dream", "torch_dtype": "bfloat16"} | shape | ids | rest
    shape = {"d_model": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": HEADS, "mlp_hidden_size": FFN}
    shape |= {"vocab_size": tasks.VOCAB, "embedding_size": tasks.VOCAB, "max_sequence_length": MAX_LEN}
    rest = {"activation_type": "silu", "alibi": False, "attention_layer_norm": False, "block_group_size": 1, "block_type": "llama"}
    rest |= {"include_bias": False, "include_qkv_bias": False, "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "rope": True}
    rest |= {"rope_full_precision": True, "rope_theta": THETA, "weight_tying": False}
    return {"architectures": ["LLaDAModelLM"], "model_type": "llada", "torch_dtype": "bfloat16"} | shape | ids | rest


def export(net: Net, family: str, out: str) -> None:
    """A folder that dllm_fast.load reads."""
    os.makedirs(out, exist_ok=True)
    _write_json(os.path.join(out, "config.json"), config(family))
    _write_json(os.path.join(out, "chars.json"), {"chars": tasks.CHARS, "special": {"<eos>": tasks.EOS, "<mask>": tasks.MASK}})
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, weight in sorted(net.weights.items()):
        blob = weight.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def weights_of(folder: str) -> dict[str, Tensor]:
    """What export wrote."""
    with open(os.path.join(folder, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        blob = bytearray(file.read())
    places = {name: (entry["data_offsets"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return {
        name: torch.frombuffer(blob[low:high], dtype=torch.bfloat16).view(shape).float().requires_grad_()
        for name, ((low, high), shape) in places.items()
    }


def earlier_steps(folder: str | None) -> int:
    """How many led to the weights that training started from."""
    if not folder:
        return 0
    with open(os.path.join(folder, "train.json"), encoding="utf-8") as file:
        facts = json.load(file)
    return facts["steps"] + facts["earlier_steps"]


def _write_json(path: str, content: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a tiny model of the package.")
    parser.add_argument("--family", choices=("llada", "dream"), required=True)
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--minutes", type=float, default=30, help="wall clock")
    parser.add_argument("--steps", type=int, help="instead of minutes: train.json says how many there were")
    parser.add_argument("--start", help="a folder that this program wrote: go on from its weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=256, help="puzzles a task in the final count")
    parser.add_argument("--every", type=float, default=240, help="seconds between reports")
    args = parser.parse_args()

    torch.set_num_threads(1)
    started, cpu = time.monotonic(), time.process_time()
    net = Net(args.family, torch.Generator().manual_seed(args.seed))
    if args.start:
        net.weights = weights_of(args.start)
    steps = train(net, Schedule(args.minutes, args.steps), args.seed, Report(args.family, args.out, args.every))
    facts = {"family": args.family, "seed": args.seed, "steps": steps, "earlier_steps": earlier_steps(args.start)}
    facts |= {"torch": torch.__version__, "parameters": sum(w.numel() for w in net.weights.values())}
    facts |= {"seconds": round(time.monotonic() - started), "cpu_seconds": round(time.process_time() - cpu)}
    export(net, args.family, args.out)
    net.weights = {name: w.detach().to(torch.bfloat16).float() for name, w in net.weights.items()}
    scores = {n: {f"{each} a step": accuracy(net, n, each, args.samples, 2) for each in (1, 4)} for n in tasks.TASKS}
    facts |= {"samples": args.samples, "right": scores}
    _write_json(os.path.join(args.out, "train.json"), facts)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
