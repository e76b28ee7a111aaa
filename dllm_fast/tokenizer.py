"""Text to ids and back for the command line: tokenizer.json through the tokenizers package, or a table of characters."""

import json
import os
from typing import Any, Protocol


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str:
        """Without special tokens."""

    def piece(self, token: int) -> str:
        """One token as it should look in a live view."""


def of_folder(folder: str) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    if os.path.exists(os.path.join(folder, "chars.json")):
        return CharTokenizer(os.path.join(folder, "chars.json"))
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{folder} has no tokenizer.json; give the prompt as numbers with --ids")
    try:
        import tokenizers
    except ImportError:
        raise FileNotFoundError("tokenizer.json needs the tokenizers package (pip install tokenizers); or use --ids") from None
    return JsonTokenizer(tokenizers.Tokenizer.from_file(path))


class CharTokenizer:
    """One token a character. The file: {"chars": "...", "special": {"<mask>": id, ...}}; character i of chars is token i."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
        self.chars: str = table["chars"]
        self.ids = {c: i for i, c in enumerate(self.chars)}
        self.special = {i: name for name, i in table["special"].items()}

    def encode(self, text: str) -> list[int]:
        unknown = sorted(set(text) - set(self.ids))
        if unknown:
            raise ValueError(f"this model has no token for {', '.join(map(repr, unknown[:5]))}")
        return [self.ids[c] for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.chars[i] for i in ids if i < len(self.chars))

    def piece(self, token: int) -> str:
        return self.chars[token] if token < len(self.chars) else self.special.get(token, "?")


class JsonTokenizer:
    """A tokenizer.json."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self.inner.decode(ids, skip_special_tokens=True))

    def piece(self, token: int) -> str:
        return str(self.inner.decode([token], skip_special_tokens=False))


class NumberTokenizer:
    """No text at all: ids, written as numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.replace(",", " ").split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def piece(self, token: int) -> str:
        return f"{token} "
