"""Gaussian differential privacy (Dong, Roth and Su 2022): one number, mu, for a whole profile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

POINTS = 200  # epsilons at which two profiles are compared


def gaussian_delta(mu: float, epsilon: ArrayLike) -> NDArray[np.float64]:
    """delta(epsilon) of a Gaussian mechanism with sensitivity mu and standard deviation 1 (their corollary 1)."""
    e = np.asarray(epsilon, dtype=np.float64)
    return ndtr(mu / 2 - e / mu) - np.exp(e + log_ndtr(-mu / 2 - e / mu))


def mu_at(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism is exactly (epsilon, delta)-DP."""
    return float(
        brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 1e-9, 60 + 2 * math.sqrt(epsilon), xtol=1e-12)
    )


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian mechanism at delta, 0 where it has none to lose."""
    if gaussian_delta(max(mu, 1e-9), 0.0) <= delta:
        return 0.0
    return float(brentq(lambda e: gaussian_delta(mu, e) - delta, 0.0, mu * mu / 2 + 40 * mu + 1, xtol=1e-12))


def least_mu(loss_distribution, delta: float) -> float:
    """Of a privacy loss distribution, from delta up to where its delta is 1 to nine digits."""
    last = loss_distribution.get_epsilon_for_delta(delta)
    if last == math.inf:
        return math.inf
    epsilons: Sequence[float] = list(np.linspace(0, last, POINTS))
    deltas = loss_distribution.get_delta_for_epsilon(epsilons)
    return max(mu_at(e, d) for e, d in zip(epsilons, np.atleast_1d(deltas), strict=True) if d < 1 - 1e-9)
