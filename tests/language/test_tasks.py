"""Tasks: the counts are the published ones, the splits are disjoint and never change."""

from __future__ import annotations

import ast
import collections
import hashlib
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.data.datasets import Row
from dpzero.plan import sweep

NAMES = ["r8", "r52", "newsgroups", "movies", "tweets", "bbc", "toy"]
PAPERS = ["sst2", "sst5", "trec", "rte", "snli", "mnli", "boolq", "cb", "wsc", "wic", "multirc"]
FREE = ["copa", "record", "record-question", "squad", "drop"]

# Rows per class.
CLASSES = {
    "r8": {
        "train": [1446, 224, 2554, 37, 176, 182, 101, 228],
        "dev": [150, 29, 286, 4, 14, 24, 7, 23],
        "test": [696, 121, 1083, 10, 81, 87, 36, 75],
    },
    "movies": {"train": [4042, 4022], "dev": [489, 483], "test": [545, 491]},
    "tweets": {"train": [883, 1856], "dev": [98, 241], "test": [106, 248]},
    "bbc": {
        "train": [415, 300, 345, 407, 328],
        "dev": [51, 46, 48, 53, 27],
        "test": [44, 40, 24, 51, 46],
    },
    "toy": {"train": [60] * 4, "dev": [15] * 4, "test": [30] * 4},
}
EXPECTED = {  # rows and distinct texts in train, dev and test; SHA-256 of the splits
    "r8": ((4948, 537, 2189), (4895, 528, 2176), "d929f0a6f2fb7f85"),
    "r52": ((5877, 655, 2568), (5801, 649, 2553), "5ba6c70075ce45d8"),
    "newsgroups": ((10186, 1107, 7528), (10170, 1103, 7521), "e07567f21174ed74"),
    "movies": ((8064, 972, 1036), (8062, 972, 1036), "5e0fb490cf6fa3e5"),
    "tweets": ((2739, 339, 354), (2739, 339, 354), "3322f3870d748a6e"),
    "bbc": ((1795, 225, 205), (1713, 216, 196), "2c86b85df1bead0e"),
    "toy": ((240, 60, 120), (240, 60, 120), "dc24cf4eac52cfca"),
}


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name == "toy" else pytest.mark.network) for name in NAMES]
)
def task(request, cached) -> tasks.Task:
    for asset in tasks.assets_of(request.param):
        cached(asset)
    return tasks.load(request.param)


def texts(task: tasks.Task, split: str) -> set[str]:
    return {row.text for row in task.splits[split]}


# --- without data


@pytest.mark.parametrize("file", sorted(Path(tasks.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_data_imports_nothing_from_models(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert "models" not in {part for name in names for part in name.split(".")}


def test_names_and_assets_need_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "empty"))
    assert {*NAMES, *PAPERS, *FREE} <= set(tasks.names())
    assert [tasks.assets_of(name) for name in NAMES] == [["reuters"]] * 3 + [["vader"]] * 2 + [["bbc"], []]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UsageError, match="unknown task 'newsgroup': did you mean 'newsgroups'"):
        tasks.load("newsgroup")
    with pytest.raises(UsageError, match="known are r8, r52"):
        tasks.assets_of("zzzz")


def test_a_cold_cache_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="`python -m dpzero assets reuters`"):
        print(tasks.load("r8").splits)


def test_the_toy_task_needs_no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "empty"))
    assert len(tasks.load("toy").splits["train"]) == 240
    assert not (tmp_path / "empty").exists()


def test_one_word_determines_the_toy_topic():
    toy = tasks.load("toy")
    seen = collections.defaultdict(collections.Counter)
    for text, label, *_ in toy.splits["train"]:
        for word in text.rstrip(".?").split():
            seen[word][label] += 1
    telling = {word: labels.most_common(1)[0][0] for word, labels in seen.items() if len(labels) == 1}
    for text, label, *_ in toy.splits["test"]:
        assert label in {telling[word] for word in text.rstrip(".?").split() if word in telling}


def test_a_prompt_takes_any_text():
    toy = tasks.load("toy")
    assert toy.prompt_for(Row("{x} and {text}", 0)) == "{x} and {text}\nThe topic of this sentence is"


