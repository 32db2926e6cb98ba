"""One cell of a study's sweep: measure it and write the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..errors import UsageError
from ..files import run_id
from ..plan.sweep import kind_of
from ..run import record_file


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Measure a cell with `measure` of its study's module, write the record to `out` and return it.

    Raises:
        UsageError: the study refuses the cell.
    """
    started = time.perf_counter()
    measure = import_module(f"dpzero.studies.{kind_of(cell)}").measure
    try:
        parts = measure(cell, log, device)
    except ValueError as error:
        raise UsageError(f"{run_id(cell)}: {error}") from error
    record = record_file.make(cell, time={"wall_seconds": time.perf_counter() - started}, **parts)
    record_file.write(out, record)
    return record
