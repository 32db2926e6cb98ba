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


def verdict(fits: Mapping[tuple[str, str], Fit | None], names: Mapping[str, str]) -> list[str]:
    """On the claim, one sentence a part of it that the fits can decide; `names` of the rank laws, the widest first.

    The claim: DPZero's exponent falls with the effective rank, at O(log d) lies below that of the vector-noise baseline, and is
    nearly zero.
    """
    said = []
    wide, low = fits.get(("rank_d", "dpzero")), fits.get(("rank_log_d", "dpzero"))
    if wide and low:
        lead = f"from {wide} at rank O(d) to {low} at rank O(log d)"
        said.append(_decided("DPZero's exponent falls with the effective rank", difference(wide, low), lead))
    for rank in (name for name in names if name.startswith("rank_log_d")):
        ours, theirs = fits.get((rank, "dpzero")), fits.get((rank, "dpgd_0th"))
        if not ours:
            continue
        if theirs:
            claim = f"At rank {names[rank]} DPZero's exponent lies below DPGD-0th's"
            said.append(_decided(claim, difference(theirs, ours), f"{ours} against {theirs}"))
        said.append(_independence(ours, fits.get((rank, "mezo")), names[rank]))
    return [f"Verdict. {sentence}" for sentence in said]


def _decided(claim: str, gap: Fit, lead: str) -> str:
    answer = "yes" if gap.low > 0 else "no, the other way round" if gap.high < 0 else "not decided"
    return f"{claim}: {answer} ({lead}; difference {gap})."


def _independence(ours: Fit, without_privacy: Fit | None, rank: str) -> str:
    """Whether the exponent may be zero, and if not whether privacy is the reason."""
    if ours.low <= 0 <= ours.high:
        return f"At rank {rank} DPZero is independent of d as far as the interval tells: {ours}."
    said = f"At rank {rank} DPZero is not independent of d: {ours}."
    if not without_privacy:
        return said
    largest = max(ours.logs)
    share = math.exp(without_privacy.logs[largest] - ours.logs[largest])
    return (
        f"{said} MeZO, without clip and noise, grows by {without_privacy} and has {100 * share:.0f} % of DPZero's norm at "
        f"d = {largest}: "
        + (
            "the reason is the optimisation, which does not finish within the grid's steps, more than the privacy."
            if share > 0.5
            else "the larger part is the privacy's."
        )
    )
