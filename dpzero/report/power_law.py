"""The exponent of a power law in the dimension with its interval, and the verdicts on DPZero's claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy

from dpzero.report.statistics import quantile

FEWEST = 3  # points for a line with an interval


@dataclass(frozen=True)
class Fit:
    """norm ~ d^exponent with a 95 % t-interval, and the fitted log norms by dimension."""

    exponent: float
    low: float
    high: float
    logs: Mapping[int, float]

    def __str__(self) -> str:
        return f"{self.exponent:.2f} [{self.low:.2f}, {self.high:.2f}]".replace("-", "−")


def power(logs: Mapping[int, float]) -> Fit | None:
    """Least squares of log norms on the logs of their dimensions; None for too few or a norm of zero."""
    if len(logs) < FEWEST or not all(map(math.isfinite, logs.values())):
        return None
    (slope, _), covariance = numpy.polyfit(numpy.log(list(logs)), list(logs.values()), 1, cov=True)
    half = quantile(len(logs) - 2) * math.sqrt(covariance[0, 0])
    return Fit(float(slope), float(slope - half), float(slope + half), dict(logs))


def difference(fit: Fit, other: Fit) -> Fit | None:
    """The fit of the ratio of two norms by dimension; common effects, such as the grid, cancel."""
    return power({d: log - other.logs[d] for d, log in fit.logs.items() if d in other.logs})


def verdict(
    fits: Mapping[tuple[str, str], Fit | None],
    names: Mapping[str, str],
    without_privacy: Mapping[str, Mapping[int, float]],
) -> list[str]:
    """Verdicts on the claim, one sentence for each part that the fits can decide.

    The claim: DPZero's exponent falls with the effective rank, at O(log d) lies below that of the vector-
    noise baseline, and is nearly zero.

    Args:
        names: of the rank laws.
        without_privacy: rank law -> dimension, ascending -> MeZO's norm over DPZero's.
    """
    sentences = []
    wide, low = fits.get(("rank_d", "dpzero")), fits.get(("rank_log_d", "dpzero"))
    if wide and low and (gap := difference(wide, low)):
        lead = f"from {wide} at rank O(d) to {low} at rank O(log d)"
        sentences.append(_decided("DPZero's exponent falls with the effective rank", gap, lead))
    for rank in (name for name in names if name.startswith("rank_log_d")):
        ours, theirs = fits.get((rank, "dpzero")), fits.get((rank, "dpgd_0th"))
        if ours and theirs and (gap := difference(theirs, ours)):
            claim = f"At rank {names[rank]} DPZero's exponent lies below DPGD-0th's"
            sentences.append(_decided(claim, gap, f"{ours} against {theirs}") + _ratios(gap))
        if ours:
            sentences.append(_independence(ours, without_privacy.get(rank), names[rank]))
    return [f"Verdict. {sentence}" for sentence in sentences]


def _decided(claim: str, gap: Fit, lead: str) -> str:
    answer = "yes" if gap.low > 0 else "no, the other way round" if gap.high < 0 else "not decided"
    return f"{claim}: {answer} ({lead}; difference {gap})."


def _ratios(gap: Fit) -> str:
    """The ratio of the norms at the first dimension, where it is largest and at the last."""
    places = dict.fromkeys((min(gap.logs), max(gap.logs, key=lambda d: gap.logs[d]), max(gap.logs)))
    ratios = ", ".join(f"{math.exp(gap.logs[d]):.1f} at d = {d}" for d in places)
    return f" DPGD-0th's norm over DPZero's is {ratios}."


def _independence(ours: Fit, ratios: Mapping[int, float] | None, rank: str) -> str:
    """Whether the exponent may be zero, and from which dimension optimisation dominates the norm."""
    may_be = ours.low <= 0 <= ours.high
    answer = "may be independent of d (0 is in the interval)" if may_be else "is not independent of d"
    sentence = f"At rank {rank} DPZero {answer}: {ours}."
    if not ratios:
        return sentence
    percentages = ", ".join(f"{100 * ratio:.0f}" for ratio in ratios.values())
    places = ", ".join(map(str, ratios))
    sentence += f" MeZO, without clip and noise, has {percentages} % of DPZero's norm at d = {places}."
    converged = max((d for d, ratio in ratios.items() if ratio <= 0.5), default=0)
    unfinished = [d for d in ratios if d > converged]
    if not unfinished:
        return f"{sentence} Most of the norm is the price of privacy."
    start = f" From d = {unfinished[0]} on" if len(unfinished) < len(ratios) else " Everywhere"
    return f"{sentence}{start} most of the norm is optimisation that the steps of the grid do not finish."
