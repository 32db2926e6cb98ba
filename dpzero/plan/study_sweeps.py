"""How the sweep of each study becomes cells. A sweep names its kind under `experiment` (see `sweep`).

A study's sweep holds other keys than one of language models:

guarantees   settings: {SETTING: value}
             published: [{method, task, model, epsilons, SETTING: value}]      one published setting a row; `code` names the
             public code, if the method does not; epsilons: [inf] for a claim of mutual information
memory       settings: {SETTING: value}
             series: [{models, methods, sizes: [BATCHxLENGTH], measure: [model]}]      each product is a run
quadratic    ranks: {NAME: {decay: P, informative: M}}      curvature i^-P; data in the first M coordinates
             dimensions, seeds, epsilon      the other axes
             settings: {SETTING: value}      of every run
             methods: {NAME: {SETTING: value}}

`dpzero.studies` runs the cells of these studies, and `dpzero.report` has their tables and figures. Imports no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import UsageError, unknown
from ..privacy.public_implementations import PUBLIC_CODE, SUBSET_CODE
from .method_variants import canonical
from .settings import SCHEMAS, SEED, Entry, canonical_epsilon, listed, refuse_unknown, typed


class Study(NamedTuple):
    keys: tuple[str, ...]  # of a sweep file, beside those of every sweep
    cells: Callable[[dict], Iterator[dict]]  # sweep -> its cells, unchecked
    check: Callable[[dict], dict]  # cell -> the cell with its settings complete, or a UsageError


def _names(cell: dict) -> dict[str, str]:
    return {name: str(cell[name]) for name in ("task", "model", "method")}


# Guarantees of public implementations -----------------------------------------------------------------------


def _guarantees(sweep: dict) -> Iterator[dict]:
    names = ("method", "task", "model", "epsilons")
    for row in sweep.get("published") or []:
        for name in names:
            if name not in row:
                raise UsageError(f"a row of `published` has no {name!r}: {row}")
        own = {key: value for key, value in row.items() if key not in (*names, "code")}
        for epsilon in listed(row["epsilons"]):
            yield {**row, "epsilon": epsilon, "settings": (sweep.get("settings") or {}) | own}


def _check_guarantees(cell: dict) -> dict:
    code = cell.get("code", cell["method"])
    if code not in (known := PUBLIC_CODE | SUBSET_CODE):
        raise UsageError(unknown("method with a public practice", code, known))
    settings = typed(cell["settings"], SCHEMAS["guarantees"], f"method {cell['method']}")
    epsilon = "inf" if code in SUBSET_CODE else canonical_epsilon(cell["epsilon"])
    names = _names(cell) | ({"code": code} if code != cell["method"] else {})
    return names | {"epsilon": epsilon, "seed": 0, "settings": settings, "experiment": "guarantees"}


# Peak memory ------------------------------------------------------------------------------------------------


def _memory(sweep: dict) -> Iterator[dict]:
    """A run that several series name is what the first says."""
    seen = set()
    for series in sweep.get("series") or []:
        for key in ("models", "methods", "sizes"):
            if not series.get(key):
                raise UsageError(f"a series has no {key!r}: give it models, methods, sizes")
        for model in listed(series["models"]):
            settings = (sweep.get("settings") or {}) | {"measure": model in listed(series.get("measure"))}
            for method in listed(series["methods"]):
                for size in listed(series["sizes"]):
                    if (size, model, method) not in seen:
                        seen.add((size, model, method))
                        yield {"task": size, "model": model, "method": method, "settings": settings}


def _check_memory(cell: dict) -> dict:
    method = canonical(cell["method"])
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(cell["task"])):
        raise UsageError(f"the size {cell['task']!r} is no BATCHxLENGTH: write it as 8x512")
    settings = typed(cell["settings"], SCHEMAS["memory"], f"method {method}")
    names = _names(cell) | {"method": method}
    return names | {"epsilon": "0", "seed": 0, "settings": settings, "experiment": "memory"}


# The quadratic ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuadraticMethod:
    title: str
    private: bool
    order: int


QUADRATIC_METHODS = {
    "dpzero": QuadraticMethod("DPZero", True, 0),
    # noise and clip of the whole vector: the paper's algorithm 1
    "dpgd_0th": QuadraticMethod("DPGD-0th", True, 0),
    "dp_sgd": QuadraticMethod("DP-SGD", True, 1),
    "mezo": QuadraticMethod("MeZO", False, 0),
    "sgd": QuadraticMethod("SGD", False, 1),
}


def _quadratic(sweep: dict) -> Iterator[dict]:
    for rank, law in (sweep.get("ranks") or {}).items():
        for dimension in listed(sweep.get("dimensions")):
            for method, own in (sweep.get("methods") or {}).items():
                for seed in listed(sweep.get("seeds")):
                    settings = {**(sweep.get("settings") or {}), **(law or {}), "dimension": dimension}
                    names = {"task": rank, "model": f"d-{dimension}", "method": method, "seed": seed}
                    yield names | {"epsilon": sweep.get("epsilon"), "settings": settings | (own or {})}


def _check_quadratic(cell: dict) -> dict:
    method = cell["method"]
    if method not in QUADRATIC_METHODS:
        raise UsageError(unknown("method of the quadratic", method, QUADRATIC_METHODS))
    private, where = QUADRATIC_METHODS[method].private, f"method {method}"
    refuse_unknown(cell["settings"], SCHEMAS["quadratic"], where)
    schema = {key: entry for key, entry in SCHEMAS["quadratic"].items() if private or not entry.private}
    settings = typed({k: v for k, v in cell["settings"].items() if k in schema}, schema, where)
    seed = typed({"seed": cell["seed"]}, {"seed": Entry("int", allowed=SEED)}, where)
    epsilon = canonical_epsilon(cell["epsilon"]) if private else "inf"
    return _names(cell) | {"epsilon": epsilon, **seed, "settings": settings, "experiment": "quadratic"}


STUDIES = {
    "memory": Study(("series", "settings"), _memory, _check_memory),
    "guarantees": Study(("published", "settings"), _guarantees, _check_guarantees),
    "quadratic": Study(
        ("ranks", "dimensions", "seeds", "epsilon", "settings", "methods"), _quadratic, _check_quadratic
    ),
}
