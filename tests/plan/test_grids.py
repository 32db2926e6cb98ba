"""Stanzas with a grid: one method for each point."""

from __future__ import annotations

import pytest

from dpzero.errors import UsageError
from dpzero.plan.sweep import spread_grids


def test_a_stanza_without_a_grid_stays_as_it_is():
    stanzas = {"mezo": None, "dpzero": {"clip": 5}}
    assert spread_grids(stanzas) == stanzas


def test_each_point_is_a_method_of_the_same_file():
    methods = spread_grids({"dpzero": {"steps": 9, "grid": {"learning_rate": ["1e-7", 0.1], "clip": [1, 2]}}})
    assert list(methods) == [
        f"dpzero_learning_rate{rate}_clip{clip}" for rate in ("1e-7", 0.1) for clip in (1, 2)
    ]
    assert methods["dpzero_learning_rate1e-7_clip2"] == {
        "use": "dpzero",
        "steps": 9,
        "learning_rate": "1e-7",
        "clip": 2,
    }


def test_a_file_that_is_named_is_kept():
    (stanza,) = spread_grids({"adamw": {"use": "fine_tuning", "grid": {"learning_rate": [1]}}}).values()
    assert stanza["use"] == "fine_tuning"


@pytest.mark.parametrize("grid", [None, [1, 2], {"clip": 5}, {"clip": []}])
def test_what_is_no_grid_is_refused(grid):
    with pytest.raises(UsageError, match="method dpzero: a grid is"):
        spread_grids({"dpzero": {"grid": grid}})


def test_a_misspelt_setting_of_a_grid_is_named(write):
    with pytest.raises(UsageError, match="unknown setting 'clipp': did you mean 'clip'"):
        write(
            "one", "extends: smoke\nmethods:\n  dpzero: {learning_rate: 1.0, clip: 1, grid: {clipp: [1]}}\n"
        )