def test_a_cell_without_max_length_has_that_of_the_task():
    names = {"model": "tiny-encoder", "method": "dpzero", "epsilon": "2", "seed": 0}
    own = {"steps": 1, "learning_rate": 1e-3, "clip": 1.0}
    for task, length in (("toy", 24), ("r8", 64), ("sst2", 128), ("squad", 2048)):
        cell = sweep.complete({"task": task, **names, "settings": own})
        assert cell["settings"]["max_length"] == length == tasks.load(task).max_length
        cell = sweep.complete({"task": task, **names, "settings": own | {"max_length": 32}})
        assert cell["settings"]["max_length"] == 32


# --- with data


def test_the_counts_are_the_known_ones(task):
    rows, distinct, _ = EXPECTED[task.name]
    assert tuple(len(task.splits[split]) for split in ("train", "dev", "test")) == rows
    assert tuple(len(texts(task, split)) for split in ("train", "dev", "test")) == distinct
    for split, expected in CLASSES.get(task.name, {}).items():
        counts = collections.Counter(row.label for row in task.splits[split])
        assert [counts[label] for label in range(len(task.labels))] == expected


def test_every_label_has_words_and_an_answer(task):
    assert len(task.labels) == len(task.words) == len(task.answers) == len(set(task.answers))
    assert all(answer.startswith(" ") and answer.strip() == answer[1:] for answer in task.answers)
    assert {row.label for rows in task.splits.values() for row in rows} == set(range(len(task.labels)))
    assert task.prompt.count("{text}") == 1 and not task.prompt[-1].isspace()
    assert task.metric == "accuracy" and all(task.about().values())


def test_no_text_is_in_two_splits(task):
    assert not texts(task, "train") & texts(task, "dev")
    if not task.about()["split"].startswith("official"):
        assert not (texts(task, "train") | texts(task, "dev")) & texts(task, "test")


def test_texts_are_one_clean_line(task):
    for rows in task.splits.values():
        assert all(
            text and text == text.strip() and "\n" not in text and "\t" not in text for text, *_ in rows
        )


def test_the_first_rows_of_a_split_are_a_fair_sample(task):
    rows = task.splits["train"]
    share = collections.Counter(row.label for row in rows)
    prefix = collections.Counter(row.label for row in rows[:200])
    for label, count in share.items():
        assert abs(prefix[label] / 200 - count / len(rows)) < 0.11


def test_the_splits_never_change(task):
    state = hashlib.sha256()
    for split in ("train", "dev", "test"):
        for text, label, *_ in task.splits[split]:
            state.update(f"{split}\t{label}\t{text}\n".encode())
    assert state.hexdigest()[:16] == EXPECTED[task.name][2]


@pytest.mark.network
@pytest.mark.parametrize(
    "name, train, test, shared",
    [("r8", 5485, 2189, 4), ("r52", 6532, 2568, 6), ("newsgroups", 11293, 7528, 7)],
)
def test_dev_is_taken_from_the_official_train(name, train, test, shared, cached):
    cached("reuters")
    task = tasks.load(name)
    assert len(task.splits["train"]) + len(task.splits["dev"]) == train
    assert len(task.splits["test"]) == test
    assert len((texts(task, "train") | texts(task, "dev")) & texts(task, "test")) == shared  # as published


@pytest.mark.network
def test_movies_keep_the_rows_at_least_half_a_point_from_neutral(cached):
    cached("vader")
    movies = tasks.load("movies")
    labels = collections.Counter(row.label for rows in movies.splits.values() for row in rows)
    assert movies.labels == ("negative", "positive") and labels == {0: 5076, 1: 4996}
    assert movies.prompt_for(Row("Dull.", 0)) + movies.answers[0] == "Review: Dull.\nSentiment: negative"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + PAPERS)
def test_each_answer_is_one_token_of_its_own(name, cached):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cached("smollm2"))
    for asset in tasks.assets_of(name):
        cached(asset)
    tokens = [tokenizer(answer)["input_ids"] for answer in tasks.load(name).answers]
    assert {len(ids) for ids in tokens} == {1}
    assert len({ids[0] for ids in tokens}) == len(tokens)
