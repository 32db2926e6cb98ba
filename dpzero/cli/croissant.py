"""The rows of a task as JSON lines with Croissant metadata (https://mlcommons.org/croissant), for other tools."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_whole
from ..language.data import assets, datasets, tasks

METADATA = "croissant.json"
COLUMNS = {"text": "Text", "label": "Text"}  # column -> type of schema.org


def write(name: str, out: Path) -> dict[str, int]:
    """Write SPLIT.jsonl for train, dev and test, a text and its label a line, and croissant.json beside them.

    Args:
        name: of a task that has labels; its packages are in the cache (`assets.ensure`).
        out: folder for the files, made if it does not exist.

    Returns:
        Split -> its number of rows.

    Raises:
        UsageError: a task of free answers, or the library mlcroissant is not installed.
    """
    try:
        import mlcroissant
    except ImportError:
        raise UsageError("there is no mlcroissant here: pip install 'dpzero[croissant]'") from None
    task = tasks.load(name)
    if not task.labels:
        raise UsageError(f"task {name} has free answers and no labels: choose a task of classes")
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in task.splits.items():
        lines = [
            json.dumps({"text": row.text, "label": task.labels[row.label]}, ensure_ascii=False)
            for row in rows
        ]
        write_whole(out / f"{split}.jsonl", "\n".join(lines) + "\n")
    about, rows_digest = task.about(), tasks.digest(name)
    licences = [assets.CATALOGUE[asset]["licence"] for asset in tasks.assets_of(name)]
    metadata = mlcroissant.Metadata(
        name=name,
        description=f"{about['title']}. Labels: {', '.join(task.labels)}. Split: {about['split']}. "
        f"Source: {about['source']}. Rows by dpzero, whose records call them sha256 {rows_digest}.",
        cite_as=about["source"],
        license=licences or ["as its source states"],
        version="1.0.0",
        distribution=[_file(mlcroissant, out / f"{split}.jsonl") for split in task.splits],
        record_sets=[_records(mlcroissant, split) for split in task.splits],
    )
    content = metadata.to_json()
    if date := date_of_source(name):  # the library would make a day of a year
        content["datePublished"] = date
    write_whole(out / METADATA, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    return {split: len(rows) for split, rows in task.splits.items()}


def date_of_source(name: str) -> str | None:
    """When a task's rows were published, as ISO 8601: the last year in its `source`, else the day of its newest file."""
    stanza = tasks.stanza(name)
    if years := re.findall(r"\((\d{4})\)", stanza["source"]):
        return max(years)
    times = [file.stat().st_mtime for file in datasets.local_files(stanza).values()]
    return datetime.date.fromtimestamp(max(times)).isoformat() if times else None


def _file(library: Any, path: Path) -> Any:
    content = path.read_bytes()
    return library.FileObject(
        id=path.name,
        name=path.name,
        content_url=path.name,
        content_size=f"{len(content)} B",
        encoding_formats=["application/jsonlines"],
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _records(library: Any, split: str) -> Any:
    fields = [
        library.Field(
            id=f"{split}/{column}",
            name=column,
            data_types=[f"https://schema.org/{kind}"],
            source=library.Source(file_object=f"{split}.jsonl", extract=library.Extract(column=column)),
        )
        for column, kind in COLUMNS.items()
    ]
    return library.RecordSet(id=split, name=split, fields=fields)
