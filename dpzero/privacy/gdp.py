"""Gaussian differential privacy (Dong, Roth and Su 2022): one number, mu, for a whole privacy profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_expit, log_ndtr, ndtr, ndtri_exp

POINTS = 200  # epsilons at which two profiles are compared


class LossDistribution(Protocol):
    """A privacy loss distribution: of dp-accounting, or a `Composition`."""

    def get_epsilon_for_delta(self, delta: float) -> float: ...
    def get_delta_for_epsilon(self, epsilon: Sequence[float]) -> Any: ...


def gaussian_delta(mu: float, epsilon: ArrayLike) -> NDArray[np.float64]:
    """delta(epsilon) of a Gaussian mechanism with sensitivity mu and unit noise (their corollary 1)."""
    e = np.asarray(epsilon, dtype=np.float64)
    delta: NDArray[np.float64] = ndtr(mu / 2 - e / mu) - np.exp(e + log_ndtr(-mu / 2 - e / mu))
    return delta


def mu_at(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism is exactly (epsilon, delta)-DP."""
    top = 60 + 2 * math.sqrt(epsilon)
    return float(brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 1e-9, top, xtol=1e-12))


def mu_of_epsilon(epsilon: float) -> float:
    """The least mu that dominates every epsilon-DP mechanism (f_epsilon,0 >= G_mu)."""
    return float(-2 * ndtri_exp(log_expit(-epsilon)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism at delta; at least 0."""
    if gaussian_delta(max(mu, 1e-9), 0.0) <= delta:
        return 0.0
    return float(brentq(lambda e: gaussian_delta(mu, e) - delta, 0.0, mu * mu / 2 + 40 * mu + 1, xtol=1e-12))


def least_mu(losses: LossDistribution, delta: float) -> float:
    """The least mu that dominates a privacy loss distribution, from delta up to 1 - 1e-9."""
    last = losses.get_epsilon_for_delta(delta)
    if last == math.inf:
        return math.inf
    epsilons = np.linspace(0, last, POINTS).tolist()
    deltas = np.atleast_1d(losses.get_delta_for_epsilon(epsilons))
    return max(mu_at(e, d) for e, d in zip(epsilons, deltas, strict=True) if d < 1 - 1e-9)
