"""Our results beside the published ones: each difference with its interval, by a stated test, and where papers and code disagree."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import pandas

from dpzero.report import formatting
from dpzero.report import published as numbers
from dpzero.report.published import Published
from dpzero.report.statistics import (
    Summary,
    prediction_half_width,
    quantile,
    summarise,
    welch_half_width,
)
from dpzero.report.table import ABSENT, Table, number

DISCREPANCIES = Path(__file__).with_name("discrepancies.csv")
CELL = ["task", "model", "method", "epsilon"]
WELCH, ONE_MORE_OF_OURS, ONE_MORE_OF_THEIRS = "Welch", "one more seed of ours", "one more seed of theirs"
NO_TEST, NO_SPREAD = "none: one value each", "none: ours is the same at each seed"
READING = (
    "Published ±: as its paper gives it, named in the cell. Published interval: 95 % t-interval of the mean, from that standard error or "
    "deviation.",
    "Difference: ours − published, in points, with its 95 % interval. Welch: of two means with unequal variances. One more seed: where "
    "one side is a single value, the interval in which a further run of the other side falls; a single value that is a mean over seeds "
    "that its paper does not count would fall closer, so the test is weak there.",
    "Each interval is wider by what the published number may be off: 0.05 points for its rounding, 0.2 where it was read from a figure, "
    "0.5 where it is called approximate.",
    "Verdict: higher or lower where the interval leaves 0 out. No difference shown is no proof of equality: the interval says how large "
    "a difference there may be. One verdict in twenty is wrong by chance.",
    "Not compared: rows, model, the reported iterate or a setting that the paper states are not those of the published run, or the "
    "number is a misprint. What a later paper copied to the digit stands once.",
    "A published cell is the best point of a grid, and no paper says which. Ours is one point, unless the heading says otherwise.",
    "At one ε two runs may have different noise: what the accountants and samplers of papers are is in discrepancies.md; rows as its code "
    "have the published one.",
)


@dataclass(frozen=True)
class Comparison:
    """A difference in points with its 95 % interval; NaN where there is none."""

    difference: float
    low: float
    high: float
    test: str
    verdict: str


def compare(ours: Summary, theirs: Published) -> Comparison:
    """`ours`: of scores in 0 .. 1, `theirs` in per cent."""
    if not ours.n:
        return Comparison(math.nan, math.nan, math.nan, ABSENT, "no result yet")
    difference, several = 100 * ours.mean - theirs.value, theirs.spread is not None
    if ours.n > 1 and several:
        error = 100 * ours.std / math.sqrt(ours.n)
        half, test = welch_half_width(error, ours.n, theirs.standard_error, theirs.seeds), WELCH
    elif ours.has_spread:
        half, test = prediction_half_width(100 * ours.std, ours.n), ONE_MORE_OF_OURS
    elif several and theirs.seeds:
        spread = theirs.standard_error * math.sqrt(theirs.seeds)
        half, test = prediction_half_width(spread, theirs.seeds), ONE_MORE_OF_THEIRS
    else:
        return Comparison(difference, math.nan, math.nan, NO_SPREAD if ours.n > 1 else NO_TEST, "no test")
    low, high = difference - half - theirs.slack, difference + half + theirs.slack
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
    return Comparison(difference, low, high, test, verdict)


def published(runs: pandas.DataFrame) -> Table:
    """One line a published number of a cell that is here, finished or not."""
    shots = set(runs["settings.shots"].dropna()) if "settings.shots" in runs else set()
    table = Table("Ours beside published numbers, in per cent")
    for (task, model, method, epsilon), rows in runs.groupby(CELL, sort=False):
        score = summarise(rows["score"][rows["status"] == "ok"])
        for theirs in numbers.of(f"{task}/{model}/{method}/{epsilon}"):
            if theirs.shots and shots and theirs.shots not in shots:
                continue
            _add(table, rows, score, theirs)
    tested = sum(row["test"] not in (NO_TEST, NO_SPREAD, ABSENT) for row in table.values)
    table.notes = [
        *READING,
        f"{len(table.values)} published numbers, {tested} of them tested. All of them: dpzero/report/published.csv.",
    ]
    return table


def _add(table: Table, rows: pandas.DataFrame, score: Summary, theirs: Published) -> None:
    made = rows[rows["status"] != "missing"]
    apart = [numbers.differences(row, theirs) for row in made.to_dict("records")]
    apart = list(dict.fromkeys(words for some in apart for words in some))
    found = compare(score, theirs)
    if apart and score.n:
        found = Comparison(found.difference, math.nan, math.nan, ABSENT, f"not compared: {'; '.join(apart)}")
    values = formatting.identity(rows) | {"epsilon": rows["epsilon"].iloc[0], "metric": theirs.metric}
    values |= {"score_n": score.n, "score_mean": 100 * score.mean, "score_std": 100 * score.std}
    values |= {"score_low": 100 * score.low, "score_high": 100 * score.high}
    low, high = _published_interval(theirs)
    values |= {
        "published": theirs.value,
        "published_spread": math.nan if theirs.spread is None else theirs.spread,
    }
    values |= {"published_kind": theirs.kind, "published_low": low, "published_high": high}
    values |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
    values |= {"test": found.test, "verdict": found.verdict, "rule": theirs.rule}
    values |= {"source": theirs.source, "arxiv": theirs.arxiv, "published_method": theirs.words}
    shown = formatting.names(rows) | {
        "ε": formatting.epsilon(rows),
        "ours (%)": formatting.score(score, rows),
    }
    shown |= {"95 % interval": formatting.interval(score), "published (%)": theirs.shown}
    shown |= {"its 95 % interval": _interval(low, high), "difference": _difference(found)}
    shown |= {"test": found.test, "verdict": found.verdict, "published by": theirs.source}
    table.add(values, shown | {"published rule": theirs.rule})


def _published_interval(theirs: Published) -> tuple[float, float]:
    if theirs.spread is None or not theirs.seeds:
        return math.nan, math.nan
    half = quantile(theirs.seeds - 1) * theirs.standard_error
    return theirs.value - half, theirs.value + half


def _interval(low: float, high: float) -> str:
    return ABSENT if math.isnan(low) else f"[{number(low, '.1f')}, {number(high, '.1f')}]"


def _difference(found: Comparison) -> str:
    interval = "" if math.isnan(found.low) else f" {_interval(found.low, found.high)}"
    return number(found.difference, "+.1f") + interval


def discrepancies(runs: pandas.DataFrame) -> Table:
    """One line a known disagreement between a paper and its code, or a trap in either, of the papers that `published` names."""
    papers = {theirs.paper for cell in runs["run"] for theirs in numbers.of(cell.rpartition("/")[0])}
    papers |= {"DP-ZO"} if runs["method"].str.startswith("dp_zo_").any() else set()
    table = Table("Where papers and their public code disagree, and what stands here")
    with DISCREPANCIES.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["paper"] in papers:
                table.add(row, row)
    table.notes = [
        "From the papers' texts and their public code, as read; DP-ZO's code is not public, and its text was not read."
    ]
    return table
