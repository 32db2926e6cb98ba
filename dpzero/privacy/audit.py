"""Privacy audit: statistics of many transcripts from two neighbouring data sets, against the claimed guarantee.

A transcript is everything that a scalar mechanism releases: T noisy sums. The auditor knows everything except
whether the canary is in the data. By Neyman and Pearson no test beats the likelihood ratio of the transcript.
The thresholds of the tests are fixed beforehand, so every transcript counts in each test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import beta

from .accounting import Setting
from .gdp import epsilon_of_mu

Array = NDArray[np.float64]

CONFIDENCE = 0.95
PROFILE_EPSILONS = np.linspace(-6, 8, 141)
THRESHOLDS = 21  # from minus to plus the claimed epsilon: the bounds hold for all of them at once


def log_likelihood_ratio(setting: Setting, noise_scale: float, transcripts: ArrayLike) -> Array:
    """Log-likelihood ratio of each transcript: with the canary against without it (or its opposite).

    Args:
        setting: of the mechanism.
        noise_scale: over the clip.
        transcripts: [N, T], released sums over the clip. The canary's clipped value is +clip in every step
            (-clip for its opposite) and the others add 0, so the two data sets give the dominating pair
            itself.

    Returns:
        float64 [N].
    """
    o = np.asarray(transcripts, dtype=np.float64)

    def log_density(shift: float) -> Array:
        """Up to a constant, of a step in which the canary, if drawn, adds `shift`."""
        if setting.mechanism == "gaussian":
            absent, present = -0.5 * (o / noise_scale) ** 2, -0.5 * ((o - shift) / noise_scale) ** 2
        else:
            absent, present = -np.abs(o) / noise_scale, -np.abs(o - shift) / noise_scale
        if setting.rate == 1:
            return present
        return np.logaddexp(math.log1p(-setting.rate) + absent, math.log(setting.rate) + present)

    other = 0.0 if setting.adjacency == "add_remove" else -1.0
    ratio: Array = (log_density(1.0) - log_density(other)).sum(1)
    return ratio


@dataclass(frozen=True)
class Bounds:
    """Clopper-Pearson bounds on the error rates of one test."""

    false_positive_rate: float  # upper
    true_positive_rate: float  # lower

    @classmethod
    def from_samples(cls, threshold: float, without: Array, present: Array, confidence: float) -> Bounds:
        """Bounds for the test that reports the canary if the statistic exceeds the threshold."""
        alpha = (1 - confidence) / 2
        false, true = int((without > threshold).sum()), int((present > threshold).sum())
        upper = beta.ppf(1 - alpha, false + 1, len(without) - false) if false < len(without) else 1.0
        lower = beta.ppf(alpha, true, len(present) - true + 1) if true else 0.0
        return cls(float(upper), float(lower))

    def epsilon(self, delta: float) -> float:
        """Lower bound on epsilon at delta, whatever the distributions are."""
        gain = (self.true_positive_rate - delta) / self.false_positive_rate
        loss = (1 - delta - self.false_positive_rate) / (1 - self.true_positive_rate)
        return max(0.0, *(math.log(r) for r in (gain, loss) if r > 0))

    def mu(self) -> float:
        """Lower bound on mu if the trade-off curve is that of Gaussian noise (nearly so after many steps)."""
        return max(0.0, float(ndtri(self.true_positive_rate) - ndtri(self.false_positive_rate)))


def judge(setting: Setting, noise_scale: float, without: Array, present: Array) -> dict[str, Any]:
    """Audit the claim of `setting` at `noise_scale`.

    Args:
        setting: the claim.
        noise_scale: over the clip.
        without: statistics of transcripts without the canary.
        present: statistics of transcripts with it.

    Returns:
        Lower bounds on epsilon, and `profile_excess`: the largest amount over all thresholds by which the
        true positive rate exceeds min over e of exp(e) FPR + delta_claimed(e). Above 0 it refutes the claim.
    """
    epsilon, deltas = _claim(setting, noise_scale)
    each = 1 - (1 - CONFIDENCE) / THRESHOLDS
    thresholds = np.linspace(-epsilon, epsilon, THRESHOLDS).tolist()
    tests = [Bounds.from_samples(threshold, without, present, each) for threshold in thresholds]

    def excess(bounds: Bounds) -> float:
        allowed = (np.exp(PROFILE_EPSILONS) * bounds.false_positive_rate + deltas).min()
        return bounds.true_positive_rate - float(allowed)

    mu = Bounds.from_samples(0.0, without, present, CONFIDENCE).mu()
    return {
        "claimed_epsilon": epsilon,
        "delta": setting.delta,
        "transcripts": min(len(without), len(present)),
        "confidence": CONFIDENCE,
        "lower_bound_epsilon_through_mu": epsilon_of_mu(mu, setting.delta),
        "lower_bound_epsilon_distribution_free": max(test.epsilon(setting.delta) for test in tests),
        "lower_bound_mu": mu,
        "profile_excess": max(map(excess, tests)),
    }


@cache
def _claim(setting: Setting, noise_scale: float) -> tuple[float, Array]:
    """Epsilon at the setting's delta, and delta at PROFILE_EPSILONS."""
    claimed = setting.loss_distribution(noise_scale)
    epsilon = float(claimed.get_epsilon_for_delta(setting.delta))
    return epsilon, np.array(claimed.get_delta_for_epsilon(list(PROFILE_EPSILONS)))
