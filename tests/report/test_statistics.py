"""Mean, spread and intervals of a few seeds and of test rows, against scipy, arithmetic and simulation."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import stdtrit

from dpzero.report.statistics import Estimate, errors, holm, paired_difference, summarise

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


# --- seeds and test rows


def answers(generator, seeds, rows, gap=0.0, of_seed=0.2, of_row=0.3):
    """Differences [S, R] of two methods whose right answers depend on row, method, seed and chance."""
    ease, right = generator.normal(1, 1.5, rows), []
    for better in (0.0, gap):
        own = generator.normal(0, of_row, rows) + generator.normal(0, of_seed, (seeds, 1))
        right.append(ease + better + own + generator.logistic(0, 1, (seeds, rows)) > 0)
    return right[1].astype(float) - right[0]


def test_the_closed_forms_are_the_variances_of_resampled_means():
    generator = numpy.random.default_rng(0)
    values, (seeds, rows), draws = answers(generator, 8, 40, of_seed=1, of_row=2), (8, 40), 20_000
    some_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, draws) / seeds
    some_rows = generator.multinomial(rows, [1 / rows] * rows, draws) / rows
    found = errors(values)
    by_seeds, by_rows = (some_seeds @ values.mean(1)).var(), (some_rows @ values.mean(0)).var()
    both = numpy.einsum("ds,sr,dr->d", some_seeds, values, some_rows).var()
    assert by_seeds == pytest.approx(found["seeds"].error ** 2 * 7 / 8, rel=0.05)
    assert by_rows == pytest.approx(found["rows"].error ** 2 * 39 / 40, rel=0.05)
    surplus = both - by_seeds - by_rows  # the interaction, which each of these has once already
    unbiased = by_seeds * 8 / 7 + by_rows * 40 / 39 - surplus * (8 / 7) * (40 / 39)
    assert found["both"].error ** 2 == pytest.approx(unbiased, rel=0.05)


@pytest.mark.parametrize("seeds, rows", [(3, 277), (5, 872), (10, 872)])
@pytest.mark.parametrize("of_seed, of_row", [(0.0, 0.0), (0.2, 0.0), (0.1, 0.5)])
def test_the_interval_over_both_covers_and_finds_what_is_there(seeds, rows, of_seed, of_row):
    """With texts and seeds drawn anew: at most 7.5 % false alarms, expected none to 5; three seeds hardly ever show anything."""
    generator, runs = numpy.random.default_rng(seeds * rows), 300
    equal = [errors(answers(generator, seeds, rows, 0.0, of_seed, of_row)) for _ in range(runs)]
    alarms = {k: numpy.mean([one[k].difference_p() < 0.05 for one in equal]) for k in equal[0]}
    assert (0.0 if seeds > 3 else -1.0) < alarms["both"] <= 0.075
    excluded = [not one["both"].interval()[0] < 0 < one["both"].interval()[1] for one in equal]
    assert numpy.mean(excluded) == alarms["both"]
    if of_seed == 0.2:
        assert alarms["rows"] > 0.15  # it is about these seeds alone
    better = [errors(answers(generator, seeds, rows, 2.0, of_seed, of_row)) for _ in range(50)]
    assert numpy.mean([one["both"].difference_p() < 0.05 and one["both"].mean > 0 for one in better]) > 0.9


@pytest.mark.parametrize("seeds", [5, 10])
def test_few_seeds_that_happen_to_agree_raise_no_false_alarm_at_the_level_of_many_verdicts(seeds):
    """At level .001 some 3 and 10 of 20,000 alarms are seen, where 20 are allowed: more than 30 have a probability below 1e-6.

    Satterthwaite's own degrees of freedom give 68 with five seeds.
    """
    generator, tables, rows = numpy.random.default_rng(seeds), 20_000, 60
    values = generator.normal(0, 1, (tables, seeds, rows)) + generator.normal(0, 1, (tables, 1, rows))
    values += generator.normal(0, 0.5, (tables, seeds, 1))
    assert sum(errors(one)["both"].difference_p() < 0.001 for one in values) <= 30


def test_one_method_compared_with_itself_has_no_error():
    assert all(math.isnan(one.error) and one.mean == 0 for one in errors(numpy.zeros((3, 20))).values())
    assert all(math.isnan(one.difference_p()) for one in errors(numpy.ones((1, 20))).values())


def test_equivalence_is_shown_if_both_ends_of_the_90_per_cent_interval_are_within_the_margin():
    for mean in (-0.004, 0.0, 0.004):
        for error in (0.002, 0.003, 0.004, 0.006):
            half = float(stdtrit(9, 0.95)) * error
            within = abs(mean) + half < 0.01
            assert (Estimate(mean, error, 9).equivalence_p(0.01) < 0.05) == within
    assert Estimate(0.02, 0.001, 9).equivalence_p(0.01) > 0.99


def test_holm_multiplies_the_smallest_by_the_number_of_tests():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
