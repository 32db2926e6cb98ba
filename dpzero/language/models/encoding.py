"""Tokenizers, and tokenized examples: encoded once for a task and a model, cached, cut into micro-batches."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import UsageError
from ...files import replacing
from ..data import assets, prompts, tasks
from ..data.datasets import ALL, Row
from ..data.tasks import Task
from . import model_catalogue
from .batch_invariance import Bucket, longest_text, padded_length, stand_in_ids

UNLIMITED = 100_000  # tokens: a prompt is shortened by its text, not by its end
FORMAT = 3  # raise it when the same task and model give other tokens

TokenIds = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Examples:
    """Token ids of n texts, one after the other, and their labels.

    Indexing with an index array gives a batch.
    """

    tokens: NDArray[np.int32]  # [sum of lengths]
    offsets: NDArray[np.int64]  # [n + 1]
    labels: NDArray[np.int64]  # [n]
    any_rows: ClassVar[bool] = False  # see `batch_invariance.Cutter.cut`

    @classmethod
    def from_token_ids(cls, sequences: Sequence[TokenIds], labels: Sequence[int] | NDArray) -> Examples:
        """From the token ids of each text."""
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
        tokens = np.concatenate([np.asarray(s, np.int32) for s in sequences] or [np.zeros(0, np.int32)])
        return cls(tokens, offsets, np.asarray(labels, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, i: int) -> NDArray[np.int32]:
        """The token ids of text i."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def token_count(self) -> int:
        return len(self.tokens)

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __getitem__(self, indices: NDArray) -> Examples:
        return Examples.from_token_ids([self.ids(i) for i in indices], self.labels[indices])

    def parts(self, token_budget: int) -> Iterator[tuple[NDArray[np.int64], Examples]]:
        """(positions, examples) of micro-batches of similar length, the longest first.

        Each has at most token_budget padded tokens, or one example.
        """
        order, lengths = np.argsort(self.lengths(), kind="stable")[::-1], self.lengths()
        start = 0
        while start < len(order):
            count = max(1, token_budget // max(1, int(lengths[order[start]])))
            yield order[start : start + count], self[order[start : start + count]]
            start += count

    def buckets(self, model: nn.Module) -> list[Bucket]:
        """(padded length, whether the text fills it) of each text (see `batch_invariance`)."""
        longest = longest_text(model)
        padded = [padded_length(n, longest) for n in self.lengths().tolist()]
        return list(zip(padded, np.equal(padded, self.lengths()).tolist(), strict=True))

    def stand_ins(self, model: nn.Module, buckets: Sequence[Bucket]) -> Examples:
        """A text of each bucket that says nothing about private ones."""
        texts = [stand_in_ids(model, length)[: length if fills else -1] for length, fills, *_ in buckets]
        return Examples.from_token_ids(texts, [0] * len(buckets))

    def padded(self, device: torch.device, length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids and attention_mask, int64 [n, length or that of the longest], and labels, int64 [n].

        Padding is on the right.
        """
        lengths = self.lengths()
        mask = np.arange(length or int(lengths.max())) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = self.tokens  # row by row
        arrays = ids, mask.astype(np.int64), self.labels
        input_ids, attention_mask, labels = (torch.from_numpy(array).to(device) for array in arrays)
        return input_ids, attention_mask, labels


@dataclass(frozen=True)
class Continuations:
    """n examples of one or more candidate continuations each. Indexing with an index array gives a batch."""

    candidates: Examples  # prompt and candidate; `labels`: how many tokens are the candidate's
    first: NDArray[np.int64]  # [n + 1]: where each example's candidates begin
    right: NDArray[np.bool_]  # one for each candidate
    references: NDArray[np.str_]  # [n]: the right answers' texts, as JSON
    weights: NDArray[np.float32] | None = None  # [n]: factors of the losses; None: each is 1

    @classmethod
    def from_candidates(
        cls, examples: Sequence[Sequence[tuple[TokenIds, int, bool]]], references: Sequence[str]
    ) -> Continuations:
        """From each example's candidates: (token ids, how many are the candidate's, whether it is right)."""
        flat = [candidate for example in examples for candidate in example]
        first = np.concatenate([[0], np.cumsum([len(example) for example in examples])]).astype(np.int64)
        sequences = Examples.from_token_ids([ids for ids, _, _ in flat], [count for _, count, _ in flat])
        right = np.array([is_right for _, _, is_right in flat], bool)
        return cls(sequences, first, right, np.array(references, str))

    @property
    def token_count(self) -> int:
        return self.candidates.token_count

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, indices: NDArray) -> Continuations:
        chosen = [np.arange(self.first[i], self.first[i + 1]) for i in indices]
        rows = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
        first = np.concatenate([[0], np.cumsum([len(c) for c in chosen])]).astype(np.int64)
        weights = None if self.weights is None else self.weights[indices]
        return Continuations(
            self.candidates[rows], first, self.right[rows], self.references[indices], weights
        )

    def weighted_by_tokens(self) -> Continuations:
        """With weights by which the mean loss of these examples is the mean over all tokens of their right answers.

        So one example's loss depends on the others, as in the code of MeZO
        (`utils.forward_wrap_with_option_len`).
        """
        counts = self.candidates.labels[self.first[:-1] + self.gold()]
        weights = counts * (len(self) / max(1, counts.sum()))
        return replace(self, weights=weights.astype(np.float32))

    def parts(self, token_budget: int) -> Iterator[tuple[NDArray[np.int64], Continuations]]:
        """(positions, examples) of micro-batches of whole examples, the longest first.

        Each has at most token_budget padded tokens, or one example.
        """
        counts, longest = np.diff(self.first), np.maximum.reduceat(self.candidates.lengths(), self.first[:-1])
        groups: list[list[int]] = []
        for i in np.argsort(longest, kind="stable")[::-1]:
            if not groups or (counts[groups[-1]].sum() + counts[i]) * longest[groups[-1][0]] > token_budget:
                groups.append([])
            groups[-1].append(int(i))
        for order in map(np.array, groups):
            yield order, self[order]

    def gold(self) -> NDArray[np.int64]:
        """[n]: the index, among its own candidates, of each example's first right one."""
        spans = zip(self.first, self.first[1:], strict=False)
        return np.array([int(self.right[a:b].argmax()) for a, b in spans], np.int64)


# -- tokenizers ---------------------------------------------------------------------------------------------


def _hash_words(text: str, vocabulary: int) -> list[int]:
    """For models with random weights: a word's token is its checksum modulo the vocabulary."""
    return [3 + zlib.crc32(word.encode()) % (vocabulary - 3) for word in text.lower().split()]


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
    if "config" in model_catalogue.stanza(name):
        info = tokenizer_info(name)
        return lambda text: [*info.first, *info.encode(text)][:max_length]
    pretrained = pretrained_tokenizer(name)
    return lambda text: pretrained(text, truncation=True, max_length=max_length)["input_ids"]


def tokenizer_info(name: str) -> TokenizerInfo:
    """Of a model of models.yaml."""
    stanza = model_catalogue.stanza(name)
    if "config" in stanza:
        words = partial(_hash_words, vocabulary=stanza["config"]["vocab_size"])
        special = {"cls": 1, "sep": 1, "mask": 2}
        return TokenizerInfo(words, special, (1,), lambda ids: " ".join(map(str, ids)))
    pretrained = pretrained_tokenizer(name)
    ids = {key: getattr(pretrained, f"{key}_token_id") for key in ("cls", "sep", "mask")}
    special = {key: token for key, token in ids.items() if token is not None}

    def encode(text: str) -> list[int]:
        return pretrained(text, add_special_tokens=False)["input_ids"]

    full, bare = pretrained("a")["input_ids"], encode("a")
    first = full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []
    decode = partial(pretrained.decode, skip_special_tokens=True)
    return TokenizerInfo(encode, special, tuple(stanza.get("first", first)), decode)


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer of a model of models.yaml, as transformers loads it."""
    with model_catalogue.one_line_errors(name):
        return _tokenizer_in(model_catalogue.source(name))


@cache
def _tokenizer_in(folder: str) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    if found.get_vocab().keys() <= set(
        found.all_special_tokens
    ):  # transformers makes it up where files are missing
        raise ValueError("its tokenizer knows no word: files of it are missing")
    return found


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


# -- from rows ----------------------------------------------------------------------------------------------


def encode(task: Task, model: str, max_length: int) -> dict[str, Any]:
    """Train, dev and test of a task as a model reads them, from the cache if they are there.

    Args:
        task: with its draw of rows.
        model: a name of models.yaml.
        max_length: tokens of a text; longer ones are cut.

    Returns:
        `Examples` of each split for a classifier, `Continuations` for a model that scores text.

    Raises:
        UsageError: max_length is more than the model's positions or less than the prompt needs; the model
            cannot do the task.
    """
    path = _cache_file(task, model, max_length)
    if not path.exists():
        longest = model_catalogue.positions(model_catalogue.config(model).get_text_config())
        if max_length > longest:
            raise UsageError(
                f"max_length is {max_length}, but {model} knows {longest} positions: give a smaller one"
            )
        encode_rows = encode_candidates if scores_text(model, task) else encode_labelled
        splits = {split: encode_rows(task, model, max_length, split) for split in task.splits}
        _write(path, splits)
    return _read(path)


def encode_labelled(task: Task, model: str, max_length: int, split: str) -> Examples:
    """The rows of a split for a classifier."""
    encode_row, rows = row_encoder(task, model, max_length), task.splits[split]
    return Examples.from_token_ids([encode_row(row) for row in rows], [row.label for row in rows])


def encode_by_label(task: Task, model: str, max_length: int) -> tuple[Examples, list[list[int]]]:
    """What a causal model needs to write texts of a label: training rows, and what begins a new one.

    Returns:
        The description of its label and the text of each training row, on one line each; and the token ids of each label's
        description.

    Raises:
        UsageError: a model that is not causal, or has an output layer beside its table of embeddings; a task whose answers
            are not one token each.
    """
    stanza, info = model_catalogue.stanza(model), tokenizer_info(model)
    config = model_catalogue.config(model).get_text_config()
    tied = (
        getattr(config, "tie_word_embeddings", False) or "config" in stanza
    )  # random weights: either layer will do
    if stanza["kind"] != "causal" or not tied or scores_text(model, task):
        raise UsageError(
            f"demonstrations of task {task.name} are not written by {model}: give a causal model whose output layer is its "
            "table of embeddings, and a task with one-token answers"
        )
    rows = task.splits["train"]
    begun = [[*info.encode(f"{words}:")] for words in task.words]
    lines = (f"{task.words[row.label]}: {' '.join(row.text.split())}" for row in rows)
    texts = [[*info.first, *info.encode(line)[:max_length], *info.encode("\n")] for line in lines]
    return Examples.from_token_ids(texts, [row.label for row in rows]), begun


def demonstrations_text(task: Task, model: str, written: Iterable[tuple[int, list[int]]]) -> str:
    """Written demonstrations, each a label and token ids, as rows with their answers stand before a prompt."""
    decode = tokenizer_info(model).decode
    return "".join(task.shown(Row(decode(ids).strip(), label)) for label, ids in written)


def encode_after(demonstrations: str, task: Task, model: str, max_length: int, split: str) -> Examples:
    """The rows of a split after demonstrations, for a causal model with one-token answers."""
    shown = replace(
        task, draw=task.draw._replace(demonstrations=1)
    )  # so that prompts are cut at their beginning
    encode_row, rows = row_encoder(shown, model, max_length), task.splits[split]
    ids = [encode_row(row._replace(demonstrations=demonstrations)) for row in rows]
    return Examples.from_token_ids(ids, [row.label for row in rows])


def encode_candidates(task: Task, model: str, max_length: int, split: str) -> Continuations:
    """The rows of a split for a model that scores text: all candidates of each row.

    Only the first right candidate is kept if the model is trained on answers that differ from row to row, or
    writes its answer.
    """
    info, room = tokenizer_info(model), max_length - task.max_new_tokens
    only_right = task.max_new_tokens or (split == "train" and not task.answers)
    examples, references = [], []
    for row in task.splits[split]:
        prompt, candidates = task.prompt_for(row), task.candidates(row)
        if only_right:
            candidates = [next(candidate for candidate in candidates if candidate[1])]
        examples.append([(*_encode_candidate(prompt, text, info, room), right) for text, right in candidates])
        references.append(json.dumps(task.right_answers(row)) if task.max_new_tokens else "")
    return Continuations.from_candidates(examples, references)


def _encode_candidate(prompt: str, text: str, info: TokenizerInfo, max_length: int) -> tuple[list[int], int]:
    """Token ids of prompt and candidate, and how many are the candidate's."""
    ids, count = prompts.tokenize_answer(prompt, text, info.encode)
    if not 0 < count < max_length - len(info.first):
        raise UsageError(
            f"the answer {text!r} has {count} tokens, but there is room for {max_length}: raise max_length"
        )
    return prompts.truncate_left(ids, max_length, info.first), count


def row_encoder(task: Task, model: str, max_length: int) -> Callable[[Row], list[int]]:
    """row -> token ids, for a classifier of the model's kind."""
    kind = model_catalogue.stanza(model)["kind"]
    if kind != "causal" and task.draw.demonstrations:
        raise UsageError(f"demonstrations are for causal models, which {model} is not: leave them out")
    if kind == "encoder":
        tokenize = tokenizer(model, max_length)
        return lambda row: tokenize(row.text)
    if kind == "causal" and "causal" not in task.stanza and not task.draw.demonstrations:
        tokenize = tokenizer(model, UNLIMITED)
        return lambda row: _encode_prompt(task, row.text, tokenize, max_length)
    info = tokenizer_info(model)
    if kind == "causal":

        def encode_causal(row: Row) -> list[int]:
            prompt = task.prompt_for(row).lstrip().rstrip(" ")
            return prompts.truncate_left(info.encode(prompt), max_length, info.first)

        return encode_causal
    answer_tokens(model, task)  # fails before the work
    masked = task.stanza["masked"]
    template, limits = masked["template"], masked.get("limits", ())

    def encode_masked(row: Row) -> list[int]:
        sentences = [str(row.fields[column]) for column in task.stanza["sentences"]]
        return prompts.masked_prompt(template, sentences, info.encode, info.special, max_length, limits)

    return encode_masked


def _encode_prompt(task: Task, text: str, tokenize: Callable[[str], list[int]], max_length: int) -> list[int]:
    """The prompt, with the text shortened from its end until it fits; what follows the text is kept."""
    words = text.split(" ")[:max_length]
    while True:
        ids = tokenize(prompts.fill(task.prompt, {"text": " ".join(words)}))
        excess = len(ids) - max_length
        if excess <= 0:
            return ids
        if words == [""]:
            raise UsageError(
                f"max_length is {max_length}, but the prompt of task {task.name} has {len(ids)} tokens"
                " without its text: raise it"
            )
        if len(words) > 1:
            words = words[: -max(1, excess // 2)] or words[:1]
        else:
            words = [words[0][: -max(1, excess // 4)]]  # one endless word; a character is at most four tokens


# -- the cache ----------------------------------------------------------------------------------------------


def _cache_file(task: Task, model: str, max_length: int) -> Path:
    kind = model_catalogue.stanza(model)["kind"]
    key: list[object] = [FORMAT, tasks.digest(task.name), model_catalogue.digest(model), kind, max_length]
    key += [task.draw] if task.draw != ALL else []
    key += [task.redaction] if task.redaction else []
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return assets.cache_folder() / "tokens" / f"{task.name}-{model}-{max_length}-{name}.npz"


def _write(path: Path, splits: Mapping[str, Examples | Continuations]) -> None:
    arrays: dict[str, NDArray] = {}
    for split, examples in splits.items():
        fields = vars(examples) | vars(getattr(examples, "candidates", examples))
        for absent in ("candidates", "weights"):
            fields.pop(absent, None)
        arrays |= {f"{split}/{key}": array for key, array in fields.items()}
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Examples | Continuations]:
    splits: dict[str, Examples | Continuations] = {}
    with np.load(path) as file:
        for split in ("dev", "test", "train"):
            texts = Examples(*(file[f"{split}/{key}"] for key in ("tokens", "offsets", "labels")))
            splits[split] = texts
            if f"{split}/first" in file:
                own = (file[f"{split}/{key}"] for key in ("first", "right", "references"))
                splits[split] = Continuations(texts, *own)
    return splits
