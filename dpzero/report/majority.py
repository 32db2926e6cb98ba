"""The majority class: the accuracy of always giving the most frequent label of the scored examples."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas

from dpzero.report import formatting
from dpzero.report.statistics import summarise

METHOD, TITLE = "majority", "Majority class"
PLACE = ("task", "model")
Row = dict[str, Any]


def share(rows: pandas.DataFrame) -> float | None:
    """The share of the most frequent label among the examples that these runs of one task scored; None if unknown."""
    known = summarise(shares(rows))
    return known.mean if known.n else None


def shares(rows: pandas.DataFrame) -> list[float]:
    """The share for each seed if seeds draw the scored examples, else one; none if it is unknown.

    From the records; for records that do not say it, from majority.csv, which has the built-in tasks.
    """
    drawn = formatting.draws_scored(rows)
    if "metrics.majority" in rows and rows["metrics.majority"].notna().any():
        known = rows[rows["metrics.majority"].notna()].groupby("seed")["metrics.majority"].first()
        return [float(value) for value in (known if drawn else known[:1])]
    scored = rows[rows["metric"] == "accuracy"][["task", "metrics.split", "metrics.examples"]].dropna()
    found = (_shares().get(tuple(key)) for key in scored.drop_duplicates().to_numpy().tolist())
    return [] if drawn else [value for value in found if value is not None][:1]


def with_rows(lines: list[Row], runs: pandas.DataFrame) -> list[Row]:
    """The rows of the accuracy table, and before those of each task and model the majority class where it is known."""
    scores = {place: summarise(shares(rows)) for place, rows in runs.groupby([*PLACE], sort=False)}
    placed: list[Row] = []
    for place, group in groupby(lines, lambda row: tuple(row[key] for key in PLACE)):
        first, *_ = rows = [*group]
        if (score := scores[place]).n:
            scored = {key: first[key] for key in (*PLACE, "metric", "split", "examples")}
            names = {"method": METHOD, "title": TITLE, "private": False, "epsilon": "0", "_epsilon": "0"}
            texts = {
                "_score": formatting.score(score, "ok", score.n == 1),
                "_interval": formatting.interval(score),
            }
            values = {"status": "ok"} | score.columns("score")
            placed.append(dict.fromkeys(first) | scored | names | texts | values)
        placed += rows
    return placed


@cache
def _shares() -> dict[tuple[str, str, int], float]:
    table = pandas.read_csv(Path(__file__).with_suffix(".csv"))
    return {(row.task, row.split, row.examples): row.majority / row.examples for row in table.itertuples()}
