"""Deltas of any size: never below the exact epsilon, within a percent of it; refused beyond the range."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace

import mpmath
import numpy as np
import pytest

from dpzero import calibrate_noise, spent_epsilon
from dpzero.privacy import Setting
from dpzero.privacy.composition import compose
from dpzero.studies.contour_accountant import by_contour, by_lattice, delta_for, loss_laws

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-15)
FULL = Setting("gaussian", "full_batch", "add_remove", 100, 100, 1, 1e-30)


def test_a_small_delta_has_the_noise_that_it_needs():
    """Regression: 1e-15 of each release counted as infinite, which gave 257,663,392.8; below 1e-15 the search
    did not end.
    """
    arguments = {
        "sampling": "poisson",
        "adjacency": "add_remove",
        "dataset_size": 1024,
        "batch_size": 64,
        "steps": 10_000,
    }
    scale = calibrate_noise(mechanism="gaussian", epsilon=2, delta=1e-11, **arguments)
    assert scale == pytest.approx(20.02, abs=0.02)
    setting = Setting("gaussian", **arguments, delta=1e-11)
    assert delta_for(setting, scale, 2.0) <= 1e-11 < delta_for(setting, scale * (1 - 5e-4), 2.0)
    assert spent_epsilon(mechanism="gaussian", noise_scale=scale, delta=1e-11, **arguments) <= 2.0


@pytest.mark.parametrize("delta", [1e-12, 1e-16, 1e-30])
def test_noise_for_a_small_delta_spends_its_target_and_never_more(delta):
    setting = replace(COMMON, delta=delta)
    scale = setting.noise_scale(2.0)
    assert setting.epsilon(scale) <= 2.0 < setting.epsilon(scale * (1 - 5e-5))
    assert delta_for(setting, scale, 2.0) <= delta < delta_for(setting, scale * (1 - 1e-3), 2.0)


# Against the second accountant, which is tilted to its saddle, too, and shares no code --------------------

KINDS = [
    ("gaussian", "poisson", "add_remove", 1024),
    ("laplace", "poisson", "add_remove", 1024),
    ("gaussian", "poisson", "replace_one", 1024),
    ("gaussian", "without_replacement", "replace_one", 64),
    ("laplace", "without_replacement", "replace_one", 16_000),
    ("gaussian", "full_batch", "add_remove", 67_000),
    ("laplace", "full_batch", "replace_one", 67_000),
]


@pytest.mark.parametrize(
    # at 1e-10 dp-accounting alone says too little once
    "delta",
    [1e-10, 1e-30, *(pytest.param(delta, marks=pytest.mark.slow) for delta in (1e-11, 1e-20))],
)
@pytest.mark.parametrize(("mechanism", "sampling", "adjacency", "batch_size"), KINDS)
def test_epsilon_at_a_small_delta_is_never_below_the_exact_one_nor_a_percent_above(
    mechanism, sampling, adjacency, batch_size, delta
):
    setting = Setting(mechanism, sampling, adjacency, 67_000, batch_size, 10_000, delta)
    scale = 400 * setting.rate + 1.5 if sampling != "full_batch" else 800
    epsilon = setting.epsilon(scale)
    laws = loss_laws(setting, scale)
    exact = [max(by_contour(law, setting.steps, e) for law in laws) for e in (epsilon, 0.99 * epsilon)]
    assert exact[0] <= delta * (1 + 1e-6) and exact[1] > delta


@pytest.mark.parametrize(
    ("setting", "scale"),
    [
        (Setting("gaussian", "poisson", "add_remove", 67_000, 64, 100, 1e-12), 1.0),
        (Setting("gaussian", "without_replacement", "replace_one", 67_000, 16, 100, 1e-25), 1.0),
        (Setting("laplace", "full_batch", "replace_one", 100, 100, 100, 1e-15), 80.0),
    ],
    ids=str,
)
def test_few_draws_at_a_small_delta_agree_with_the_lattice(setting, scale):
    epsilon = setting.epsilon(scale)
    laws = loss_laws(setting, scale, panels_between=640)
    exact = [max(by_lattice(law, setting.steps, e) for law in laws) for e in (epsilon, 0.99 * epsilon)]
    assert exact[0] <= setting.delta * (1 + 1e-6) and exact[1] > setting.delta


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism, to 30 digits (Balle and Wang 2018)."""
    with mpmath.workdps(60):
        mu = mpmath.mpf(mu)
        low, high = mpmath.mpf(0), mu * mu / 2 + 20 * mu
        for _ in range(120):
            e = (low + high) / 2
            over = mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu) > delta
            low, high = (e, high) if over else (low, e)
        return float(high)


