"""Dominating pairs of one release, and their privacy loss distribution (PLD).

The privacy profile of a pair of output distributions (P, Q) is delta(epsilon) = sup over S of P(S) -
exp(epsilon) Q(S), for epsilon of either sign. A pair whose profile is nowhere below that of any two
neighbouring data sets dominates the release; composing it T times dominates T adaptive releases (Zhu, Dong
and Wang 2022). Each function here gives a dominating profile in closed form. dp-accounting rounds it
(pessimistically) to a grid and composes it.

`noise` is the standard deviation or the Laplace scale, over the largest change that one example makes in the
sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp
from scipy.stats import binom

Array = NDArray[np.floating[Any]]
Profile = Callable[[Array], Array]
TAIL_MASS = 1e-15  # probability per release that may be rounded up to an infinite loss
LARGEST_LOSS = 512.0  # of one release: larger ones count as infinite; its exp is still a number
MAX_CONVOLVED = 2**26  # grid cells of a composition: 3 GB
MAX_CELLS = 200_000  # grid cells of one release


@dataclass(frozen=True)
class Pair:
    """A pair (P, Q) by its profile and its reverse's at epsilon >= 0; a call gives any epsilon's delta."""

    upper: Profile
    reverse: Profile

    def __call__(self, epsilon: Array) -> Array:
        delta, above = np.empty_like(epsilon), epsilon >= 0
        delta[above] = np.maximum(self.upper(epsilon[above]), 0.0)
        below = epsilon[~above]
        delta[~above] = -np.expm1(below) + np.exp(below) * np.maximum(self.reverse(-below), 0.0)
        return delta

    @classmethod
    def symmetric(cls, profile: Profile) -> Pair:
        """A pair with the same profile in both orders."""
        return cls(profile, profile)

    def swapped(self) -> Pair:
        """The pair (Q, P)."""
        return Pair(self.reverse, self.upper)


def gaussian(noise: float) -> Pair:
    """N(1, noise^2) against N(0, noise^2) (Balle and Wang 2018, theorem 8)."""

    return Pair.symmetric(
        lambda e: np.exp(log_ndtr(0.5 / noise - e * noise)) - np.exp(e + log_ndtr(-0.5 / noise - e * noise))
    )


def laplace(noise: float) -> Pair:
    """Lap(1, noise) against Lap(0, noise)."""
    return Pair.symmetric(lambda e: -np.expm1((e - 1 / noise) / 2))


def removed(base: Profile, rate: float) -> Pair:
    """Poisson sampling, with the example against without: (1 - rate) Q + rate P against Q, (P, Q) symmetric."""
    return Pair(_amplified(base, rate), _amplified_reverse(base, rate))


def replaced_gaussian(noise: float, rate: float) -> Pair:
    """One example replaced, Poisson sampling: (1 - q) N(0) + q N(1) against (1 - q) N(0) + q N(-1), q the rate.

    `noise` is over the clip. Proof, for contributions a and b in the unit ball of any dimension. Given which
    others were drawn, with their sum as the origin, the two outputs are (1 - q) N(0) + q N(a) and (1 - q)
    N(0) + q N(b), and delta is jointly convex, so the worst such pair bounds the mixtures. For alpha =
    exp(epsilon) >= 1 and any set S of outcomes

        P(S) - alpha Q(S) = q N(a)(S) - alpha q N(b)(S) - (alpha - 1) (1 - q) N(0)(S).

    Let T be the half-line that N(1) gives the probability p = N(a)(S). By Neyman and Pearson a set with p
    under N(a) has at least Phi(Phi^-1(p) - |a - c| / noise) under N(c), which falls with the distance: at
    most 1 from a to 0 and 2 from a to b. T attains both at once, under N(0) and N(-1). So T does for the pair
    of a = 1, b = -1 at least what S does for any other. Below epsilon = 0 the profile is a function of that
    of the reversed pair, which is of the same form.
    """
    log_shift = math.log(rate) - 0.5 / noise**2

    def upper(e: Array) -> Array:
        # the loss exceeds e above the root x of  q s y^2 - (1 - q) (alpha - 1) y - alpha q s = 0,  y = exp(x
        # / noise^2)
        with np.errstate(divide="ignore"):
            log_linear = math.log1p(-rate) + np.log(np.expm1(e)) if rate < 1 else np.full_like(e, -np.inf)
        log_root = np.logaddexp(2 * log_linear, math.log(4) + e + 2 * log_shift) / 2
        z = noise * (np.logaddexp(log_linear, log_root) - math.log(2) - log_shift)
        alpha = np.exp(e)
        drawn = np.exp(log_ndtr(1 / noise - z)) - alpha * np.exp(log_ndtr(-1 / noise - z))
        delta: Array = rate * drawn - (1 - rate) * np.expm1(e) * np.exp(log_ndtr(-z))
        return delta

    return Pair.symmetric(upper)


def group(noise: float, rate: float, size: int) -> Pair:
    """Up to `size` examples of one user, Poisson sampling of examples: N(K, noise^2) against N(0, noise^2), K binomial.

    `noise` is over the clip of one example, `rate` that of one example, and K the number of drawn ones. Charles
    et al. 2024 (arXiv 2407.07737) account for example-level sampling in this way. Proof, for contributions of
    any dimension. Given the others, let a_S be the sum of the user's drawn contributions, with probability p_S:
    |a_S| is at most |S|. Let E be any event, m = N(0)(E), and T the half-line with N(0)(T) = m on the side of 1.
    By Neyman and Pearson N(a_S)(E) is at most what N(|S|) gives T, for each S. So the mixture gives E at most
    what the pair's first law gives T, where its second gives both m. For the reverse take the other half-line.
    """
    counts = np.arange(1, size + 1)
    chances = binom.pmf(counts, size, rate)
    log_chances = binom.logpmf(np.arange(size + 1), size, rate)[:, None]
    slopes = np.arange(size + 1)[:, None] / noise**2

    def loss(x: Array) -> tuple[Array, Array]:
        """Loss at x, and its derivative."""
        terms = log_chances + slopes * x - slopes**2 * noise**2 / 2
        total: Array = logsumexp(terms, axis=0)
        return total, (np.exp(terms - total) * slopes).sum(0)

    def where_loss_is(e: Array) -> Array:
        """By Newton's method from the right: the loss is convex, and each of its terms is at most as large."""
        with np.errstate(invalid="ignore"):
            x: Array = np.min((e - log_chances[1:]) / slopes[1:] + counts[:, None] / 2, axis=0)
        for _ in range(100):
            value, slope = loss(x)
            step = (value - e) / slope
            x = x - step
            if (np.abs(step) <= 1e-12 * (noise + np.abs(x))).all():
                break
        return x

    def apart(x: Array, sign: int) -> tuple[Array, Array]:
        """N(0) beyond x on the side of `sign`, and how much more, or less, the first law gives it."""
        none = np.exp(log_ndtr(-sign * x / noise))
        drawn = np.exp(log_ndtr(sign * (counts[:, None] - x) / noise))
        return none, sign * (chances @ (drawn - none))

    def upper(e: Array) -> Array:
        none, more = apart(where_loss_is(e), 1)
        delta: Array = more - np.expm1(e) * none
        return delta

    def reverse(e: Array) -> Array:
        delta, some = np.zeros_like(e), -e > log_chances[0]  # no loss is below the chance that none is drawn
        none, less = apart(where_loss_is(-e[some]), -1)
        delta[some] = np.exp(e[some]) * less - np.expm1(e[some]) * none
        return delta

    return Pair(upper, reverse)


