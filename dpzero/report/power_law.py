"""The exponent of a power law in the dimension with its interval, and the verdicts on DPZero's claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy

from dpzero.report.statistics import quantile
from dpzero.report.template import sentences

FEWEST = 3  # points for a line with an interval


@dataclass(frozen=True)
class Fit:
    """norm ~ d^exponent with a 95 % t-interval, and the fitted log norms by dimension."""

    exponent: float
    low: float
    high: float
    logs: Mapping[int, float]

    def __str__(self) -> str:
        return f"{self.exponent:.2f} [{self.low:.2f}, {self.high:.2f}]".replace("-", "−")


def power(logs: Mapping[int, float]) -> Fit | None:
    """Least squares of log norms on the logs of their dimensions; None for too few or a norm of zero."""
    if len(logs) < FEWEST or not all(map(math.isfinite, logs.values())):
        return None
    (slope, _), covariance = numpy.polyfit(numpy.log(list(logs)), list(logs.values()), 1, cov=True)
    half = quantile(len(logs) - 2) * math.sqrt(covariance[0, 0])
    return Fit(float(slope), float(slope - half), float(slope + half), dict(logs))


def difference(fit: Fit, other: Fit) -> Fit | None:
    """The fit of the ratio of two norms by dimension; common effects, such as the grid, cancel."""
    return power({d: log - other.logs[d] for d, log in fit.logs.items() if d in other.logs})


def verdict(
    fits: Mapping[tuple[str, str], Fit | None],
    names: Mapping[str, str],
    without_privacy: Mapping[str, Mapping[int, float]],
) -> list[str]:
    """Verdicts on the claim, one sentence for each part that the fits can decide.

    The claim: DPZero's exponent falls with the effective rank, at O(log d) lies below that of the vector-
    noise baseline, and is nearly zero.

    Args:
        names: of the rank laws.
        without_privacy: rank law -> dimension, ascending -> MeZO's norm over DPZero's.
    """
    values = {"fits": fits, "names": names, "without_privacy": without_privacy, "difference": difference}
    return sentences("verdicts", values, exp=math.exp)
