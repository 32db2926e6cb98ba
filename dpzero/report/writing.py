"""Tables into files: every heading ends with the rules by which iterate and settings were chosen, every table with its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas

from dpzero.report import provenance
from dpzero.report.render import Table

SELECTION = "metrics.selection"


def write(
    folder: Path,
    tables: Mapping[str, Table],
    runs: pandas.DataFrame,
    sweep: str,
    chosen: str | None = None,
    *,
    of: Mapping[str, pandas.DataFrame] | None = None,
    others: Mapping[str, str] | None = None,
) -> str:
    """Write each table as NAME.csv, .md and .tex, provenance.json and the `others` into `folder`; return the first table, Markdown.

    `chosen` is the rule by which the settings were chosen, in words. `of` names the runs of a table that is not of all `runs`.
    """
    union = json.dumps(provenance.union(runs, sweep), indent=2, ensure_ascii=False) + "\n"
    contents = {"provenance.json": union, **(others or {})}
    for name, table in tables.items():
        used = (of or {}).get(name, runs)
        table.title = "; ".join(filter(None, (table.title, _reported(used), chosen)))
        table.notes += provenance.warnings(used)
        table.provenance = provenance.line(used, sweep)
        contents |= {f"{name}.csv": table.csv(), f"{name}.md": table.markdown(), f"{name}.tex": table.latex()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return contents[f"{next(iter(tables))}.md"]


def _reported(runs: pandas.DataFrame) -> str | None:
    """The rule by which the reported iterate was chosen; None for what trains nothing."""
    if SELECTION not in runs:
        return None
    return f"reported: {' or '.join(provenance.distinct(runs[SELECTION])) or 'nothing yet'}"
