"""mu bounds the whole profile and is exact for Gaussian releases of full batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from dpzero.privacy import Setting
from dpzero.privacy.gdp import epsilon_of_mu, gaussian_delta, mu_at

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
FULL = Setting("gaussian", "full_batch", "add_remove", 100, 100, 1, 1e-5)

# noise/C for epsilon at 1e-5, and mu of the central limit theorem, rate sqrt(T (exp(1 / sigma^2) - 1))
LIMIT = {0.5: (13.9646, 0.142), 2: (4.05028, 0.496), 4: (2.28961, 0.906), 8: (1.39702, 1.617)}


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 0.1), (1.0, 1.0), (2.5, 4.0)])
def test_delta_of_mu_is_the_divergence_of_two_normals(mu, epsilon):
    """Two normals shifted by mu: the integral of (p - exp(epsilon) q)_+ from where it is positive."""
    start = epsilon / mu + mu / 2
    excess = lambda x: stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x)  # noqa: E731
    assert gaussian_delta(mu, epsilon) == pytest.approx(
        integrate.quad(excess, start, start + 12)[0], rel=1e-7
    )


@given(st.floats(1e-3, 30), st.floats(0, 60))
def test_mu_and_epsilon_and_delta_determine_each_other(mu, epsilon):
    delta = float(gaussian_delta(mu, epsilon))
    if 1e-12 < delta < 1 - 1e-9:
        assert mu_at(epsilon, delta) == pytest.approx(mu, rel=1e-4)
        assert epsilon_of_mu(mu, delta) == pytest.approx(epsilon, rel=1e-4, abs=1e-6)


def test_epsilon_is_zero_if_the_total_variation_of_mu_is_below_delta():
    assert epsilon_of_mu(1e-7, 1e-5) == 0.0


@pytest.mark.parametrize(("adjacency", "sensitivity"), [("add_remove", 1), ("replace_one", 2)])
@pytest.mark.parametrize(
    ("steps", "directions", "noise_scale"), [(1, 1, 2.0), (40, 1, 9.0), (1000, 4, 150.0)]
)
def test_mu_of_full_batches_is_exact(adjacency, sensitivity, steps, directions, noise_scale):
    setting = replace(FULL, adjacency=adjacency, steps=steps, directions=directions)
    exact = sensitivity * math.sqrt(directions * steps) / noise_scale
    assert exact * (1 - 1e-6) <= setting.gdp_mu(noise_scale) <= exact * (1 + 3e-4)


KINDS = [
    (COMMON, 4.05),
    (replace(COMMON, batch_size=2, steps=50), 0.5),  # few draws: far from Gaussian
    (Setting("laplace", "full_batch", "replace_one", 100, 100, 3, 1e-5), 3.0),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (replace(COMMON, mechanism="laplace"), 2.03),
            (replace(COMMON, adjacency="replace_one"), 7.9),
            (replace(COMMON, adjacency="replace_one", sampling="without_replacement"), 5.0),
        )
    ),
]


@pytest.mark.parametrize(("setting", "noise_scale"), KINDS, ids=lambda value: getattr(value, "mechanism", ""))
def test_the_profile_of_mu_is_nowhere_below_that_of_the_run(setting, noise_scale):
    """At 2000 epsilons, others than those that mu was computed from; a smaller mu fails."""
    mu = setting.gdp_mu(noise_scale)
    losses = setting.loss_distribution(noise_scale)
    epsilons = np.linspace(0, losses.get_epsilon_for_delta(setting.delta), 2003)
    deltas = np.array(losses.get_delta_for_epsilon(list(epsilons)))
    assert (gaussian_delta(mu, epsilons) >= deltas * (1 - 1e-6)).all()
    assert (gaussian_delta(mu * (1 - 1e-4), epsilons) < deltas).any()


@pytest.mark.parametrize("epsilon", [0.5, 8, *(pytest.param(e, marks=pytest.mark.slow) for e in (2, 4))])
def test_mu_of_many_subsampled_releases_is_near_its_limit_and_above(epsilon):
    noise_scale, limit = LIMIT[epsilon]
    assert limit == pytest.approx(math.sqrt(1000 * math.expm1(noise_scale**-2)) / 16, rel=5e-3)
    assert limit < COMMON.gdp_mu(noise_scale) < 1.04 * limit


@pytest.mark.parametrize("noise_scale", [20.0, 60.0, 1000.0])
def test_mu_of_pure_epsilon_bounds_randomized_response(noise_scale):
    """The worst epsilon-DP release has delta(e) = (exp(epsilon) - exp(e)) / (1 + exp(epsilon)); mu meets it
    at e = 0.
    """
    setting = Setting("laplace", "poisson", "add_remove", 1024, 64, 1000, 0.0)
    spent, mu = setting.epsilon(noise_scale), setting.gdp_mu(noise_scale)
    e = np.linspace(0, spent, 50)
    worst = (math.exp(spent) - np.exp(e)) / (1 + math.exp(spent))
    assert (gaussian_delta(mu, e) >= worst - 1e-12).all()
    assert gaussian_delta(mu, 0) == pytest.approx(worst[0], rel=1e-9)


def test_mu_of_next_to_no_noise_is_large_or_infinite_not_an_error():
    """Total variation rounds to 1 and exp(epsilon) overflows."""
    assert FULL.gdp_mu(0.05) == pytest.approx(20, rel=1e-3)
    assert FULL.gdp_mu(0.005) == math.inf
    assert 40 < replace(FULL, mechanism="laplace", steps=20, delta=0.0).gdp_mu(0.02) < 100
