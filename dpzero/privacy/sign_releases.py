"""What the signs that PACZero releases give: mutual information with its secret, and no epsilon.

Ertan et al. 2026, arXiv 2605.06505; read in bilgehanertan/paczero @ b9c661b (paczo/pac_trainer.py, pac_utils.py).
Each row is in a random half of the candidate subsets, and a candidate drawn at random is the secret. A step takes the
slopes of all rows along a public direction, and the sign of each candidate's mean clipped slope (+ for 0). If all agree,
that sign is released. If not, PACZero-ZPL releases a coin, and PACZero-MI the sign of the secret's sign plus Gaussian
noise. So each row decides, also one outside of the secret subset. Information is in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # of a step's information, in the public search for its noise
QUADRATURE_NODES = 200
NOISES = (1e-4, 1e4)  # of the public search


@dataclass(frozen=True)
class SignReleases:
    """A run of PACZero.

    Args:
        information: of all steps, as claimed; 0 for coins (PACZero-ZPL).
        candidates: subsets.
        steps: of the run.
    """

    information: float
    candidates: int
    steps: int

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on the secret's sign where the candidates split evenly; infinite for a coin."""
        return noise_of_search(0.5, self.information / self.steps) if self.information else math.inf

    def information_at_most(self) -> float:
        """Upper bound on the information about the secret, for an adversary to whom each candidate is as likely."""
        return self.information + self.steps * TOLERANCE if self.information else 0.0

    def information_at_least(self) -> float:
        """Lower bound: rows that split the candidates evenly in each step, in independent ways by turns.

        For claims small enough that the code's posterior stays near the uniform one, by which it sets its noise.
        """
        ways = int(math.log2(self.candidates))
        return ways * information_of_flips(float(ndtr(-1 / self.noise)), self.steps // ways)

    def epsilon_at_least(self) -> float:
        """Lower bound on epsilon for one row added, at any delta below the chance that shows it.

        The smallest pair: a row that slopes up, alone and with one that slopes down. Alone, it makes all candidates
        agree on +, since an empty mean counts as +, so that - is impossible.
        """
        place = np.arange(self.candidates)
        members = np.array([place < self.candidates // 2, place % 2 == 0])  # a half each
        slopes = np.array([1.0, -1.0])
        one, two = (chance_of_minus(slopes[:n], members[:n], self.noise) for n in (1, 2))
        return math.log(two / one) if one else math.inf


def candidate_signs(slopes: Array, members: NDArray[np.bool_]) -> Array:
    """The sign of each candidate's mean: slopes [rows], members [rows, candidates] -> [candidates] of -1 and 1."""
    return np.where(slopes @ members >= 0, 1.0, -1.0)


def chance_of_minus(slopes: Array, members: NDArray[np.bool_], noise: float, secret: int = 0) -> float:
    """Probability that a step releases -, over its noise or coin (infinite noise)."""
    signs = candidate_signs(slopes, members)
    return float(ndtr(-signs[secret] / noise)) if len(set(signs)) > 1 else float(signs[0] < 0)


def information_of_sign(plus: float, noise: float) -> float:
    """I(S; S + noise N(0, 1)), where S is 1 with probability `plus`, else -1."""
    nodes, weights = _quadrature()
    ratio = 2 * (1 + noise * nodes) / noise**2  # log of the two densities' ratio, seen from either sign
    minus = 1 - plus
    each = plus * np.log1p(minus * np.expm1(-ratio)) + minus * np.log1p(plus * np.expm1(-ratio))
    return float(-weights @ each)


@cache
def _quadrature() -> tuple[Array, Array]:
    """Nodes and weights of a mean over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    return nodes, weights / weights.sum()


def noise_of_search(plus: float, information: float) -> float:
    """The noise that the public code takes for a step: halves a range of logarithms until within TOLERANCE of the information."""
    low, high = map(math.log, NOISES)
    while high - low > 1e-15:
        middle = (low + high) / 2
        excess = information_of_sign(plus, math.exp(middle)) - information
        if abs(excess) < TOLERANCE:
            break
        low, high = (middle, high) if excess > 0 else (low, middle)
    return math.exp((low + high) / 2)


def information_of_flips(chance: float, count: int) -> float:
    """Information of `count` signs about one fair sign, each of them wrong with this chance, independently."""
    right = np.arange(count + 1)
    ratio = (2 * right - count) * math.log(
        chance / (1 - chance)
    )  # log of the wrong sign's likelihood over the right one's
    return float(binom.pmf(right, count, 1 - chance) @ (math.log(2) - np.logaddexp(0, ratio)))
