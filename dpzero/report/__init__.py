"""Records -> tables -> figures. This file imports nothing heavy: a workflow reads it while it is parsed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dpzero.files import is_try

# To add a figure: a function of that name in figures.py, its caption in captions/NAME.rst, its name here.
FIGURES = (
    *("accuracy_vs_epsilon", "accuracy_vs_forwards", "memory_by_method"),
    *("accuracy_vs_time", "learning_curves"),
)
TABLES = ("accuracy", "memory", "time", "privacy", "order")
COMPARED = ("published", "discrepancies")  # if a run has a published number
MEMARC = ("ratios",)  # of DP-MemArc's peaks, if it is in a sweep of peaks
SEARCHED = ("search",)  # table and figure, if settings were searched for
BY_METHOD = ("accuracy_by_method",)  # if there are many methods at one epsilon
MOST_IN_LEGEND = 12  # methods
LANDING = "landing.rst"  # of the pages; Snakemake reads reStructuredText
DOCUMENTS = {  # pages that are no tables -> their files
    "privacy_statement": "privacy_statement.md",
    "runs": "runs.csv",
    "provenance": "provenance.json",
}


class Kind(NamedTuple):
    """What the report of one kind of experiment writes; the first table is printed at the end of a sweep."""

    tables: tuple[str, ...]
    figures: tuple[str, ...]
    further_files: tuple[str, ...] = ("provenance.json",)


# Kind of experiment -> its report. The module of the kind (`writing.MODULES`) makes these.
KINDS = {
    "language": Kind(TABLES, FIGURES, ("runs.csv", "times.csv", "provenance.json", "privacy_statement.md")),
    "guarantees": Kind(("guarantees",), ("guarantees",)),
    "memory": Kind(("growth", "peaks", "published"), ("memory_by_size", "memory_by_batch")),
    "quadratic": Kind(("exponents", "norms"), ("quadratic", "quadratic_steps")),
}


def table_files(kind: str, runs: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the files with the tables of these runs."""
    from .published import any_published

    tables, _, further = KINDS[kind]
    if kind == "language" and any_published(runs):
        tables = (*tables, *COMPARED)
    if kind == "memory" and any("/dp_memarc_" in run for run in runs):
        tables = (*tables, *MEMARC)
    if any(map(is_try, runs)):
        tables = (*tables, *SEARCHED)
    return (*further, *(f"{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")))


def figure_names(kind: str, runs: Iterable[str] = ()) -> tuple[str, ...]:
    """The figures of these runs."""
    by_method = BY_METHOD if kind == "language" and have_many_methods(runs) else ()
    return (*KINDS[kind].figures, *by_method, *(SEARCHED if any(map(is_try, runs)) else ()))


def have_many_methods(runs: Iterable[str]) -> bool:
    """Whether these runs, named TASK/MODEL/METHOD/eps-E/seed-S, have more methods than a legend, at one epsilon."""
    cells = {tuple(run.split("/")[2:4]) for run in runs if not is_try(run)}
    methods, epsilons = ({cell[place] for cell in cells} for place in (0, 1))
    return len(methods) > MOST_IN_LEGEND and len(epsilons - {"eps-0", "eps-inf"}) == 1


def figure_files(kind: str, runs: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the files with the figures of these runs, and with their captions."""
    return tuple(f"{name}.{suffix}" for name in figure_names(kind, runs) for suffix in ("pdf", "png", "md"))


def page_sources(kind: str, runs: Iterable[str] = ()) -> dict[str, str]:
    """Page -> the file of `table_files` that it shows: tables, the first one first, then the documents."""
    files = table_files(kind, runs)
    tables = {
        file.removesuffix(".tex"): file.replace(".tex", ".md") for file in files if file.endswith(".tex")
    }
    return tables | {name: file for name, file in DOCUMENTS.items() if file in files}


def title_of(name: str) -> str:
    """The title of a page or figure: accuracy_vs_epsilon is Accuracy vs epsilon."""
    return name.replace("_", " ").capitalize()
