"""Calibrated noise is close to the exact scale, never below it, always found, and cached."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero import calibrate_noise, spent_epsilon
from dpzero.privacy import Setting, accounting
from dpzero.privacy.calibration import least_scale
from dpzero.studies.calibration import EXAMPLES, draw_settings
from dpzero.studies.contour_accountant import delta_for

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
LAPLACE = replace(COMMON, mechanism="laplace")
REPLACE = replace(COMMON, adjacency="replace_one")
SUBSETS = replace(REPLACE, sampling="without_replacement")


def assert_as_small_as_may_be(setting: Setting, epsilon: float) -> None:
    """The second accountant places the exact scale between (1 - 5e-4) and (1 + 1e-4) of ours."""
    scale = setting.noise_scale(epsilon)
    assert delta_for(setting, scale * (1 + 1e-4), epsilon) <= setting.delta
    assert delta_for(setting, scale * (1 - 5e-4), epsilon) > setting.delta


@pytest.mark.slow
def test_noise_is_exact_to_5e_4_on_fifty_settings_that_span_the_range():
    for setting, epsilon in draw_settings():
        assert_as_small_as_may_be(setting, epsilon)


# Where rounding to a grid costs most: many releases that hardly lose anything, and a few that lose much.
HARD = [
    *(
        Setting(mechanism, *kind, EXAMPLES, batch_size, 10_000, 1e-6)
        for mechanism, kind, batch_size in [
            ("gaussian", ("poisson", "add_remove"), 64),
            ("laplace", ("poisson", "add_remove"), 1024),
            ("gaussian", ("poisson", "replace_one"), 16_750),
            ("laplace", ("without_replacement", "replace_one"), 4096),
            ("gaussian", ("without_replacement", "replace_one"), 1),
            ("laplace", ("full_batch", "replace_one"), EXAMPLES),
            ("gaussian", ("full_batch", "add_remove"), EXAMPLES),
        ]
    )
]


@pytest.mark.parametrize(
    ("setting", "epsilon"),
    [
        *((setting, 0.5) for setting in HARD[:1]),
        *(pytest.param(setting, 0.5, marks=pytest.mark.slow) for setting in HARD[1:]),
        *((setting, 2.0) for setting in (LAPLACE, replace(COMMON, directions=4))),
        *(pytest.param(setting, 2.0, marks=pytest.mark.slow) for setting in (COMMON, REPLACE, SUBSETS)),
        (replace(LAPLACE, steps=1), 0.5),
        (Setting("laplace", "full_batch", "add_remove", 50, 50, 1, 1e-6), 0.05),
        pytest.param(
            Setting("gaussian", "poisson", "add_remove", EXAMPLES, 4, 30, 1e-3), 2.0, marks=pytest.mark.slow
        ),
        (Setting("gaussian", "poisson", "add_remove", 4937, 16, 1500, 1e-5), 0.5),
    ],
    ids=str,
)
def test_noise_is_exact_to_5e_4_where_that_is_hardest(setting, epsilon):
    assert_as_small_as_may_be(setting, epsilon)


@pytest.mark.parametrize("setting", [COMMON, LAPLACE, REPLACE, SUBSETS], ids=str)
def test_noise_spends_its_target_and_never_more(setting):
    """A bit less noise would spend more than the target: the answer is the least."""
    scale = setting.noise_scale(2.0)
    assert setting.epsilon(scale) <= 2.0 < setting.epsilon(scale * (1 - 5e-5))


def test_the_public_functions_are_each_others_inverse():
    arguments = {
        "sampling": "poisson",
        "adjacency": "add_remove",
        "dataset_size": 1024,
        "batch_size": 64,
        "steps": 1000,
    }
    scale = calibrate_noise(mechanism="gaussian", epsilon=1.0, delta=1e-5, **arguments)
    assert scale == pytest.approx(7.45606, rel=1e-4)
    assert spent_epsilon(mechanism="gaussian", noise_scale=scale, delta=1e-5, **arguments) == pytest.approx(
        1.0, rel=1e-4
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_a_delta_that_allows_any_release_is_refused(steps):
    """An example in a batch with probability at most delta may be published: no noise is needed."""
    setting = replace(COMMON, dataset_size=100_000, batch_size=1, steps=steps, delta=3e-5)
    with pytest.raises(
        ValueError, match="delta is 3e-05, but an example is ever in a batch with probability"
    ):
        setting.noise_scale(1.0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_invalid_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon is .*: it must be a positive number"):
        COMMON.noise_scale(epsilon)


# The search -----------------------------------------------------------------------------------------------


@given(
    power=st.floats(0.3, 6),
    size=st.floats(1e-4, 1e4),
    nothing_from=st.floats(1.001, 30),
    infinite_below=st.floats(0.01, 0.999),
)
@settings(max_examples=300, deadline=None)
def test_the_search_converges_for_any_falling_function(power, size, nothing_from, infinite_below):
    """Epsilon may be 0 just above the answer or infinite just below it (a large delta, tiny noise), and a
    coarser grid (the second argument) may give a larger epsilon.
    """

    def epsilon_of(scale: float, grid: float) -> float:
        if scale >= size * nothing_from:
            return 0.0
        return math.inf if scale < size * infinite_below else (size / scale) ** power * (1 + 20 * grid)

    scale = least_scale(epsilon_of, 1.0, 1e-4)
    assert epsilon_of(scale, 1e-4) <= 1 < epsilon_of(scale * (1 - 5e-5), 1e-4)


def test_a_search_that_cannot_converge_raises():
    with pytest.raises(ValueError, match="did not settle: give a larger delta or fewer steps"):
        least_scale(lambda scale, grid: 2.0, 1.0, 1e-4)


# The cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch) -> list:
    """The calibrations that were computed rather than read from the cache."""
    calls = []
    monkeypatch.setattr(Setting, "noise_scale", lambda self, epsilon: calls.append((self, epsilon)) or 1.5)
    return calls


def test_a_calibration_is_computed_once(tmp_path, counted):
    folder = tmp_path / "calibrations"
    assert [COMMON.cached_noise_scale(2.0, folder) for _ in range(3)] == [1.5] * 3
    assert counted == [(COMMON, 2.0)]
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert kept["noise_scale"] == 1.5 and kept["epsilon"] == 2.0 and kept["steps"] == 1000


def test_the_cache_key_holds_everything_that_epsilon_depends_on(tmp_path, counted, monkeypatch):
    others = [
        LAPLACE,
        replace(LAPLACE, delta=0.0),
        REPLACE,
        SUBSETS,
        replace(COMMON, batch_size=1024, sampling="full_batch"),
        replace(COMMON, batch_size=1024),
        *(replace(COMMON, **{name: 65}) for name in ("batch_size", "steps", "directions")),
        replace(COMMON, dataset_size=1025),
        replace(COMMON, delta=1e-6),
    ]
    for setting in [COMMON, *others]:
        setting.cached_noise_scale(2.0, tmp_path)
    COMMON.cached_noise_scale(2.5, tmp_path)
    monkeypatch.setattr(accounting, "CACHE_VERSION", accounting.CACHE_VERSION + 1)
    COMMON.cached_noise_scale(2.0, tmp_path)
    monkeypatch.setattr(accounting, "version", lambda name: "99")
    COMMON.cached_noise_scale(2.0, tmp_path)
    assert len(counted) == len(list(tmp_path.iterdir())) == len(others) + 4
