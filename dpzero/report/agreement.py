"""How the rows of two result folders agree: bit for bit, within the interval of their difference, or not, and why.

A row is a task, model, method and epsilon. If its records do not all agree to the last bit, the difference of its scores
is tested: over the seeds, with the error of the test rows, all such rows together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy

from dpzero.files import is_try
from dpzero.report import formatting
from dpzero.report.differences import Recorded, causes, numbers, of_other_inputs
from dpzero.report.pairwise import LEVEL, Group
from dpzero.report.records import to_frame
from dpzero.report.statistics import Estimate, errors, holm, paired_difference, summarise

YES, WITHIN, NO = "yes", "within intervals", "no"
BEST_VERDICTS = {  # outcome of a row -> the best verdict of the folders that it allows
    "bit for bit": YES,
    "same answers": WITHIN,
    "within the interval": WITHIN,
    "failed alike": WITHIN,
    "other tries": WITHIN,  # tries choose settings, and have no row in a table of results
    "different": NO,
    "nothing shown": NO,
    "other ending": NO,
    "other epsilon": NO,
    "other inputs": NO,
}
NO_SCORES = ("bit for bit", "other tries")  # outcomes of rows whose scores are not looked at
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


class Pair:
    """The records of one run on both sides."""

    def __init__(self, run: str, mine: Recorded, theirs: Recorded) -> None:
        self.run, self.mine, self.theirs = run, mine, theirs
        self.records = mine.record, theirs.record
        self.causes = causes(*self.records)
        # with other settings it is a run of another cell, whatever its numbers
        self.same = numbers(mine.record) == numbers(theirs.record) and "settings" not in self.causes

    @property
    def finished(self) -> bool:
        """Whether both runs have a result."""
        return self.both("status") == ("ok", "ok")

    def both(self, key: str) -> tuple[Any, Any]:
        """This part of the two records."""
        return self.mine.record.get(key), self.theirs.record.get(key)


@dataclass
class Compared:
    """A row that both sides have.

    Attributes:
        outcome: a key of `BEST_VERDICTS`; empty until the difference is tested.
        scores: means of mine and theirs, over the seeds that finished on both sides.
        difference: of these; its error is 0 if no test row is answered otherwise, and NaN if nothing is known of it.
        half_width: of the interval of the difference; NaN without one.
    """

    name: str
    pairs: list[Pair]
    outcome: str = ""
    scores: tuple[float, float] = (math.nan, math.nan)
    difference: Estimate = UNKNOWN
    half_width: float = math.nan


def compared(pairs: list[Pair]) -> list[Compared]:
    """The rows of these pairs, each with its outcome."""
    by_row: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_row.setdefault(row_of(pair.run), []).append(pair)
    rows = [Compared(name, alike, _outcome(alike)) for name, alike in by_row.items()]
    _estimate([row for row in rows if row.outcome not in NO_SCORES])
    _test([row for row in rows if not row.outcome])
    return rows


def row_of(run: str) -> str:
    """The row of a run: its name without the seed."""
    return run.rpartition("/seed-")[0]


def _outcome(pairs: list[Pair]) -> str:
    """The outcome of a row if its scores have no say in it, else nothing."""
    differing = [pair for pair in pairs if not pair.same]
    if not differing:
        return "bit for bit"
    if any(of_other_inputs(pair.causes) for pair in differing):
        return "other inputs"
    if is_try(pairs[0].mine.record["run"]):
        return "other tries"
    if any(mine != theirs for mine, theirs in (pair.both("status") for pair in differing)):
        return "other ending"
    if any(
        _is_kept(mine) != _is_kept(theirs) for mine, theirs in (pair.both("privacy") for pair in differing)
    ):
        return "other epsilon"
    return "" if any(pair.finished for pair in pairs) else "failed alike"


def _is_kept(privacy: dict[str, Any] | None) -> bool | None:
    """Whether a run spent no more than its epsilon; None if it promised none."""
    target, spent = ((privacy or {}).get(f"epsilon_{key}") for key in ("target", "spent"))
    return None if target is None else spent is not None and spent <= target


def _estimate(rows: list[Compared]) -> None:
    """Give each row its scores and their difference, where runs finished on both sides."""
    finished = [pair for row in rows for pair in row.pairs if pair.finished]
    sides = []
    for side in (0, 1):
        runs = to_frame([{**pair.records[side], "run": pair.run} for pair in finished])
        sides.append(dict(list(runs.groupby(runs["run"].map(row_of)))))
    for row in rows:
        if row.name in sides[0]:
            mine, theirs = (Group(side[row.name]) for side in sides)
            row.scores = mine.runs["score"].mean(), theirs.runs["score"].mean()
            row.difference = _difference(mine, theirs)


def _difference(mine: Group, theirs: Group) -> Estimate:
    """The difference of the mean scores of the same seeds, with the error over seeds and test rows (`statistics.errors`).

    A run that no seed changes has the error over test rows alone, to
    which each side adds a row that it alone answers right: so the test of few rows is close to the exact one of McNemar.
    """
    summary = paired_difference(formatting.by_seed(mine.runs), formatting.by_seed(theirs.runs))
    over_seeds = Estimate.over_seeds(summary)
    nothing = Estimate(0.0, 0.0, over_seeds.degrees)
    if not mine.bits or not theirs.bits or mine.scored is None or mine.scored != theirs.scored:
        return nothing if summary.n > 1 and summary.mean == summary.std == 0 else over_seeds
    answers = numpy.array([mine.bits[seed].astype(float) - theirs.bits[seed] for seed in sorted(mine.bits)])
    if not answers.any():
        return nothing
    if mine.seedless:
        over_rows = summarise([*answers[0], 1.0, -1.0])
        return Estimate(float(answers.mean()), over_rows.std / math.sqrt(over_rows.n), over_rows.n - 1)
    return errors(answers)["both"]


def _test(rows: list[Compared]) -> None:
    """Give each of these rows its outcome. A false alarm among them has a probability of `LEVEL` at most (Holm 1979).

    The intervals hold together, too (Bonferroni): where one excludes zero, the row is different. One that has room for
    every difference of scores shows nothing.
    """
    for row in rows:
        row.outcome = "same answers" if row.difference.error == 0 else "nothing shown"
    uncertain = [row for row in rows if row.difference.error > 0]
    p_values = holm([row.difference.difference_p() for row in uncertain])
    for row, p in zip(uncertain, p_values, strict=True):
        low, high = row.difference.interval(1 - LEVEL / len(uncertain))
        row.half_width = (high - low) / 2
        if p <= LEVEL:
            row.outcome = "different"
        elif row.half_width < 1:
            row.outcome = "within the interval"