@pytest.mark.parametrize(
    ("steps", "scale", "delta", "loose"),
    [
        (1, 1.0, 1e-30, 1e-4),
        (1, 1e5, 1e-30, 1e-4),
        (1, 1e9, 1e-30, 1e-3),
        (40, 30.0, 1e-12, 1e-4),
        (10**6, 1e4, 1e-12, 1e-4),
        pytest.param(10**9, 2e5, 1e-12, 3e-3, marks=pytest.mark.slow),
        pytest.param(10**9, 2e5, 1e-5, 3e-3, marks=pytest.mark.slow),
    ],
)
def test_full_batches_at_any_delta_and_number_of_steps_are_the_analytic_gaussian_mechanism(
    steps, scale, delta, loose
):
    exact = gaussian_epsilon(math.sqrt(steps) / scale, delta)
    assert exact <= replace(FULL, steps=steps, delta=delta).epsilon(scale) <= exact * (1 + loose)


@pytest.mark.parametrize(
    ("rate", "scale", "delta"), [(1e-3, 1.0, 1e-20), (1e-3, 1.0, 1e-30), (0.3, 2.0, 1e-12)]
)
def test_one_poisson_batch_is_its_closed_form(rate, scale, delta):
    """delta(log(1 + rate (exp(x) - 1))) = rate delta_full(x) (Balle, Barthe and Gaboardi 2018)."""
    exact = math.log1p(rate * math.expm1(gaussian_epsilon(1 / scale, delta / rate)))
    setting = Setting("gaussian", "poisson", "add_remove", 10_000, int(rate * 10_000), 1, delta)
    assert exact <= setting.epsilon(scale) <= exact * (1 + 1e-4)


@pytest.mark.parametrize("batch_size", [10, 3000])
def test_laplace_noise_at_the_least_delta_costs_less_than_pure_epsilon(batch_size):
    setting = Setting("laplace", "poisson", "add_remove", 10_000, batch_size, 50, 1e-30)
    pure = replace(setting, delta=0.0).epsilon(1.0)
    assert 0.85 * pure < setting.epsilon(1.0) < pure


@pytest.mark.parametrize("delta", [1e-30, 1e-20, 1e-11])
def test_one_laplace_release_is_its_closed_form(delta):
    """delta = 1 - exp((epsilon - 1 / scale) / 2)."""
    exact = 0.25 + 2 * math.log1p(-delta)
    setting = replace(FULL, mechanism="laplace", delta=delta)
    assert exact <= setting.epsilon(4.0) <= exact * (1 + 1e-9)


@pytest.mark.parametrize(("setting", "scale"), [(replace(COMMON, delta=1e-5), 4.05), (COMMON, 6.0)])
def test_the_whole_profile_is_that_of_the_second_accountant(setting, scale):
    composed = compose(setting._pairs(scale), setting.steps, setting.delta)
    epsilons = np.linspace(0.02, composed.get_epsilon_for_delta(setting.delta), 12)
    exact = np.array([delta_for(setting, scale, e) for e in epsilons])
    deltas = composed.get_delta_for_epsilon(list(epsilons))
    assert (deltas >= exact * (1 - 1e-6)).all() and (deltas <= exact * (1 + 2e-3)).all()


def test_the_two_compositions_agree_where_both_resolve_delta():
    setting = replace(COMMON, delta=1e-6)
    tilted = compose(setting._pairs(4.0), setting.steps, setting.delta).get_epsilon_for_delta(setting.delta)
    assert setting.resolved and tilted == pytest.approx(setting.epsilon(4.0), rel=5e-5)


def test_mu_at_a_small_delta_is_exact_for_full_batches():
    setting = replace(FULL, steps=1000, delta=1e-15)
    assert math.sqrt(1000) / 50 <= setting.gdp_mu(50.0) <= math.sqrt(1000) / 50 * (1 + 1e-3)


def test_the_accountant_that_answers_is_named():
    assert COMMON.accountant.startswith("PLD composed under an exponential tilt")
    assert replace(COMMON, delta=1e-10, steps=10**9).accountant == COMMON.accountant
    assert replace(COMMON, delta=1e-10).accountant.startswith("dp-accounting")


# Ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-5, 1e-20, 0.0])
def test_infinite_noise_has_epsilon_zero(delta):
    setting = replace(COMMON, mechanism="laplace", delta=delta)
    assert setting.epsilon(math.inf) == setting.gdp_mu(math.inf) == 0.0
    assert setting.epsilon(0.0) == math.inf


