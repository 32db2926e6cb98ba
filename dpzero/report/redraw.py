"""The committed figures drawn again from the committed tables, without records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from dpzero.report import FIGURES, guarantees, memory, provenance, records, style, training
from dpzero.report.writing import save_figures, write_caption, write_study

REPORTS = {"memory": memory, "guarantees": guarantees}
STUDIES = ("benchmark", "contextual-protection", "membership")  # each keeps its whole result, NAME.json
NEED_RECORDS = ("learning_curves", "quadratic", "quadratic_steps")  # no table has what these show
OLD = (
    "This picture was drawn from records by an earlier version, whose colours are lighter: the tables of this sweep do "
    "not hold what it shows."
)


def redraw(root: Path, titles: Mapping[str, str]) -> dict[str, list[str]]:
    """Draw each figure in root/figures whose values are in the tables of root/results.

    Args:
        root: folder of the project.
        titles: of tasks and models by name, for runs whose tables say none.

    Returns:
        The names of the written files, and of the figures that need records and stay as they are.
    """
    written: list[Path] = []
    kept: list[Path] = []
    for folder in sorted((root / "figures").glob("*/")):
        written += _redraw_sweep(root / "results" / folder.name / "tables", folder, titles)
        kept += [path for name in NEED_RECORDS if (path := folder / f"{name}.png").exists()]
    for path in kept:
        if not path.with_suffix(".md").exists():
            written.append(write_caption(path.with_suffix(".md"), path.stem, OLD))
    names = {"written": written, "need records": kept}
    return {what: [str(path.relative_to(root)) for path in paths] for what, paths in names.items()}


def _redraw_sweep(tables: Path, folder: Path, titles: Mapping[str, str]) -> list[Path]:
    sweep = folder.name
    if sweep in STUDIES:
        results = sorted(tables.glob("*.json"))
        return [file for result in results for file in write_study(sweep, result, tables, folder)]
    if sweep not in REPORTS and not (tables / "runs.csv").exists():
        return []
    runs = runs_of(tables, titles)
    with style.settings():
        return save_figures(figures_of(sweep, runs), runs, folder, sweep)


def runs_of(tables: Path, titles: Mapping[str, str]) -> pandas.DataFrame:
    """The runs in this folder of tables, as far as figures need them."""
    sweep = tables.parent.name
    if sweep not in REPORTS:
        return _with_titles(records.from_tables(tables), titles)
    union = json.loads((tables / "provenance.json").read_text("utf-8"))
    return provenance.from_union(REPORTS[sweep].from_tables(tables), union)


def figures_of(sweep: str, runs: pandas.DataFrame) -> dict[str, Figure]:
    """The figures of this sweep that these runs without learning curves can draw, by name."""
    if sweep in REPORTS:
        return REPORTS[sweep].figures(runs)
    return training.figures(runs, [name for name in FIGURES if name not in NEED_RECORDS])


def _with_titles(runs: pandas.DataFrame, titles: Mapping[str, str]) -> pandas.DataFrame:
    """The runs with a title of their task and model in words, if one is known."""
    for column, kind in (("task", "data"), ("model", "model")):
        name = f"provenance.{kind}.title"
        known = runs[name] if name in runs else pandas.Series(None, index=runs.index, dtype=object)
        runs = runs.assign(**{name: known.where(known.notna(), runs[column].map(titles))})
    return runs
