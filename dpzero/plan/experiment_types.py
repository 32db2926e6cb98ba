"""Kinds of experiment: what a sweep file says under `experiment`. Imports no torch.

Each has a module here with run_cell(cell, out, log, device) -> its record. One of another kind than language also says what its
sweep files hold: KEYS of the file, cells(sweep) -> its cells, check(cell) -> the same cell or a UsageError. Its tables and
figures are in a module of its name in dpzero/report.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from ..errors import UsageError, unknown

LANGUAGE = "language"
MODULES = {LANGUAGE: "run.run"} | {name: f"studies.{name}" for name in ("memory", "guarantees", "quadratic")}
KINDS = tuple(MODULES)


def kind_of(sweep_or_cell: dict) -> str:
    kind = sweep_or_cell.get("experiment", LANGUAGE)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(unknown("kind of experiment", kind, KINDS))
    return kind


def module_of(kind: str) -> ModuleType:
    return import_module(f"dpzero.{MODULES[kind]}")


def narrow(cells: Iterable[dict], chosen: dict[str, list]) -> dict[str, dict]:
    """{run id: cell} of those listed cells that are asked for; `chosen`: values for axes, as from the command line."""
    from .sweep import canonical_epsilon, run_id

    cells = kept = list(cells)
    for axis, values in chosen.items():
        key = axis.removesuffix("s")
        known = list(dict.fromkeys(str(cell[key]) for cell in cells))
        spelt = [canonical_epsilon(value) if key == "epsilon" else str(value) for value in values]
        if not spelt:
            raise UsageError(f"the axis {axis} is empty: give it at least one value")
        for value in spelt:
            if value not in known:
                raise UsageError(unknown(key, value, known))
        kept = [cell for cell in kept if str(cell[key]) in spelt]
    if not kept:
        raise UsageError(f"no run of the sweep has all of {', '.join(chosen)} as given: narrow it less")
    return {run_id(cell): cell for cell in kept}
