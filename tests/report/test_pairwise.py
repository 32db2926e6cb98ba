"""The order that the papers claim: which pairs are asked for, and what the intervals let one say."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest

from dpzero.errors import UsageError
from dpzero.report.pairwise import order, verdict
from dpzero.report.records import to_frame

ROWS = 1000


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
        (method, epsilon): two
        for method in ("dpzero", "dp_sgd", "dp_zo_gaussian", "dp_votezo")
        for epsilon in "26"
    }
    others = {("adamw", "inf"): two, ("mezo", "inf"): two, ("zero_shot", "0"): (0.4,)}
    assert set(compared(private | others)) == {
        ("fine-tuning over MeZO", "adamw", "mezo", ""),
        *(("MeZO over DPZero", "mezo", "dpzero", epsilon) for epsilon in "26"),
        *(("DPZero over zero-shot", "dpzero", "zero_shot", epsilon) for epsilon in "26"),
        *(("DPZero against DP-SGD", "dpzero", "dp_sgd", epsilon) for epsilon in "26"),
        *(("DPZero against zeroth-order rivals", "dpzero", "dp_zo_gaussian", epsilon) for epsilon in "26"),
        *(
            ("DP-VoteZO against DPZero and its rivals", "dp_votezo", rival, epsilon)
            for rival in ("dpzero", "dp_zo_gaussian")
            for epsilon in "26"
        ),
        *(("DP-VoteZO against DP-SGD", "dp_votezo", "dp_sgd", epsilon) for epsilon in "26"),
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
        ((0.02, 0.021, 0.022), "shown", "behind"),
        ((-0.02, -0.021, -0.022), "refuted", "ahead"),
        ((0.02, -0.021, 0.022), "open", "open"),
        ((0.1, 0.1, 0.1), "open", "open"),  # equal: no interval
        ((0.02,), "–", "–"),
    ],
)
def test_without_bits_a_verdict_follows_from_the_interval_over_seeds(compared, differences, claim, question):
    base = (0.75, 0.5, 0.25)[: len(differences)]
    better = tuple(score + gap for score, gap in zip(base, differences, strict=True))
    rows = compared({("mezo", "inf"): better, ("dpzero", "2"): base, ("dp_sgd", "2"): better})
    assert rows["MeZO over DPZero", "mezo", "dpzero", "2"]["verdict"] == claim
    assert rows["DPZero against DP-SGD", "dpzero", "dp_sgd", "2"]["verdict"] == question


@pytest.mark.parametrize(
    "mean, different_p, equivalent_p, claim, question",
    [
        (0.05, 0.01, 0.9, "shown", "ahead"),
        (-0.05, 0.01, 0.9, "refuted", "behind"),
        (0.001, 0.01, 0.01, "shown", "ahead"),  # a small difference is one
        (0.001, 0.4, 0.01, "equivalent", "equivalent"),
        (0.01, 0.4, 0.5, "open", "open"),
        (0.01, math.nan, math.nan, "open", "open"),
    ],
)
def test_a_verdict_follows_from_two_tests(mean, different_p, equivalent_p, claim, question):
    assert verdict(mean, different_p, equivalent_p, claimed=True) == claim
    assert verdict(mean, different_p, equivalent_p, claimed=False) == question


# --- with one bit for each test row


@pytest.fixture
def answered(record):
    """answered(method, epsilon, seed, bits) -> the record of a run that answered these test rows correctly."""

    def build(method: str, epsilon: str, seed: int, bits: np.ndarray) -> dict:
        one = record(method, epsilon, seed, accuracy=int(bits.sum()) / len(bits))
        packed = base64.b64encode(np.packbits(bits).tobytes()).decode()
        one["metrics"] |= {"examples": len(bits), "correct": packed}
        return one

    return build


def draws(seeds: int, accuracy: float, method: int = 0) -> list[np.ndarray]:
    """Answers of a method that is right on most rows always, and on some by chance of the seed."""
    shared, own = np.random.default_rng(0), np.random.default_rng(1 + method)
    sure = shared.random(ROWS) < accuracy
    return [np.where(own.random(ROWS) < 0.005, ~sure, sure) for _ in range(seeds)]


def lines(records: list[dict]) -> dict:
    table = order(to_frame(records))
    return {(row["first"], row["second"], row["epsilon"]): row for row in table.rows} | {"notes": table.notes}


def test_epsilons_of_another_adjacency_are_not_compared_and_public_rows_make_another_claim(answered):
    records = [
        answered(method, "1", seed, bits)
        for stream, method in enumerate(("dpzero", "dp_sgd", "dp_sgd_replaced", "pazo"))
        for seed, bits in enumerate(draws(5, 0.8, stream))
    ]
    for one in records:
        one["method"]["order"] = 0 if one["cell"]["method"] == "dpzero" else 1
        if one["cell"]["method"] == "dp_sgd_replaced":
            one["privacy"]["adjacency"] = "replace_one"
        if one["cell"]["method"] == "pazo":
            one["cell"]["settings"]["public_examples"] = 64
    rows = order(to_frame(records)).rows
    assert {(row["claim"], row["second"]) for row in rows} == {
        ("DPZero against DP-SGD", "dp_sgd"),
        ("DPZero against methods that read public rows", "pazo"),
    }


def test_bits_tell_three_errors_apart_and_both_decides(answered):
    records = [answered("mezo", "inf", seed, bits) for seed, bits in enumerate(draws(5, 0.9))]
    records += [answered("dpzero", "1", seed, bits) for seed, bits in enumerate(draws(5, 0.7, 1))]
    records += [answered("dpzero", "6", seed, bits) for seed, bits in enumerate(draws(5, 0.9, 2))]
    records += [answered("zero_shot", "0", 0, draws(1, 0.7, 3)[0])]
    rows = lines(records)
    far, near = rows["mezo", "dpzero", "1"], rows["mezo", "dpzero", "6"]
    assert far["verdict"] == "shown" and far["decided_by"] == "both"
    widths = {key: far[f"{key}_high"] - far[f"{key}_low"] for key in ("difference", "rows", "both")}
    assert widths["difference"] < widths["rows"] <= widths["both"] < 0.06
    assert near["verdict"] == "equivalent" and near["_equivalent"] == "yes" and far["_equivalent"] == "–"
    assert far["_difference"] != far["_both"] and far["_both"].startswith("[")
    assert rows["dpzero", "zero_shot", "6"]["verdict"] == "shown"  # its one run counts for every seed
    assert rows["dpzero", "zero_shot", "6"]["difference_n"] == 5
    assert "for all 4 of this table together (Holm, 1979)" in " ".join(rows["notes"])
    assert "within 1 point" in " ".join(rows["notes"])


def test_few_test_rows_leave_open_what_seeds_alone_would_show(answered):
    few = [bits[:60] for bits in draws(5, 0.9)], [bits[:60] for bits in draws(5, 0.86, 1)]
    names = ("mezo", "inf"), ("dpzero", "2")
    (row,) = order(
        to_frame([answered(*names[k], seed, bits) for k in (0, 1) for seed, bits in enumerate(few[k])])
    ).rows
    assert row["difference_low"] > 0 and row["both_low"] < 0 < row["both_high"]
    assert row["verdict"] == "open" and row["difference_p"] > 0.05
    assert row["verdict_these_rows"] == "shown"


def test_many_verdicts_of_a_table_are_corrected_together(answered):
    mezo = [answered("mezo", "inf", seed, bits) for seed, bits in enumerate(draws(5, 0.85))]
    one = [answered("dpzero", "1", seed, bits) for seed, bits in enumerate(draws(5, 0.842, 1))]
    further = [
        answered("dpzero", str(epsilon), seed, bits)
        for epsilon in range(2, 9)
        for seed, bits in enumerate(draws(5, 0.85, epsilon))
    ]
    alone, among = lines(mezo + one), lines(mezo + one + further)
    key = ("mezo", "dpzero", "1")
    assert among[key]["difference_p"] == pytest.approx(min(1, 8 * alone[key]["difference_p"]))
    assert alone[key]["verdict"] == "shown" and among[key]["verdict"] == "open"
    assert among[key]["both_low"] == alone[key]["both_low"]  # an interval is of its own difference


@pytest.mark.parametrize("fault", ["no bits", "drawn rows", "other rows"])
def test_without_the_same_rows_for_all_runs_a_pair_is_decided_over_seeds(answered, fault):
    mezo = [answered("mezo", "inf", seed, bits) for seed, bits in enumerate(draws(3, 0.9))]
    ours = [answered("dpzero", "2", seed, bits) for seed, bits in enumerate(draws(3, 0.9, 1))]
    private = [answered("dp_sgd", "2", seed, bits) for seed, bits in enumerate(draws(3, 0.8, 2))]
    for run in mezo:
        if fault == "no bits":
            del run["metrics"]["correct"]
        elif fault == "drawn rows":
            run["cell"]["settings"]["train_examples"] = 100
        else:
            run["provenance"]["data"]["sha256"] = "c3" * 32
    rows = lines(mezo + ours + private)
    assert rows["mezo", "dpzero", "2"]["decided_by"] == "seeds"
    assert math.isnan(rows["mezo", "dpzero", "2"]["both_low"])
    assert rows["dpzero", "dp_sgd", "2"]["decided_by"] == "both"
    assert "1 of the differences have no interval over rows" in rows["notes"][-1]


def test_bits_that_contradict_the_accuracy_are_refused(answered):
    run = answered("mezo", "inf", 0, draws(1, 0.9)[0])
    run["metrics"]["accuracy"] += 0.01
    with pytest.raises(UsageError, match=r"r8/minilm/mezo/eps-inf/seed-0: metrics\.correct does not have"):
        order(to_frame([run]))


def test_what_the_first_costs_is_given_over_the_second(compared):
    rows = compared({("dpzero", "2"): (0.5, 0.6), ("dp_sgd", "2"): (0.5, 0.6), ("zero_shot", "0"): (0.4,)})
    cost = rows["DPZero against DP-SGD", "dpzero", "dp_sgd", "2"]["forwards_ratio"]
    assert cost == (150 * 16 * 2) / (60 * 16 * 3)
    assert math.isnan(rows["DPZero over zero-shot", "dpzero", "zero_shot", "2"]["forwards_ratio"])


def test_a_head_on_frozen_features_is_compared_with_heads_where_there_are_some(record):
    ours, head, body = (
        record(method, "2", seed) for method in ("dpzero", "dp_sgd", "dp_adam") for seed in (0,)
    )
    for run in (ours, head):
        run["cell"]["settings"]["tune"] = "head"
    (row,) = order(to_frame([ours, head, body])).rows
    assert (row["first"], row["second"]) == ("dpzero", "dp_sgd")
    (row,) = order(to_frame([ours, body])).rows
    assert (row["first"], row["second"]) == ("dpzero", "dp_adam")


def test_a_system_is_compared_with_the_row_that_it_changes(compared):
    two = (0.5, 0.6)
    methods = ("dp_lora", "dp_ffa_lora", "dp_memarc_side", "pazo_mixed", "public_rows", "dp_lora_ghost")
    rows = compared({(method, "2"): two for method in methods})
    assert {key[1:3] for key in rows if key[0] == "variant against its base method"} == {
        ("dp_ffa_lora", "dp_lora"),
        ("dp_memarc_side", "dp_lora"),
        ("pazo_mixed", "public_rows"),
    }


def test_further_rows_of_the_votes_are_compared_with_dpzero_alone(compared):
    two = (0.5, 0.6)
    methods = ("dpzero", "dpzero_full", "dp_sgd", "dp_zoso", "votes", "votes_full", "dp_votezo_quarter")
    rows = compared({(method, "2"): two for method in methods})
    assert {key[1:3] for key in rows if {"votes_full", "dp_votezo_quarter"} & set(key)} == {
        ("votes_full", "dpzero_full"),
        ("dp_votezo_quarter", "dpzero"),
    }


def test_failed_runs_are_no_evidence(record):
    runs = [record("mezo", "inf", 0), record("dpzero", "2", 0, status="oom")]
    (row,) = order(to_frame(runs)).rows
    assert row["verdict"] == "–" and math.isnan(row["difference_mean"])


def test_a_sweep_without_such_a_pair_says_so(record):
    table = order(to_frame([record("dpzero", "2", 0)]))
    assert not table.rows and table.notes == ["No two methods here of which a paper claims an order."]
