"""Epsilon and noise: published values, closed forms, and a second accountant that shares no code with the first."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from contour import delta_for
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from dpzero import calibrate_noise, spent_epsilon
from dpzero.privacy import Setting

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
LAPLACE = replace(COMMON, mechanism="laplace")
PURE = replace(LAPLACE, delta=0.0)
REPLACE = replace(COMMON, adjacency="replace_one")
ONE_FULL = Setting("gaussian", "full_batch", "add_remove", 100, 100, 1, 1e-5)
ONE_TENTH = replace(ONE_FULL, sampling="poisson", batch_size=10)

# noise/C for n = 1024, B = 64, T = 1000, delta = 1e-5, made with code that is not this project's
GAUSSIAN_SIGMA = {0.5: 13.9646, 1: 7.45606, 2: 4.05028, 4: 2.28961, 6: 1.69493, 8: 1.39702}
RENYI_EPSILON = {0.5: 0.5494, 1: 1.0940, 2: 2.1784, 4: 4.3440, 6: 6.5102, 8: 8.6825}
LAPLACE_SCALE = {0.5: 13.741, 1: 7.2275, 2: 3.8085, 4: 2.0256, 6: 1.4159, 8: 1.1086}
REPLACE_SIGMA = {0.5: 27.795, 1: 14.745, 2: 7.8779, 4: 4.2681, 6: 3.0119, 8: 2.3660}
PURE_SCALE = {0.5: 125.468, 2: 31.716, 4: 16.0886, 8: 8.27122, 100: 1.01334}


@pytest.mark.parametrize(
    ("setting", "table"),
    [(COMMON, GAUSSIAN_SIGMA), (LAPLACE, LAPLACE_SCALE), (REPLACE, REPLACE_SIGMA)],
    ids=["gaussian", "laplace", "gaussian, replace one"],
)
def test_published_noise_gives_its_published_epsilon(setting, table):
    for epsilon, scale in table.items():
        assert setting.epsilon(scale) == pytest.approx(epsilon, rel=1e-4)


def test_the_renyi_bound_has_its_published_values():
    for epsilon, expected in RENYI_EPSILON.items():
        assert COMMON.epsilon_rdp(GAUSSIAN_SIGMA[epsilon]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("setting", [COMMON, replace(COMMON, steps=10), ONE_FULL, ONE_TENTH])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_renyi_bound_is_never_below_the_tight_one(setting, scale):
    assert setting.epsilon_rdp(scale) >= setting.epsilon(scale) - 1e-6


@pytest.mark.parametrize("setting", [REPLACE, LAPLACE, PURE])
def test_a_renyi_bound_that_no_library_proves_is_not_given(setting):
    assert setting.epsilon_rdp(2.0) is None


@pytest.mark.parametrize(
    ("setting", "epsilon"),
    [
        (ONE_FULL, 1.993),
        (replace(ONE_FULL, adjacency="replace_one"), 4.377),
        (ONE_TENTH, 0.3690),
        (replace(ONE_TENTH, adjacency="replace_one"), 0.4604),
        (replace(ONE_FULL, mechanism="laplace"), 0.49998),
        (replace(ONE_TENTH, mechanism="laplace"), 0.0628),
    ],
)
def test_one_release_with_noise_scale_two(setting, epsilon):
    assert setting.epsilon(2.0) == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize(("adjacency", "sensitivity"), [("add_remove", 1), ("replace_one", 2)])
@pytest.mark.parametrize("steps", [1, 40])
def test_full_batches_are_the_analytic_gaussian_mechanism(adjacency, sensitivity, steps):
    mu = sensitivity * math.sqrt(steps) / 5.0

    def delta(epsilon):
        upper, lower = stats.norm.cdf(mu / 2 - epsilon / mu), stats.norm.cdf(-mu / 2 - epsilon / mu)
        return upper - math.exp(epsilon) * lower

    exact = optimize.brentq(lambda epsilon: delta(epsilon) - 1e-5, 0, 50)
    ours = replace(ONE_FULL, adjacency=adjacency, steps=steps).epsilon(5.0)
    assert exact <= ours <= exact * (1 + 2e-4)


@pytest.mark.parametrize("setting", [COMMON, REPLACE, ONE_FULL])
def test_several_directions_of_a_step_are_one_release_of_higher_sensitivity(setting):
    several = replace(setting, directions=4)
    assert several.epsilon(8.0) == pytest.approx(setting.epsilon(4.0), rel=1e-9)


@pytest.mark.parametrize("setting", [COMMON, LAPLACE, REPLACE, PURE])
def test_epsilon_falls_with_noise_and_rises_with_use(setting):
    epsilon = setting.epsilon(3.0)
    assert setting.epsilon(3.3) < epsilon < setting.epsilon(2.7)
    assert replace(setting, steps=900).epsilon(3.0) < epsilon < replace(setting, batch_size=70).epsilon(3.0)
    if setting.delta:
        assert replace(setting, delta=1e-4).epsilon(3.0) < epsilon


def test_replace_one_costs_more_than_add_remove():
    assert REPLACE.epsilon(4.0) > 1.5 * COMMON.epsilon(4.0)


@pytest.mark.parametrize("setting", [COMMON, LAPLACE, PURE])
def test_no_noise_no_privacy(setting):
    assert setting.epsilon(0.0) == math.inf


# The noise for a target ----------------------------------------------------------------------------------------------

TARGETS = [
    (COMMON, 2.0),
    (LAPLACE, 2.0),
    (REPLACE, 4.0),
    (replace(COMMON, steps=300), 1.0),
    (replace(LAPLACE, steps=300), 4.0),
    (replace(ONE_FULL, steps=10), 2.0),
    (Setting("gaussian", "poisson", "add_remove", 4937, 16, 1500, 1e-5), 0.5),
]


@pytest.mark.parametrize(
    ("setting", "epsilon"), TARGETS, ids=lambda value: getattr(value, "mechanism", None) or str(value)
)
def test_calibrated_noise_spends_its_target_and_never_more(setting, epsilon):
    """By our own accountant and by the contour integral, which places the truth within 5e-4 of the target."""
    scale = setting.noise_scale(epsilon)
    assert epsilon * (1 - 1e-4) <= setting.epsilon(scale) <= epsilon
    assert delta_for(setting, scale, epsilon) <= setting.delta * (1 + 1e-9)
    assert delta_for(setting, scale, epsilon * (1 - 5e-4)) > setting.delta


def test_the_second_accountant_knows_the_analytic_gaussian():
    for steps, expected in [(1, 0.12693673750664), (100, None)]:
        setting = replace(ONE_FULL, steps=steps)
        mu = math.sqrt(steps)
        exact = stats.norm.cdf(mu / 2 - 1 / mu) - math.e * stats.norm.cdf(-mu / 2 - 1 / mu)
        assert delta_for(setting, 1.0, 1.0) == pytest.approx(exact, rel=1e-8)
        assert expected is None or exact == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("setting", "scale", "epsilon"),
    [(COMMON, 4.05028, 2), (COMMON, 1.39702, 8), (LAPLACE, 3.8085, 2), (REPLACE, 7.8779, 2)],
)
def test_both_accountants_agree_on_the_published_noise(setting, scale, epsilon):
    ours = setting.epsilon(scale)
    assert ours == pytest.approx(epsilon, rel=1e-4)
    assert delta_for(setting, scale, ours) <= setting.delta < delta_for(setting, scale, ours * (1 - 5e-4))


def test_the_public_functions_are_each_others_inverse():
    words = {
        "delta": 1e-5,
        "sampling": "poisson",
        "adjacency": "add_remove",
        "dataset_size": 1024,
        "batch_size": 64,
        "steps": 1000,
    }
    scale = calibrate_noise(mechanism="gaussian", epsilon=1.0, **words)
    assert scale == pytest.approx(GAUSSIAN_SIGMA[1], rel=1e-4)
    assert spent_epsilon(mechanism="gaussian", noise_scale=scale, **words) == pytest.approx(1.0, rel=1e-4)


# Pure epsilon ----------------------------------------------------------------------------------------------------------


def test_pure_laplace_has_its_published_values():
    for epsilon, scale in PURE_SCALE.items():
        assert PURE.noise_scale(epsilon) == pytest.approx(scale, rel=1e-5)


@given(st.floats(0.01, 100), st.integers(1, 10_000), st.integers(1, 1000))
def test_pure_laplace_spends_what_it_was_calibrated_for(epsilon, steps, batch_size):
    setting = Setting("laplace", "poisson", "add_remove", 1000, batch_size, steps, 0.0)
    assert setting.epsilon(setting.noise_scale(epsilon)) == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
def test_pure_epsilon_is_the_largest_log_ratio_of_the_two_outputs(scale):
    outputs = np.linspace(-30 * scale, 30 * scale, 100_001)
    present = PURE.rate * stats.laplace.pdf(outputs, 1, scale) + (1 - PURE.rate) * stats.laplace.pdf(
        outputs, 0, scale
    )
    worst = np.abs(np.log(present / stats.laplace.pdf(outputs, 0, scale))).max()
    assert PURE.epsilon(scale) == pytest.approx(PURE.steps * worst, rel=1e-9)


def test_pure_laplace_on_full_batches_is_basic_composition():
    setting = Setting("laplace", "full_batch", "add_remove", 100, 100, 30, 0.0)
    assert setting.noise_scale(2.0) == pytest.approx(30 / 2.0)


def test_a_positive_delta_saves_noise():
    assert LAPLACE.epsilon(31.716) < 0.5 * PURE.epsilon(31.716)


def test_the_accountant_is_named():
    assert "closed form" in PURE.accountant
    assert COMMON.accountant.startswith("dp-accounting 0.6") and "0.0001" in COMMON.accountant


# Refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": "without_replacement"},
        {"sampling": "shuffle"},
        {"adjacency": "zero_out"},
        {"mechanism": "uniform"},
        {"mechanism": "laplace", "adjacency": "replace_one"},
        {"mechanism": "laplace", "directions": 2},
        {"delta": 0.0},
    ],
    ids=str,
)
def test_what_is_not_proven_is_refused_and_the_offer_named(change):
    with pytest.raises(
        ValueError, match=r"no proven accounting .*: offered are gaussian or laplace with poisson"
    ):
        replace(COMMON, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dataset_size": -1}, "dataset_size is -1"),
        ({"directions": 0}, "directions is 0"),
        ({"batch_size": 2000}, "batch_size 2000 is larger than dataset_size 1024"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": -1e-9}, "delta is -1e-09"),
        ({"delta": math.nan}, "delta is nan"),
        ({"sampling": "full_batch"}, "full_batch needs batch_size 1024, not 64"),
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(COMMON, **change)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_is_no_target_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon is .*: it must be a positive number"):
        COMMON.noise_scale(epsilon)


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_a_noise_scale_that_is_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match="noise_scale is"):
        COMMON.epsilon(scale)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_delta_that_allows_any_release_is_refused(steps):
    """An example that is drawn with probability delta at most may be published then: there is no least noise to find."""
    setting = replace(COMMON, dataset_size=100_000, batch_size=1, steps=steps, delta=3e-5)
    with pytest.raises(
        ValueError, match="delta is 3e-05, but an example is ever in a batch with probability"
    ):
        setting.noise_scale(1.0)


# The cache -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch) -> list:
    """Calibrations that were really computed."""
    asked = []
    monkeypatch.setattr(Setting, "noise_scale", lambda self, epsilon: asked.append((self, epsilon)) or 1.5)
    return asked


def test_a_calibration_is_computed_once(tmp_path, counted):
    folder = tmp_path / "calibrations"
    assert [COMMON.cached_noise_scale(2.0, folder) for _ in range(3)] == [1.5] * 3
    assert counted == [(COMMON, 2.0)]
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert kept["noise_scale"] == 1.5 and kept["epsilon"] == 2.0 and kept["steps"] == 1000


def test_whatever_epsilon_depends_on_is_in_the_address(tmp_path, counted, monkeypatch):
    others = [
        LAPLACE,
        PURE,
        REPLACE,
        replace(COMMON, batch_size=1024, sampling="full_batch"),
        replace(COMMON, batch_size=1024),
        *(replace(COMMON, **{name: 65}) for name in ("batch_size", "steps", "directions")),
        replace(COMMON, dataset_size=1025),
        replace(COMMON, delta=1e-6),
    ]
    for setting in [COMMON, *others]:
        setting.cached_noise_scale(2.0, tmp_path)
    COMMON.cached_noise_scale(2.5, tmp_path)
    monkeypatch.setattr("dpzero.privacy.accounting.version", lambda name: "99")
    COMMON.cached_noise_scale(2.0, tmp_path)
    assert len(counted) == len(list(tmp_path.iterdir())) == len(others) + 3
