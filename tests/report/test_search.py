"""The table and the curve of a search."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest

from dpzero.report.search import expected_best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_expected_best_is_the_mean_over_all_choices_of_tries(k):
    values = [0.3, 0.9, 0.5, 0.7, 0.5]
    expected = fmean(max(chosen) for chosen in combinations(values, k))
    assert expected_best(values, k) == pytest.approx(expected)


def test_a_failed_try_counts_as_no_right_answer():
    assert expected_best([0.8, -math.inf], 1) == pytest.approx(0.4)
    assert expected_best([0.8, -math.inf], 2) == pytest.approx(0.8)
