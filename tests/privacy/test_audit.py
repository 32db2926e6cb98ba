"""Audit statistics on transcripts with a known truth. Fixed seeds; false alarms are below 1e-6 or noted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dpzero.privacy import Setting
from dpzero.privacy.audit import Bounds, judge, log_likelihood_ratio
from dpzero.privacy.gdp import epsilon_of_mu, gaussian_delta

SETTING = Setting("gaussian", "poisson", "add_remove", 10, 9, 8, 1e-5)
LAPLACE = replace(SETTING, mechanism="laplace")
REPLACE = replace(SETTING, adjacency="replace_one")
SUBSETS = replace(REPLACE, sampling="without_replacement")
COUNT = 20_000


def transcripts(
    setting: Setting, noise_scale: float, contribution: float, seed: int, count=COUNT
) -> np.ndarray:
    """Simulated without the project's code: a canary that adds `contribution` to each batch that it is in."""
    rng = np.random.default_rng(seed)
    shape = (count, setting.steps)
    law = {"gaussian": rng.standard_normal, "laplace": lambda size: rng.laplace(size=size)}[setting.mechanism]
    return law(shape) * noise_scale + contribution * (rng.random(shape) < setting.rate)


def verdict(setting: Setting, factor: float, seed: int) -> dict:
    claimed = setting.noise_scale(4.0)
    other = 0.0 if setting.adjacency == "add_remove" else -1.0
    without, present = (
        log_likelihood_ratio(setting, claimed, transcripts(setting, claimed * factor, c, seed + i))
        for i, c in enumerate((other, 1.0))
    )
    return judge(setting, claimed, without, present)


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_an_honest_run_is_not_refuted(seed):
    """Twenty repetitions. All 21 bounds hold at once with 95 % confidence; the claim leaves at least 3 more
    standard errors of room.
    """
    result = verdict(SETTING, 1.0, seed)
    assert result["profile_excess"] <= 0
    assert result["lower_bound_epsilon_through_mu"] <= 4.0


@pytest.mark.parametrize("seed", range(0, 10, 2))
def test_the_lower_bound_is_near_the_claim(seed):
    assert verdict(SETTING, 1.0, seed)["lower_bound_epsilon_through_mu"] >= 3.5


@pytest.mark.parametrize(
    "setting",
    [SETTING, LAPLACE, *(pytest.param(setting, marks=pytest.mark.slow) for setting in (REPLACE, SUBSETS))],
    ids=lambda s: f"{s.mechanism}, {s.sampling}",
)
def test_a_tenth_less_noise_is_refuted_and_the_right_noise_is_not(setting):
    assert verdict(setting, 0.9, 100)["profile_excess"] > 0
    assert verdict(setting, 1.0, 100)["profile_excess"] <= 0


def test_half_the_noise_leaks_far_more_than_it_claims():
    assert verdict(SETTING, 0.5, 0)["lower_bound_epsilon_through_mu"] > 7


def test_the_statistic_is_the_log_ratio_of_the_two_densities():
    setting, scale = replace(SETTING, steps=1), 0.8
    outputs = np.linspace(-3, 4, 50)[:, None]

    def density(shift: float, law) -> np.ndarray:
        mixture = (1 - setting.rate) * law.pdf(outputs, 0, scale) + setting.rate * law.pdf(
            outputs, shift, scale
        )
        return np.log(mixture)[:, 0]

    for mechanism, law in (("gaussian", stats.norm), ("laplace", stats.laplace)):
        for adjacency, other in (("add_remove", 0.0), ("replace_one", -1.0)):
            if (mechanism, adjacency) == ("laplace", "replace_one"):
                continue  # not offered with Poisson batches
            kind = replace(setting, mechanism=mechanism, adjacency=adjacency)
            ratio = log_likelihood_ratio(kind, scale, outputs)
            assert ratio == pytest.approx(density(1.0, law) - density(other, law), abs=1e-12)


def test_clopper_pearson_bounds_are_those_of_the_binomial():
    """Upper bound u of k successes in n: k or fewer have probability alpha under u."""
    present, without = np.arange(100) % 10 < 7, np.arange(100) % 10 < 2
    bounds = Bounds.from_samples(0.5, without.astype(float), present.astype(float), 0.95)
    assert stats.binom.cdf(20, 100, bounds.false_positive_rate) == pytest.approx(0.025)
    assert stats.binom.sf(69, 100, bounds.true_positive_rate) == pytest.approx(0.025)


def test_no_positive_test_gives_a_lower_bound_of_zero():
    same = np.zeros(50)
    bounds = Bounds.from_samples(0.0, same, same, 0.95)
    assert bounds.true_positive_rate == 0.0 and bounds.epsilon(1e-5) == 0.0 and bounds.mu() == 0.0


def test_a_perfect_distinguisher_is_bounded_by_its_number_of_trials():
    """500 in each world without an error: log((1 - u - delta) / u), u the upper bound on an error rate
    never seen.
    """
    bounds = Bounds.from_samples(0.0, -np.ones(500), np.ones(500), 0.95)
    u = stats.beta.ppf(0.975, 1, 500)
    assert bounds.epsilon(0.0) == pytest.approx(np.log((1 - u) / u))


@pytest.mark.parametrize("mu", [0.1, 0.9, 3.0])
def test_epsilon_of_mu_is_the_gaussian_mechanisms(mu):
    epsilon = epsilon_of_mu(mu, 1e-5)
    assert gaussian_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_of_mu(1e-7, 1e-5) == 0.0
