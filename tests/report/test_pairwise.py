"""The order that the papers claim: which pairs are asked for, and what the interval lets one say."""

from __future__ import annotations

import math

import pytest

from dpzero.report.pairwise import order, verdict
from dpzero.report.records import to_frame
from dpzero.report.statistics import summarise


@pytest.fixture
def compared(record):
    """compared({(method, epsilon): scores by seed}) -> the lines of the table, by claim and epsilon."""

    def build(scores: dict) -> dict:
        records = [
            record(method, epsilon, seed, accuracy=score)
            for (method, epsilon), values in scores.items()
            for seed, score in enumerate(values)
        ]
        return {
            (row["claim"], row["first"], row["second"], row["epsilon"]): row
            for row in order(to_frame(records)).rows
        }

    return build


def test_each_pair_is_compared_at_each_epsilon(compared):
    two = (0.5, 0.6)
    private = {
        (method, epsilon): two for method in ("dpzero", "dp_sgd", "dp_zo_gaussian") for epsilon in "26"
    }
    others = {("adamw", "inf"): two, ("mezo", "inf"): two, ("zero_shot", "0"): (0.4,)}
    assert set(compared(private | others)) == {
        ("fine-tuning over MeZO", "adamw", "mezo", ""),
        *(("MeZO over DPZero", "mezo", "dpzero", epsilon) for epsilon in "26"),
        *(("DPZero over zero-shot", "dpzero", "zero_shot", epsilon) for epsilon in "26"),
        *(("DPZero against DP-SGD", "dpzero", "dp_sgd", epsilon) for epsilon in "26"),
    }


def test_differences_are_paired_and_zero_shot_counts_for_every_seed(compared):
    scores = {
        ("mezo", "inf"): (0.70, 0.80, 0.90),
        ("dpzero", "2"): (0.68, 0.79, 0.87),
        ("zero_shot", "0"): (0.50,),
    }
    rows = compared(scores)
    over = rows["MeZO over DPZero", "mezo", "dpzero", "2"]
    assert over["difference_mean"] == pytest.approx(0.02) and over["difference_std"] == pytest.approx(0.01)
    assert over["verdict"] == "open"  # 0.02 +- 0.025
    assert rows["DPZero over zero-shot", "dpzero", "zero_shot", "2"]["difference_n"] == 3
    assert rows["DPZero over zero-shot", "dpzero", "zero_shot", "2"]["verdict"] == "shown"  # 0.28 +- 0.24


@pytest.mark.parametrize(
    "differences, claim, question",
    [
        ((0.02, 0.021, 0.022), "shown", "ahead"),
        ((-0.02, -0.021, -0.022), "refuted", "behind"),
        ((0.02, -0.021, 0.022), "open", "open"),
        ((0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6), "open", "open"),  # equal but for rounding: no interval
        ((0.02,), "–", "–"),
        ((), "–", "–"),
    ],
)
def test_a_verdict_follows_from_the_interval(differences, claim, question):
    assert verdict(summarise(differences), claimed=True) == claim
    assert verdict(summarise(differences), claimed=False) == question


def test_failed_runs_are_no_evidence(record):
    runs = [record("mezo", "inf", 0), record("dpzero", "2", 0, status="oom")]
    (row,) = order(to_frame(runs)).rows
    assert row["verdict"] == "–" and math.isnan(row["difference_mean"])


def test_a_sweep_without_such_a_pair_says_so(record):
    table = order(to_frame([record("dpzero", "2", 0)]))
    assert not table.rows and table.notes == ["No two methods here of which a paper claims an order."]
