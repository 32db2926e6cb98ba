"""The order of methods that the papers claim: each pair is shown, refuted or open, by a paired interval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas

from dpzero.report import formatting
from dpzero.report.statistics import Summary, paired_difference
from dpzero.report.table import ABSENT, Table, make_table

FIRST_ORDER, MEZO, DPZERO, ZERO_SHOT, DP_FIRST_ORDER = "fine-tuning", "MeZO", "DPZero", "zero-shot", "DP-SGD"
PEAK = "memory.peak_allocated_bytes"


class Pair(NamedTuple):
    """Two roles. `claimed`: whether a paper says that the first does better."""

    first: str
    second: str
    claimed: bool

    def __str__(self) -> str:
        return f"{self.first} {'over' if self.claimed else 'against'} {self.second}"


PAIRS = (
    Pair(FIRST_ORDER, MEZO, True),
    Pair(MEZO, DPZERO, True),
    Pair(DPZERO, ZERO_SHOT, True),
    Pair(DPZERO, DP_FIRST_ORDER, False),
)


def order(runs: pandas.DataFrame) -> Table:
    """One row for each pair of methods on each task and model, at each epsilon of the private ones."""
    table_rows = []
    for (task, model), here in runs.groupby(["task", "model"], sort=False):
        for pair, first, second in _pairs(here):
            difference = paired_difference(
                formatting.by_seed(first, second), formatting.by_seed(second, first)
            )
            table_rows.append(
                {"task": task, "model": model, "claim": str(pair)}
                | {"first": first["method"].iloc[0], "second": second["method"].iloc[0]}
                | {"epsilon": _epsilon(first) or _epsilon(second)}
                | difference.columns("difference")
                | {"memory_ratio": first[PEAK].max() / second[PEAK].max()}
                | {"verdict": verdict(difference, pair.claimed)}
                | {"_compared": f"{first['title'].iloc[0]} − {second['title'].iloc[0]}"}
                | {"_difference": formatting.difference(difference)}
                | {"_epsilon": _epsilon(first) or _epsilon(second) or "∞"}
            )
    table = make_table("order", table_rows)
    if not table_rows:
        table.notes = ["No two methods here of which a paper claims an order."]
    return table


def _pairs(runs: pandas.DataFrame) -> Iterator[tuple[Pair, pandas.DataFrame, pandas.DataFrame]]:
    groups = [rows for _, rows in runs.groupby(["method", "epsilon"], sort=False)]
    for pair in PAIRS:
        for first in (rows for rows in groups if _has_role(rows, pair.first)):
            for second in (rows for rows in groups if _has_role(rows, pair.second)):
                if "" in (_epsilon(first), _epsilon(second)) or _epsilon(first) == _epsilon(second):
                    yield pair, first, second


def _has_role(rows: pandas.DataFrame, role: str) -> bool:
    row = rows.iloc[0]
    return {
        FIRST_ORDER: not row["private"] and row["order"] == 1,
        MEZO: not row["private"] and row["order"] == 0,
        DPZERO: row["method"] == "dpzero",
        ZERO_SHOT: row["epsilon"] == "0",
        DP_FIRST_ORDER: row["private"] and row["order"] == 1,
    }[role]


def _epsilon(rows: pandas.DataFrame) -> str:
    """The epsilon of a private method; empty for others."""
    return rows["epsilon"].iloc[0] if rows["private"].iloc[0] else ""


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
