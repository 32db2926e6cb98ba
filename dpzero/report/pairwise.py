"""The order of methods that the papers claim: each pair is shown, refuted or open, by a paired interval."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pandas

from dpzero.report import formatting
from dpzero.report.statistics import Summary, paired_difference
from dpzero.report.table import ABSENT, Row, Table, make_table

PEAK = "memory.peak_allocated_bytes"
ROLES: dict[str, Callable[[Any], bool]] = {
    "fine-tuning": lambda run: not run["private"] and run["order"] == 1,
    "MeZO": lambda run: not run["private"] and run["order"] == 0,
    "DPZero": lambda run: run["method"] == "dpzero",
    "zero-shot": lambda run: run["epsilon"] == "0",
    "DP-SGD": lambda run: run["private"] and run["order"] == 1,
}
PAIRS = {  # two roles -> whether a paper says that the first does better
    ("fine-tuning", "MeZO"): True,
    ("MeZO", "DPZero"): True,
    ("DPZero", "zero-shot"): True,
    ("DPZero", "DP-SGD"): False,
}


def order(runs: pandas.DataFrame) -> Table:
    """One row for each pair of methods on each task and model, at each epsilon of the private ones."""
    lines = []
    for _, task_runs in runs.groupby(["task", "model"], sort=False):
        groups = [rows for _, rows in task_runs.groupby(["method", "epsilon"], sort=False)]
        for roles, claimed in PAIRS.items():
            for first, second in product(
                *([rows for rows in groups if ROLES[role](rows.iloc[0])] for role in roles)
            ):
                epsilons = {rows["epsilon"].iloc[0] for rows in (first, second) if rows["private"].iloc[0]}
                if len(epsilons) < 2:
                    claim = f" {'over' if claimed else 'against'} ".join(roles)
                    lines.append(_row(first, second, claim, claimed, "".join(epsilons)))
    table = make_table("order", lines)
    if not lines:
        table.notes = ["No two methods here of which a paper claims an order."]
    return table


def _row(first: pandas.DataFrame, second: pandas.DataFrame, claim: str, claimed: bool, epsilon: str) -> Row:
    difference = paired_difference(formatting.by_seed(first, second), formatting.by_seed(second, first))
    one, other = first.iloc[0], second.iloc[0]
    return {
        "task": one["task"],
        "model": one["model"],
        "claim": claim,
        "first": one["method"],
        "second": other["method"],
        "epsilon": epsilon,
        **difference.columns("difference"),
        "memory_ratio": first[PEAK].max() / second[PEAK].max(),
        "verdict": verdict(difference, claimed),
        "_compared": f"{one['title']} − {other['title']}",
        "_difference": formatting.difference(difference),
        "_epsilon": epsilon or "∞",
    }


def verdict(difference: Summary, claimed: bool) -> str:
    """The verdict on one pair from its 95 % interval; a dash with fewer than two seeds."""
    if difference.n < 2:
        return ABSENT
    if not difference.has_spread:
        return "open"
    if difference.low > 0:
        return "shown" if claimed else "ahead"
    if difference.high < 0:
        return "refuted" if claimed else "behind"
    return "open"
