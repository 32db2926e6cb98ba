"""The sweep `guarantees`: its cells, one of its runs, and runs as published through the ordinary experiment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpzero import __main__ as command_line
from dpzero.errors import UsageError
from dpzero.files import run_id
from dpzero.plan import sweep
from dpzero.privacy.public_implementations import PUBLIC_CODE, SUBSET_CODE
from dpzero.report.records import read_records
from dpzero.run.run import run_cell
from dpzero.studies.run import run_cell as run_study_cell

CELLS = sweep.load("guarantees")
TREC = "trec/roberta-large/dpzero/eps-2/seed-0"

ONE = """
experiment: guarantees
tuning: none
settings: {delta: 1.0e-3}
published:
  - {method: dpzero, task: here, model: tiny, dataset_size: 100, batch_size: 10, steps: 20, epsilons: [2]}
"""


# Cells ------------------------------------------------------------------------------------------------------------------


def test_the_cells_have_the_common_form():
    assert (
        sweep.read("guarantees")["experiment"] == "guarantees"
        and sweep.read("smoke")["experiment"] == "language"
    )
    assert list(CELLS) == [run_id(cell) for cell in CELLS.values()]
    assert {cell.get("code", cell["method"]) for cell in CELLS.values()} == {*PUBLIC_CODE, *SUBSET_CODE}
    assert {cell["seed"] for cell in CELLS.values()} == {0}
    assert CELLS[TREC]["settings"] == {
        **{"dataset_size": 2646, "assumed_size": 3072, "batch_size": 64, "steps": 10_000},
        **{"delta": 1e-5, "version": 1},
    }


def test_an_axis_narrows_the_sweep():
    narrowed = sweep.load("guarantees", methods=["dpzero"], epsilons=[2.0], tasks="trec")
    assert list(narrowed) == [TREC] and narrowed[TREC] == CELLS[TREC]
    assert sweep.load("guarantees", seeds=[0]) == CELLS


@pytest.mark.parametrize(
    "narrowed, words",
    [
        ({"methods": ["dpzreo"]}, "unknown method 'dpzreo': did you mean 'dpzero'?"),
        ({"tasks": ["trek"]}, "unknown task 'trek': did you mean 'trec'?"),
        ({"models": ["roberta"]}, "unknown model 'roberta': did you mean 'roberta-large'?"),
        ({"epsilons": [7]}, "unknown epsilon '7': known are 2, 6, 0.5"),
        ({"epsilons": ["inf"]}, "is not a positive number"),
        ({"seeds": [1]}, "unknown seed '1': known are 0"),
        ({"tasks": []}, "the axis tasks is empty"),
        ({"methods": ["dp_aggzo"], "epsilons": [8]}, "no run of the sweep has all of methods, epsilons"),
        ({"method": ["dpzero"]}, "unknown axis or limit 'method': did you mean 'methods'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(narrowed, words):
    with pytest.raises(UsageError) as error:
        sweep.load("guarantees", **narrowed)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("experiment: guarantees", "experiment: guarantee", "did you mean 'guarantees'?"),
        ("published:", "publshed:", "unknown key 'publshed': did you mean 'published'?"),
        ("method: dpzero", "method: dp_zero", "did you mean 'dpzero'?"),
        ("steps: 20", "stps: 20", "method dpzero: unknown setting 'stps': did you mean 'steps'?"),
        ("steps: 20", "steps: 20.5", "setting steps is 20.5, but must be of type int"),
        ("steps: 20", "steps: true", "setting steps is True"),
        ("steps: 20, ", "", "setting steps is None"),
        ("task: here, ", "", "a row of `published` has no 'task'"),
        ("epsilons: [2]", "epsilons: [none]", "epsilon 'none' is not a positive number"),
    ],
)
def test_an_error_in_the_file_is_named(write, old, new, words):
    assert old in ONE and write("one", ONE)
    with pytest.raises(UsageError) as error:
        write("one", ONE.replace(old, new))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_planning_it_loads_nothing_heavy():
    code = "from dpzero.plan import sweep; assert sweep.load('guarantees'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "scipy", "dp_accounting", "opacus", "pandas"} & set(done.stdout.split())


@pytest.mark.parametrize("verb", ["assets", "report"])
def test_the_sweep_has_no_assets_and_no_privacy_statement(verb, capsys):
    status = command_line.main([verb, "--sweep", "guarantees"])
    printed = capsys.readouterr()
    if verb == "assets":
        assert status == 0 and json.loads(printed.out) == {"assets": {}, "tokens": {}}
    else:
        assert (
            status == 2 and "sweep guarantees trains nothing" in printed.err and printed.err.count("\n") == 1
        )


# A run ------------------------------------------------------------------------------------------------------------------


def test_a_run_writes_claim_and_guarantee(write, tmp_path):
    """And a command that is given the cell by hand does the same."""
    ((run, cell),) = write("one", ONE).items()
    out = tmp_path / f"{run}.json"
    returned = run_study_cell(sweep.complete(cell), out, log=lambda line: None)
    (record,) = read_records([out])
    assert record == returned == json.loads(out.read_text())
    guarantee = record["guarantee"]
    assert guarantee["claimed_epsilon"] == 2 and guarantee["as_it_is"] == "none"
    assert 0 < guarantee["epsilon_at_least"] < guarantee["epsilon_at_most"]
    assert (guarantee["batches_per_epoch"], guarantee["last_batch"]) == (10, 10)
    assert guarantee["ratio"] == pytest.approx(guarantee["noise_scale"] / guarantee["our_noise_scale"])
    assert guarantee["our_noise_scale_replace_one"] > 1.5 * guarantee["our_noise_scale"]
    assert record["status"] == "ok" and record["provenance"]["git"]


SUBSETS = """
experiment: guarantees
tuning: none
settings: {delta: 1.0e-5}
published:
  - {method: of_a_sign, code: paczero, task: here, model: tiny, dataset_size: 10, batch_size: 10, steps: 20, candidates: 8, mutual_information: 0.3, epsilons: [inf]}
