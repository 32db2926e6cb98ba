"""The kind `language`: runs that fine-tune a model on a task. Its tables, figures, run-by-run files and privacy statement.

Only `time.*` and `times.csv` hold what a rerun changes (times, resident memory, the machine); every other file
is the same to the byte for the same results from the same checkout.
"""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure

from dpzero.report import FIGURES, comparison, published
from dpzero.report import figures as drawn
from dpzero.report.pairwise import order
from dpzero.report.records import INTERNAL
from dpzero.report.statement import statement
from dpzero.report.table import Table, csv_text
from dpzero.report.tables import accuracy, memory, privacy, time

VOLATILE = ("time.", "provenance.", "memory.peak_resident_bytes", "memory.peak_reserved_bytes", "error")
STABLE_PROVENANCE = tuple(
    f"provenance.{key}" for key in ("code", "method_code", "python", "packages.", "model.", "data.")
)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    """`dpzero.report.TABLES`, and `COMPARED` where one of these runs has a published number."""
    functions = [accuracy, memory, time, privacy, order]
    if published.any_of(runs["run"]):
        functions += [comparison.published, comparison.discrepancies]
    return {function.__name__: function(runs) for function in functions}


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    """`dpzero.report.FIGURES`."""
    return {name: getattr(drawn, name)(runs) for name in FIGURES}


def others(runs: pandas.DataFrame, sweep: str) -> dict[str, str]:
    """runs.csv: what is the same after a rerun. times.csv: what is not. The privacy statement."""
    kept = runs[runs["status"] != "missing"].drop(columns=list(INTERNAL)).sort_values("run")
    volatile = [c for c in kept.columns if c.startswith(VOLATILE) and not c.startswith(STABLE_PROVENANCE)]
    files = {"runs.csv": kept.drop(columns=volatile), "times.csv": kept[["run", "status", *volatile]]}
    return {name: csv_text(rows) for name, rows in files.items()} | {
        "privacy_statement.md": statement(runs, sweep)
    }
