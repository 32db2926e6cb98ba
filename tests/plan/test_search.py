"""Equal tries: a search for settings, planned with the runs that report what it chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.files import is_try
from dpzero.plan import search, sweep

SEARCH = """
extends: smoke
tuning: search
search: {tries: 2, seeds: [100, 101]}
seeds: [0]
epsilons: [2]
methods:
  zero_shot: {}
  mezo: {grid: {learning_rate: [1e-3, 1e-2]}}
  dpzero: {grid: [{clip: 1, learning_rate: 0.01}, {clip: 10, learning_rate: 0.001}]}
"""
REPORTED = "toy/tiny-encoder/dpzero/eps-2/seed-0"
FIRST = "toy/tiny-encoder/dpzero@clip1_learning_rate0.01/eps-2/seed-{}"
SECOND = "toy/tiny-encoder/dpzero@clip10_learning_rate0.001/eps-2/seed-{}"


@pytest.fixture
def cells(write) -> dict[str, dict]:
    return write("searched", SEARCH)


def write_scores(folder: Path, scores: dict[str, float | None]) -> Path:
    """Records of tries with these dev scores; None is a run that diverged."""
    for run, score in scores.items():
        (folder / run).parent.mkdir(parents=True, exist_ok=True)
        record = {"metrics": None if score is None else {"accuracy": score}}
        (folder / f"{run}.json").write_text(json.dumps(record), "utf-8")
    return folder


def test_a_clipped_rate_is_the_learning_rate_times_the_clip():
    points = search.points("dpzero", {"clip": [1, 3], "clipped_rate": [0.006]})
    assert points == {
        "clip1_clipped_rate0.006": {"clip": 1, "learning_rate": 0.006},
        "clip3_clipped_rate0.006": {"clip": 3, "learning_rate": 0.002},
    }
    for grid in ({"clipped_rate": [1.0]}, [{"clip": 1, "clipped_rate": 1.0, "learning_rate": 1.0}]):
        with pytest.raises(UsageError, match="is the learning rate times the clip"):
            search.points("dpzero", grid)


def test_each_method_has_its_tries_on_dev_with_the_seeds_of_the_search(cells):
    assert [run for run in cells if not is_try(run)] == [
        "toy/tiny-encoder/zero_shot/eps-0/seed-0",
        "toy/tiny-encoder/mezo/eps-inf/seed-0",
        REPORTED,
    ]
    tries = {run: cell for run, cell in cells.items() if is_try(run)}
    assert len(tries) == 2 * 2 * 2
    assert {cell["settings"]["split"] for cell in tries.values()} == {"dev"}
    assert {cell["seed"] for cell in tries.values()} == {100, 101}
    assert tries[SECOND.format(101)]["settings"]["clip"] == 10
    assert search.try_ids(cells[REPORTED]) == {
        "clip1_learning_rate0.01": [FIRST.format(100), FIRST.format(101)],
        "clip10_learning_rate0.001": [SECOND.format(100), SECOND.format(101)],
    }


@pytest.mark.parametrize("epsilons", [["2"], ["2", "6"]])
def test_a_private_method_is_searched_at_each_epsilon(write, epsilons):
    cells = write("searched", SEARCH, epsilons=epsilons)
    assert {cell["epsilon"] for run, cell in cells.items() if is_try(run) and "dpzero" in run} == set(
        epsilons
    )
    assert sum("mezo@" in run for run in cells) == 4


def test_the_point_with_the_highest_mean_dev_score_is_reported(cells, tmp_path):
    scores = {
        FIRST.format(100): 0.9,
        FIRST.format(101): 0.1,
        SECOND.format(100): 0.6,
        SECOND.format(101): 0.5,
    }
    decided = search.decide(cells[REPORTED], write_scores(tmp_path, scores))
    assert (decided["settings"]["clip"], decided["settings"]["learning_rate"]) == (10, 0.001)
    assert decided["settings"]["split"] == "test"
    assert decided["search"] == {
        "tries": 2,
        "seeds": 2,
        "rule": search.RULE,
        "chosen": "clip10_learning_rate0.001",
        "score": pytest.approx(0.55),
    }
    assert sweep.complete(decided) == decided


def test_a_point_that_failed_with_one_seed_is_not_chosen(cells, tmp_path):
    scores = {
        FIRST.format(100): 0.9,
        FIRST.format(101): None,
        SECOND.format(100): 0.2,
        SECOND.format(101): 0.2,
    }
    chosen = search.decide(cells[REPORTED], write_scores(tmp_path, scores))["search"]
    assert chosen["chosen"] == "clip10_learning_rate0.001"
    scores = dict.fromkeys(scores)
    assert search.decide(cells[REPORTED], write_scores(tmp_path, scores))["search"]["score"] is None


def test_a_try_without_a_record_is_named(cells, tmp_path):
    with pytest.raises(
        UsageError, match=r"try .*dpzero@clip1_learning_rate0.01/eps-2/seed-100 has no record"
    ):
        search.decide(cells[REPORTED], tmp_path)


REFUSED = {
    "unequal tries": (
        "tries: 2",
        "tries: 3",
        "method mezo has a grid of 2 points, but each method has 3 tries",
    ),
    "a reported seed": ("[100, 101]", "[0, 100]", "seed 0 is reported and searched with"),
    "a point twice": ("0.001}]", "0.001}, {clip: 1, learning_rate: 0.01}]", "its grid has a point twice"),
    "a release": (
        "seeds: [0]",
        "seeds: [0]\nsettings: {noise_key: secret}",
        "a search with noise_key secret",
    ),
    "no search": (
        "search: {tries: 2, seeds: [100, 101]}",
        "",
        "tuning search and the key search belong together",
    ),
    "no tries": ("tries: 2, ", "", "tries"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_that_is_no_fair_comparison_is_refused(write, case):
    old, new, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        write("searched", SEARCH.replace(old, new))


def of_dp_sgd(write, grid: str) -> dict[str, dict]:
    """The points of a search of DP-SGD, whose clip is 1 where a point names none."""
    stanza = f"{{clip: 1, learning_rate: 0.1, grid: {grid}}}"
    text = (
        f"extends: smoke\ntuning: search\nsearch: {{tries: 2, seeds: [9]}}\nmethods: {{dp_sgd: {stanza}}}\n"
    )
    return next(iter(write("one", text, epsilons=["2"], seeds=[0]).values()))["search"]["grid"]


def test_a_grid_of_what_is_not_read_is_refused(write):
    with pytest.raises(UsageError, match=r"dp_sgd@stability0\.1: stability is for clip_rule automatic"):
        of_dp_sgd(write, "{stability: [0.01, 0.1]}")


def test_a_default_is_a_point_like_another(write):
    points = of_dp_sgd(write, "{clip_rule: [flat, automatic]}")
    assert list(points.values()) == [{"clip_rule": "flat"}, {"clip_rule": "automatic"}]


def test_what_the_first_point_names_is_not_left_to_the_others(write):
    points = of_dp_sgd(write, "[{clip: 3, clip_rule: automatic, stability: 0.1}, {learning_rate: 0.2}]")
    others = {"clip": 1.0, "clip_rule": "flat", "stability": 0.01}
    assert points["learning_rate0.2"] == {"learning_rate": 0.2} | others


def test_the_heading_says_how_many_tries_each_method_had(write):
    write("searched", SEARCH)
    rule = sweep.rule_of_choice(sweep.read("searched"))
    assert rule == "settings best of 2 tries on dev for each method, task and ε (not accounted)"
