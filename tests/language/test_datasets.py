"""Rows from local files and from the hub, and the errors for wrong files."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.language.data import datasets, tasks
from dpzero.language.data.datasets import Draw, Row
from dpzero.language.models import encoding

LABELS = {
    "trec": ([1162, 1250, 86, 1223, 835, 896], [138, 94, 9, 65, 81, 113]),
    "sst5": ([1092, 2218, 1624, 2322, 1288], [279, 633, 389, 510, 399]),
    "sst2": ([3310, 3610], [428, 444]),
    "rte": ([1249, 1241], [146, 131]),
    "snli": ([16] * 3, [15, 17, 16]),
    "mnli": ([16] * 3, [16] * 3),
}


def counts(*splits: list[datasets.Row]) -> list[int]:
    counter = collections.Counter(row.label for split in splits for row in split)
    return [counter[label] for label in range(len(counter))]


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
    assert row == Row("play number 3", 1, {"sentence": "play number 3", "label": 1})
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 60 and task.splits["dev"]


def test_few_shots_are_drawn_from_the_order_of_the_file(folder):
    from dpzero.language import few_shot_split

    task = tasks.load("sst2", Draw(shots=4, seed=13))
    train, dev = few_shot_split([i % 2 for i in range(60)], 4, 13)
    assert {row.text for row in task.splits["train"]} == {f"film number {i}" for i in train}
    assert {row.text for row in task.splits["dev"]} == {f"film number {i}" for i in dev}
    assert len(task.splits["test"]) == 8 and "LM-BFF with seed 13" in task.about()["split"]


def test_digests_and_tokens_follow_the_rows(folder):
    before, digest = tasks.local_digest("sst2"), tasks.digest("sst2")
    first = encoding.encode(tasks.load("sst2"), "tiny-encoder", 16)["test"]
    write(folder / "sst2" / "validation.jsonl", [("another play", 0)])
    assert tasks.local_digest("sst2") != before and tasks.digest("sst2") != digest
    second = encoding.encode(tasks.load("sst2"), "tiny-encoder", 16)["test"]
    assert (len(first), len(second)) == (8, 1)


def test_each_draw_has_its_own_cached_tokens(folder):
    for draw in (datasets.ALL, Draw(shots=2, seed=1), Draw(shots=2, seed=2), Draw(shots=3, seed=1)):
        encoded = encoding.encode(tasks.load("sst2", draw), "tiny-encoder", 16)
        assert len(encoded["train"]) == (2 * draw.shots or len(tasks.load("sst2").splits["train"]))
    assert len(list((folder / "cache" / "tokens").iterdir())) == 4


GOOD = '{"sentence": "x", "label": 1}'
WRONG = [
    ("{", "is no JSON object"),
    ("[1]", "is no JSON object"),
    ("[" * 100_000, "is no JSON object: give one object a line"),
    ('{"sentence": "x"}', "has no column 'label': task sst2 reads sentence and label"),
    ('{"text": "x", "label": 1}', "has no column 'sentence'"),
    # texts
    *(
        (f'{{"sentence": {value}, "label": 1}}', f"has sentence {text}, which is no text: correct it")
        for value, text in [
            ("null", "null"),
            ("NaN", "NaN"),
            ("3", "3"),
            ("true", "true"),
            ('["a"]', '["a"]'),
            ('{"a": 1}', '{"a": 1}'),
        ]
    ),
    (
        r'{"sentence": "a \ud800 b", "label": 1}',
        r"has half a character, the lone surrogate '\ud800', in sentence",
    ),
    (
        '{"sentence": "café", "label": 1}'.encode("latin-1"),
        "is not UTF-8 (byte 0xe9 at 18): save the file as UTF-8",
    ),
    (
        '{"sentence": "x", "label": 1}'.encode("utf-16-le"),
        "is not UTF-8 but looks like UTF-16: save the file as UTF-8",
    ),
    # labels
    *(
        (f'{{"sentence": "x", "label": {value}}}', f"has label {value}: labels of task sst2 are 0, 1")
        for value in ["2", "0.5", "true", '"1"', "null", "NaN", "[1]", '"positive"', "Infinity"]
    ),
]


@pytest.mark.parametrize("line, words", WRONG, ids=[str(line)[:40] for line, _ in WRONG])
def test_a_wrong_line_is_named(folder, line, words):
    line = line if isinstance(line, bytes) else line.encode()
    file = folder / "sst2" / "validation.jsonl"
    file.write_bytes(f"{GOOD}\n".encode() + line + b"\n")
    with pytest.raises(UsageError) as error:
        datasets.read("sst2", tasks.stanza("sst2"))
    assert str(error.value).startswith(f"{file}, line 2, {words}") and "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
LINES = st.binary(max_size=30) | st.fixed_dictionaries(
    {}, optional={"sentence": st.text(st.characters()) | JSON, "label": st.integers(-1, 1) | JSON}
).map(lambda fields: json.dumps(fields).encode())


@given(lines=st.lists(LINES, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_unchanged_or_refused_in_one_line(folder, lines):
    file = folder / "sst2" / "validation.jsonl"
    file.write_bytes(b"\n".join([GOOD.encode(), *lines]))
    try:
        rows = datasets.read("sst2", tasks.stanza("sst2"))["test"]
    except UsageError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    else:
        given = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        kept = [fields for fields in given if fields["label"] != -1]
        assert [row[:2] for row in rows] == [(f["sentence"].strip(), f["label"]) for f in kept]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_in_utf16_is_named(folder, encoding):
    (folder / "sst2" / "validation.jsonl").write_text(GOOD, encoding)
    with pytest.raises(UsageError, match=r"validation.jsonl, line 1, is not UTF-8 but looks like UTF-16"):
        datasets.read("sst2", tasks.stanza("sst2"))


@pytest.mark.parametrize("content", ["", "\n \n", '{"sentence": "x", "label": -1}'])
def test_a_split_without_a_row_is_named(folder, content):
    (folder / "sst2" / "validation.jsonl").write_text(content)
    with pytest.raises(UsageError, match=r"validation.jsonl holds no rows with a label: task sst2"):
        datasets.read("sst2", tasks.stanza("sst2"))


def test_a_byte_order_mark_windows_lines_and_labels_with_a_point_are_read(folder):
    content = (
        '\ufeff{"sentence": "café", "label": 0.0}\r\n\r\n{"sentence": "x", "label": 1, "other": null}\r\n'
    )
    (folder / "sst2" / "validation.jsonl").write_bytes(content.encode())
    assert [row[:2] for row in datasets.read("sst2", tasks.stanza("sst2"))["test"]] == [("café", 0), ("x", 1)]


COPA = {"premise": "It rained.", "question": "effect", "choice1": "A", "choice2": "B", "label": 1}
RECORD = {"passage": "P", "query": "@placeholder won.", "entities": ["Ann", "Bob"], "answers": ["Bob"]}
SQUAD = {"title": "T", "context": "C", "question": "Q?", "answers": {"text": ["a"], "answer_start": [0]}}
BOOLQ = {"passage": "P", "question": "q", "answer": True}
OTHERS = [
    ("copa", COPA, {"label": 2}, "has label 2: it is the number of the right candidate, 0 to 1"),
    ("copa", COPA, {"label": True}, "has label true: it is the number of the right candidate"),
    ("copa", COPA, {"label": [1]}, "has label [1]: it is the number of the right candidate"),
    ("copa", COPA, {"question": "why"}, 'has question "why", which has no conjunction'),
    ("copa", COPA, {"choice2": 3}, "has choice2 3, which is no text"),
    ("record", RECORD, {"answers": "Bob"}, 'has answers "Bob", which is no list of texts'),
    ("record", RECORD, {"answers": []}, "has answers [], which is no list of texts"),
    ("record", RECORD, {"answers": ["Eve"]}, "has no right answer among its entities: correct answers"),
    ("record", RECORD, {"entities": ["Bob", None]}, "has entities null, which is no text"),
    ("squad", SQUAD, {"answers": ["a"]}, "has no column 'answers.text': task squad reads title, context, question and answers.text"),
    ("squad", SQUAD, {"answers": {"text": None}}, "has answers.text null, which is no list of texts"),
    ("squad", SQUAD, {"context": None}, "has context null, which is no text"),
    ("boolq", BOOLQ, {"answer": 1}, "has answer 1: labels of task boolq are true, false"),
]  # fmt: skip


@pytest.mark.parametrize("task, row, change, words", OTHERS, ids=[f"{t}-{c}" for t, _, c, _ in OTHERS])
def test_every_column_of_a_prompt_is_checked(tmp_path, monkeypatch, task, row, change, words):
    """Columns of the prompt, candidates and right answers: a row passes, and fails with one change."""
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    files = [tmp_path / file for file in tasks.stanza(task)["files"].values()]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(row) + "\n")
    assert [len(split) for split in datasets.read(task, tasks.stanza(task)).values()] == [1, 1]
    files[1].write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(UsageError) as error:
        datasets.read(task, tasks.stanza(task))
    assert str(error.value).startswith(f"{files[1]}, line 2, {words}")


@pytest.mark.parametrize(
    "reader, file, content, words",
    [
        ("tab", "x.tab", "a\nb\nc\nearn\tgood\nern\tbad\n", "x.tab, line 5, has label 'ern': labels of task t are"),
        ("vader", "x.txt", "1\t2.5\tgood\n2\tnone\tbad\n", "x.txt, line 2, is not `id, valence, text` between tabs"),
        ("vader", "y.txt", "1\t2.5\tgood\n", "cannot read the rows .*/x.txt .* of the task's stanza"),
        ("folders", "x.txt", "good", "here holds no text files: correct the folders of task t"),
    ],
)  # fmt: skip
def test_a_package_that_a_stanza_does_not_fit_is_named(tmp_path, monkeypatch, reader, file, content, words):
    monkeypatch.setattr("dpzero.language.data.assets.folder", lambda name: tmp_path)
    (tmp_path / file).write_text(content)
    own = {"files": {"train": file, "test": file}, "file": "x.txt", "threshold": 0.5, "folders": ["here"]}
    with pytest.raises(UsageError, match=words):
        datasets.read("t", {"reader": reader, "asset": "a", "words": {"earn": "earnings"}, **own})


def test_a_missing_file_is_named(folder):
    with pytest.raises(UsageError, match=r"cannot read the rows .*trec/train.jsonl .*correct data_dir"):
        print(tasks.load("trec").splits)


def test_unlabelled_rows_are_left_out(folder):
    write(folder / "sst2" / "validation.jsonl", [("good", 1), ("unknown", -1)])
    assert [row.text for row in tasks.load("sst2").splits["test"]] == ["good"]


def test_the_hubs_rows_and_label_values_are_read_by_name(folder, monkeypatch):
    """`load_dataset` reads a folder of files like a data set of the hub."""
    monkeypatch.delenv("DPZERO_DATA_DIR")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "hub"))
    splits = {"train": [("a", 1), ("b", 0)] * 10, "test": [("c", 1)], "validation": [("d", 1), (None, 1)]}
    for split, pairs in splits.items():
        (folder / "here").mkdir(exist_ok=True)
        write(folder / "here" / f"{split}.jsonl", pairs)
    hub = {"name": str(folder / "here"), "train": "train", "test": "test", "values": [1, 0]}
    lines = tasks.stanza("sst2") | {"hub": hub}
    result = datasets.read("sst2", lines)
    assert [(row.text, row.label) for row in result["test"]] == [("c", 0)]
    assert counts(result["train"]) == [10, 10]
    assert datasets.hub_digest(hub) != datasets.hub_digest(hub | {"train": "test"})
    with pytest.raises(UsageError, match="here, validation, row 1, has sentence null, which is no text"):
        datasets.read("sst2", lines | {"hub": hub | {"test": "validation"}})
