"""What is said about a handful of seeds: mean, spread, 95 % interval, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy
from scipy.special import stdtrit  # Student's t quantile; scipy.stats would take a second to import

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """n values: their mean, standard deviation (n - 1 in the denominator) and 95 % t-interval of the mean.

    With n = 0 everything is NaN; with n = 1 `mean` is the value and `std`, `low`, `high` are NaN.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float


def summarise(values: Iterable[float]) -> Summary:
    """Summary of the values that are not NaN. Sorted first, so that their order cannot change a digit."""
    numbers = numpy.sort([value for value in values if not math.isnan(value)])
    n = len(numbers)
    mean = float(numbers.mean()) if n else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = float(numbers.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary:
    """Summary of value - reference over the seeds that both have: a seed's split and luck cancel."""
    return summarise(values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys()))
