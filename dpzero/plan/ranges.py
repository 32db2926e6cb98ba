"""What numbers are allowed, in words and as a check: for settings, and for options of the command line. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both included unless said otherwise. Infinities and NaN are in none."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # least itself is not in it
    below: bool = False  # nor is most

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if self == ANY:
            return "finite"
        if self.most < math.inf and self.least > -math.inf and not (self.above or self.below):
            return f"from {self.least:.12g} to {self.most:.12g}"
        low = f"{'above' if self.above else 'at least'} {self.least:.12g}"
        high = f"{'below' if self.below else 'at most'} {self.most:.12g}"
        parts = [low] * (self.least > -math.inf) + [high] * (self.most < math.inf)
        return " and ".join(parts)


ANY = Range()
COUNT, POSITIVE_COUNT = Range(0, 10**9), Range(1, 10**9)
NOT_NEGATIVE, POSITIVE = Range(0), Range(0, above=True)
FACTOR = Range(1e-12, 1e12)  # beyond, products of two such numbers leave float32
SEED = Range(0, 2**32 - 1)  # what NumPy's legacy generator takes, by which published splits are drawn
EPSILON = Range(1e-6, 1e6)


def number(value: object, kind: type, allowed: Range) -> int | float:
    """The value as an int or a float. Raises ValueError for what is none (a truth value, 8.5 as an int) or out of the range."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, str) and not re.fullmatch(
        r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value.strip(), re.ASCII | re.I
    ):
        raise ValueError
    if kind is int and not re.fullmatch(r"[+-]?\d{1,40}", str(value).strip()):
        raise ValueError
    converted = kind(value)
    if converted not in allowed:
        raise ValueError
    return converted