def without_replacement(base: Profile, rate: float) -> Pair:
    """One example replaced, a uniform subset of exactly rate * n examples (base: full batches).

    For epsilon >= 0 Balle, Barthe and Gaboardi 2018; below 0 by the symmetry of replacement. It bounds every
    ordered pair of neighbours at once, so composing it is an upper bound, where composing the worst
    single-step pair is not (Lebeda, Regehr, Kamath and Steinke 2024).
    """
    return Pair.symmetric(_amplified(base, rate))


def _amplified(base: Profile, rate: float) -> Profile:
    """Balle, Barthe and Gaboardi 2018, at x >= 0: delta'(log(1 + rate (e^x - 1))) = rate delta(x)."""
    return lambda e: rate * base(np.log1p(np.expm1(e) / rate))


def _amplified_reverse(base: Profile, rate: float) -> Profile:
    """Profile of the reverse at epsilon >= 0: 1 - exp(e) + exp(e) delta(-e), computed without cancellation."""

    def upper(e: Array) -> Array:
        inner = np.maximum(np.expm1(-e) / rate, -1.0)  # exp(x) - 1; at -1 no loss is as large
        with np.errstate(divide="ignore"):
            delta: Array = rate * np.exp(e) * (1 + inner) * base(np.minimum(-np.log1p(inner), LARGEST_LOSS))
        return delta

    return upper


