"""Records -> tables -> figures. This file imports nothing heavy: a workflow reads it while it is parsed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# To add a figure: a function of that name in figures.py, its caption in captions/NAME.rst, its name here.
FIGURES = ("accuracy_vs_epsilon", "memory_by_method", "accuracy_vs_time", "learning_curves")
TABLES = ("accuracy", "memory", "time", "privacy", "order")
COMPARED = ("published", "discrepancies")  # if a run has a published number


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
    return (*further, *(f"{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")))


def figure_files(kind: str) -> tuple[str, ...]:
    """The names of the files with the figures of a kind."""
    return tuple(f"{name}.{suffix}" for name in KINDS[kind].figures for suffix in ("pdf", "png"))
