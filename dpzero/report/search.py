"""The search for settings: what each method's tries reached on dev, and how the best grows with their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpzero.files import TRY_MARK
from dpzero.report import drawing, formatting, style
from dpzero.report.table import Table, make_table

CELL = ["task", "model", "method", "epsilon"]
DEEPEST = 30  # points below the best score: a panel ends there, lest failed tries make the rest illegible


def table(reported: pandas.DataFrame, tries: pandas.DataFrame) -> Table:
    """The number of tries, the chosen point and the dev scores, for each method, task, model and epsilon."""
    rows = []
    for key, points in _points(tries).items():
        theirs = reported[(reported[CELL] == list(key)).all(axis=1)]
        if theirs.empty:
            continue
        values = sorted(points.values(), reverse=True)
        row: dict[str, Any] = {k: theirs[k].iloc[0] for k in ("task", "model", "method", "title")}
        row |= {"epsilon": key[-1], **formatting.epsilon_column(theirs), "tries": len(points)}
        chosen = theirs.get(
            "search.chosen", pandas.Series(dtype=object)
        ).dropna()  # from the record: of equal points the first by name
        row |= {"chosen": formatting.common(chosen, ""), "best_dev": _finite(values[0])}
        row |= {"second_dev": _finite(values[1] if len(values) > 1 else math.nan)}
        row |= {"median_dev": _finite(float(numpy.median(values))), "worst_dev": _finite(values[-1])}
        row |= {f"_{k}": 100 * row[k] for k in ("best_dev", "second_dev", "median_dev", "worst_dev")}
        rows.append(row)
    count = tries["seed"].nunique()
    seeds = "one seed" if count == 1 else f"mean over {count} seeds of the search"
    return make_table("search", rows, seeds=seeds)


def figure(reported: pandas.DataFrame, tries: pandas.DataFrame) -> Figure:
    """Best dev score of k random tries against k, expected over the choice of the k: one panel a task and epsilon."""
    columns = [*drawing.epsilons(reported)]
    if (~reported["private"] & (reported["rank"] > 0)).any():
        columns = [("not private", math.inf), *columns]
    panels = list(drawing.panels(reported))
    canvas, axes = drawing.canvas(len(panels), len(columns), 2.0, sharey="row", sharex=True)
    points = _points(tries)
    for line, (title, rows) in zip(axes, panels, strict=True):
        metric = next(iter(rows["metric"].dropna()), "score")
        line[0].set_ylabel(f"{title}\ndev {metric} of the best (%)")
        scores = []
        for axis, (label, epsilon) in zip(line, columns, strict=True):
            private = label != "not private"
            here = rows[
                (rows["private"] == private) & ((rows["epsilon_value"] == epsilon) | ~rows["private"])
            ]
            for _, first in here.drop_duplicates("method").iterrows():
                values = list(points.get(tuple(first[CELL]), {}).values())
                best = [100 * expected_best(values, k) for k in range(1, len(values) + 1)]
                axis.plot(range(1, len(best) + 1), best, **style.strokes(first, markersize=3))
                scores += best
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if scores and max(scores) - min(scores) > DEEPEST:
            line[0].set_ylim(bottom=max(scores) - DEEPEST)
    for axis, (label, _) in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    for axis in axes[-1]:
        axis.set_xlabel("tries, k")
    drawing.legend(canvas, reported[reported["method"].isin({key[2] for key in points})])
    return canvas


def expected_best(values: Sequence[float], k: int) -> float:
    """The mean, over all choices of k of the values, of the highest; a value of minus infinity counts as 0."""
    ordered, n = numpy.sort([value if math.isfinite(value) else 0.0 for value in values]), len(values)
    return float(sum(value * math.comb(i, k - 1) for i, value in enumerate(ordered)) / math.comb(n, k))


def _points(tries: pandas.DataFrame) -> dict[tuple, dict[str, float]]:
    """(task, model, method, epsilon) -> point -> mean dev score; minus infinity if a try failed.

    A try that has not run yet is left out.
    """
    found: dict[tuple, dict[str, float]] = {}
    for (task, model, method, epsilon), rows in tries[tries["status"] != "missing"].groupby(CELL, sort=False):
        name, _, point = method.partition(TRY_MARK)
        done = (rows["status"] == "ok").all()
        score = float(rows["score"].mean()) if done else -math.inf
        found.setdefault((task, model, name, epsilon), {})[point] = score
    return found


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
