"""Rows of a task with Croissant metadata, read back by the library of that format."""

from __future__ import annotations

import json

import pytest

from dpzero.cli import croissant
from dpzero.errors import UsageError
from dpzero.language.data import tasks

pytestmark = pytest.mark.slow  # the library takes seconds to import


def test_the_rows_that_croissant_reads_are_those_of_the_task(tmp_path):
    library = pytest.importorskip("mlcroissant")
    counts = croissant.write("toy", tmp_path)
    task = tasks.load("toy")
    data = library.Dataset(jsonld=tmp_path / "croissant.json")
    assert not data.metadata.ctx.issues.errors and data.metadata.name == "toy"
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
