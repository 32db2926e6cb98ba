"""Records -> tables -> figures. This file imports nothing heavy: a workflow reads it while it is parsed."""

from __future__ import annotations

from collections.abc import Iterable

# Adding a figure: one function of that name in figures.py, its caption in captions/NAME.rst, and its name here.
FIGURES = ("accuracy_vs_epsilon", "memory_by_method", "accuracy_vs_time", "learning_curves")
TABLES = ("accuracy", "memory", "time", "privacy", "order")
COMPARED = ("published", "discrepancies")  # beside them where a run has a published number

# Kinds of experiment: tables (the first is printed at the end of a sweep), figures, further files beside the tables.
# Each has a module of its name here, which writing.py reads.
KINDS = {
    "language": (TABLES, FIGURES, ("runs.csv", "times.csv", "provenance.json", "privacy_statement.md")),
    "guarantees": (("guarantees",), ("guarantees",), ("provenance.json",)),
    "memory": (
        ("growth", "peaks", "published"),
        ("memory_by_size", "memory_by_batch"),
        ("provenance.json",),
    ),
    "quadratic": (("exponents", "norms"), ("quadratic", "quadratic_steps"), ("provenance.json",)),
}


def table_files(kind: str, runs: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the files that these runs are tabulated in."""
    from .published import any_of

    tables, _, further = KINDS[kind]
    if kind == "language" and any_of(runs):
        tables = (*tables, *COMPARED)
    return (*further, *(f"{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")))


def figure_files(kind: str) -> tuple[str, ...]:
    return tuple(f"{name}.{suffix}" for name in KINDS[kind][1] for suffix in ("pdf", "png"))


FIGURE_FILES, TABLE_FILES = figure_files("language"), table_files("language")
