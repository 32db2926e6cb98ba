"""Does a mechanism lose no more than it claims? Statistics of many transcripts from two neighbouring worlds.

A transcript is everything that a scalar mechanism releases: T noisy sums. The auditor knows all but one thing: whether the
canary is in the data. By Neyman and Pearson nothing tells the two worlds apart better than the likelihood ratio of the
transcript. The thresholds of these tests are fixed beforehand, so every transcript counts in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

from .accounting import Setting
from .gdp import epsilon_of_mu

CONFIDENCE = 0.95
PROFILE_EPSILONS = np.linspace(-6, 8, 141)
THRESHOLDS = 21  # from minus to plus the claimed epsilon: bounds hold for all of them at once


def log_likelihood_ratio(setting: Setting, noise_scale: float, transcripts: NDArray) -> NDArray[np.float64]:
    """With the canary against without it (add_remove) or against its opposite (replace_one), one number a transcript.

    transcripts: released sums over the clip bound [N, T], where the canary's clipped value is +clip in every step (-clip for
    its opposite) and the others add 0. With such a canary the two worlds are the dominating pair itself.
    """
    o = np.asarray(transcripts, dtype=np.float64)

    def log_density(shift: float) -> NDArray:
        """Up to a constant: of a step in which the canary, if drawn, adds `shift`."""
        if setting.mechanism == "gaussian":
            still, moved = -0.5 * (o / noise_scale) ** 2, -0.5 * ((o - shift) / noise_scale) ** 2
        else:
            still, moved = -np.abs(o) / noise_scale, -np.abs(o - shift) / noise_scale
        if setting.rate == 1:
            return moved
        return np.logaddexp(math.log1p(-setting.rate) + still, math.log(setting.rate) + moved)

    other = 0.0 if setting.adjacency == "add_remove" else -1.0
    return (log_density(1.0) - log_density(other)).sum(1)


@dataclass(frozen=True)
class Bounds:
    """Clopper-Pearson bounds of one test: with `confidence` both hold."""

    false_positive_rate: float  # upper
    true_positive_rate: float  # lower

    @classmethod
    def from_samples(cls, threshold: float, without: NDArray, present: NDArray, confidence: float) -> Bounds:
        """Of the test that says `present` where the statistic is above the threshold."""
        alpha = (1 - confidence) / 2
        wrong, right = int((without > threshold).sum()), int((present > threshold).sum())
        upper = beta.ppf(1 - alpha, wrong + 1, len(without) - wrong) if wrong < len(without) else 1.0
        lower = beta.ppf(alpha, right, len(present) - right + 1) if right else 0.0
        return cls(float(upper), float(lower))

    def epsilon(self, delta: float) -> float:
        """Lower bound on epsilon at delta, whatever the distributions are."""
        gain = (self.true_positive_rate - delta) / self.false_positive_rate
        loss = (1 - delta - self.false_positive_rate) / (1 - self.true_positive_rate)
        return max(0.0, *(math.log(r) for r in (gain, loss) if r > 0))

    def mu(self) -> float:
        """Lower bound on mu, for a mechanism whose trade-off curve is that of Gaussian noise (many steps: nearly)."""
        return max(0.0, float(ndtri(self.true_positive_rate) - ndtri(self.false_positive_rate)))


def judge(setting: Setting, noise_scale: float, without: NDArray, present: NDArray) -> dict:
    """Audit the claim of `setting` at `noise_scale` on the statistics of transcripts without and with the canary.

    Returns lower bounds on epsilon, and by how much the claimed profile is exceeded: the highest true positive rate above
    min over e of exp(e) FPR + delta_claimed(e), over all thresholds at once. Above 0 the claim is refuted.
    """
    epsilon, deltas = _claim(setting, noise_scale)
    each = 1 - (1 - CONFIDENCE) / THRESHOLDS
    tests = [
        Bounds.from_samples(t, without, present, each) for t in np.linspace(-epsilon, epsilon, THRESHOLDS)
    ]

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
def _claim(setting: Setting, noise_scale: float) -> tuple[float, NDArray[np.float64]]:
    """Epsilon at the setting's delta, and delta at PROFILE_EPSILONS."""
    claimed = setting.loss_distribution(noise_scale)
    epsilon = float(claimed.get_epsilon_for_delta(setting.delta))
    return epsilon, np.array(claimed.get_delta_for_epsilon(list(PROFILE_EPSILONS)))
