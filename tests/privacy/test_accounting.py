"""Epsilon: published values, closed forms, pure epsilon, the Renyi bound, and refused settings."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from dpzero.privacy import Setting

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
LAPLACE = replace(COMMON, mechanism="laplace")
PURE = replace(LAPLACE, delta=0.0)
REPLACE = replace(COMMON, adjacency="replace_one")
SUBSETS = replace(REPLACE, sampling="without_replacement")
ONE_FULL = Setting("gaussian", "full_batch", "add_remove", 100, 100, 1, 1e-5)
ONE_TENTH = replace(ONE_FULL, sampling="poisson", batch_size=10)

# noise/C for n = 1024, B = 64, T = 1000, delta = 1e-5, made with code that is not this project's
GAUSSIAN_SIGMA = {0.5: 13.9646, 1: 7.45606, 2: 4.05028, 4: 2.28961, 6: 1.69493, 8: 1.39702}
RENYI_EPSILON = {0.5: 0.5494, 1: 1.0940, 2: 2.1784, 4: 4.3440, 6: 6.5102, 8: 8.6825}
LAPLACE_SCALE = {0.5: 13.741, 1: 7.2275, 2: 3.8085, 4: 2.0256, 6: 1.4159, 8: 1.1086}
REPLACE_SIGMA = {0.5: 27.795, 1: 14.745, 2: 7.8779, 4: 4.2681, 6: 3.0119, 8: 2.3660}
SUBSETS_SIGMA = {0.5: 28.548, 1: 15.499, 2: 8.6333, 4: 5.0252, 6: 3.7688, 8: 3.1209}
SUBSETS_LAPLACE = {1: 14.871, 2: 8.0152, 4: 4.4169, 8: 2.5262}
SUBSETS_RENYI_SIGMA = {0.5: 61.58, 1: 32.52, 2: 17.31, 4: 9.395, 6: 6.715, 8: 5.312}
PURE_SCALE = {0.5: 125.468, 2: 31.716, 4: 16.0886, 8: 8.27122, 100: 1.01334}


@pytest.mark.parametrize(
    ("setting", "table"),
    [
        (COMMON, GAUSSIAN_SIGMA),
        (LAPLACE, LAPLACE_SCALE),
        (REPLACE, REPLACE_SIGMA),
        (SUBSETS, SUBSETS_SIGMA),
        (replace(SUBSETS, mechanism="laplace"), SUBSETS_LAPLACE),
    ],
    ids=lambda value: getattr(value, "mechanism", ""),
)
def test_published_noise_gives_its_published_epsilon(setting, table):
    for epsilon, scale in table.items():
        assert setting.epsilon(scale) == pytest.approx(epsilon, rel=1e-4)


def test_the_renyi_bound_has_its_published_values():
    for epsilon, expected in RENYI_EPSILON.items():
        assert COMMON.epsilon_rdp(GAUSSIAN_SIGMA[epsilon]) == pytest.approx(expected, abs=1e-4)


def test_the_renyi_bound_of_subsets_uses_twice_the_sensitivity_for_replace_one():
    """dp-accounting's Renyi accountant does not double the sensitivity: without our factor these would be
    halved.
    """
    for epsilon, scale in SUBSETS_RENYI_SIGMA.items():
        assert SUBSETS.epsilon_rdp(scale) == pytest.approx(epsilon, rel=1e-3)
    replaced = replace(ONE_FULL, adjacency="replace_one")
    assert replaced.epsilon_rdp(4.0) == pytest.approx(ONE_FULL.epsilon_rdp(2.0), rel=1e-9)


RENYI = [
    COMMON,
    SUBSETS,
    replace(COMMON, directions=4),
    ONE_FULL,
    replace(ONE_FULL, adjacency="replace_one"),
    ONE_TENTH,
]


@pytest.mark.parametrize("setting", RENYI, ids=str)
@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        (1, 1.5),
        (1000, 6.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((30, 40.0), (1000, 40.0))),
    ],
)
def test_the_renyi_bound_is_never_below_the_tight_one(setting, steps, scale):
    setting = replace(setting, steps=steps)
    assert (
        setting.epsilon_rdp(scale) >= setting.epsilon(scale, discretisation=1e-3) - 1e-3 * (scale < 6) - 1e-6
    )


@pytest.mark.parametrize("setting", [REPLACE, LAPLACE, PURE])
def test_epsilon_rdp_is_none_without_a_proven_renyi_bound(setting):
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
def test_epsilon_and_mu_are_infinite_without_noise(setting):
    assert setting.epsilon(0.0) == setting.gdp_mu(0.0) == math.inf
    assert setting.epsilon_rdp(0.0) is None


# Pure epsilon ---------------------------------------------------------------------------------------------


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
    absent = stats.laplace.pdf(outputs, 0, scale)
    present = PURE.rate * stats.laplace.pdf(outputs, 1, scale) + (1 - PURE.rate) * absent
    worst = np.abs(np.log(present / absent)).max()
    assert PURE.epsilon(scale) == pytest.approx(PURE.steps * worst, rel=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_pure_epsilon_of_replacing_is_the_largest_log_ratio_of_any_two_neighbours(batch_size, scale):
    """Four examples and every subset of batch_size of them. The worst example is at one end while the others
    are at the other end.
    """
    sampling = "without_replacement" if batch_size < 4 else "full_batch"
    setting = Setting("laplace", sampling, "replace_one", 4, batch_size, 7, 0.0)
    outputs = np.linspace(-5 - 30 * scale, 5 + 30 * scale, 20_001)

    def density(contributions):
        sums = [sum(some) for some in combinations(contributions, batch_size)]
        return stats.laplace.pdf(outputs, np.array(sums)[:, None], scale).mean(0)

    random, largest = np.random.default_rng(11), 0.0
    for others in [(-1, -1, -1), (0, 0, 0), (1, -1, 1), *random.uniform(-1, 1, (10, 3))]:
        for one, other in [(1, -1), (1, 0), *random.uniform(-1, 1, (3, 2))]:
            ratio = np.abs(np.log(density((*others, one)) / density((*others, other)))).max()
            assert ratio <= setting.epsilon(scale) / 7 * (1 + 1e-9)
            largest = max(largest, ratio)
    assert setting.epsilon(scale) == pytest.approx(7 * largest, rel=1e-9)
    assert setting.noise_scale(setting.epsilon(scale)) == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize(("adjacency", "sensitivity"), [("add_remove", 1), ("replace_one", 2)])
def test_pure_laplace_on_full_batches_is_basic_composition(adjacency, sensitivity):
    setting = Setting("laplace", "full_batch", adjacency, 100, 100, 30, 0.0)
    assert setting.noise_scale(2.0) == pytest.approx(sensitivity * 30 / 2.0)


def test_pure_epsilon_beyond_the_range_of_exp_is_a_number():
    """If exp(1 / noise) overflows, the loss of a release is 1 / noise + log(rate)."""
    assert PURE.epsilon(1e-3) == pytest.approx(1000 * (1000 + math.log(1 / 16)), rel=1e-12)
    assert PURE.noise_scale(PURE.epsilon(1e-3)) == pytest.approx(1e-3, rel=1e-12)


def test_a_positive_delta_saves_noise():
    assert LAPLACE.epsilon(31.716) < 0.5 * PURE.epsilon(31.716)


def test_the_accountant_is_named():
    assert "closed form" in PURE.accountant
    assert COMMON.accountant.startswith("dp-accounting 0.6") and "0.0001" in COMMON.accountant


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": "without_replacement"},  # with add_remove the size of the batch would tell
        {"sampling": "shuffle"},
        {"adjacency": "zero_out"},
        {"mechanism": "uniform"},
        {"mechanism": "laplace", "adjacency": "replace_one"},
        {"mechanism": "laplace", "directions": 2},
        {"delta": 0.0},
    ],
    ids=str,
)
def test_an_unproven_setting_is_refused_and_the_message_lists_the_proven_ones(change):
    with pytest.raises(
        ValueError, match=r"no proven accounting .*: offered are gaussian or laplace with poisson"
    ):
        replace(COMMON, **change)


def test_laplace_with_poisson_and_replace_one_is_refused_and_the_message_lists_alternatives():
    """The natural pair of outputs is not proven to be the worst one."""
    with pytest.raises(ValueError) as refusal:
        replace(LAPLACE, adjacency="replace_one")
    message = str(refusal.value)
    assert message.startswith(
        "no proven accounting for laplace with poisson sampling, replace_one, delta 1e-05"
    )
    for offered in (
        "gaussian or laplace with poisson sampling and add_remove",
        "with without_replacement and replace_one",
        "with full_batch and either adjacency",
        "gaussian with poisson sampling and replace_one",
        "delta 0 with laplace",
        "several directions with gaussian",
    ):
        assert offered in message


OFFERED = [
    *product(("gaussian", "laplace"), ("poisson",), ("add_remove",), (1e-5,)),
    *product(("gaussian", "laplace"), ("without_replacement",), ("replace_one",), (1e-5,)),
    *product(("gaussian", "laplace"), ("full_batch",), ("add_remove", "replace_one"), (1e-5,)),
    ("gaussian", "poisson", "replace_one", 1e-5),
    ("laplace", "poisson", "add_remove", 0.0),
    ("laplace", "without_replacement", "replace_one", 0.0),
    *product(("laplace",), ("full_batch",), ("add_remove", "replace_one"), (0.0,)),
]


def test_every_proven_setting_is_accounted_and_no_other():
    mechanisms, samplings = ("gaussian", "laplace"), ("poisson", "without_replacement", "full_batch")
    for kind in product(mechanisms, samplings, ("add_remove", "replace_one"), (1e-5, 0.0)):
        *words, delta = kind
        arguments = (*words, 50, 50 if "full_batch" in words else 5, 3, delta)
        if kind in OFFERED:
            assert 0 < Setting(*arguments).epsilon(5.0, discretisation=1e-3) < 10
        else:
            with pytest.raises(ValueError, match="no proven accounting"):
                Setting(*arguments)


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


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_an_invalid_noise_scale_is_refused(scale):
    for answer in (COMMON.epsilon, COMMON.epsilon_rdp, COMMON.gdp_mu):
        with pytest.raises(ValueError, match=r"noise_scale is .*: it must be a number of at least 0"):
            answer(scale)
