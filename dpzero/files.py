"""Files are written whole (whenever the writer dies, the old file is there or the new one); names of records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text as UTF-8, or bytes."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def run_id(cell: Mapping) -> str:
    """TASK/MODEL/METHOD/eps-E/seed-S: the path of a record in the folder of its sweep."""
    return f"{cell['task']}/{cell['model']}/{cell['method']}/eps-{cell['epsilon']}/seed-{cell['seed']}"


REHEARSAL = "-rehearsal"  # at the end of the name under which a rehearsal's results are written (see `plan.rehearsal`)
TRY_MARK = "@"  # METHOD@POINT is the method of a try: a run that helps to choose settings (see `plan.search`)


def is_try(run: str) -> bool:
    """Whether a run id or a method is that of a try."""
    return TRY_MARK in run
