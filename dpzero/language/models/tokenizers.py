"""How a model reads text: its tokenizer, and the marks that prompts are made with."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from . import weights


@dataclass(frozen=True)
class HashTokenizer:
    """For models without weights: a word is its checksum modulo the vocabulary."""

    vocabulary: int

    def __call__(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % (self.vocabulary - 3) for word in text.lower().split()]


@dataclass(frozen=True)
class Marks:
    """`plain` tokenizes a text as it is. `special` are the ids of cls, sep and mask where the model has them; `first` is what every
    text begins with, if anything; `decode` is the way back."""

    plain: Callable[[str], list[int]]
    special: Mapping[str, int]
    first: tuple[int, ...]
    decode: Callable[[list[int]], str]


def tokenizer(name: str, max_length: int) -> Callable[[str], list[int]]:
    """text -> token ids, at most max_length of them, special tokens included."""
    stanza = weights.stanza(name)
    if "config" in stanza:
        words = HashTokenizer(stanza["config"]["vocab_size"])
        return lambda text: [1, *words(text)][:max_length]
    real = _real(name)
    return lambda text: real(text, truncation=True, max_length=max_length)["input_ids"]


def marks(name: str) -> Marks:
    stanza = weights.stanza(name)
    if "config" in stanza:
        words = HashTokenizer(stanza["config"]["vocab_size"])
        return Marks(words, {"cls": 1, "sep": 1, "mask": 2}, (1,), lambda ids: " ".join(map(str, ids)))
    real = _real(name)
    special = {key: getattr(real, f"{key}_token_id") for key in ("cls", "sep", "mask")}

    def plain(text: str) -> list[int]:
        return real(text, add_special_tokens=False)["input_ids"]

    around, bare = real("a")["input_ids"], plain("a")
    first = around[: len(around) - len(bare)] if around[-len(bare) :] == bare else []
    return Marks(
        plain,
        {key: i for key, i in special.items() if i is not None},
        tuple(stanza.get("first", first)),
        lambda ids: real.decode(ids, skip_special_tokens=True),
    )


@cache
def _read(place: str):
    from transformers import AutoTokenizer

    with weights.refusals(place):
        return AutoTokenizer.from_pretrained(place)


def _real(name: str):
    return _read(weights.place(name))
