"""Records -> tables -> figures. This file imports nothing heavy: a workflow reads it while it is parsed."""

from __future__ import annotations

# Adding a figure: one function of that name in figures.py, its caption in captions/NAME.rst, and its name here.
FIGURES = ("accuracy_vs_epsilon", "memory_by_method", "accuracy_vs_time", "learning_curves")
TABLES = ("accuracy", "memory", "time", "privacy")

FIGURE_FILES = tuple(f"{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png"))
TABLE_FILES = (
    "runs.csv",
    "times.csv",
    "provenance.json",
    "privacy_statement.md",
    *(f"{name}.{suffix}" for name in TABLES for suffix in ("csv", "md", "tex")),
)
