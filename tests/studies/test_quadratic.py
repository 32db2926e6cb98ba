"""The sweep `quadratic`: its cells, one of its runs, and the privacy that the run's ledger gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dpzero.errors import UsageError
from dpzero.files import run_id
from dpzero.plan import sweep
from dpzero.plan.study_sweeps import QUADRATIC_METHODS
from dpzero.privacy import Setting
from dpzero.report.records import read_records
from dpzero.studies import quadratic, quadratic_solver
from dpzero.studies.run import run_cell

CELLS = sweep.load("quadratic")
PUBLISHED = {  # the paper's table 6
    "steps": [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120],
    "learning_rates": [1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
    "clips": [0.1, 0.3, 1, 3, 10, 30, 100, 300],
}


def small(method="dpzero", **own) -> dict:
    """A cell that runs in no time."""
    settings = {
        "dataset_size": 200,
        "dimension": 5,
        "decay": 1,
        "steps": [4, 20],
        "learning_rates": [0.01, 0.1],
    }
    settings |= {"clips": [0.5, 5.0], "delta": 1e-6} if QUADRATIC_METHODS[method].private else {}
    cell = {"task": "rank_log_d", "model": "d-5", "method": method, "epsilon": 2.0, "seed": 1}
    cell["experiment"] = "quadratic"
    return sweep.complete(cell | {"settings": settings | own})


# Cells ------------------------------------------------------------------------------------------------------------------


def test_the_grids_are_the_published_ones():
    assert sweep.read("quadratic")["experiment"] == "quadratic"
    assert list(CELLS) == [run_id(cell) for cell in CELLS.values()]
    assert len({cell["seed"] for cell in CELLS.values()}) >= 3
    for cell in CELLS.values():
        settings = cell["settings"]
        assert settings["dataset_size"] == 10_000 and cell["model"] == f"d-{settings['dimension']}"
        if cell["method"] in ("dpzero", "dpgd_0th"):
            assert {name: settings[name] for name in PUBLISHED} == PUBLISHED
            assert (settings["delta"], cell["epsilon"]) == (1e-6, "2")
        for name in PUBLISHED.keys() & settings.keys():  # of DP-SGD a part
            assert set(settings[name]) <= set(PUBLISHED[name])
    dimensions = {cell["settings"]["dimension"] for cell in CELLS.values()}
    assert dimensions == {20, 50, 100, 200, 500, 1000, 2000}


def test_methods_without_privacy_have_neither_clips_nor_epsilon():
    cell = CELLS["rank_d/d-20/mezo/eps-inf/seed-0"]
    assert not {"clips", "delta"} & cell["settings"].keys()


def test_an_axis_narrows():
    narrowed = sweep.load("quadratic", tasks="rank_d", models="d-20", methods=["dpzero", "sgd"], seeds=[2])
    assert list(narrowed) == ["rank_d/d-20/dpzero/eps-2/seed-2", "rank_d/d-20/sgd/eps-inf/seed-2"]


def test_a_cell_by_hand_is_completed_like_those_of_the_sweep():
    cell = CELLS["rank_log_d/d-50/dp_sgd/eps-2/seed-1"]
    assert sweep.complete(cell) == cell


@pytest.mark.parametrize(
    "own, words",
    [
        ({"stepps": [3]}, "unknown setting 'stepps': did you mean 'steps'?"),
        ({"steps": 3}, "setting steps is 3, but must be a list of numbers"),
        ({"steps": [2.5]}, "setting steps is 2.5, but must be of type int"),
        ({"clips": [0, 1]}, "setting clips is 0, but must be of type float, from 1e-12"),
        ({"decay": "steep"}, "setting decay is 'steep', but must be of type float"),
        ({"dimension": None}, "setting dimension is None"),
    ],
)
def test_a_bad_setting_is_refused_by_name(own, words):
    with pytest.raises(UsageError) as error:
        small(**own)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'dpzero'"):
        sweep.complete(small() | {"method": "dp_zero"})


# A run ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("quadratic") / "record.json"
    record = run_cell(small(), out, log=lambda _: None)
    assert json.loads(out.read_text()) == record
    assert [row["run"] for row in read_records([out])] == [record["run"]]
    return record


def test_the_record_has_the_norms_in_the_order_of_the_settings(record):
    cell, norms = record["cell"], np.array(record["quadratic"]["train"])
    assert norms.shape == (2, 2, 2) and record["metrics"]["gradient_norm"] == norms.min()
    problem = quadratic_solver.Quadratic.drawn(200, 5, 1, 0, seed=1)
    _, _, budgets = quadratic.prepare(cell)
    directions, noise = quadratic.public_directions(5, 1), quadratic.unit_noise(budgets, 1)
    for place, steps in enumerate(cell["settings"]["steps"]):
        one = quadratic_solver.Grid.product([steps], [0.1], [0.5], [budgets[steps].noise_scale], 200)
        points = quadratic_solver.zeroth_order(problem, one, directions, noise)
        assert norms[place, 1, 0] == pytest.approx(problem.gradient_norms(points)[0], rel=1e-5)


def test_epsilon_follows_from_the_ledger(record):
    privacy, steps = record["privacy"], record["privacy"]["steps"]
    setting = Setting("gaussian", "full_batch", "replace_one", 200, 200, steps, 1e-6)
    assert steps in (4, 20) and privacy["clip"] in (0.5, 5.0)
    assert privacy["epsilon_spent"] == setting.epsilon(privacy["noise_scale"]) <= 2
    assert privacy["epsilon_spent"] == pytest.approx(2, abs=1e-3)
    assert (privacy["sampling"], privacy["batch_size"]) == ("full_batch", 200)
    assert (privacy["noise_key"], privacy["valid_release"]) == ("published", False)
    assert "not cover" in record["metrics"]["selection"]


def test_longer_runs_have_more_noise():
    _, _, budgets = quadratic.prepare(small())
    # advanced composition of full batches: the noise grows with the square root of the steps
    assert budgets[20].noise_scale / budgets[4].noise_scale == pytest.approx(5**0.5, rel=1e-3)


@pytest.mark.parametrize("method", ["dpgd_0th", "dp_sgd", "mezo", "sgd"])
def test_every_method_descends(method):
    parts = quadratic.measure(small(method), log=lambda _: None)
    assert np.array(parts["quadratic"]["train"]).min() < parts["quadratic"]["start"]
    assert (parts["privacy"] is None) is not QUADRATIC_METHODS[method].private


def test_a_diverged_setting_has_no_norm(tmp_path):
    cell = small("mezo", steps=[2000], learning_rates=[0.01, 50.0])
    run_cell(cell, tmp_path / "record.json", log=lambda _: None)
    norms = json.loads((tmp_path / "record.json").read_text())["quadratic"]["train"]
    assert norms[0][1] == [None] and norms[0][0][0] < 1
