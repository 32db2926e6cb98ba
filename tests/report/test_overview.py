"""The documents that are generated from committed tables."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas
import pytest

from dpzero.errors import UsageError
from dpzero.report import overview
from dpzero.report.statistics import Summary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A copy of the tables, and a README.md with an empty generated part."""
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".csv", ".md", ".json") and "runs/" not in str(path):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    (tmp_path / "README.md").write_text(f"before\n{overview.START}\nold\n{overview.END}\nafter\n")
    return tmp_path


def test_the_generated_part_is_replaced_and_the_rest_kept(project):
    assert overview.update(project, check=True) == ["README.md"]
    assert "\nold\n" in (project / "README.md").read_text()
    assert overview.update(project, check=False) == ["README.md"]
    text = (project / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert overview.update(project, check=True) == []


def test_an_edited_number_is_detected(project):
    overview.update(project, check=False)
    results = project / "results/README.md"
    results.write_text(results.read_text().replace("72.4", "92.4"))
    assert overview.update(project, check=True) == ["results/README.md"]


def test_a_readme_without_marks_is_refused(project):
    (project / "README.md").write_text("nothing\n")
    with pytest.raises(UsageError, match="has no generated part"):
        overview.update(project, check=False)


def test_a_table_that_is_missing_is_named(project):
    (project / "results/heads/tables/memory.csv").unlink()
    with pytest.raises(UsageError, match=r"memory.csv cannot be read"):
        overview.update(project, check=True)


def test_an_added_sweep_has_a_section_of_its_name(project):
    shutil.copytree(project / "results/full", project / "results/a-new-one")
    assert "\n## a-new-one\n" in overview.all_results(project / "results")


def test_the_seeds_of_tries_are_not_among_the_reported_ones():
    folder = ROOT / "results" / "small-epsilon"
    assert 100 in overview.read(folder, "runs")["seed"].tolist()
    assert sorted(overview.training(folder)["runs"]["seed"].unique()) == [0, 1, 2, 3, 4]


def test_claims_of_information_do_not_count_among_those_of_epsilon():
    found = overview.guarantees(ROOT / "results")
    rows = overview.read(ROOT / "results" / "guarantees", "guarantees")
    assert len(found["rows"]) + len(found["subsets"]) == len(rows)
    assert set(found["subsets"]["title"]) == {"PACZero"} and found["unbounded"] == len(found["subsets"])


def test_one_seed_is_no_mean_and_the_best_of_a_grid_says_of_how_many():
    one = {"score_n": 1, "score_mean": 0.5, "epsilon": "inf", "status": "ok"}
    one |= dict.fromkeys(("score_std", "score_low", "score_high"), math.nan)
    assert overview.score(one) == "50.0 (one seed)"
    assert overview.score(one | {"score_n": 3, "score_std": 0.01}) == "50.0 ± 1.0"
    assert overview.score(one | {"score_n": 0, "status": "oom"}) == "OOM"
    assert all("best of" in line for line in overview.grids(ROOT / "results"))


def test_a_verdict_that_is_not_reached_is_in_none():
    pairs = [
        {
            "task": task,
            "claim": "MeZO over DPZero",
            "first": "mezo",
            "second": "dpzero",
            "epsilon": epsilon,
            "verdict": verdict,
        }
        | Summary(3, 0.05, 0.02, 0.01, 0.09).columns("difference")
        for task, epsilon, verdict in (
            ("a", "2", "shown"),
            ("a", "6", "shown"),
            ("b", "2", "shown"),
            ("b", "6", "open"),
        )
    ]
    sentence, undecided = overview.verdicts(pandas.DataFrame(pairs), {})
    assert undecided == "Open: 1 of 4."
    places = "a at every ε, b at ε = 2"
    assert (
        sentence
        == f"MeZO over DPZero: shown in 3 of 4 ({places}), largest difference +5.0 [1.0, 9.0]; refuted in none of 4."
    )


def test_intervals_over_seeds_and_test_rows_go_first_and_equivalence_is_counted():
    both = {"both_low": 0.001, "both_high": 0.009, "difference_p": 0.6, "equivalence_p": 0.01}
    pair = {"task": "a", "claim": "MeZO over DPZero", "first": "mezo", "second": "dpzero", "epsilon": "2"}
    pair |= {"verdict": "equivalent"} | Summary(3, 0.005, 0.02, 0.004, 0.006).columns("difference") | both
    sentence, undecided = overview.verdicts(pandas.DataFrame([pair]), {})
    assert "equivalent in 1 of 1 (a), largest difference +0.5 [0.1, 0.9]" in sentence
    assert undecided == "Open: 0 of 1. Half of the intervals reach further than 0.4 points to each side."
    assert overview.difference(pair | {"both_low": math.nan}) == "+0.5 [0.4, 0.6]"


def test_a_part_s_gain_is_the_mean_over_tasks_whichever_stands_first():
    pair = {"epsilon": "2"}
    pairs = [
        pair
        | {"task": "a", "first": "dpzero", "second": "joint", "difference_mean": -0.02, "verdict": "behind"},
        pair
        | {"task": "b", "first": "dpzero", "second": "joint", "difference_mean": 0.01, "verdict": "open"},
        pair
        | {"task": "a", "first": "votes", "second": "dpzero", "difference_mean": 0.03, "verdict": "ahead"},
        pair | {"task": "a", "first": "votes", "second": "joint", "difference_mean": 0.5, "verdict": "ahead"},
    ]
    titles = {"dpzero": "DPZero", "joint": "Joint", "votes": "Votes"}
    assert overview.parts(pandas.DataFrame(pairs), titles) == [
        {"method": "Joint", "over": "DPZero", "ε = 2": "+0.5 (ahead 1, behind 0 of 2)"},
        {"method": "Votes", "over": "DPZero", "ε = 2": "+3.0 (ahead 1, behind 0 of 1)"},
    ]


@pytest.mark.parametrize(
    "promise, text", [("user", "2 per user"), ("selective", "2 selective"), (math.nan, "2"), ("", "2")]
)
def test_an_epsilon_says_what_it_covers_if_that_is_no_example(promise, text):
    assert overview.epsilon_with_promise(pandas.Series({"epsilon": "2", "promise": promise})) == text
