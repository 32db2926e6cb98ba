"""Each profile matches its densities, bounds every data set of its kind, and agrees with dp-accounting."""

from __future__ import annotations

import math
import warnings
from itertools import combinations, product

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats

from dpzero.privacy import Setting, dominating_pairs
from dpzero.studies.contour_accountant import LAWS, by_contour, by_lattice, delta_for, loss_laws, panels

EPSILONS = np.concatenate([-np.geomspace(1e-3, 4, 12)[::-1], [0.0], np.geomspace(1e-3, 4, 12)])
BASES = {"gaussian": dominating_pairs.gaussian, "laplace": dominating_pairs.laplace}


def outputs(mechanism: str, noise: float, ends: float, count: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for integrals over a release whose centres are integers between -ends and ends,
    and others.
    """
    reach = (9 if mechanism == "gaussian" else 40) * noise
    breaks = np.concatenate([[-ends - reach], np.arange(-ends, ends + 1), [ends + reach]])
    return panels(breaks, count)


def divergence(p: np.ndarray, q: np.ndarray, weights: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    """The hockey-stick divergence by definition: the integral of (p - exp(epsilon) q)_+."""
    return np.array([np.maximum(p - math.exp(e) * q, 0) @ weights for e in epsilons])


# The pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.4, 1.5, 6.0])
@pytest.mark.parametrize("rate", [0.004, 0.3, 0.95])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_profile_is_the_divergence_of_its_two_densities(mechanism, rate, noise):
    """For both signs of epsilon: a wrong branch below 0 would shift the whole loss distribution."""
    points, weights = outputs(mechanism, noise, ends=1)
    without, present, opposite = (LAWS[mechanism].pdf(points, shift, noise) for shift in (0, 1, -1))
    mixed, other = (1 - rate) * without + rate * present, (1 - rate) * without + rate * opposite
    base = BASES[mechanism](noise)
    cases = [
        (base, present, without),
        (dominating_pairs.removed(base, rate), mixed, without),
        (dominating_pairs.removed(base, rate).swapped(), without, mixed),
    ]
    if mechanism == "gaussian":
        cases.append((dominating_pairs.replaced_gaussian(noise, rate), mixed, other))
    for profile, p, q in cases:
        np.testing.assert_allclose(
            profile(EPSILONS), divergence(p, q, weights, EPSILONS), rtol=1e-4, atol=1e-9
        )


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_the_profile_of_subsets_amplifies_that_of_full_batches_and_is_symmetric(mechanism):
    """delta(log(1 + rate (e^x - 1))) = rate delta_full(x) for x >= 0; below 0 that of the reversed pair,
    which is itself.
    """
    rate, base = 0.1, BASES[mechanism](1.2)
    profile, x = dominating_pairs.without_replacement(base, rate), EPSILONS[EPSILONS >= 0]
    np.testing.assert_allclose(profile(np.log1p(rate * np.expm1(x))), rate * base(x), rtol=1e-12)
    np.testing.assert_allclose(profile(-x), 1 - np.exp(-x) + np.exp(-x) * profile(x), rtol=1e-12)


# Dominance ------------------------------------------------------------------------------------------------

KINDS = [
    ("gaussian", "poisson", "add_remove"),
    ("laplace", "poisson", "add_remove"),
    ("gaussian", "poisson", "replace_one"),
    *product(("gaussian", "laplace"), ("without_replacement", "full_batch"), ("replace_one",)),
    *product(("gaussian", "laplace"), ("full_batch",), ("add_remove",)),
]


def release(mechanism, sampling, batch_size, noise, contributions, points):
    """Density of one release by enumerating the batches, the Poisson rate being that of batch_size in 4
    examples.
    """
    n = len(contributions)
    if sampling == "poisson":
        rate = batch_size / 4
        batches = [b for k in range(n + 1) for b in combinations(range(n), k)]
        chances = [rate ** len(b) * (1 - rate) ** (n - len(b)) for b in batches]
    else:
        batches = list(combinations(range(n), batch_size if sampling == "without_replacement" else n))
        chances = [1 / len(batches)] * len(batches)
    sums = [sum(contributions[i] for i in b) for b in batches]
    return sum(c * LAWS[mechanism].pdf(points, s, noise) for c, s in zip(chances, sums, strict=True))


@pytest.mark.parametrize("noise", [0.7, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mechanism", "sampling", "adjacency"), KINDS)
def test_no_small_data_set_exceeds_the_profile_of_its_setting(mechanism, sampling, adjacency, noise):
    """Four examples, all batches enumerated, neighbours in both orders. Detects a missing sensitivity or
    direction.
    """
    batch_size = 4 if sampling == "full_batch" else 1
    setting = Setting(mechanism, sampling, adjacency, 4, batch_size, 1, 1e-5)
    epsilons = np.geomspace(0.01, 3, 8)
    bound = np.array(setting.loss_distribution(noise).get_delta_for_epsilon(list(epsilons)))
    points, weights = outputs(mechanism, noise, ends=4, count=60)
    random, largest = np.random.default_rng(7), 0.0
    for others in [(-1, -1, -1), (0, 0, 0), (1, -1, 1), *random.uniform(-1, 1, (4, 3)).round(3)]:
        for value, replacement in [(1, -1), (1, 0), tuple(random.uniform(-1, 1, 2).round(3))]:
            second = () if adjacency == "add_remove" else (replacement,)
            pair = [
                release(mechanism, sampling, batch_size, noise, (*others, *some), points)
                for some in [(value,), second]
            ]
            for p, q in (pair, pair[::-1]):
                deltas = divergence(p, q, weights, epsilons)
                assert (deltas <= bound * (1 + 1e-4) + 2e-6).all()
                largest = max(largest, float(deltas[0] / bound[0]))
    assert largest > 0.999  # some pair attains it: the bound is no looser than it must be


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("noise", [0.4, 1.0, 5.0])
def test_no_two_contributions_exceed_the_profile_of_opposite_ends(noise, rate):
    """(1 - q) N(0) + q N(a) against (1 - q) N(0) + q N(b), a and b on a grid of [-1, 1]: checks the proof
    numerically.
    """
    points, weights = outputs("gaussian", noise, ends=1, count=200)
    without = stats.norm.pdf(points, 0, noise)
    shifts = np.linspace(-1, 1, 11)
    mixed = (1 - rate) * without + rate * stats.norm.pdf(points, shifts[:, None], noise)
    epsilons = np.concatenate([[0], np.geomspace(1e-3, 6, 16)])
    bound = dominating_pairs.replaced_gaussian(noise, rate)(epsilons)
    for epsilon, delta in zip(epsilons, bound, strict=True):
        deltas = np.maximum(mixed[:, None] - math.exp(epsilon) * mixed, 0) @ weights
        assert deltas.max() <= delta * (1 + 1e-4) + 1e-9
        assert deltas[-1, 0] == pytest.approx(delta, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("noise", [0.7, 2.0])
def test_no_two_vectors_exceed_the_profile_of_opposite_ones(noise, rate):
    """Several directions, or gradients: a on the unit circle, b anywhere in the plane they span."""
    axis, step = np.linspace(-1 - 6 * noise, 1 + 6 * noise, 241, retstep=True)
    x, y = np.meshgrid(axis, axis)

    def mixed(length: float, angle: float) -> np.ndarray:
        here = (x - length * math.cos(angle)) ** 2 + (y - length * math.sin(angle)) ** 2
        terms = (1 - rate) * np.exp(-(x**2 + y**2) / 2 / noise**2) + rate * np.exp(-here / 2 / noise**2)
        return terms * step**2 / (2 * math.pi * noise**2)

    epsilons, first = np.array([0.0, 0.05, 0.2, 0.6, 1.5]), mixed(1, 0)
    bound = dominating_pairs.replaced_gaussian(noise, rate)(epsilons)
    for length, angle in product([0.4, 1.0], np.linspace(0, math.pi, 7)):
        second = mixed(length, angle)
        for p, q in ((first, second), (second, first)):
            for epsilon, delta in zip(epsilons, bound, strict=True):
                assert np.maximum(p - math.exp(epsilon) * q, 0).sum() <= delta * (1 + 1e-3) + 1e-6


# dp-accounting's own events -------------------------------------------------------------------------------

ADD, REPLACE = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE


@pytest.mark.parametrize(
    ("rate", "scale", "steps"),
    [
        (0.01, 0.9, 20),
        (1, 12.0, 10),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0.25, 4.0, 20), (0.9, 9.0, 10)]),
    ],
)
@pytest.mark.parametrize(
    ("mechanism", "adjacency"),
    [("gaussian", "add_remove"), ("gaussian", "replace_one"), ("laplace", "add_remove")],
)
def test_epsilon_is_that_of_dp_accountings_own_event(mechanism, adjacency, rate, scale, steps):
    event = {"gaussian": dp.GaussianDpEvent, "laplace": dp.LaplaceDpEvent}[mechanism](scale)
    if rate < 1:
        event = dp.PoissonSampledDpEvent(rate, event)
    accountant = PLDAccountant({"add_remove": ADD, "replace_one": REPLACE}[adjacency])
    accountant.compose(event, steps)
    sampling = "poisson" if rate < 1 else "full_batch"
    ours = Setting(mechanism, sampling, adjacency, 1000, round(1000 * rate), steps, 1e-5)
    assert ours.epsilon(scale) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-5)


# The grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1e-2, 1e-4])
@pytest.mark.parametrize(("mechanism", "sampling", "adjacency"), KINDS)
def test_rounding_to_a_grid_is_never_optimistic(mechanism, sampling, adjacency, grid):
    """Between grid points, the distribution's delta is above the profile it was made from, and near it."""
    setting = Setting(mechanism, sampling, adjacency, 10, 10 if sampling == "full_batch" else 2, 1, 1e-5)
    noise, scale = 1.5 / setting.sensitivity(), 1.5
    base = BASES[mechanism](noise)
    profile = {
        "full_batch": base,
        "without_replacement": dominating_pairs.without_replacement(base, 0.2),
        "poisson": dominating_pairs.removed(base, 0.2),
    }[sampling]
    if (sampling, adjacency) == ("poisson", "replace_one"):
        profile = dominating_pairs.replaced_gaussian(1.5, 0.2)
    epsilons = np.sort(np.random.default_rng(3).uniform(0, 0.6, 200))
    rounded = np.array(setting.loss_distribution(scale, grid).get_delta_for_epsilon(list(epsilons)))
    exact = profile(epsilons)
    assert (rounded >= exact - 1e-13).all()
    assert (rounded <= exact + grid).all() and (rounded - exact).max() > 0


@pytest.mark.parametrize(
    "scale", [1e-3, 1e17, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (0.1, 0.02, 1e6))]
)
@pytest.mark.parametrize(("mechanism", "sampling", "adjacency"), KINDS)
def test_next_to_no_noise_and_far_too_much_have_an_epsilon(mechanism, sampling, adjacency, scale):
    """No NaN, no overflow, no grid beyond memory: epsilon is infinite or huge for tiny noise, nearly 0 for
    much.
    """
    setting = Setting(mechanism, sampling, adjacency, 1000, 1000 if sampling == "full_batch" else 10, 1, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon = setting.epsilon(scale, discretisation=1e-3)
    assert epsilon > 3 if scale < 1 else 0 <= epsilon < 1e-5


# The second accountant ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 100, 1000])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_the_second_accountant_reproduces_the_analytic_gaussian(steps, epsilon):
    setting, mu = (
        Setting("gaussian", "full_batch", "add_remove", 100, 100, steps, 1e-5),
        math.sqrt(steps) / 20,
    )
    exact = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
    assert delta_for(setting, 20.0, epsilon) == pytest.approx(exact, rel=1e-7, abs=1e-16)
    replaced = Setting("gaussian", "full_batch", "replace_one", 100, 100, steps, 1e-5)
    assert delta_for(replaced, 40.0, epsilon) == pytest.approx(exact, rel=1e-7, abs=1e-16)
    (law,) = loss_laws(replaced, 40.0, panels_between=640)
    assert by_lattice(law, steps, epsilon) == pytest.approx(exact, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(("mechanism", "sampling", "adjacency"), KINDS)
def test_the_laws_of_the_second_accountant_sum_to_one(mechanism, sampling, adjacency):
    """The masses sum to 1 under P, and, weighted by exp(-L), under Q."""
    setting = Setting(mechanism, sampling, adjacency, 64, 64 if sampling == "full_batch" else 3, 5, 1e-5)
    for loss, mass in loss_laws(setting, 1.3):
        assert np.exp(mass).sum() == pytest.approx(1, abs=1e-12)
        assert np.exp(mass - loss).sum() == pytest.approx(1, abs=1e-9)


COMMON = (1024, 64, 1000, 1e-5)


@pytest.mark.parametrize(
    ("mechanism", "epsilon", "multiplier"),
    [("gaussian", 1, 7.74934), ("gaussian", 4, 2.51260), ("laplace", 1, 7.43550), ("laplace", 4, 2.20843)],
)
def test_without_replacement_has_its_published_noise(mechanism, epsilon, multiplier):
    """n = 1024, B = 64, T = 1000, delta = 1e-5; noise over the sensitivity 2, computed with other code than
    this project's.
    """
    setting = Setting(mechanism, "without_replacement", "replace_one", *COMMON)
    below, above = (delta_for(setting, 2 * multiplier * (1 + by), epsilon) for by in (-5e-6, 5e-6))
    assert above < 1e-5 < below
    assert setting.noise_scale(epsilon) == pytest.approx(2 * multiplier, rel=5e-5)


@pytest.mark.parametrize(
    ("setting", "scale", "epsilon"),
    [
        (Setting("gaussian", "poisson", "add_remove", *COMMON), 4.05, 2),
        (Setting("laplace", "poisson", "add_remove", *COMMON), 3.81, 2),
        (Setting("gaussian", "poisson", "replace_one", *COMMON), 4.27, 4),
        (Setting("laplace", "without_replacement", "replace_one", *COMMON), 14.87, 1),
    ],
    ids=str,
)
def test_the_contour_and_the_lattice_agree(setting, scale, epsilon):
    for law, finer in zip(loss_laws(setting, scale), loss_laws(setting, scale, 640), strict=True):
        assert by_lattice(finer, setting.steps, epsilon) == pytest.approx(
            by_contour(law, setting.steps, epsilon), rel=1e-6, abs=1e-15
        )


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    ("batch_size", "scale", "epsilon"), [(1, 0.25, 1.0), (4096, 0.35, 2.0), (16_750, 1.2, 0.1)]
)
def test_the_lattice_gives_a_single_release_if_the_contour_does_not_converge(
    mechanism, batch_size, scale, epsilon
):
    setting = Setting(mechanism, "poisson", "add_remove", 67_000, batch_size, 1, 1e-6)
    exact = dominating_pairs.removed(BASES[mechanism](scale), setting.rate)(np.array([epsilon]))[0]
    assert delta_for(setting, scale, epsilon) == pytest.approx(exact, rel=2e-4, abs=1e-12)
