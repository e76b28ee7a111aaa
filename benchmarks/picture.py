"""Draws README's picture: how an answer appears, step by step, in the small model that comes with the package.

    python benchmarks/picture.py [PROMPT] [--out docs/denoising.svg]

A line a step; a square is a token, filled by the step that decided it; a dot is still a mask.
"""

import argparse
import html
import pathlib

import numpy as np

import dllm_fast
from dllm_fast.model import folder_of
from dllm_fast.tokenizer import of_folder

CELL, LEFT = 20, 70


def colour(step: int, steps: int) -> str:
    """From light to dark blue."""
    share = step / max(steps - 1, 1)
    return f"hsl(212, 60%, {82 - 42 * share:.0f}%)"


def square(x: float, y: float, text: str, fill: str, ink: str) -> str:
    box = f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="{fill}"/>'
    middle = f'x="{x + CELL / 2 - 1}" y="{y + CELL / 2 + 4}"'
    return box + f'<text {middle} fill="{ink}" text-anchor="middle">{html.escape(text)}</text>'


def draw(prompt: str, length: int, steps: int) -> str:
    tokenizer = of_folder(folder_of(None))
    model = dllm_fast.load()
    ids = np.array([tokenizer.encode(prompt)])
    decided = np.full(length, -1)
    parts = []
    for step in dllm_fast.stream(model, ids, gen_length=length, steps=steps, block_length=length):
        y = step.index * CELL + 4
        parts.append(f'<text x="{LEFT - 10}" y="{y + CELL / 2 + 4}" fill="#777" text-anchor="end">step {step.index + 1}</text>')
        answer, masked = step.sequences[0][ids.shape[1] :], step.masked[0][ids.shape[1] :]
        decided[(decided < 0) & ~masked] = step.index
        for i, (token, hidden) in enumerate(zip(answer, masked, strict=True)):
            dark = "#fff" if decided[i] > steps / 2 else "#123"
            piece = tokenizer.piece(int(token))
            look = ("·", "#f2f2f2", "#aaa") if hidden else (piece if len(piece) == 1 else "", colour(decided[i], steps), dark)
            parts.append(square(LEFT + i * CELL, y, *look))
    size = f'width="{LEFT + length * CELL + 4}" height="{steps * CELL + 8}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="12">'
    return "\n".join([head, *parts, "</svg>", ""])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("prompt", nargs="?", default="Wm++++----++++--------=")
    p.add_argument("--length", type=int, default=24)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--out", default=str(pathlib.Path(__file__).parents[1] / "docs" / "denoising.svg"))
    args = p.parse_args()
    pathlib.Path(args.out).write_text(draw(args.prompt, args.length, args.steps), encoding="utf-8")


if __name__ == "__main__":
    main()