"""


def test_a_claim_of_information_stands_in_its_own_unit_and_has_no_epsilon(write, tmp_path):
    ((run, cell),) = write("subsets", SUBSETS).items()
    assert run == "here/tiny/of_a_sign/eps-inf/seed-0" and sweep.complete(cell) == cell
    record = run_study_cell(cell, tmp_path / f"{run}.json", log=lambda line: None)
    guarantee = record["guarantee"]
    assert record["method"]["title"] == "PACZero" and guarantee["as_it_is"] == "none"
    assert guarantee["epsilon_at_least"] == "inf" and not {"claimed_epsilon", "claimed_delta"} & set(
        guarantee
    )
    assert guarantee["information_at_least_nats"] < guarantee["claimed_information_nats"] == 0.3
    assert guarantee["information_at_most_nats"] == pytest.approx(0.3 + 20e-6)


@pytest.mark.parametrize(
    "size, words",
    [(200, "batch_size 200 is larger than"), (100, "an epoch of one batch is no shuffled epoch")],
)
def test_unaccounted_sizes_are_refused(write, tmp_path, size, words):
    (cell,) = write("one", ONE.replace("batch_size: 10,", f"batch_size: {size},")).values()
    with pytest.raises(UsageError, match=f"here/tiny/dpzero/eps-2/seed-0: {words}"):
        run_study_cell(cell, tmp_path / "a.json", log=lambda line: None)
    assert not list(tmp_path.glob("*.json"))


# Runs as published ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, sampling",
    [
        ("dpzero", "shuffled_epochs"),
        ("dp_zoso", "shuffled_epochs"),
        ("dp_aggzo", "poisson"),
        ("geo_dpzo", "shuffled_epochs"),
    ],
)
def test_a_run_as_published_records_its_true_guarantee(method, sampling, cache, tmp_path):
    settings = {"learning_rate": 1e-3, "smoothing": 1e-2, "clip": 5, "steps": 20, "batch_size": 16}
    settings |= {"max_length": 16, "delta": 1e-4, "as_published": True}
    spec = {"task": "toy", "model": "tiny-encoder", "method": method, "epsilon": "2", "seed": 0}
    cell = sweep.complete(spec | {"settings": settings})
    assert not {"sampling", "adjacency", "mechanism"} & set(cell["settings"])
    record = run_cell(cell, Path(tmp_path / "a.json"), log=lambda line: None, device="cpu")
    privacy = record["privacy"]
    assert record["status"] == "ok" and privacy["steps"] == 20
    assert privacy["sampling"] == sampling and privacy["valid_release"] is False
    assert (privacy["epsilon_spent"] > 2) == (sampling == "shuffled_epochs")
    assert sweep.complete(record["cell"]) == cell


@pytest.mark.parametrize(
    "method, setting, words",
    [
        ("dp_zo", {}, "as_published is offered for dpzero, dp_aggzo, dp_zoso, geo_dpzo, so"),
        ("mezo", {}, "as_published is offered for dpzero"),
        ("dpzero", {"adjacency": "replace_one"}, "as_published decides adjacency itself"),
        ("dpzero", {"mechanism": "laplace"}, "as_published decides mechanism itself"),
        ("dpzero", {"as_published": "yes"}, "setting as_published is 'yes', but must be of type bool"),
    ],
)
def test_as_published_is_refused_with_other_settings(method, setting, words):
    settings = {"learning_rate": 1, "steps": 5, "as_published": True} | (
        {} if method == "mezo" else {"clip": 1}
    )
    spec = {"task": "toy", "model": "tiny-encoder", "method": method, "epsilon": "2", "seed": 0}
    with pytest.raises(UsageError) as error:
        sweep.complete(spec | {"settings": settings | setting})
    assert words in str(error.value)


def test_a_run_that_is_not_as_published_does_not_name_it():
    """So that cells, and with them finished runs, stay as they were."""
    assert not any("as_published" in cell["settings"] for cell in sweep.load("smoke").values())
