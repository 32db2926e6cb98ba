"""Membership attacks on K runs over one pool of N texts, how well they do, and the ceiling that a privacy claim sets.

Throughout: scores [K, N], higher for "was trained on"; inside, bool [K, N], the truth. An attack on one run learns from the
other runs alone, its threshold included. So it is fixed before it sees the run, which is what the ceiling is proven for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, stdtrit
from scipy.stats import rankdata

from ..errors import UsageError
from ..privacy import Setting

CONFIDENCE = 0.95
EPSILONS = np.linspace(-6, 8, 561)  # every one bounds the true positive rate: finer is only tighter


def confidence(logits: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    """Logits [..., N, C] -> loss [..., N], and log(p / (1 - p)) [..., N] of each label's probability p."""
    right = np.arange(logits.shape[-1]) == labels[:, None]
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    return -log_p[..., right], log_p[..., right] - logsumexp(np.where(right, -np.inf, log_p), axis=-1)


def likelihood_ratio(log_odds: NDArray, inside: NDArray) -> NDArray[np.float64]:
    """Offline LiRA (Carlini et al. 2022, arXiv 2112.03570), its shadow models being the other runs that did not hold the text.

    The score is the number of standard deviations by which the log odds exceed those of the shadow models: the order of the
    Gaussian p-values. UsageError where a text has fewer than two shadow models.
    """
    scores = np.zeros(log_odds.shape)
    for run in range(len(log_odds)):
        shadow = ~inside
        shadow[run] = False
        if (shadow.sum(0) < 2).any():
            raise UsageError(
                f"of {len(log_odds)} runs fewer than two others did without one of the texts: give more runs"
            )
        mean, deviation = log_odds.mean(0, where=shadow), log_odds.std(0, ddof=1, where=shadow)
        moves = deviation > 1e-9  # an untouched model does not, but for rounding: no score, rather than 0 / 0
        scores[run, moves] = (log_odds[run] - mean)[moves] / deviation[moves]
    return scores


def rates(scores: NDArray, inside: NDArray, target: float) -> tuple[NDArray, NDArray]:
    """True and false positive rate of each run, [K] each, at the threshold that lets `target` of the other runs' non-members pass.

    A score equal to the threshold passes with the probability that makes it `target` exactly.
    """
    true, false = np.empty(len(scores)), np.empty(len(scores))
    for run in range(len(scores)):
        others = np.arange(len(scores)) != run
        shadow = np.sort(scores[others][~inside[others]])[::-1]
        threshold = shadow[math.floor(target * len(shadow))]
        ties = (target - (shadow > threshold).mean()) / (shadow == threshold).mean()
        passes = (scores[run] > threshold) + ties * (scores[run] == threshold)
        true[run], false[run] = passes[inside[run]].mean(), passes[~inside[run]].mean()
    return true, false


def areas(scores: NDArray, inside: NDArray) -> NDArray[np.float64]:
    """Area under the curve of each run [K]: the chance that a member scores above a non-member, ties counting half."""
    ranks, count = rankdata(scores, axis=1), inside.sum(1)
    return ((ranks * inside).sum(1) - count * (count + 1) / 2) / (count * (inside.shape[1] - count))


def interval(values: NDArray) -> tuple[float, float, float]:
    """Mean of one value a run, and the ends of its 95 % t-interval."""
    mean, n = values.mean(), len(values)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n)
    return float(mean), float(mean - half), float(mean + half)


def measured(scores: NDArray, inside: NDArray, target: float) -> dict[str, float]:
    """Means over runs and their intervals: of both rates at the threshold for `target`, and of the area under the curve."""
    both = inside.any(1) & ~inside.all(1)  # a run without members, or without others, has no rate
    scores, inside = scores[both], inside[both]
    true, false = rates(scores, inside, target)
    found = {}
    for name, values in (
        ("true_positive_rate", true),
        ("false_positive_rate", false),
        ("auc", areas(scores, inside)),
    ):
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))
    return found


@dataclass(frozen=True)
class Claim:
    """(epsilon, delta), and the whole profile behind it: delta(e) at each of EPSILONS."""

    epsilon: float
    delta: float
    profile: NDArray

    @classmethod
    def accounted(cls, epsilon: float, setting: Setting, noise_scale: float) -> Claim:
        deltas = setting.loss_distribution(noise_scale).get_delta_for_epsilon(list(EPSILONS))
        return cls(epsilon, setting.delta, np.array(deltas))

    def ceiling(self, false_positive_rate: float) -> float:
        """The largest true positive rate that the profile allows: min over e of exp(e) FPR + delta(e)."""
        return float(min(1.0, (np.exp(EPSILONS) * false_positive_rate + self.profile).min()))

    def limits(self, found: dict[str, float], target: float) -> dict[str, float | bool]:
        """What the claim allows at `target`, and whether what was `measured` refutes it, intervals considered."""
        allowed = self.ceiling(found["false_positive_rate_high"])
        return {
            "ceiling": self.ceiling(target),
            "ceiling_of_epsilon_delta": min(1.0, math.exp(self.epsilon) * target + self.delta),
            "refuted": found["true_positive_rate_low"] > allowed + 1e-9,  # more than rounding
        }


NOTHING_LEARNT = Claim(0.0, 0.0, np.maximum(0.0, -np.expm1(EPSILONS)))
