"""Statistics of a few seeds: mean, spread, 95 % interval, paired differences, differences of means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy
from scipy.special import stdtrit  # Student's t quantile; scipy.stats would take a second to import

CONFIDENCE = 0.95
ROUNDING = 1e-12  # of scores


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

    @classmethod
    def from_columns(cls, row: Mapping[str, Any], prefix: str) -> Summary:
        """The summary that `columns` put into this row."""
        return cls(**{name: row[f"{prefix}_{name}"] for name in cls.__dataclass_fields__})

    def columns(self, prefix: str) -> dict[str, float]:
        """PREFIX_n, PREFIX_mean and so on: the columns of a table."""
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}

    @property
    def has_spread(self) -> bool:
        """Whether the values differ: equal values (possible for counts) give an interval of no width."""
        return self.n > 1 and self.std > ROUNDING


def summarise(values: Iterable[float]) -> Summary:
    """Summary of the values that are not NaN. Sorted first, so that their order cannot change a digit."""
    numbers = numpy.sort([value for value in values if not math.isnan(value)])
    n = len(numbers)
    mean = float(numbers.mean()) if n else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = float(numbers.std(ddof=1))
    half = quantile(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary:
    """Summary of value - reference over the seeds that both have; effects of the seed cancel."""
    return summarise(values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys()))


def quantile(degrees: float) -> float:
    """Quantile of Student's t, two-sided at 95 %."""
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def welch_half_width(error: float, n: int, other_error: float, m: int) -> float:
    """Half of the 95 % interval of a difference of two means of n and m independent values, by Welch (1947).

    `error`, `other_error`: standard errors of the means. Degrees of freedom by Satterthwaite. 0 if both are 0.
    """
    ours, theirs = error**2, other_error**2
    if ours + theirs == 0:
        return 0.0
    degrees = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (m - 1))
    return quantile(degrees) * math.sqrt(ours + theirs)


def prediction_half_width(std: float, n: int) -> float:
    """Half of the 95 % prediction interval around the mean of n values for one more value of their law."""
    return quantile(n - 1) * std * math.sqrt(1 + 1 / n)
