"""Rows of a task with Croissant metadata, read back by the library of that format."""

from __future__ import annotations

import json
import os

import pytest

from dpzero import include
from dpzero.cli import croissant
from dpzero.errors import UsageError
from dpzero.language.data import tasks

pytestmark = pytest.mark.slow  # the library takes seconds to import


def test_the_rows_that_croissant_reads_are_those_of_the_task(tmp_path):
    library = pytest.importorskip("mlcroissant")
    counts = croissant.write("toy", tmp_path)
    task = tasks.load("toy")
    data = library.Dataset(jsonld=tmp_path / "croissant.json")
    issues = data.metadata.ctx.issues
    assert not issues.errors and not issues.warnings and data.metadata.name == "toy"
    assert counts == {split: len(rows) for split, rows in task.splits.items()}
    for split, rows in task.splits.items():
        read = [(r[f"{split}/text"].decode(), r[f"{split}/label"].decode()) for r in data.records(split)]
        assert read == [(row.text, task.labels[row.label]) for row in rows]


def test_another_file_is_not_taken_for_the_rows(tmp_path):
    library = pytest.importorskip("mlcroissant")
    croissant.write("toy", tmp_path)
    with (tmp_path / "dev.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one more", "label": "none"}) + "\n")
    with pytest.raises(Exception, match=r"Download\(dev\.jsonl\)"):
        list(library.Dataset(jsonld=tmp_path / "croissant.json").records("dev"))


def test_a_task_of_free_answers_is_refused(tmp_path):
    pytest.importorskip("mlcroissant")
    with pytest.raises(UsageError, match="task squad has free answers"):
        croissant.write("squad", tmp_path)


def test_the_date_of_the_rows_is_that_of_their_source(tmp_path, monkeypatch):
    """Never today's: a year that the source gives, or the day of a user's newest file."""
    assert [croissant.date_of_source(name) for name in ("r8", "sst2", "bbc")] == ["2007", "2019", "2006"]
    assert all(croissant.date_of_source(name) for name in tasks.names())
    monkeypatch.setenv(include.VARIABLE, str(tmp_path))
    for name, day in (("train.csv", 1_000_000_000), ("test.csv", 900_000_000)):
        (tmp_path / name).write_text("text,label\n", "utf-8")
        os.utime(tmp_path / name, (day, day))
    stanza = {"files": {"train": "train.csv", "test": "test.csv"}, "text": "text", "label": "label"}
    mine = {"mine": stanza | {"words": {"a": "a"}}}
    mine["old"] = mine["mine"] | {"source": "Me (1999), a diary, copied by a friend (2003)"}
    (tmp_path / "tasks.yaml").write_text(json.dumps(mine), "utf-8")
    assert croissant.date_of_source("mine") == "2001-09-09"
    assert croissant.date_of_source("old") == "2003"
