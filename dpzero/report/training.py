"""Report of the runs that fine-tune a model (kind `language`): tables, figures, privacy statement.

Only `time.*` and `times.csv` hold values that a rerun changes (times, resident memory, the machine). Every other
file has the same bytes for the same results from the same checkout.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas
from matplotlib.figure import Figure

from dpzero.files import is_try
from dpzero.report import COMPARED, FIGURES, TABLES, comparison, have_many_methods, pairwise, search
from dpzero.report import figures as figure_functions
from dpzero.report import tables as table_functions
from dpzero.report.accuracy_by_method import accuracy_by_method
from dpzero.report.provenance import LIMIT
from dpzero.report.published import any_published
from dpzero.report.records import INTERNAL
from dpzero.report.statement import statement
from dpzero.report.table import Table, csv_text

VOLATILE = ("time.", "provenance.", "memory.peak_resident_bytes", "memory.peak_reserved_bytes", "error")
STABLE_PROVENANCE = tuple(
    f"provenance.{key}" for key in ("code", "method_code", "python", "packages.", "model.", "data.")
)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    """`TABLES`, `COMPARED` if one of these runs has a published number, and `search` if some are tries."""
    reported, tries = _without_tries(runs)
    names = (*TABLES, *COMPARED) if any_published(reported["run"]) else TABLES
    modules = {"order": pairwise} | dict.fromkeys(COMPARED, comparison)
    written = {name: getattr(modules.get(name, table_functions), name)(reported) for name in names}
    return written | ({"search": search.table(reported, tries)} if len(tries) else {})


def figures(runs: pandas.DataFrame, names: Collection[str] = FIGURES) -> dict[str, Figure]:
    """The figures with these names, and `search` if some runs are tries.

    An axis has epsilons of one kind (see `records.promises`): those of examples, if there are any. A figure with a
    line for each method has them all.
    """
    reported, tries = _without_tries(runs)
    by_method = {}
    if have_many_methods(reported["run"]):
        by_method = {"accuracy_by_method": accuracy_by_method(reported)}
    private = reported["private"]
    reported = reported[~private | reported["promise"].eq(reported[private]["promise"].min())]
    drawn = {name: getattr(figure_functions, name)(reported) for name in names}
    return drawn | by_method | ({"search": search.figure(reported, tries)} if len(tries) else {})


def _without_tries(runs: pandas.DataFrame) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The reported runs, and the tries by which their settings were chosen."""
    tries = runs["run"].map(is_try).astype(bool)
    return runs[~tries].reset_index(drop=True), runs[tries].reset_index(drop=True)


def further_files(runs: pandas.DataFrame, sweep: str) -> dict[str, str]:
    """runs.csv: the values that a rerun repeats. times.csv: the others. The privacy statement."""
    kept = runs[runs["status"] != "missing"].drop(columns=list(INTERNAL)).sort_values("run")
    volatile = [c for c in kept.columns if c.startswith(VOLATILE) and not c.startswith(STABLE_PROVENANCE)]
    limits = [c for c in kept.columns if c.startswith(LIMIT)]
    return {
        "runs.csv": csv_text(kept.drop(columns=volatile)),
        "times.csv": csv_text(kept[["run", "status", *limits, *volatile]]),
        "privacy_statement.md": statement(_without_tries(runs)[0], sweep),
    }
