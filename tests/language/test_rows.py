"""Rows from local files and from the hub's reader: what is read, and what is said of a file that is wrong."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language import examples, rows, tasks
from dpzero.language.rows import Draw

LABELS = {
    "trec": ([1162, 1250, 86, 1223, 835, 896], [138, 94, 9, 65, 81, 113]),
    "sst5": ([1092, 2218, 1624, 2322, 1288], [279, 633, 389, 510, 399]),
    "sst2": ([3310, 3610], [428, 444]),
    "rte": ([1249, 1241], [146, 131]),
    "snli": ([16] * 3, [15, 17, 16]),
    "mnli": ([16] * 3, [16] * 3),
}


def counts(*splits: list[rows.Row]) -> list[int]:
    found = collections.Counter(row.label for split in splits for row in split)
    return [found[label] for label in range(len(found))]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small SST-2 in local files."""
    write(tmp_path / "sst2" / "train_sentences.jsonl", [(f"film number {i}", i % 2) for i in range(60)])
    write(tmp_path / "sst2" / "validation.jsonl", [(f"play number {i}", i % 2) for i in range(8)])
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(path: Path, pairs: list[tuple[str, int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"sentence": s, "label": y}) + "\n" for s, y in pairs), "utf-8")


@pytest.mark.parametrize("name", LABELS)
def test_the_counts_of_the_real_rows_are_the_known_ones(name, data, monkeypatch):
    monkeypatch.setenv("DPZERO_DATA_DIR", str(data))
    task = tasks.load(name)
    train, test = LABELS[name]
    own = () if name == "sst5" else (task.splits["dev"],)  # which has an official one
    assert counts(task.splits["train"], *own) == train and counts(task.splits["test"]) == test
    assert not {r.text for r in task.splits["train"]} & {r.text for r in task.splits["dev"]} or name == "sst5"


def test_a_local_row_has_its_columns_and_label(folder):
    task = tasks.load("sst2")
    row = next(row for row in task.splits["test"] if row.text == "play number 3")
    assert row == ("play number 3", 1, {"sentence": "play number 3", "label": 1})
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 60 and task.splits["dev"]


def test_few_shots_are_drawn_from_the_order_of_the_file(folder):
    from dpzero.language import few_shot_split

    task = tasks.load("sst2", Draw(shots=4, seed=13))
    train, dev = few_shot_split([i % 2 for i in range(60)], 4, 13)
    assert {row.text for row in task.splits["train"]} == {f"film number {i}" for i in train}
    assert {row.text for row in task.splits["dev"]} == {f"film number {i}" for i in dev}
    assert len(task.splits["test"]) == 8 and "LM-BFF with seed 13" in task.split_statement


def test_digests_and_tokens_follow_the_rows(folder):
    before, digest = rows.local_digest(tasks.stanza("sst2")), tasks.digest("sst2")
    first = examples.encode("sst2", "tiny-encoder", 16)["test"]
    write(folder / "sst2" / "validation.jsonl", [("another play", 0)])
    assert rows.local_digest(tasks.stanza("sst2")) != before and tasks.digest("sst2") != digest
    second = examples.encode("sst2", "tiny-encoder", 16)["test"]
    assert (len(first), len(second)) == (8, 1)


def test_tokens_of_each_draw_are_kept_apart(folder):
    for draw in (rows.ALL, Draw(shots=2, seed=1), Draw(shots=2, seed=2), Draw(shots=3, seed=1)):
        encoded = examples.encode("sst2", "tiny-encoder", 16, draw)
        assert len(encoded["train"]) == (2 * draw.shots or len(tasks.load("sst2").splits["train"]))
    assert len(list((folder / "cache" / "tokens").iterdir())) == 4


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2, is no JSON object"),
        ("[1]", "line 2, is no JSON object"),
        ('{"sentence": "x"}', "line 2, has no column 'label': task sst2 reads sentence and label"),
        ('{"text": "x", "label": 1}', "line 2, has no column 'sentence'"),
        ('{"sentence": "x", "label": 2}', "line 2, has label 2: labels of task sst2 are 0, 1"),
    ],
)
def test_a_wrong_line_is_named(folder, line, words):
    (folder / "sst2" / "validation.jsonl").write_text('{"sentence": "x", "label": 1}\n' + line + "\n")
    with pytest.raises(UsageError, match=words.replace("[", r"\[")) as error:
        print(tasks.load("sst2").splits)
    assert "\n" not in str(error.value) and "validation.jsonl" in str(error.value)


def test_a_missing_file_is_named(folder):
    with pytest.raises(
        UsageError, match=r"cannot read the task's rows .*trec/train.jsonl .*correct data_dir"
    ):
        print(tasks.load("trec").splits)


def test_unlabelled_rows_are_left_out(folder):
    write(folder / "sst2" / "validation.jsonl", [("good", 1), ("unknown", -1)])
    assert [row.text for row in tasks.load("sst2").splits["test"]] == ["good"]


def test_the_hubs_rows_and_label_values_are_read_by_name(folder, monkeypatch):
    """A folder of files is to `load_dataset` what a name on the hub is."""
    monkeypatch.delenv("DPZERO_DATA_DIR")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "hub"))
    for split, pairs in (("train", [("a", 1), ("b", 0)] * 10), ("test", [("c", 1)])):
        (folder / "here").mkdir(exist_ok=True)
        write(folder / "here" / f"{split}.jsonl", pairs)
    hub = {"name": str(folder / "here"), "train": "train", "test": "test", "values": [1, 0]}
    lines = tasks.stanza("sst2") | {"hub": hub}
    found = rows.read("sst2", lines)
    assert [(row.text, row.label) for row in found["test"]] == [("c", 0)]
    assert counts(found["train"]) == [10, 10]
    assert rows.hub_digest(hub) != rows.hub_digest(hub | {"train": "test"})


def test_without_network_a_data_set_of_the_hub_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.delenv("DPZERO_DATA_DIR", raising=False)
    hub = {"name": "no-such-organisation/no-such-data", "train": "train", "test": "test"}
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError, match=r"cannot load train of data set no-such-organisation.*data_dir"
    ) as error:
        rows.read("sst2", tasks.stanza("sst2") | {"hub": hub})
    assert "\n" not in str(error.value)
