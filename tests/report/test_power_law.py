"""Exponents of the dimension, their intervals, and the verdict that they allow."""

from __future__ import annotations

import math

import numpy
import pytest

from dpzero.report.power_law import Fit, difference, power, verdict

DIMENSIONS = (20, 50, 100, 200, 500, 1000, 2000)
NAMES = {"rank_d": "O(d)", "rank_log_d": "O(log d)"}


def log_norms(exponent: float, factor: float = 1.0, scatter: float = 0.0, seed: int = 0) -> dict[int, float]:
    noise = numpy.random.default_rng(seed).normal(0, scatter, len(DIMENSIONS)) if scatter else numpy.zeros(7)
    return {d: math.log(factor) + exponent * math.log(d) + e for d, e in zip(DIMENSIONS, noise, strict=True)}


def test_a_power_law_gives_its_exponent_and_no_interval():
    fit = power(log_norms(0.44, factor=3))
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((0.44, 0.44, 0.44))
    assert str(power(log_norms(-0.5))) == "−0.50 [−0.50, −0.50]"


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    fits = [power(log_norms(0.3, scatter=0.2, seed=seed)) for seed in range(2000)]
    covered = sum(fit.low <= 0.3 <= fit.high for fit in fits)
    # binomial(2000, 0.95): five standard deviations are 49, a false-alarm rate below 1e-6
    assert abs(covered - 1900) < 49


def test_scatter_that_two_methods_share_cancels_in_their_difference():
    wild = log_norms(0.0, scatter=1.0)
    upper = {d: 0.7 * math.log(d) + wild[d] for d in DIMENSIONS}
    lower = {d: 0.4 * math.log(d) + wild[d] for d in DIMENSIONS}
    gap = difference(power(upper), power(lower))
    assert gap.low == pytest.approx(0.3) == gap.high and power(lower).high - power(lower).low > 0.3


def test_two_dimensions_or_a_zero_norm_give_no_fit():
    assert power({20: 0.0, 50: 1.0}) is None and power(log_norms(1) | {20: -math.inf}) is None
    assert difference(power(log_norms(1)), power({1: 0.0, 2: 1.0, 20: 2.0, 50: 3.0})) is None


def verdict_text(
    wide: float, low: float, theirs: float, scatter: float = 0.01, shares: dict | None = None
) -> str:
    fits: dict[tuple[str, str], Fit | None] = {
        ("rank_d", "dpzero"): power(log_norms(wide, scatter=scatter)),
        ("rank_log_d", "dpzero"): power(log_norms(low, scatter=scatter, seed=1)),
        ("rank_log_d", "dpgd_0th"): power(log_norms(theirs, scatter=scatter, seed=2)),
        ("rank_log_d", "mezo"): None,
    }
    return "\n".join(verdict(fits, NAMES, {"rank_log_d": shares} if shares else {}))


def test_the_verdict_is_yes_if_the_intervals_are_apart():
    text = verdict_text(1.0, 0.0, 0.5)
    assert "falls with the effective rank: yes (from 1.0" in text
    assert "lies below DPGD-0th's: yes" in text and "may be independent of d (0 is in the interval)" in text


def test_the_verdict_is_no_if_reversed_and_open_if_the_interval_holds_zero():
    assert "lies below DPGD-0th's: no, the other way round" in verdict_text(1.0, 0.5, 0.2)
    assert "lies below DPGD-0th's: not decided" in verdict_text(1.0, 0.5, 0.52, scatter=0.5)


def test_a_nonzero_exponent_is_explained_by_the_norm_without_privacy():
    assert "is not independent of d: 0.4" in verdict_text(1.0, 0.4, 0.6)
    unfinished = verdict_text(1.0, 0.4, 0.6, shares={20: 0.0, 200: 0.6, 2000: 0.8})
    assert "MeZO, without clip and noise, has 0, 60, 80 % of DPZero's norm at d = 20, 200, 2000" in unfinished
    assert (
        "From d = 200 on most of the norm is optimisation that the steps of the grid do not finish"
        in unfinished
    )
    assert "Most of the norm is the price of privacy" in verdict_text(1.0, 0.4, 0.6, shares={2000: 0.1})


def test_the_ratio_of_the_norms_is_given_at_both_ends_and_at_its_largest():
    bent = log_norms(0.5) | {200: 9.0}
    fits = {("rank_log_d", "dpzero"): power(log_norms(0.5)), ("rank_log_d", "dpgd_0th"): power(bent)}
    text = "\n".join(verdict(fits, NAMES, {}))
    largest = math.exp(9.0 - 0.5 * math.log(200))
    assert f"over DPZero's is 1.0 at d = 20, {largest:.1f} at d = 200, 1.0 at d = 2000." in text


def test_a_method_without_runs_has_no_verdict():
    assert verdict({("rank_log_d", "dpgd_0th"): power(log_norms(1))}, NAMES, {}) == []
