"""A record is one run's JSON file: written last and whole, so a half one never exists."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

VERSION = 1


def write_whole(path: Path, text: str) -> None:
    """Write through a temporary file beside the target; on any death there is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, record: dict) -> None:
    write_whole(path, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def _plain(value: object) -> object:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
