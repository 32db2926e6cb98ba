"""Membership inference attacks on K runs over a pool of N texts, and the ceiling of a privacy claim.

Throughout: scores [K, N], higher for members; members, bool [K, N], the truth. An attack on a run, and its
threshold, are fitted on the other runs only. So it is fixed before it sees the run, and the ceiling is
proven for such attacks.
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
EPSILONS = np.linspace(-6, 8, 561)  # each bounds the true positive rate: a finer grid is only tighter


def loss_and_log_odds(logits: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    """Cross entropy and log odds log(p / (1 - p)) of each label, whose probability is p.

    Args:
        logits: [..., N, C].
        labels: [N].

    Returns:
        Two float64 arrays [..., N].
    """
    right = np.arange(logits.shape[-1]) == labels[:, None]
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    return -log_p[..., right], log_p[..., right] - logsumexp(np.where(right, -np.inf, log_p), axis=-1)


def likelihood_ratio(log_odds: NDArray, members: NDArray) -> NDArray[np.float64]:
    """Offline LiRA (Carlini et al. 2022, arXiv 2112.03570); a text's shadow models are other runs without it.

    The score is the number of standard deviations by which the log odds exceed those of the shadow models. It
    orders texts as the Gaussian p-value does.

    Raises:
        UsageError: a text has fewer than two shadow models.
    """
    scores = np.zeros(log_odds.shape)
    for run in range(len(log_odds)):
        shadow = ~members
        shadow[run] = False
        if (shadow.sum(0) < 2).any():
            raise UsageError(
                f"of {len(log_odds)} runs fewer than two others did without one of the texts: give more runs"
            )
        mean, deviation = log_odds.mean(0, where=shadow), log_odds.std(0, ddof=1, where=shadow)
        moves = deviation > 1e-9  # an untrained model moves by rounding alone: no score, rather than 0 / 0
        scores[run, moves] = (log_odds[run] - mean)[moves] / deviation[moves]
    return scores


def rates(scores: NDArray, members: NDArray, target: float) -> tuple[NDArray, NDArray]:
    """TPR and FPR [K] of each run, at the threshold that a fraction `target` of other runs' non-members pass.

    A score equal to the threshold passes with the probability that makes the fraction exact.
    """
    true, false = np.empty(len(scores)), np.empty(len(scores))
    for run in range(len(scores)):
        others = np.arange(len(scores)) != run
        shadow = np.sort(scores[others][~members[others]])[::-1]
        threshold = shadow[math.floor(target * len(shadow))]
        ties = (target - (shadow > threshold).mean()) / (shadow == threshold).mean()
        passes = (scores[run] > threshold) + ties * (scores[run] == threshold)
        true[run], false[run] = passes[members[run]].mean(), passes[~members[run]].mean()
    return true, false


def aucs(scores: NDArray, members: NDArray) -> NDArray[np.float64]:
    """AUC of each run [K]: the probability that a member scores above a non-member; ties count half."""
    ranks, count = rankdata(scores, axis=1), members.sum(1)
    return ((ranks * members).sum(1) - count * (count + 1) / 2) / (count * (members.shape[1] - count))


def advantages(scores: NDArray, members: NDArray) -> NDArray[np.float64]:
    """TPR - FPR of each run [K], at the threshold where it is largest in the other runs (Yeom et al. 2018)."""
    gains = np.empty(len(scores))
    for run in range(len(scores)):
        others = np.arange(len(scores)) != run
        order = np.argsort(scores[others], axis=None)[::-1]
        ranked, inside = scores[others].ravel()[order], members[others].ravel()[order]
        gain = np.cumsum(inside / inside.sum() - ~inside / (~inside).sum())
        passes = scores[run] >= ranked[gain.argmax()]
        gains[run] = passes[members[run]].mean() - passes[~members[run]].mean()
    return gains


def interval(values: NDArray) -> tuple[float, float, float]:
    """Mean of one value for each run, and the ends of its 95 % t-interval."""
    mean, n = values.mean(), len(values)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n)
    return float(mean), float(mean - half), float(mean + half)


def measure(scores: NDArray, members: NDArray, target: float) -> dict[str, float]:
    """Mean over runs, with its interval, of TPR and FPR at the threshold for `target`, of the advantage and of the AUC."""
    both = members.any(1) & ~members.all(1)  # without members, or without others, a run has no rates
    scores, members = scores[both], members[both]
    true, false = rates(scores, members, target)
    metrics: dict[str, float] = {}
    for name, values in (
        ("true_positive_rate", true),
        ("false_positive_rate", false),
        ("advantage", advantages(scores, members)),
        ("auc", aucs(scores, members)),
    ):
        metrics |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))
    return metrics


@dataclass(frozen=True)
class Claim:
    """An (epsilon, delta) claim with its privacy profile: delta(e) at each of EPSILONS."""

    epsilon: float
    delta: float
    profile: NDArray

    @classmethod
    def accounted(cls, epsilon: float, setting: Setting, noise_scale: float) -> Claim:
        deltas = setting.loss_distribution(noise_scale).get_delta_for_epsilon(list(EPSILONS))
        return cls(epsilon, setting.delta, np.array(deltas))

    def ceiling(self, false_positive_rate: float) -> float:
        """The largest TPR that the profile allows: min over e of exp(e) FPR + delta(e)."""
        return float(min(1.0, (np.exp(EPSILONS) * false_positive_rate + self.profile).min()))

    def limits(self, metrics: dict[str, float], target: float) -> dict[str, float | bool]:
        """The ceilings of the claim at FPR `target` and of the advantage, delta(0), and whether intervals refute it."""
        allowed = self.ceiling(metrics["false_positive_rate_high"])
        return {
            "ceiling": self.ceiling(target),
            "advantage_ceiling": max(
                0.0, float(np.interp(0.0, EPSILONS, self.profile))
            ),  # convex: at least delta(0)
            "ceiling_of_epsilon_delta": min(1.0, math.exp(self.epsilon) * target + self.delta),
            "refuted": metrics["true_positive_rate_low"] > allowed + 1e-9,  # more than rounding
        }


NO_LEARNING = Claim(0.0, 0.0, np.maximum(0.0, -np.expm1(EPSILONS)))
