"""Mean, spread and intervals of a few seeds, against scipy and against arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpzero.report.statistics import paired_difference, summarise

SCORES = st.floats(0, 1, allow_subnormal=False)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, on equal values
@given(st.lists(SCORES, min_size=2, max_size=12))
def test_the_interval_is_the_t_interval_of_scipy(values):
    summary = summarise(values)
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    assert summary.high - summary.mean == pytest.approx(half, rel=1e-9, abs=1e-12)
    assert summary.mean - summary.low == pytest.approx(half, rel=1e-9, abs=1e-12)
    assert summary.std == pytest.approx(stats.tstd(values), rel=1e-9, abs=1e-12)


@given(st.lists(SCORES, max_size=12), st.randoms())
def test_the_order_of_the_seeds_changes_no_digit(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert repr(summarise(shuffled)) == repr(summarise(values))


@given(SCORES)
def test_one_value_has_no_spread(value):
    summary = summarise([value])
    assert (summary.n, summary.mean) == (1, value)
    assert math.isnan(summary.std) and math.isnan(summary.low) and math.isnan(summary.high)


def test_absent_values_do_not_count():
    assert summarise([0.5, math.nan]).n == 1
    assert summarise([]).n == 0
    assert math.isnan(summarise([]).mean)


@given(st.dictionaries(st.integers(0, 9), SCORES), st.dictionaries(st.integers(0, 9), SCORES))
def test_a_paired_difference_uses_the_seeds_that_both_have(values, reference):
    shared = values.keys() & reference.keys()
    assert paired_difference(values, reference).n == len(shared)


@given(st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=3), st.floats(-0.5, 0.5))
def test_what_a_seed_does_to_both_methods_cancels(luck, gain):
    apart = paired_difference({seed: x + gain for seed, x in luck.items()}, luck)
    assert apart.mean == pytest.approx(gain, abs=1e-9)
    assert apart.high - apart.low == pytest.approx(0, abs=1e-9)
