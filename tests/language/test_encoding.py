"""Tokenized examples: round trip, micro-batches, truncation of prompts, the cache of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding
from dpzero.language.models.encoding import Examples

SEQUENCES = st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=20), min_size=1, max_size=15)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))
    return tmp_path


# --- sequences


@given(SEQUENCES)
def test_examples_keep_ids_lengths_and_labels(sequences):
    labels = list(range(len(sequences)))
    examples = Examples.from_token_ids(sequences, labels)
    assert len(examples) == len(sequences)
    assert [examples.ids(i).tolist() for i in labels] == sequences
    assert examples.lengths().tolist() == [len(s) for s in sequences]
    reversed_examples = examples[np.array(labels[::-1])]
    assert [reversed_examples.ids(i).tolist() for i in labels] == sequences[::-1]
    assert reversed_examples.labels.tolist() == labels[::-1]


def test_a_batch_may_be_empty_or_repeat():
    examples = Examples.from_token_ids([[1], [2, 3]], [0, 1])
    assert len(examples[np.zeros(0, np.int64)]) == 0 and list(examples[np.zeros(0, np.int64)].parts(8)) == []
    assert examples[np.array([1, 1])].tokens.tolist() == [2, 3, 2, 3]


@given(SEQUENCES, st.integers(1, 100))
def test_micro_batches_hold_each_example_once_and_keep_the_budget(sequences, budget):
    examples = Examples.from_token_ids(sequences, list(range(len(sequences))))
    seen = []
    for positions, part in examples.parts(budget):
        assert part.labels.tolist() == positions.tolist()
        assert len(part) == 1 or len(part) * part.lengths().max() <= budget
        seen += positions.tolist()
    assert sorted(seen) == list(range(len(sequences)))
    lengths = [len(sequences[i]) for i in seen]
    assert lengths == sorted(lengths, reverse=True)  # the largest first: too little memory shows at once


def test_padding_is_on_the_right_and_masked():
    ids, mask, labels = Examples.from_token_ids([[5, 6, 7], [8]], [1, 0]).padded(torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [1, 0] and ids.dtype == labels.dtype == torch.int64


# --- encoding a task


@pytest.mark.parametrize("model", ["tiny-encoder", "tiny-causal"])
@pytest.mark.parametrize("max_length", [9, 64])
def test_every_row_is_encoded_in_order_within_max_length(model, max_length):
    toy = tasks.load("toy")
    splits = encoding.encode(tasks.load("toy"), model, max_length)
    assert set(splits) == {"train", "dev", "test"}
    for name, split in splits.items():
        assert split.labels.tolist() == [row.label for row in toy.splits[name]]
        assert split.lengths().min() > 1 and split.lengths().max() <= max_length


def test_an_encoder_reads_the_text_alone():
    row = tasks.load("toy").splits["dev"][3]
    read = encoding.encode(tasks.load("toy"), "tiny-encoder", 64)["dev"].ids(3)
    assert read.tolist() == encoding.tokenizer("tiny-encoder", 64)(row.text)


def test_tokens_are_cached(cache, monkeypatch):
    first = encoding.encode(tasks.load("toy"), "tiny-encoder", 16)
    assert len(list((cache / "tokens").iterdir())) == 1
    monkeypatch.setattr(encoding, "tokenizer", lambda *_: pytest.fail("tokenized again"))
    again = encoding.encode(tasks.load("toy"), "tiny-encoder", 16)
    for split in first:
        assert all(
            np.array_equal(getattr(first[split], key), getattr(again[split], key))
            for key in ("tokens", "offsets", "labels")
        )


def test_the_token_cache_is_keyed_by_all_that_tokens_depend_on(cache, monkeypatch):
    def files() -> int:
        return len(list((cache / "tokens").iterdir()))

    encoding.encode(tasks.load("toy"), "tiny-encoder", 16)
    encoding.encode(tasks.load("toy"), "tiny-encoder", 17)
    encoding.encode(tasks.load("toy"), "tiny-causal", 16)
    assert files() == 3
    changed = {"toy": tasks.stanza("toy") | {"prompt": "{text}\nWhat is it about? It is about"}}
    before = tasks.digest("toy")
    monkeypatch.setattr(tasks.CATALOGUE, "built_in", changed)
    assert tasks.digest("toy") != before
    encoding.encode(tasks.load("toy"), "tiny-causal", 16)
    assert files() == 4


def test_descriptions_of_a_task_do_not_change_its_digest(monkeypatch):
    before, changed = tasks.digest("toy"), {"toy": tasks.stanza("toy") | {"files_differ": "in a word"}}
    monkeypatch.setattr(tasks.CATALOGUE, "built_in", changed)
    assert tasks.digest("toy") == before


def test_a_killed_tokenization_is_repeated(monkeypatch):
    def half(file, **arrays):
        file.write(b"PK half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            encoding.encode(tasks.load("toy"), "tiny-encoder", 16)
    assert len(encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["dev"]) == 60


# --- prompts of causal models


@pytest.mark.parametrize("max_length", [7, 9, 12, 64])
def test_a_long_prompt_loses_text_but_not_the_question(max_length):
    question = encoding.tokenizer("tiny-causal", 64)("The topic of this sentence is")[1:]
    toy = tasks.load("toy")
    for name, split in encoding.encode(tasks.load("toy"), "tiny-causal", max_length).items():
        for i, row in enumerate(toy.splits[name]):
            text = encoding.tokenizer("tiny-causal", 1000)(row.text)
            kept = max_length - len(question)
            assert split.ids(i).tolist() == text[:kept] + question


def test_a_prompt_longer_than_max_length_is_refused():
    with pytest.raises(UsageError, match="max_length is 6, but the prompt of task toy has 7 tokens"):
        encoding.encode(tasks.load("toy"), "tiny-causal", 6)


TEXTS = st.text(alphabet="ab é€\U0001f600{}", max_size=80)


@given(TEXTS, st.integers(1, 60))
def test_any_text_is_shortened_from_its_end_until_it_fits(text, room):
    """Tokens are bytes here, so that a character may have several tokens."""
    toy = tasks.load("toy")
    task = dataclasses.replace(toy, stanza=toy.stanza | {"prompt": "Review: {text}\nSentiment:"})
    around = len("Review: \nSentiment:")
    ids = bytes(encoding._encode_prompt(task, text, lambda t: list(t.encode()), around + room))
    assert ids.startswith(b"Review: ") and ids.endswith(b"\nSentiment:") and len(ids) <= around + room
    kept = ids[len(b"Review: ") : -len(b"\nSentiment:")]
    assert text.encode().startswith(kept)
    if len(text.encode()) <= room and text.count(" ") < around + room:
        assert kept == text.encode()


@pytest.mark.network
def test_a_real_tokenizer_keeps_the_question(cached, monkeypatch):
    monkeypatch.delenv("DPZERO_CACHE")
    cached("smollm2"), cached("vader")
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(cached("smollm2"))
    movies = tasks.load("movies")
    tokenize = encoding.tokenizer("smollm2-135m", encoding.UNLIMITED)
    for row in movies.splits["dev"][:100]:
        ids = encoding._encode_prompt(movies, row.text, tokenize, 24)
        text = real.decode(ids)
        assert len(ids) <= 24 and text.startswith("Review: ") and text.endswith("\nSentiment:")


@pytest.mark.network
def test_a_real_encoder_keeps_its_special_tokens(cached, monkeypatch):
    monkeypatch.delenv("DPZERO_CACHE")
    cached("minilm")
    tokenize = encoding.tokenizer("minilm", 8)
    short, long = tokenize("oil"), tokenize("crude oil prices rose again on Monday, traders said")
    assert (short[0], short[-1]) == (long[0], long[-1]) == (101, 102) and len(short) == 3 and len(long) == 8
