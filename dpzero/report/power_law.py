"""The exponent of a power law in the dimension with its interval, and the verdicts on DPZero's claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy
from scipy.special import stdtrit

from dpzero.report.statistics import CONFIDENCE

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


def enough(logs: Mapping[int, float]) -> bool:
    return len(logs) >= FEWEST and all(math.isfinite(value) for value in logs.values())


def power(logs: Mapping[int, float]) -> Fit:
    """Least squares of log norms on the logs of their dimensions, at least FEWEST of them."""
    x = numpy.log(sorted(logs))
    y = numpy.array([logs[dimension] for dimension in sorted(logs)])
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    residuals = y - y.mean() - slope * away
    free = len(x) - 2
    half = float(stdtrit(free, (1 + CONFIDENCE) / 2)) * math.sqrt(
        residuals @ residuals / free / (away @ away)
    )
    return Fit(slope, slope - half, slope + half, dict(logs))


def difference(of: Fit, less: Fit) -> Fit:
    """The fit of the ratio of two norms by dimension; common effects, such as the grid, cancel."""
    shared = sorted(of.logs.keys() & less.logs.keys())
    return power({dimension: of.logs[dimension] - less.logs[dimension] for dimension in shared})


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
        without_privacy: rank law -> dimension -> MeZO's norm over DPZero's.
    """
    sentences = []
    wide, low = fits.get(("rank_d", "dpzero")), fits.get(("rank_log_d", "dpzero"))
    if wide and low:
        lead = f"from {wide} at rank O(d) to {low} at rank O(log d)"
        sentences.append(
            _decided("DPZero's exponent falls with the effective rank", difference(wide, low), lead)
        )
    for rank in (name for name in names if name.startswith("rank_log_d")):
        ours, theirs = fits.get((rank, "dpzero")), fits.get((rank, "dpgd_0th"))
        if ours and theirs:
            claim, gap = (
                f"At rank {names[rank]} DPZero's exponent lies below DPGD-0th's",
                difference(theirs, ours),
            )
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
    dimensions = sorted(ratios)
    percentages = ", ".join(f"{100 * ratios[d]:.0f}" for d in dimensions)
    converged = [d for d in dimensions if ratios[d] <= 0.5]
    unfinished = [d for d in dimensions if not converged or d > max(converged)]
    places = ", ".join(map(str, dimensions))
    sentence += f" MeZO, without clip and noise, has {percentages} % of DPZero's norm at d = {places}."
    if not unfinished:
        return f"{sentence} Most of the norm is the price of privacy."
    start = f" From d = {unfinished[0]} on" if len(unfinished) < len(ratios) else " Everywhere"
    return f"{sentence}{start} most of the norm is optimisation that the steps of the grid do not finish."
