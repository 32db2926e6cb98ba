"""A rehearsal has the runs of its sweep, each cut short, and nothing of it passes for the sweep's."""

from __future__ import annotations

import json

import pytest

from dpzero import calibrate_noise
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.plan import guard, sweep
from dpzero.run.run import run_cell

LIMITS = {"steps": 20, "train_examples": 64, "test_examples": 32}
CUT = {"steps", "evaluate_every", "first_stage", "shots", "train_examples", "batch_size", "demonstrations"}
CUT |= {"test_examples", "curve_examples", "decay_steps"}
PAPERS = [name for name in sweep.names() if name.startswith("paper-")]


@pytest.mark.parametrize("name", PAPERS)
def test_every_run_of_a_papers_sweep_is_cut_in_proportion_and_says_so(name):
    cells, cut = sweep.load(name), sweep.load(name, **LIMITS)
    assert list(cells) == list(cut)
    for cell, rehearsed in zip(cells.values(), cut.values(), strict=True):
        theirs, ours = cell["settings"], rehearsed["settings"]
        assert rehearsed["rehearsal"] == LIMITS and "rehearsal" not in cell
        assert {k: v for k, v in ours.items() if k not in CUT} == {
            k: v for k, v in theirs.items() if k not in CUT
        }
        assert ours["steps"] == min(20, theirs["steps"])
        assert ours["test_examples"] == 32 and ours["curve_examples"] == min(32, theirs["curve_examples"])
        classes = len(tasks.load(cell["task"]).labels)
        assert ours.get("train_examples", ours.get("shots", 0) * classes) <= 64
        # points of the curve, a first stage and a falling rate keep their part of the steps, the expected batch its part of the rows
        for key in ("evaluate_every", "first_stage", "decay_steps"):
            if theirs.get(key) and theirs["steps"]:
                part = theirs[key] / theirs["steps"]
                assert ours[key] == max(1, int(part * ours["steps"] + 1e-9))
        for key in ("shots", "train_examples"):
            if theirs.get(key):
                assert ours["batch_size"] == max(1, int(theirs["batch_size"] * ours[key] / theirs[key]))


def test_a_cell_of_a_rehearsal_comes_back_from_its_json_as_it_is():
    for cell in sweep.load("paper-aggzo", tasks=["sst2", "trec"], epsilons=2, **LIMITS).values():
        assert sweep.complete(json.loads(json.dumps(cell))) == cell


def test_limits_that_nothing_exceeds_change_the_mark_alone():
    large = sweep.load("paper-opt", steps=10**6, train_examples=10**6)
    for cell, rehearsed in zip(sweep.load("paper-opt").values(), large.values(), strict=True):
        assert rehearsed == cell | {"rehearsal": {"steps": 10**6, "train_examples": 10**6}}


def test_a_sweep_that_draws_no_rows_draws_some_of_each_class():
    (cell,) = sweep.load("quick", methods="mezo", seeds=0, train_examples=64).values()
    assert cell["settings"]["shots"] == 8 and "train_examples" not in cell["settings"]  # eight classes
    assert cell["settings"]["batch_size"] <= 64


def test_the_tries_of_a_search_are_cut_with_what_they_decide():
    cells = sweep.load("heads-tuned", tasks="sst2", methods="dpzero", epsilons=2, seeds=0, **LIMITS)
    assert len(cells) == 1 + 9
    assert {cell["settings"]["steps"] for cell in cells.values()} == {20}
    assert all(cell["rehearsal"] == LIMITS for cell in cells.values())


@pytest.mark.parametrize(
    "name, limits, words",
    [
        ("smoke", {"stpes": 20}, "unknown axis or limit 'stpes': did you mean 'steps'?"),
        ("smoke", {"train_example": 20}, "did you mean 'train_examples'?"),
        (
            "smoke",
            {"steps": 0},
            "rehearsal: setting steps is 0, but must be of type int, from 1 to 1000000000",
        ),
        ("smoke", {"steps": "many"}, "rehearsal: setting steps is 'many'"),
        ("quadratic", {"steps": 5}, "sweep quadratic trains no language model, which steps would cut short"),
    ],
)
def test_a_limit_that_cannot_be_is_named(name, limits, words):
    with pytest.raises(UsageError) as error:
        sweep.load(name, **limits)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mark", [{"stps": 3}, "yes"])
def test_a_cell_by_hand_with_another_mark_is_refused(mark):
    (cell,) = sweep.load("smoke", methods="mezo").values()
    with pytest.raises(UsageError, match="rehearsal"):
        sweep.complete(cell | {"rehearsal": mark})


def test_its_results_have_a_folder_of_their_own():
    assert sweep.name_of("paper-mezo", {"tasks": ["sst2"]}) == "paper-mezo"
    assert sweep.name_of("paper-mezo", {"tasks": ["sst2"], "steps": 20}) == "paper-mezo-rehearsal"
    assert sweep.name_of("my/own.yaml", {"test_examples": 9}) == "own-rehearsal"


def test_a_private_run_is_calibrated_to_its_epsilon_for_the_steps_and_rows_that_it_has(cache, tmp_path):
    narrow = {"methods": "dpzero", "epsilons": 2, "steps": 5, "train_examples": 40, "test_examples": 12}
    (rehearsed,) = sweep.load("smoke", **narrow).values()
    record = run_cell(rehearsed, tmp_path / "record.json", lambda line: None, "cpu")
    promised, settings = record["privacy"], rehearsed["settings"]
    rows, batch_size, delta = 40, settings["batch_size"], settings["delta"]
    assert record["metrics"]["examples"] == 12 and len(record["curve"]) >= 2
    assert (promised["steps"], promised["dataset_size"], promised["batch_size"]) == (5, rows, batch_size)
    sizes = {"dataset_size": rows, "batch_size": batch_size, "steps": 5, "delta": delta}
    kinds = {key: settings[key] for key in ("mechanism", "sampling", "adjacency")}
    assert promised["noise_scale"] == pytest.approx(calibrate_noise(epsilon=2, **sizes, **kinds), rel=1e-6)
    assert 1.9 < promised["epsilon_spent"] <= 2
    # and the record is that of no cell of the sweep
    (cell,) = sweep.load("smoke", methods="dpzero", epsilons=2).values()
    kept = {key: value for key, value in rehearsed.items() if key != "title"}
    assert record["cell"] == json.loads(json.dumps(kept))
    assert guard.difference(record["cell"], rehearsed) is None
    as_if = record["cell"] | {"settings": cell["settings"]}
    assert guard.difference(as_if, cell) == "rehearsal.steps is 5, but not given is planned"
