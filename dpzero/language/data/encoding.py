"""Tokenized examples: made once for a task and a model, kept in the cache, cut into padded micro-batches by length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...files import replacing
from ..models import models, tokenizers
from ..models.batch_invariance import Kind, longest_text, padded_length, stand_in_ids
from . import assets, prompts, questions, tasks
from .datasets import ALL, Draw, Row

UNLIMITED = 100_000  # tokens: a prompt is shortened by its text, not by its end
FORMAT = 3  # raise it when the same task and model give other tokens


@dataclass(frozen=True)
class Examples:
    """Token ids of n texts, one after the other, and their labels. Indexing with an index array gives a batch."""

    tokens: np.ndarray  # int32 [sum of lengths]
    offsets: np.ndarray  # int64 [n + 1]
    labels: np.ndarray  # int64 [n]
    pass_cost: ClassVar[int] = 0  # that of a whole model (see `invariant`)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], labels: Sequence[int]) -> Examples:
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
        tokens = np.concatenate([np.asarray(s, np.int32) for s in sequences] or [np.zeros(0, np.int32)])
        return cls(tokens, offsets, np.asarray(labels, np.int64))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"tokens": self.tokens, "offsets": self.offsets, "labels": self.labels}

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def token_count(self) -> int:
        return len(self.tokens)

    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, indices: np.ndarray) -> Examples:
        return Examples.of([self.ids(i) for i in indices], self.labels[indices])

    def parts(self, token_budget: int) -> Iterator[tuple[np.ndarray, Examples]]:
        """Micro-batches of similar length, at most token_budget padded tokens each (or one example): (positions, examples)."""
        order = np.argsort(self.lengths(), kind="stable")[::-1]
        start = 0
        while start < len(order):
            count = max(1, token_budget // max(1, int(self.lengths()[order[start]])))
            yield order[start : start + count], self[order[start : start + count]]
            start += count

    def kinds(self, model: nn.Module) -> list[Kind]:
        """Of each text the length to which this model has it padded, and whether it is its own (see `invariant`)."""
        longest = longest_text(model)
        padded = [padded_length(n, longest) for n in self.lengths().tolist()]
        return list(zip(padded, (padded == self.lengths()).tolist(), strict=True))

    def stand_ins(self, model: nn.Module, kinds: Sequence[Kind]) -> Examples:
        """A text of each kind that says nothing of private ones."""
        texts = [stand_in_ids(model, length)[: length if whole else -1] for length, whole, *_ in kinds]
        return Examples.of(texts, [0] * len(kinds))

    def padded(self, device: torch.device, length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids and attention_mask [n, length, or as the longest], labels [n]; padding on the right."""
        ids = np.zeros((len(self), length or int(self.lengths().max())), np.int64)
        mask = np.zeros_like(ids)
        for row in range(len(self)):
            sequence = self.ids(row)
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        return tuple(torch.from_numpy(a).to(device) for a in (ids, mask, self.labels))


def encode(task: str, model: str, max_length: int, draw: Draw = ALL) -> dict[str, Examples]:
    """Each split of the task as the model reads it, from the cache where it is there."""
    path = cache_file(task, model, max_length, draw)
    if not path.exists():
        loaded = tasks.load(task, draw)
        read = _reader(loaded, model, max_length)
        parts = {
            split: Examples.of([read(row) for row in rows], [row.label for row in rows])
            for split, rows in loaded.splits.items()
        }
        write(path, {split: part.arrays() for split, part in parts.items()})
    return {split: Examples(**arrays) for split, arrays in read_arrays(path).items()}


def write(path: Path, splits: dict[str, dict[str, np.ndarray]]) -> None:
    """Write the arrays of each split."""
    arrays = {f"{split}/{key}": a for split, parts in splits.items() for key, a in parts.items()}
    with replacing(path) as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    splits: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for name in sorted(file.files):
            split, key = name.split("/")
            splits.setdefault(split, {})[key] = file[name]
    return splits


def cache_file(task: str, model: str, max_length: int, draw: Draw) -> Path:
    key = [FORMAT, tasks.digest(task), models.digest(model), models.catalogue()[model]["kind"], max_length]
    key += [draw] if draw != ALL else []
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return assets.cache_folder() / "tokens" / f"{task}-{model}-{max_length}-{name}.npz"


def _reader(task: tasks.Task, model: str, max_length: int) -> Callable[[Row], list[int]]:
    """row -> token ids, as a model of this kind reads it."""
    kind, lines = models.catalogue()[model]["kind"], task.stanza
    if kind != "causal" and task.draw.demonstrations:
        raise UsageError(f"demonstrations are for causal models, which {model} is not: leave them out")
    if kind == "encoder":
        tokenize = models.tokenizer(model, max_length)
        return lambda row: tokenize(row.text)
    if kind == "causal" and "causal" not in lines and not task.demonstrations:
        tokenize = models.tokenizer(model, UNLIMITED)
        return lambda row: _prompt(task, row.text, tokenize, max_length)
    mark = tokenizers.marks(model)
    if kind == "causal":
        before = questions.shown(task)
        return lambda row: prompts.cut_left(
            mark.plain((before + questions.prompt_of(task, row)).lstrip().rstrip(" ")), max_length, mark.first
        )
    models.answer_tokens(model, task)  # complains before the work
    template, limits = lines["masked"]["template"], lines["masked"].get("limits", ())
    columns = lines["sentences"]
    return lambda row: prompts.masked(
        template, [str(row.fields[c]) for c in columns], mark.plain, mark.special, max_length, limits
    )


def _prompt(task: tasks.Task, text: str, tokenize, max_length: int) -> list[int]:
    """The prompt with the text shortened from its end until it fits: what follows the text is never cut off."""
    words = text.split(" ")[:max_length]
    ids = tokenize(task.prompted(" ".join(words)))
    while (excess := len(ids) - max_length) > 0 and words != [""]:
        if len(words) > 1:
            words = words[: -max(1, excess // 2)] or words[:1]
        else:
            words = [words[0][: -max(1, excess // 4)]]  # one endless word; a character is at most four tokens
        ids = tokenize(task.prompted(" ".join(words)))
    if excess > 0:
        raise UsageError(
            f"max_length is {max_length}, but the prompt of task {task.name} has {len(ids)} tokens without its text: raise it"
        )
    return ids