def compose(pairs: Sequence[Pair], steps: int, grid: float) -> PrivacyLossDistribution:
    """dp-accounting's PLD of `steps` releases, on a coarser grid if MAX_CONVOLVED cells are not enough."""
    one = loss_distribution(pairs, grid)
    cells = max(_convolution_cells(pmf.to_dense_pmf(), steps) for pmf in (one._pmf_remove, one._pmf_add))
    if cells > MAX_CONVOLVED:
        one = loss_distribution(pairs, grid * cells / MAX_CONVOLVED)
    return one.self_compose(steps)


def _convolution_cells(pmf: pld_pmf.DensePLDPmf, steps: int) -> float:
    """Approximate cells of dp-accounting's convolution: its window is a Chernoff bound from 20 orders."""
    cells, orders = np.arange(pmf.size), np.arange(1, 21) / pmf.size
    mean = float(pmf._probs @ cells)
    variance = float(pmf._probs @ (cells - mean) ** 2)
    return min(float(steps * pmf.size), float(np.min(70 / orders + steps * variance * orders)))


def loss_distribution(profiles: Sequence[Profile], grid: float) -> PrivacyLossDistribution:
    """dp-accounting's PLD of one release on a grid of losses, never optimistic.

    Args:
        profiles: that of a symmetric pair, or those of removal and of addition.
        grid: spacing of the losses.
    """
    tops = [largest_loss(profile) for profile in profiles]
    bottoms = tops[::-1]  # the largest loss of a pair is minus the least of its reverse
    grid = _spacing(grid, tops[0] + bottoms[0], float(profiles[0](np.zeros(1))[0]))
    grid = tops[0] / math.ceil(tops[0] / grid)  # a bounded loss often takes its largest value: keep it
    return PrivacyLossDistribution(
        *(_connect_the_dots(*each, grid) for each in zip(profiles, bottoms, tops, strict=True))
    )


def _spacing(grid: float, span: float, total_variation: float) -> float:
    """`grid`, or a finer spacing for small losses, of which many may be composed.

    Rounding adds a variance of spacing^2 / 6 to each loss; a Gaussian loss has (2.5 total_variation)^2. With
    a tenth of total_variation (at a grid of 1e-4) the noise scale is 1.3e-4 too large, whatever the number of
    releases. If a few large losses decide (2000 cells and more), the small ones need no finer grid.
    """
    return max(grid * min(1.0, max(1000 * total_variation, 5 * span)), span / MAX_CELLS)


def _connect_the_dots(profile: Profile, bottom: float, top: float, grid: float) -> pld_pmf.PLDPmf:
    first, last = -math.ceil(bottom / grid - 1e-9), math.ceil(top / grid - 1e-9)
    deltas = np.minimum.accumulate(profile(np.arange(first, last + 1) * grid))
    deltas = np.clip(deltas, 0.0, 1 - 2**-53)  # dp-accounting does not accept a certain infinite loss
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, first, last, deltas)


def largest_loss(profile: Profile, tail: float = TAIL_MASS, least: float = 1e-9) -> float:
    """The least epsilon at which delta is at most `tail`, from about `least` up to LARGEST_LOSS."""
    low, high = 0.0, LARGEST_LOSS
    while high - low > 1e-12 * high and high > least:
        middle = (low + high) / 2
        low, high = (middle, high) if profile(np.array([middle]))[0] > tail else (low, middle)
    return high
