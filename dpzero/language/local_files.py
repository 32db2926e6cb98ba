"""The local rows and model folders of a sweep, checked when it is planned; the rows once for each of their versions.

Imports no torch: what files alone can tell is told before anything runs.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError, noting, refuse
from ..files import write_whole
from .data import assets, new_task, tasks
from .data.datasets import Draw
from .models import model_catalogue, model_folder


def check(readings: Iterable[tuple[str, Draw]], models: Iterable[str] = ()) -> None:
    """Check the tasks that have local rows, with their draws, and the models of local folders.

    A line on standard error says what is odd in a user's task, when its rows are read first.

    Raises:
        UsageError: with all that is wrong: columns, labels, empty splits, files and folders.
    """
    faults: list[str] = []
    for task, draw in readings:
        with noting(faults):
            _check_rows(task, draw)
    for model in models:
        with noting(faults):
            folder = model_catalogue.local_folder(model)
            if folder and (found := list(model_folder.faults(folder))):
                raise UsageError(f"{folder}, the folder of model {model}, {'; '.join(found)}")
    refuse(faults)


def _check_rows(task: str, draw: Draw) -> None:
    if not tasks.local_digest(task):
        return
    note = _note(f"{tasks.digest(task)} {draw}")
    if note.exists():
        return
    splits = tasks.load(task, draw).splits
    if empty := [split for split, rows in splits.items() if not rows]:
        raise UsageError(
            f"task {task} has no rows for {' and '.join(empty)}: give more rows, or a file for it"
        )
    if tasks.CATALOGUE.is_own(task):
        for words in _oddities(task, {row.label for row in splits["train"]}):
            print(f"dpzero: {words}", file=sys.stderr)
    with suppress(OSError):  # without a writable cache each process reads the rows
        write_whole(note, "")


def _note(key: str) -> Path:
    """The file that says that these rows are sound."""
    return assets.cache_folder() / "checked" / hashlib.sha256(key.encode()).hexdigest()


def _oddities(task: str, trained: set[int]) -> Iterator[str]:
    words = tasks.stanza(task).get("words", {})
    if warning := new_task.bare_numbers(words):
        yield f"task {task}: {warning}"
    if absent := [label for number, label in enumerate(words) if number not in trained]:
        yield f"task {task}: no training row has the label {', '.join(absent)}, which no model can learn then"
