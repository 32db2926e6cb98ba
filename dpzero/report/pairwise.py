"""The order that the papers claim, pair by pair: shown, refuted or open, with the interval of the paired difference."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from typing import NamedTuple

import pandas

from dpzero.report import formatting
from dpzero.report.statistics import Summary, paired_difference
from dpzero.report.table import ABSENT, Table, number

FIRST_ORDER, MEZO, DPZERO, ZERO_SHOT, DP_FIRST_ORDER = "fine-tuning", "MeZO", "DPZero", "zero-shot", "DP-SGD"


class Pair(NamedTuple):
    """`claimed`: whether a paper says that the first does better; else the difference is asked for without a claim."""

    first: str
    second: str
    claimed: bool


PAIRS = (
    Pair(FIRST_ORDER, MEZO, True),
    Pair(MEZO, DPZERO, True),
    Pair(DPZERO, ZERO_SHOT, True),
    Pair(DPZERO, DP_FIRST_ORDER, False),
)
NOTES = (
    "Difference: first − second, in points, paired over the seeds that both have, with its 95 % t-interval. Shown: the interval is above "
    "0. Refuted: below. Open: 0 is inside, or the difference is the same at each seed, so that there is no interval; three seeds tell "
    "large differences alone. No claim: whether the first is ahead or behind.",
    "One verdict in forty is wrong by chance in either direction; the intervals are of seeds, the scored examples stay the same.",
    "Memory: peak of a step of the first over that of the second, weights included.",
)


def order(runs: pandas.DataFrame) -> Table:
    """One line for each pair of methods on each task and model, at each epsilon of the private ones."""
    table = Table("The order of the methods")
    for _, here in runs.groupby(["task", "model"], sort=False):
        groups = [rows for _, rows in here.groupby(["method", "epsilon"], sort=False)]
        for pair in PAIRS:
            for first, second in product(*([g for g in groups if _plays(g, role)] for role in pair[:2])):
                if len({_epsilon(first), _epsilon(second)} - {""}) < 2:
                    _add(table, pair, first, second)
    table.notes = list(NOTES) if table.values else ["No two methods here of which a paper claims an order."]
    return table


def _plays(rows: pandas.DataFrame, role: str) -> bool:
    """Whether these runs of one method and epsilon are those of the role."""
    row = rows.iloc[0]
    return {
        FIRST_ORDER: not row["private"] and row["order"] == 1,
        MEZO: not row["private"] and row["order"] == 0,
        DPZERO: row["method"] == "dpzero",
        ZERO_SHOT: row["epsilon"] == "0",
        DP_FIRST_ORDER: row["private"] and row["order"] == 1,
    }[role]


def _epsilon(rows: pandas.DataFrame) -> str:
    """Of a private method; else nothing."""
    return rows["epsilon"].iloc[0] if rows["private"].iloc[0] else ""


def _add(table: Table, pair: Pair, first: pandas.DataFrame, second: pandas.DataFrame) -> None:
    apart = paired_difference(formatting.by_seed(first, second), formatting.by_seed(second, first))
    epsilon, peak = _epsilon(first) or _epsilon(second), "memory.peak_allocated_bytes"
    ratio = first[peak].max() / second[peak].max()
    said = {
        "claim": f"{pair.first} over {pair.second}" if pair.claimed else f"{pair.first} against {pair.second}"
    }
    values = {key: first[key].iloc[0] for key in ("task", "model")} | said
    values |= {"first": first["method"].iloc[0], "second": second["method"].iloc[0], "epsilon": epsilon}
    values |= {f"difference_{key}": value for key, value in asdict(apart).items()}
    values |= {"memory_ratio": ratio, "verdict": verdict(apart, pair.claimed)}
    names = f"{first['title'].iloc[0]} − {second['title'].iloc[0]}"
    shown = (
        {key: first[key].iloc[0] for key in ("task", "model")}
        | said
        | {"compared": names, "ε": epsilon or "∞"}
    )
    shown |= {
        "difference": formatting.difference(apart),
        "verdict": values["verdict"],
        "memory": number(ratio, ".2f") + "×",
    }
    table.add(values, shown)


def verdict(apart: Summary, claimed: bool) -> str:
    if apart.n < 2:
        return ABSENT
    if not apart.has_spread:
        return "open"
    if apart.low > 0:
        return "shown" if claimed else "ahead"
    if apart.high < 0:
        return "refuted" if claimed else "behind"
    return "open"
