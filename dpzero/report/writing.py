"""Records into files: every table and figure of a kind of experiment, with its provenance and its rules of choice.

A kind is a module of its name here, with `tables(runs)`, the main one first, and `figures(runs)`, each by name; and, where it
writes further files, `others(runs, sweep)`, their text by name.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas

from dpzero.report import provenance, style
from dpzero.report.records import load

SELECTION = "metrics.selection"


def write_tables(
    kind: str,
    records: list[Path],
    folder: Path,
    sweep: str,
    expected: list[str] | None = None,
    chosen: str | None = None,
) -> str:
    """Write each table of a sweep as NAME.csv, .md and .tex, and what stands beside them, into `folder` (`table_files`).

    `chosen` is the rule by which the settings were chosen: it stands in every heading. `records` are the files of these runs and no
    others. `expected` are the run ids that the sweep should have: one without a record is a dash in the tables and named in a note.
    Returns the main table, Markdown. Raises UsageError for a file that is no record.
    """
    report, runs = _module(kind), load(records, expected)
    tables = report.tables(runs)
    union = json.dumps(provenance.union(runs, sweep), indent=2, ensure_ascii=False) + "\n"
    contents = {"provenance.json": union}
    if hasattr(report, "others"):
        contents |= report.others(runs, sweep)
    for name, table in tables.items():
        used = runs if table.of is None else table.of
        table.title = "; ".join(filter(None, (table.title, _reported(used), chosen)))
        table.notes += provenance.warnings(used)
        table.provenance = provenance.line(used, sweep)
        contents |= {f"{name}.csv": table.csv(), f"{name}.md": table.markdown(), f"{name}.tex": table.latex()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return contents[f"{next(iter(tables))}.md"]


def write_figures(
    kind: str, records: list[Path], folder: Path, sweep: str, expected: list[str] | None = None
) -> list[Path]:
    """Draw each figure of a sweep into `folder`, as PDF and PNG; return the files. Arguments as for `write_tables`."""
    report, runs, paths = _module(kind), load(records, expected), []
    Path(folder).mkdir(parents=True, exist_ok=True)
    with style.settings():
        for name, figure in report.figures(runs).items():
            note = provenance.footnote(runs, sweep)
            figure.supxlabel(note, x=0.995, ha="right", fontsize=5, color=style.GREY)
            paths += style.save(figure, Path(folder), name, provenance.line(runs, sweep))
    return paths


def _module(kind: str) -> ModuleType:
    return import_module(f"dpzero.report.{kind}")


def _reported(runs: pandas.DataFrame) -> str | None:
    """The rule by which the reported iterate was chosen; None where no run reports one."""
    rules = provenance.distinct(runs[SELECTION]) if SELECTION in runs else []
    return f"reported: {' or '.join(rules)}" if rules else None
