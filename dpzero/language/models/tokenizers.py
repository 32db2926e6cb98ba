"""The tokenizer of a model, and a task's answers as its tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...errors import UsageError
from ..data import prompts
from ..data.tasks import Task
from . import model_catalogue


@dataclass(frozen=True)
class HashTokenizer:
    """For models with random weights: a word's token is its checksum modulo the vocabulary."""

    vocabulary: int

    def __call__(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % (self.vocabulary - 3) for word in text.lower().split()]


@dataclass(frozen=True)
class TokenizerInfo:
    """What prompts need of a tokenizer.

    `encode` tokenizes a text without special tokens, `decode` is its inverse. `special` are the ids of cls,
    sep and mask, if the model has them; `first` are the tokens that every text begins with.
    """

    encode: Callable[[str], list[int]]
    special: Mapping[str, int]
    first: tuple[int, ...]
    decode: Callable[[list[int]], str]


def tokenizer(name: str, max_length: int) -> Callable[[str], list[int]]:
    """text -> token ids, at most max_length of them, special tokens included."""
    stanza = model_catalogue.stanza(name)
    if "config" in stanza:
        words = HashTokenizer(stanza["config"]["vocab_size"])
        return lambda text: [1, *words(text)][:max_length]
    real = _pretrained(model_catalogue.source(name))
    return lambda text: real(text, truncation=True, max_length=max_length)["input_ids"]


def tokenizer_info(name: str) -> TokenizerInfo:
    """Of a model of models.yaml."""
    stanza = model_catalogue.stanza(name)
    if "config" in stanza:
        words = HashTokenizer(stanza["config"]["vocab_size"])
        return TokenizerInfo(
            words, {"cls": 1, "sep": 1, "mask": 2}, (1,), lambda ids: " ".join(map(str, ids))
        )
    real = _pretrained(model_catalogue.source(name))
    special = {key: getattr(real, f"{key}_token_id") for key in ("cls", "sep", "mask")}

    def encode(text: str) -> list[int]:
        return real(text, add_special_tokens=False)["input_ids"]

    full, bare = real("a")["input_ids"], encode("a")
    first = full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []
    return TokenizerInfo(
        encode,
        {key: i for key, i in special.items() if i is not None},
        tuple(stanza.get("first", first)),
        lambda ids: real.decode(ids, skip_special_tokens=True),
    )


@cache
def _pretrained(source: str) -> Any:
    from transformers import AutoTokenizer

    with model_catalogue.one_line_errors(source):
        return AutoTokenizer.from_pretrained(source)


def scores_text(name: str, task: Task) -> bool:
    """Whether a model scores candidate texts: answers are free, or one has several tokens.

    Otherwise it is a classifier. Raises UsageError for free answers of a model that is not causal.
    """
    causal = model_catalogue.stanza(name)["kind"] == "causal"
    if not task.labels and not causal:
        raise UsageError(f"task {task.name} asks for text, which {name} does not write: give a causal model")
    return causal and (not task.labels or any(len(ids) != 1 for ids in _answers(name, task)))


def answer_tokens(name: str, task: Task) -> list[int]:
    """One token id for each label: what its answer adds to the prompt, or its word at the mask.

    Raises UsageError for a word of several tokens, and for a task without a prompt for this kind of model.
    """
    answers = _answers(name, task)
    for label, ids in zip(task.labels, answers, strict=True):
        if len(ids) != 1:
            raise UsageError(
                f"the word for {label!r} of task {task.name} is {len(ids)} tokens of {name}:"
                " choose a one-token word"
            )
    return [ids[0] for ids in answers]


def _answers(name: str, task: Task) -> list[list[int]]:
    """The tokens of each label's answer."""
    encode = tokenizer_info(name).encode
    if model_catalogue.stanza(name)["kind"] == "causal":
        end = prompts.last_literal(task.prompt).strip(" ")
        return [encode(end + answer)[len(encode(end)) :] for answer in task.answers]
    if "masked" not in task.stanza:
        raise UsageError(
            f"task {task.name} has no template for masked models such as {name}: add one to its stanza"
        )
    return [encode(f" {word}") for word in task.stanza["masked"]["words"]]
