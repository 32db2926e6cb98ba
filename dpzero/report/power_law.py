"""The exponent of a power law in the dimension, with its interval, and what the exponents of DPZero's experiment say of its claim."""

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
    """norm ~ d^exponent, with a 95 % t-interval, and the log norms by dimension that it is of."""

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
    """The fit of the ratio of two norms, dimension by dimension: what they share, as the grid's steps, cancels."""
    shared = sorted(of.logs.keys() & less.logs.keys())
    return power({dimension: of.logs[dimension] - less.logs[dimension] for dimension in shared})


def verdict(
    fits: Mapping[tuple[str, str], Fit | None],
    names: Mapping[str, str],
    without_privacy: Mapping[str, Mapping[int, float]],
) -> list[str]:
    """On the claim, one sentence a part of it that the fits can decide.

    The claim: DPZero's exponent falls with the effective rank, at O(log d) lies below that of the vector-noise baseline, and is
    nearly zero.

    Args:
        names: of the rank laws.
        without_privacy: rank law -> dimension -> MeZO's norm over DPZero's.
    """
    said = []
    wide, low = fits.get(("rank_d", "dpzero")), fits.get(("rank_log_d", "dpzero"))
    if wide and low:
        lead = f"from {wide} at rank O(d) to {low} at rank O(log d)"
        said.append(_decided("DPZero's exponent falls with the effective rank", difference(wide, low), lead))
    for rank in (name for name in names if name.startswith("rank_log_d")):
        ours, theirs = fits.get((rank, "dpzero")), fits.get((rank, "dpgd_0th"))
        if ours and theirs:
            claim, gap = (
                f"At rank {names[rank]} DPZero's exponent lies below DPGD-0th's",
                difference(theirs, ours),
            )
            said.append(_decided(claim, gap, f"{ours} against {theirs}") + _ratios(gap))
        if ours:
            said.append(_independence(ours, without_privacy.get(rank), names[rank]))
    return [f"Verdict. {sentence}" for sentence in said]


def _decided(claim: str, gap: Fit, lead: str) -> str:
    answer = "yes" if gap.low > 0 else "no, the other way round" if gap.high < 0 else "not decided"
    return f"{claim}: {answer} ({lead}; difference {gap})."


def _ratios(gap: Fit) -> str:
    """How the ratio of the norms runs with the dimension: at the first, where it is largest, at the last."""
    places = dict.fromkeys((min(gap.logs), max(gap.logs, key=lambda d: gap.logs[d]), max(gap.logs)))
    ratios = ", ".join(f"{math.exp(gap.logs[d]):.1f} at d = {d}" for d in places)
    return f" DPGD-0th's norm over DPZero's is {ratios}."


def _independence(ours: Fit, shares: Mapping[int, float] | None, rank: str) -> str:
    """Whether the exponent may be zero, and where optimisation and not privacy sets the norm."""
    may_be = ours.low <= 0 <= ours.high
    answer = "is independent of d as far as the interval tells" if may_be else "is not independent of d"
    said = f"At rank {rank} DPZero {answer}: {ours}."
    if not shares:
        return said
    dimensions = sorted(shares)
    cents = ", ".join(f"{100 * shares[d]:.0f}" for d in dimensions)
    places = ", ".join(map(str, dimensions))
    last_finished = max((d for d in dimensions if shares[d] <= 0.5), default=0)
    unfinished = [d for d in dimensions if d > last_finished]
    return (
        f"{said} MeZO, without clip and noise, has {cents} % of DPZero's norm at d = {places}: "
        + (f"from d = {unfinished[0]} on " if unfinished and len(unfinished) < len(shares) else "")
        + (
            "what is left is optimisation that the grid's steps do not finish, more than the price of privacy."
            if unfinished
            else "the larger part of it is the price of privacy."
        )
    )
