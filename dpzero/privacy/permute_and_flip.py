"""The best of several, by counts of private examples: permute and flip (McKenna and Sheldon 2020, arXiv 2010.12603).

Its law is that of the largest count with exponential noise (Ding et al. 2021, arXiv 2105.07260). Candidate i wins over the others,
their noise given, if its own is above some t. One example in, out or replaced moves each count by at most 1, one perhaps up and
another down, and with them t by at most 2: noise of rate epsilon / 2 is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

from .discrete_noise import Bits

MECHANISM = "permute and flip"


def permute_and_flip(counts: Sequence[int], epsilon: float, bits: Bits) -> int:
    """The place of one of the largest counts, to each of which one example adds 0 or 1.

    The choice is epsilon-DP, exactly: integers and comparisons of integers alone. Raises ValueError for no count or no epsilon.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
    if not counts:
        raise ValueError("there is no candidate: give at least one count")
    left, most = list(range(len(counts))), max(counts)
    while True:
        place = left.pop(bits.below(len(left)))
        behind = Fraction(epsilon) / 2 * (most - counts[place])
        if bits.bernoulli_exp(behind.numerator, behind.denominator):
            return place


def gdp_mu(epsilon: float) -> float:
    """Of the least Gaussian mechanism that loses as much as anything that is epsilon-DP (Dong, Roth and Su 2022: f_epsilon,0 >= G_mu)."""
    if epsilon > 700:  # beyond the numbers that have an exponential
        return math.inf
    return -2 * NormalDist().inv_cdf(1 / (1 + math.exp(epsilon)))
