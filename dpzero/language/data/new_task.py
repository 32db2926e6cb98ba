"""The stanza of a task, from a table of labelled rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError, unknown
from .datasets import label_text
from .table_files import RawRow, read_rows

MOST_LABELS = 200


def stanza_from(file: Path, text: Sequence[str] = (), label: str = "") -> tuple[dict[str, Any], int]:
    """The stanza of a task whose rows are in a file, and their number: its columns, its labels as their own words.

    Args:
        file: a table in a format of `table_files`.
        text: the text columns; by default the one with the longest texts.
        label: the label column; by default the one with the fewest different values.

    Raises:
        UsageError: a file that cannot be read, an unknown column, or labels that are no classes.
    """
    rows = list(read_rows(file))
    if not rows:
        raise UsageError(f"{file} holds no rows: give labelled ones")
    columns = list(rows[0].fields)
    for name in (*text, *filter(None, [label])):
        if name not in columns:
            raise UsageError(f"{file}: {unknown('column', name, columns)}")
    label = label or min((c for c in columns if c not in text), key=lambda c: _different(rows, c), default="")
    text = list(text) or [max((c for c in columns if c != label), key=lambda c: _length(rows, c), default="")]
    if not label or not text[0]:
        raise UsageError(
            f"{file} has the columns {', '.join(columns)}: a task needs one of texts and one of labels"
        )
    counts = Counter(label_text(row.fields.get(label)) for row in rows)
    if empty := counts[""] + counts["None"]:
        raise UsageError(f"{file} has {empty} rows with an empty {label}: fill it, or leave these rows out")
    if not 2 <= len(counts) <= MOST_LABELS:
        raise UsageError(
            f"{file}: column {label} has {len(counts)} different values, but labels are 2 to {MOST_LABELS} classes: "
            "name another column"
        )
    stanza = {
        "files": str(file.absolute()),
        "text": text[0] if len(text) == 1 else text,
        "label": label,
        "words": {value: value for value in sorted(counts)},
    }
    return stanza, len(rows)


def bare_numbers(words: Mapping[str, str]) -> str | None:
    """A warning, if the descriptions of a task's labels are numbers, which describe nothing to a model."""
    if not words or not all(re.fullmatch(r"[+-]?\d+(\.\d+)?", str(word)) for word in words.values()):
        return None
    return (
        f"its labels are described by the numbers {', '.join(words.values())}, which tell a model nothing: give words"
        " for them (`words` in tasks.yaml, --words of compare)"
    )


def _different(rows: Sequence[RawRow], column: str) -> int:
    return len({str(row.fields.get(column)) for row in rows})


def _length(rows: Sequence[RawRow], column: str) -> int:
    return sum(len(str(row.fields.get(column, ""))) for row in rows)
