"""Our results and published ones: differences with intervals, and where papers and code disagree."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas

from dpzero.report import formatting, provenance
from dpzero.report import published as numbers
from dpzero.report.published import Published
from dpzero.report.statistics import (
    Summary,
    prediction_half_width,
    quantile,
    summarise,
    welch_half_width,
)
from dpzero.report.table import ABSENT, Column, Table, make_table, number
from dpzero.report.tables import CELL

DISCREPANCIES = Path(__file__).with_name("discrepancies.csv")
WELCH, ONE_MORE_OF_OURS, ONE_MORE_OF_THEIRS = "Welch", "one more seed of ours", "one more seed of theirs"
NO_TEST, NO_SPREAD = "none: one value each", "none: ours is the same at each seed"


@dataclass(frozen=True)
class Comparison:
    """A difference in points with its 95 % interval; NaN without one."""

    difference: float
    difference_low: float
    difference_high: float
    test: str
    verdict: str


def compare(ours: Summary, theirs: Published) -> Comparison:
    """Test one published number. `ours`: scores in [0, 1]; `theirs`: in per cent."""
    difference = 100 * ours.mean - theirs.value
    if not ours.n:
        return Comparison(math.nan, math.nan, math.nan, ABSENT, "no result yet")
    seeds = 0 if theirs.spread is None else theirs.n_seeds
    if ours.n > 1 and seeds:
        error = 100 * ours.std / math.sqrt(ours.n)
        half, test = welch_half_width(error, ours.n, theirs.standard_error, seeds), WELCH
    elif ours.has_spread:
        half, test = prediction_half_width(100 * ours.std, ours.n), ONE_MORE_OF_OURS
    elif seeds:
        deviation = theirs.standard_error * math.sqrt(seeds)
        half, test = prediction_half_width(deviation, seeds), ONE_MORE_OF_THEIRS
    else:
        return Comparison(difference, math.nan, math.nan, NO_SPREAD if ours.n > 1 else NO_TEST, "no test")
    low, high = difference - half - theirs.slack, difference + half + theirs.slack
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
    return Comparison(difference, low, high, test, verdict)


def published(runs: pandas.DataFrame) -> Table:
    """One row for each published number of a cell of these runs, finished or not. A rehearsal has other shots than its sweep."""
    known = "settings.shots" in runs and not provenance.rehearsal(runs)
    shots = set(runs["settings.shots"].dropna()) if known else set()
    lines = []
    for (task, model, method, epsilon), rows in runs.groupby(CELL, sort=False):
        for theirs in numbers.for_run(f"{task}/{model}/{method}/eps-{epsilon}"):
            if not theirs.shots or not shots or theirs.shots in shots:
                lines.append(_row(rows, theirs))
    tested = sum(row["test"] not in (NO_TEST, NO_SPREAD, ABSENT) for row in lines)
    return make_table("published", lines, count=len(lines), tested=tested)


def _row(rows: pandas.DataFrame, theirs: Published) -> dict:
    score = summarise(rows["score"][rows["status"] == "ok"])
    with_record = rows[rows["status"] != "missing"].to_dict("records")
    differences = dict.fromkeys(words for row in with_record for words in numbers.differences(row, theirs))
    result = compare(score, theirs)
    if provenance.rehearsal(rows):
        result = Comparison(math.nan, math.nan, math.nan, ABSENT, "not compared: a rehearsal")
    elif differences and score.n:
        verdict = f"not compared: {'; '.join(differences)}"
        result = Comparison(result.difference, math.nan, math.nan, ABSENT, verdict)
    half = quantile((theirs.n_seeds or 1) - 1) * theirs.standard_error
    low, high = theirs.value - half, theirs.value + half
    row = formatting.identity(rows) | {
        "epsilon": rows["epsilon"].iloc[0],
        "metric": theirs.metric,
        **{key: value * (1 if key == "score_n" else 100) for key, value in score.columns("score").items()},
        "published": theirs.value,
        "published_spread": theirs.spread,
        "published_kind": theirs.spread_kind,
        "published_low": low,
        "published_high": high,
        **asdict(result),
        "rule": theirs.rule,
        "source": theirs.source,
        "arxiv": theirs.arxiv,
        "published_method": theirs.published_method,
    }
    interval = _interval(result.difference_low, result.difference_high).replace(ABSENT, "")
    return row | {
        "_score": formatting.score(score, row["status"], formatting.without_seed(rows)),
        "_interval": formatting.interval(score),
        "_published": str(theirs),
        "_published_interval": _interval(low, high),
        "_difference": f"{number(result.difference, '+.1f')} {interval}".strip(),
    }


def _interval(low: float, high: float) -> str:
    return ABSENT if math.isnan(low) else f"[{number(low, '.1f')}, {number(high, '.1f')}]"


def discrepancies(runs: pandas.DataFrame) -> Table:
    """Known disagreements between a paper and its code, for the papers of `published`."""
    papers = {theirs.paper for cell in runs["run"] for theirs in numbers.for_run(cell.rpartition("/")[0])}
    papers |= {"DP-ZO"} if runs["method"].str.startswith("dp_zo_").any() else set()
    known = pandas.read_csv(DISCREPANCIES, dtype=str).fillna("")
    known = known[known["paper"].isin(papers)].assign(numbers=lambda rows: rows.apply(_concerned, axis=1))
    known = known.drop(columns="cells")
    table = make_table("discrepancies", known.to_dict("records"))
    table.columns = [Column(name, name) for name in known]
    return table


def _concerned(row: pandas.Series | dict[str, str]) -> str:
    """How many published numbers of a paper are of the cells that a discrepancy is about; empty if it names none."""
    patterns = row["cells"].split()
    own = [theirs.cell for theirs in numbers.read() if theirs.paper == row["paper"]]
    return str(sum(any(fnmatchcase(cell, p) for p in patterns) for cell in own)) if patterns else ""
