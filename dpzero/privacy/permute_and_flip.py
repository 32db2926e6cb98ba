"""Private selection by counts of private examples: permute and flip.

McKenna and Sheldon 2020 (arXiv 2010.12603). It selects like report-noisy-max with exponential noise (Ding et
al. 2021, arXiv 2105.07260): given the noise of the others, candidate i wins if its own noise is above some t.
Adding, removing or replacing an example moves each count by at most 1, one perhaps up and another down, so t
moves by at most 2 and noise of rate epsilon / 2 is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from .discrete_noise import Bits

MECHANISM = "permute and flip"


def permute_and_flip(counts: Sequence[int], epsilon: float, bits: Bits) -> int:
    """Select the index of one of the largest counts, to each of which one example adds 0 or 1.

    The choice is exactly epsilon-DP: only integers are computed and compared.

    Raises:
        ValueError: no count, or an epsilon that is not positive and finite.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
    if not counts:
        raise ValueError("there is no candidate: give at least one count")
    candidates, most = list(range(len(counts))), max(counts)
    while True:
        index = candidates.pop(bits.below(len(candidates)))
        behind = Fraction(epsilon) / 2 * (most - counts[index])
        if bits.bernoulli_exp(behind.numerator, behind.denominator):
            return index