@pytest.mark.parametrize("scale", [1e-320, 1e-30, 0.03])
def test_next_to_no_noise_at_a_small_delta_has_no_bound(scale):
    assert FULL.epsilon(scale) == FULL.gdp_mu(scale) == math.inf


def test_noise_beyond_floating_point_resolution_counts_as_the_largest_resolvable():
    """Regression: at 1e20 the two outputs differ by less than rounding; epsilon was 0 in place of 6e-20."""
    assert FULL.epsilon(1e20) >= gaussian_epsilon(1e-20, 1e-30) > 0


def test_any_valid_setting_has_an_epsilon_without_warnings():
    """Extreme settings drawn at random: no error, no NaN, and more noise never costs more."""
    draw = random.Random(18)
    for _ in range(8):
        mechanism, sampling, adjacency, _ = draw.choice(KINDS)
        size = draw.choice([1, 10, 67_000, 10**12])
        batch_size = size if sampling == "full_batch" else draw.choice([1, size // 2 or 1, size])
        steps, delta = draw.choice([1, 7, 10**5]), 10 ** draw.uniform(-30, -0.01)
        setting = Setting(mechanism, sampling, adjacency, size, batch_size, steps, delta)
        scale = 10 ** draw.choice([draw.uniform(-2, 4), draw.uniform(-320, 300)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spent, less = (setting.epsilon(s, discretisation=1e-2) for s in (scale, 2 * scale))
        assert 0 <= less <= spent * (1 + 5e-2) + 1e-12


@pytest.mark.parametrize("delta", [1e-31, 5e-324])
def test_a_delta_below_those_that_were_tested_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta is .*: it must be 0 \(with laplace\) or at least 1e-30"):
        replace(COMMON, delta=delta)


def test_more_steps_than_can_be_rounded_are_refused():
    with pytest.raises(ValueError, match="steps is 10000000001: at most 10000000000 are accounted for"):
        replace(COMMON, steps=10**10 + 1)


@pytest.mark.parametrize("name", ["dataset_size", "batch_size", "steps", "directions"])
@pytest.mark.parametrize("value", [True, 64.0, 64.5, "64", None, math.nan, [64]])
def test_a_non_integer_size_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*: it must be an integer"):
        replace(COMMON, **{name: value})


def test_numpy_integers_are_converted_to_int():
    setting = replace(COMMON, steps=np.int32(1000), delta=np.float64(1e-15))
    assert setting == COMMON and type(setting.steps) is int and type(setting.delta) is float


@pytest.mark.parametrize("value", [True, "1e-5", None, 1j])
def test_a_non_numeric_delta_epsilon_or_scale_is_refused(value):
    with pytest.raises(ValueError, match=r"delta is .*: it must be a number"):
        replace(COMMON, delta=value)
    with pytest.raises(ValueError, match=r"epsilon is .*: it must be a number"):
        COMMON.noise_scale(value)
    with pytest.raises(ValueError, match=r"noise_scale is .*: it must be a number"):
        COMMON.epsilon(value)


@pytest.mark.parametrize("name", ["mechanism", "sampling", "adjacency"])
@pytest.mark.parametrize("value", [None, 3, ["poisson"], ""])
def test_an_unknown_mechanism_sampling_or_adjacency_is_refused(name, value):
    with pytest.raises(ValueError, match="no proven accounting for"):
        replace(COMMON, **{name: value})


@pytest.mark.parametrize("delta", [0.5, 1 / 1024])
def test_a_delta_that_protects_nobody_gives_a_warning(delta):
    arguments = {"mechanism": "gaussian", "sampling": "poisson", "adjacency": "add_remove"}
    arguments |= {"dataset_size": 1024, "batch_size": 64, "steps": 1000, "delta": delta}
    for ask in (
        lambda: calibrate_noise(epsilon=2.0, **arguments),
        lambda: spent_epsilon(noise_scale=2.0, **arguments),
    ):
        with pytest.warns(
            UserWarning, match="at 1 / 1024 or above it allows publishing one of them outright"
        ):
            ask()


@pytest.mark.slow
def test_the_least_noise_is_found_for_ten_million_steps():
    setting = replace(COMMON, steps=10**7, delta=1e-6)
    scale = setting.noise_scale(2.0)
    assert setting.epsilon(scale) <= 2.0 < setting.epsilon(scale * (1 - 5e-5))
