"""Records -> tables -> figures. This file imports nothing heavy: a workflow reads it while it is parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

# Adding a figure: one function of that name in figures.py, its caption in captions/NAME.rst, and its name here.
FIGURES = ("accuracy_vs_epsilon", "memory_by_method", "accuracy_vs_time", "learning_curves")
TABLES = ("accuracy", "memory", "time", "privacy", "order")
COMPARED = ("published", "discrepancies")  # beside them where a run has a published number

# Kinds of experiment: tables (the first is printed at the end of a sweep), figures, further files beside the tables.
# Another kind than language has a module of its name here, with write_tables and write_figures.
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


def writers(kind: str) -> tuple[Callable, Callable]:
    """write_tables and write_figures of this kind: (records, folder, sweep, expected) -> the main table; the files."""
    if kind != "language":
        module = import_module(f".{kind}", __name__)
        return module.write_tables, module.write_figures
    from .figures import write_figures
    from .tables import write_tables

    return write_tables, write_figures


FIGURE_FILES, TABLE_FILES = figure_files("language"), table_files("language")
