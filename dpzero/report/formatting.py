"""The text in a table for a group of runs, including seeds that failed or are missing."""

from __future__ import annotations

import math
from typing import Any

import pandas

from dpzero.report import provenance
from dpzero.report.statistics import Summary
from dpzero.report.table import ABSENT, number


def identity(rows: pandas.DataFrame) -> dict[str, Any]:
    """The method of these runs and how many finished: the first values of a row."""
    keys = ("task", "model", "method", "title", "private", "order")
    row = {key: rows[key].iloc[0] for key in keys}
    row |= {"runs": len(rows), "status": next(iter(provenance.status_counts(rows)))}  # ok if any run finished
    return row | {"_finished": finished(rows)} | epsilon_column(rows)


def epsilon_column(rows: pandas.DataFrame) -> dict[str, str]:
    """The epsilon of these runs, in the column of its kind: of an example, of a user, selective."""
    text, promise = epsilon(rows["epsilon"].iloc[0]), rows["promise"].iloc[0]
    return {f"_{promise}_epsilon": text, "promise": promise} if promise else {"_epsilon": text}


def trains_head_alone(run: pandas.Series) -> bool:
    return run.get("settings.tune") == "head"


def reads_public_rows(run: pandas.Series) -> bool:
    return not pandas.isna(run.get("settings.public_examples"))


def public_rows(rows: pandas.DataFrame) -> str:
    """`64`, or `64 of tweets`; a dash if the method reads none."""
    run = rows.iloc[0]
    if not reads_public_rows(run):
        return ABSENT
    read, task = run["settings.public_examples"], run["settings.public_task"]
    return f"{read:.0f} of {task}" if isinstance(task, str) and task else f"{read:.0f}"


def epsilon(text: str) -> str:
    """The epsilon of a run; the infinity sign if nothing is private."""
    return text.replace("inf", "∞")


def failure(status: str) -> str:
    """The text in place of a number if no run has one."""
    return {"oom": "OOM", "diverged": "diverged"}.get(status, ABSENT)


def finished(rows: pandas.DataFrame) -> str:
    """`3`, or `2/3 ok; 1 diverged` if some runs have no result."""
    counts = provenance.status_counts(rows)
    ok = counts.pop("ok", 0)
    others = [f"{count} {provenance.LABELS.get(status, status)}" for status, count in counts.items()]
    return "; ".join([f"{ok}/{len(rows)} ok", *others]) if others else str(ok)


def score(summary: Summary, status: str, seedless: bool) -> str:
    """`74.0 ± 1.2` in per cent; one seed is a value, never a mean; runs that no seed changes say so."""
    if not summary.n:
        return failure(status)
    mean = number(100 * summary.mean, ".1f")
    if seedless:
        return f"{mean} (no seed)"
    return f"{mean} (one seed)" if summary.n == 1 else f"{mean} ± {number(100 * summary.std, '.1f')}"


def interval(summary: Summary) -> str:
    """`[72.1, 75.9]` in per cent."""
    return span(summary.low, summary.high) if summary.has_spread else ABSENT


def span(low: float, high: float) -> str:
    """`[72.1, 75.9]` in per cent; a dash if there is none."""
    return ABSENT if math.isnan(low) else f"[{number(100 * low, '.1f')}, {number(100 * high, '.1f')}]"


def points(mean: float) -> str:
    """`+1.2`: a difference in points."""
    return number(100 * mean, "+.1f")


def difference(summary: Summary) -> str:
    """`+1.2 [0.3, 2.1]` in points."""
    if not summary.n:
        return ABSENT
    no_interval = "(one seed)" if summary.n == 1 else "(at each seed)"
    return f"{points(summary.mean)} {interval(summary) if summary.has_spread else no_interval}"


def count(number_of: float) -> str:
    """`1.28 M`, `192 k`, `0`: a large count; a dash if it is unknown."""
    if math.isnan(number_of):
        return ABSENT
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if number_of >= size:
            return f"{number_of / size:.3g}{letter}"
    return f"{number_of:.0f}"


def seeds(runs: pandas.DataFrame) -> int:
    """The number of seeds of the methods that train, or of all if none does."""
    trained = runs[runs["rank"] > 0]
    return int((trained if len(trained) else runs)["seed"].nunique())


def without_seed(rows: pandas.DataFrame) -> bool:
    """Whether a seed changes nothing: no training, no demonstrations, no draw of the scored rows."""
    return bool(rows["epsilon"].eq("0").all()) and not draws_scored(rows)


def draws_scored(rows: pandas.DataFrame) -> bool:
    """Whether seeds draw the scored rows."""
    draws = rows.get("settings.train_examples")
    return draws is not None and bool(draws.notna().any())


def by_seed(rows: pandas.DataFrame, others: pandas.DataFrame | None = None) -> dict[int, float]:
    """Score by seed. Runs without seed have one score, which counts for every seed of the `others`."""
    ok = rows[rows["status"] == "ok"]
    scores: dict[int, float] = dict(zip(ok["seed"], ok["score"], strict=True))
    if others is not None and len(scores) == 1 and without_seed(rows):
        return dict.fromkeys(others["seed"], next(iter(scores.values())))
    return scores


def common(values: pandas.Series, form: str) -> str:
    """The value that the runs of a row share, as text; every value, with slashes, if they differ."""
    return " / ".join(sorted({_text(value, form) for value in values.dropna()})) or ABSENT


def _text(value: Any, form: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if form and float(value).is_integer() else format(value, form)
