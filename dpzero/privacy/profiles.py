"""The privacy profile of one release, and its privacy loss distribution (PLD).

The profile of a pair of output distributions (P, Q) is delta(epsilon) = sup over S of P(S) - exp(epsilon) Q(S), for epsilon of
either sign. A pair whose profile is nowhere below that of any two neighbouring data sets dominates the release, and
composing it T times dominates T adaptive releases (Zhu, Dong and Wang 2022). Each function
here is a dominating profile in closed form; dp-accounting rounds it (pessimistically) to a grid and composes it.

`noise` is the standard deviation or the Laplace scale over the largest change that one example makes in the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy.typing import NDArray
from scipy.special import log_ndtr

Profile = Callable[[NDArray[np.float64]], NDArray[np.float64]]

TAIL_MASS = 1e-15  # what may be rounded up to an infinite loss, in each release


def gaussian(noise: float) -> Profile:
    """N(1, noise^2) against N(0, noise^2) (Balle and Wang 2018, theorem 8)."""

    def upper(e: NDArray) -> NDArray:
        return np.exp(log_ndtr(0.5 / noise - e * noise)) - np.exp(e + log_ndtr(-0.5 / noise - e * noise))

    return _symmetric(upper)


def laplace(noise: float) -> Profile:
    """Lap(1, noise) against Lap(0, noise)."""
    return _symmetric(lambda e: -np.expm1((e - 1 / noise) / 2))


def removed(base: Profile, rate: float) -> Profile:
    """With the example against without it, Poisson sampling: (1 - rate) Q + rate P against Q, for a symmetric base (P, Q).

    Balle, Barthe and Gaboardi 2018: delta'(log(1 + rate (e^x - 1))) = rate delta(x).
    """

    def profile(epsilon: NDArray) -> NDArray:
        inner = np.expm1(epsilon) / rate
        reached = inner > -1  # below, no outcome's loss is as small: S is everything
        x = np.log1p(np.where(reached, inner, 0.0))
        return np.where(reached, rate * base(x), -np.expm1(epsilon))

    return profile


def added(base: Profile, rate: float) -> Profile:
    """Without the example against with it: the reverse of `removed`."""
    return _reversed(removed(base, rate))


def replaced_gaussian(noise: float, rate: float) -> Profile:
    """One example replaced, Poisson sampling: (1 - q) N(0) + q N(1) against (1 - q) N(0) + q N(-1), q the rate.

    `noise` is over the clip bound. For scalars: the loss of any contributions a and b is largest at a = 1, b = -1.
    """
    log_shift = math.log(rate) - 0.5 / noise**2

    def upper(e: NDArray) -> NDArray:
        # the loss exceeds e above the root x of  q s y^2 - (1 - q) (alpha - 1) y - alpha q s = 0,  y = exp(x / noise^2)
        with np.errstate(divide="ignore"):
            log_linear = math.log1p(-rate) + np.log(np.expm1(e)) if rate < 1 else np.full_like(e, -np.inf)
        log_root = np.logaddexp(2 * log_linear, math.log(4) + e + 2 * log_shift) / 2
        z = noise * (np.logaddexp(log_linear, log_root) - math.log(2) - log_shift)
        alpha = np.exp(e)
        return (
            rate * (np.exp(log_ndtr(1 / noise - z)) - alpha * np.exp(log_ndtr(-1 / noise - z)))
            - (1 - rate) * np.expm1(e) * np.exp(log_ndtr(-z))
        )

    return _symmetric(upper)


def without_replacement(base: Profile, rate: float) -> Profile:
    """One example replaced, a uniform subset of exactly rate * n examples (base: full batches with one example replaced).

    For epsilon >= 0 Balle, Barthe and Gaboardi 2018; below 0 by the symmetry of replacement. It bounds every
    ordered pair of neighbours at once, so composing it is an upper bound, where composing the worst single-step pair is
    not (Lebeda, Regehr, Kamath and Steinke 2024).
    """
    return _symmetric(lambda e: rate * base(np.log1p(np.expm1(e) / rate)))


def _symmetric(upper: Profile) -> Profile:
    """From the profile at epsilon >= 0 of a pair that equals its reverse."""

    def profile(epsilon: NDArray) -> NDArray:
        above = np.maximum(upper(np.abs(epsilon)), 0.0)
        return np.where(epsilon >= 0, above, -np.expm1(epsilon) + np.exp(np.minimum(epsilon, 0)) * above)

    return profile


def _reversed(profile: Profile) -> Profile:
    """Of (Q, P), given that of (P, Q): delta'(e) = 1 - exp(e) + exp(e) delta(-e)."""
    return lambda epsilon: np.maximum(0.0, -np.expm1(epsilon) + np.exp(epsilon) * profile(-epsilon))


def loss_distribution(profiles: tuple[Profile, ...], grid: float) -> PrivacyLossDistribution:
    """dp-accounting's PLD of one release on a grid of losses, never optimistic. One profile is of a symmetric pair; of two
    the first is for removal, the second for addition."""
    return PrivacyLossDistribution(*(_connect_the_dots(profile, grid) for profile in profiles))


def _connect_the_dots(profile: Profile, grid: float) -> pld_pmf.PLDPmf:
    reverse = _reversed(profile)
    top = math.ceil(_end(profile) / grid)
    bottom = -math.ceil(_end(reverse) / grid)
    losses = np.arange(bottom, top + 1)
    deltas = np.clip(np.minimum.accumulate(profile(losses * grid)), 0.0, 1.0)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, bottom, top, deltas)


def _end(profile: Profile) -> float:
    """An epsilon at which delta is at most TAIL_MASS, not far above the least one."""
    high = 1.0
    while profile(np.array([high]))[0] > TAIL_MASS:
        high *= 2
    low = 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if profile(np.array([middle]))[0] > TAIL_MASS else (low, middle)
    return high
