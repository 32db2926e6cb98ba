"""The verbs that read records and tables: tables, figures, redraw, pages, crate, report, archive, verify, readme."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError, unknown
from ..plan import guard, sweep
from ..plan.registry import card
from .options import LOCAL_FILES, SWEEP, Options, folder_to_read, folder_to_write, option, verb
from .process_setup import log, read_text
from .runs import NARROWING, narrowed
from .workflow import snakefile

RECORDS: Options = {
    **SWEEP,
    **NARROWING,
    **LOCAL_FILES,
    "--cells": option("file of run ids, one a line (default: all of the sweep)", type=Path),
    "--records": option("folder of the records (default: results/SWEEP/runs)", type=Path),
    "--partial": option(
        "leave out the records of other cells, such as of changed settings", action="store_true"
    ),
}
OUT: Options = {"--out": option("folder for the files", type=folder_to_write, required=True)}


@verb(RECORDS | OUT)
def tables(options: argparse.Namespace) -> dict:
    """Write the tables of the records that exist."""
    from ..report.writing import write_tables

    records, runs = _find_records(options)
    plan = sweep.read(options.sweep)
    kind, tuning = plan["experiment"], sweep.rule_of_choice(plan)
    print(write_tables(kind, records, options.out, _name(options), runs, tuning))
    return {"tables": str(options.out), "records": len(records), "runs": len(runs)}


@verb(RECORDS | OUT)
def figures(options: argparse.Namespace) -> dict:
    """Draw the figures of the records that exist."""
    from ..report.writing import write_figures

    records, runs = _find_records(options)
    kind = sweep.read(options.sweep)["experiment"]
    files = write_figures(kind, records, options.out, _name(options), runs)
    return {"figures": [str(file) for file in files], "records": len(records), "runs": len(runs)}


@verb(
    RECORDS | OUT,
    tables=option("folder of the tables", type=folder_to_read, required=True),
    figures=option("PNG files, the first for the landing page", nargs="*", default=[], type=Path),
)
def pages(options: argparse.Namespace) -> dict:
    """Write the pages of `snakemake --report` from the tables and figures of a sweep."""
    from ..report.pages import write_pages

    plan, cells = sweep.read(options.sweep), _planned_cells(options)
    runs, asked = list(cells), what_was_asked(options.sweep, cells)
    kind, name = plan["experiment"], _name(options)
    files = write_pages(kind, name, runs, asked, options.tables, options.figures, options.out)
    return {"pages": [str(file) for file in files]}


def what_was_asked(name: str, cells: Mapping[str, dict]) -> dict[str, str]:
    """Heading -> what these runs of a sweep ask, in its own words, and the values of its axes."""
    plan = sweep.read(name)
    titles = {
        cell["method"]: cell.get("title") or card(cell["use"]).title
        for cell in cells.values()
        if "use" in cell
    }
    axes = [list(dict.fromkeys(values)) for values in zip(*(run.split("/") for run in cells), strict=True)]
    tasks, models, methods, epsilons, seeds = axes
    choice = [plan.get("selection", "").strip(), sweep.rule_of_choice(plan).capitalize()]
    answers = {
        "What is asked": plan.get("description", "").strip(),
        "How settings were chosen": ". ".join(filter(None, choice)).replace("..", "."),
        "Tasks": ", ".join(tasks),
        "Models": ", ".join(models),
        "Methods": ", ".join(titles.get(method, method) for method in methods),
        "Epsilons": ", ".join(epsilon.removeprefix("eps-") for epsilon in epsilons)
        + " (0: no training, inf: not private)",
        "Seeds": ", ".join(seed.removeprefix("seed-") for seed in seeds),
        "Runs": str(len(cells)),
    }
    return {heading: answer for heading, answer in answers.items() if answer}


@verb(root=option("folder of the project", Path(), type=folder_to_read))
def redraw(options: argparse.Namespace) -> dict:
    """Draw the figures in figures/ again from the tables in results/."""
    from ..language.data import tasks
    from ..language.models import model_catalogue
    from ..report.redraw import redraw

    titles = {
        name: catalogue.stanza(name)["title"]
        for catalogue in (tasks, model_catalogue)
        for name in catalogue.names()
    }
    return redraw(options.root, titles)


@verb(RECORDS, out=option("folder to make, or a file that ends in .zip", type=Path, required=True))
def crate(options: argparse.Namespace) -> dict:
    """Write a sweep as an RO-Crate: records, tables, figures, and what made them, for other tools."""
    from ..report.crate import write_crate

    if options.out.exists():
        raise UsageError(f"{options.out} exists: name a folder or a .zip that does not")
    records, _ = _find_records(options)
    name = _name(options)
    results = Path("results") / name
    folders = (options.records or results / "runs", results / "tables", Path("figures") / name)
    asked = what_was_asked(options.sweep, _planned_cells(options))
    files = write_crate(name, asked, (snakefile(), sweep.find(options.sweep)), records, folders, options.out)
    return {"crate": str(options.out), "files": files}


@verb(RECORDS)
def report(options: argparse.Namespace) -> dict:
    """Print the privacy statement of a sweep."""
    from ..report.records import load
    from ..report.statement import statement

    if sweep.read(options.sweep)["experiment"] != sweep.LANGUAGE:
        raise UsageError(
            f"sweep {options.sweep} trains nothing, so it has no privacy statement: see its tables"
        )
    records, runs = _find_records(options)
    print(statement(load(records, runs), _name(options)))
    return {"sweep": options.sweep, "records": len(records), "runs": len(runs)}


@verb(
    {"results": option("results/SWEEP", type=folder_to_read)},
    unpack=option("write its records from the archive; those that exist stay", action="store_true"),
)
def archive(options: argparse.Namespace) -> dict:
    """Pack the records of a sweep into one file, records.tar.xz, or unpack them."""
    from ..report import archive

    if options.unpack:
        return {"unpacked": archive.unpack(options.results, options.results)}
    return {"archive": str(archive.pack(options.results))}


@verb(
    {
        "mine": option("results/SWEEP, or a folder of several such folders", type=folder_to_read),
        "theirs": option("the same from elsewhere", type=folder_to_read),
    },
    partial=option("leave out the records that one folder alone has", action="store_true"),
)
def verify(options: argparse.Namespace) -> dict:
    """Compare results with those of another run: bit for bit, within intervals, or not, and the first cause."""
    from ..report.reproduction import Comparison, read

    found = Comparison(read(options.mine), read(options.theirs), options.partial)
    print(found.text())
    return found.answer()


@verb(
    check=option("write nothing, and fail if a file differs", action="store_true"),
    root=option("folder of the project", Path(), type=folder_to_read),
)
def readme(options: argparse.Namespace) -> dict:
    """Write the results in README.md and results/README.md from the tables."""
    from ..report import overview

    differing = overview.update(options.root, options.check)
    if options.check and differing:
        raise UsageError(f"{', '.join(differing)} differs from the tables: run `python -m dpzero readme`")
    return {"written": differing}


def _name(options: argparse.Namespace) -> str:
    """The name under which the results of the sweep, or of its rehearsal, are written."""
    return sweep.name_of(options.sweep, narrowed(options))


def _planned_cells(options: argparse.Namespace) -> dict[str, dict]:
    """The cells of the sweep, narrowed by what was given and to the ids of --cells."""
    cells = sweep.load(options.sweep, **narrowed(options))
    if not options.cells:
        return cells
    runs = read_text(options.cells).split()
    for run in runs:
        if run not in cells:
            raise UsageError(f"{options.cells}: {unknown(f'run of sweep {options.sweep}', run, cells)}")
    return {run: cells[run] for run in runs}


def _find_records(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The existing record files of the planned runs, and these runs. Other files are ignored.

    Raises UsageError for a record of another cell; with --partial it counts as missing, and a line says so.
    """
    cells = _planned_cells(options)
    folder = options.records or Path("results") / _name(options) / "runs"
    records, others = [], []
    for run, cell in cells.items():
        if (path := folder / f"{run}.json").exists():
            words = _difference(path, cell)
            others += [f"{path} is the record of another cell ({words})"] if words else []
            records += [] if words else [path]
    if others:
        sentence = others[0] + f", and so are {len(others) - 1} more" * (len(others) > 1)
        advice = "delete it and run the sweep again"
        if not options.partial:
            raise UsageError(f"{sentence}: {advice}, or leave it out by --partial")
        log(f"dpzero: {sentence}, left out here: {advice}")
    if not records:
        raise UsageError(
            f"none of the {len(cells)} runs of sweep {options.sweep} has a record in {folder}: run it first"
        )
    return records, list(cells)


def _difference(path: Path, cell: dict) -> str | None:
    """In which key a record differs from its cell; None also for a file that is no record, which its reader names."""
    try:
        recorded = json.loads(path.read_text("utf-8"))["cell"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return guard.difference(recorded, cell) if isinstance(recorded, dict) else None
