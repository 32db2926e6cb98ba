"""Random allocation: the law of a period is an upper bound, near the exact one, and so is what follows from
it.

Four accountants that share nothing with it: quadrature of the pair of densities, simulation of that pair, the
packages of the method's authors (slow, where they are installed), and closed forms.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from dpzero import calibrate_noise, spent_epsilon
from dpzero.privacy import Budget, RunKey, Setting, dominating_pairs
from dpzero.privacy.composition import Composition
from dpzero.privacy.random_allocation import period_losses
from dpzero.privacy.sampling import SAMPLERS, RandomAllocation
from dpzero.studies.contour_accountant import LAWS, panels

COMMON = Setting("gaussian", "random_allocation", "add_remove", 1024, 64, 1000, 1e-5)
BASES = {"gaussian": dominating_pairs.gaussian, "laplace": dominating_pairs.laplace}


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_period_of_two_batches_is_the_divergence_of_its_two_densities(mechanism, noise):
    """P mixes N(1) x N(0) and N(0) x N(1), Q is N(0) x N(0): by quadrature over the plane, in both
    directions.
    """
    reach = (9 if mechanism == "gaussian" else 40) * noise
    points, weights = panels(np.array([-reach, 0.0, 1.0, 1 + reach]), 40)
    there, absent = (LAWS[mechanism].pdf(points, shift, noise) for shift in (1, 0))
    q = np.outer(absent, absent)
    p = (np.outer(there, absent) + np.outer(absent, there)) / 2
    epsilons = np.array([0.1, 0.3, 0.6, 0.9]) / noise
    laws = period_losses(BASES[mechanism](noise), 2, 1e-12)
    for law, (one, other) in zip(laws, ((p, q), (q, p)), strict=True):
        exact = np.array([weights @ np.maximum(one - math.exp(e) * other, 0) @ weights for e in epsilons])
        deltas = Composition([law], 1).get_delta_for_epsilon(list(epsilons))
        assert (deltas >= exact * (1 - 1e-3) - 1e-9).all()  # the kink costs the quadrature some digits
        assert (deltas <= exact * (1 + 5e-3) + 1e-7).all()


@pytest.mark.parametrize("batches", [1, 2, 3, 16, 37, 1000])
@pytest.mark.parametrize(("mechanism", "noise"), [("gaussian", 0.6), ("gaussian", 3.0), ("laplace", 2.0)])
def test_the_law_of_a_period_has_the_moments_of_a_mean_of_ratios(mechanism, noise, batches):
    """Masses of P and of Q sum to 1, and chi-square is that of one ratio over the number of batches, and
    not below it.
    """
    base = BASES[mechanism](noise)
    removed, added = period_losses(base, batches, 1e-12)
    one, _ = period_losses(base, 1, 1e-14, 400)
    for law in (removed, added):
        assert law.mass.sum() + law.infinite == pytest.approx(1, abs=1e-9)
        assert law.infinite <= 1e-12
        assert law.mass @ np.exp(-law.losses) == pytest.approx(1, abs=1e-7)
    of_one, of_all = (law.mass @ np.expm1(law.losses) for law in (one, removed))
    assert of_one / batches * (1 - 1e-3) <= of_all <= of_one / batches * (1 + 3e-3)


@pytest.mark.parametrize("direction", [0, 1])
def test_a_finer_grid_gives_a_slightly_smaller_epsilon(direction):
    base = dominating_pairs.gaussian(1.5)
    coarse, usual, fine = (
        Composition([period_losses(base, 16, 1e-12, cells)[direction]], 20).get_epsilon_for_delta(1e-6)
        for cells in (15, 60, 120)
    )
    assert fine <= usual <= coarse
    assert usual <= fine * (1 + 5e-4) and coarse > fine * (1 + 5e-4)


@pytest.mark.parametrize(("mechanism", "noise"), [("gaussian", 1.2), ("laplace", 1.0)])
def test_delta_of_several_periods_is_that_of_a_simulation(mechanism, noise):
    """Four periods of eight batches, 200,000 of them, in both directions.

    Five standard errors: false alarm 6e-7 each.
    """
    setting = Setting(mechanism, "random_allocation", "add_remove", 800, 100, 32, 1e-9)
    random, runs, batches, periods = np.random.default_rng(5), 60_000, 8, 4
    draw = {"gaussian": random.normal, "laplace": random.laplace}[mechanism]
    log_ratio = lambda x: LAWS[mechanism].logpdf(x, 1, noise) - LAWS[mechanism].logpdf(x, 0, noise)  # noqa: E731
    losses = {}
    for present in (True, False):
        outputs = draw(0, noise, (periods, batches, runs))
        outputs[:, 0] += present  # which of them it is does not matter to their mean
        loss = np.log(np.exp(log_ratio(outputs)).mean(1)).sum(0)
        losses[present] = loss if present else -loss
    epsilons = np.array([0.2, 0.5, 1.0])
    claimed = np.array(setting.loss_distribution(noise).get_delta_for_epsilon(list(epsilons)))
    seen = []
    for loss in losses.values():
        excess = np.maximum(-np.expm1(epsilons[:, None] - loss), 0)
        error = 5 * excess.std(1) / math.sqrt(runs)
        assert (excess.mean(1) <= claimed * (1 + 1e-3) + error).all()
        seen.append(excess.mean(1) + error)
    assert (np.max(seen, axis=0) >= claimed * (1 - 1e-3)).all()  # one direction attains it


# batches, epochs, noise, delta -> below, above: by PLD_accounting 2.0, the package of Feldman and Shenfeld 2026, and below by
# random-allocation 1.0.5, that of 2025
PUBLISHED = [
    ((2, 1, 1.0, 1e-5), (3.69670, 3.69806)),
    ((16, 1, 0.6, 1e-5), (5.23165, 5.24447)),
    ((4, 5, 2.0, 1e-5), (2.40578, 2.43134)),
    ((8, 4, 1.0, 1e-8), (6.10987, 6.13611)),
    ((16, 1, 0.8, 1e-6), (3.566771, 3.5680)),
    ((100, 1, 1.0, 1e-6), (0.839484, 1.3179)),
]


def allocated(batches: int, epochs: int, delta: float) -> Setting:
    return Setting("gaussian", "random_allocation", "add_remove", 8 * batches, 8, batches * epochs, delta)


@pytest.mark.parametrize(("kind", "ends"), PUBLISHED)
def test_epsilon_lies_in_the_published_range(kind, ends):
    batches, epochs, noise, delta = kind
    assert ends[0] <= allocated(batches, epochs, delta).epsilon(noise) <= ends[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "epochs", "noise", "delta"), [(16, 1, 0.6, 1e-5), (4, 5, 2.0, 1e-5), (8, 4, 1.0, 1e-8)]
)
def test_the_authors_package_agrees(batches, epochs, noise, delta):
    """PLD_accounting, of arXiv 2602.17284."""
    package = pytest.importorskip("PLD_accounting")
    above, below = package.gaussian_allocation_epsilon_range(
        delta=delta, sigma=noise, num_steps=batches, num_selected=1, num_epochs=epochs, epsilon_accuracy=0.05
    )
    assert below <= allocated(batches, epochs, delta).epsilon(noise) <= above


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "noise"), [(16, 0.8), (100, 1.0)])
def test_the_first_papers_bounds_lie_around_it(batches, noise):
    """random-allocation, of arXiv 2502.08202: a lower bound, and an upper one by decomposition."""
    pytest.importorskip("random_allocation")
    from random_allocation.comparisons.definitions import PrivacyParams, SchemeConfig
    from random_allocation.random_allocation_scheme import decomposition, lower_bound

    known = {"sigma": noise, "num_steps": batches, "num_selected": 1, "num_epochs": 1, "delta": 1e-6}
    params, config = PrivacyParams(**known, epsilon=None), SchemeConfig(discretization=1e-4)
    below = lower_bound.allocation_epsilon_lower_bound(params=params, config=config)
    above = decomposition.allocation_epsilon_decomposition(params=params, config=config)
    assert below <= allocated(batches, 1, 1e-6).epsilon(noise) <= above


# What is asked of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_gaussian_noise_is_about_that_of_poisson_batches(epsilon):
    """Feldman and Shenfeld 2026: no more. 1000 steps count as the 1008 of 63 whole periods."""
    scale = COMMON.noise_scale(epsilon)
    poisson = replace(COMMON, sampling="poisson", steps=1008).noise_scale(epsilon)
    assert 0.95 * poisson < scale <= poisson
    assert COMMON.epsilon(scale) <= epsilon < COMMON.epsilon(scale * (1 - 1e-4))


def test_the_public_functions_offer_random_allocation():
    arguments = {"mechanism": "gaussian", "sampling": "random_allocation", "adjacency": "add_remove"}
    arguments |= {"dataset_size": 1024, "batch_size": 64, "steps": 160, "delta": 1e-6}
    scale = calibrate_noise(epsilon=2.0, **arguments)
    assert spent_epsilon(noise_scale=scale, **arguments) == pytest.approx(2.0, rel=1e-4)


def test_a_partial_period_counts_whole():
    spent = [replace(COMMON, steps=steps).epsilon(2.0) for steps in (16, 17, 31, 32)]
    assert spent[0] < spent[1] == spent[2] == spent[3]


def test_a_started_period_counts_whole():
    """Steps 8 to 23 are 16, but of two periods: an example may be in both."""
    assert (
        COMMON.counted_steps(range(8, 24))
        == COMMON.counted_steps(range(32))
        == COMMON.counted_steps([0, 31, 31])
        == 32
    )
    assert replace(COMMON, sampling="poisson").counted_steps(range(8, 24)) == 16


def test_a_period_that_two_keys_share_counts_once_for_each():
    """Another key allocates the examples anew: one may be in a batch of each."""
    setting = replace(COMMON, dataset_size=64, batch_size=16, steps=8)  # two periods
    budget = Budget(setting, 2.0, RunKey.published(0))
    for name, numbers in {budget.key.name: range(4), 16 * "a": range(2)}.items():
        for number in numbers:
            budget.ledger.record(number, name)
    assert budget.epsilon_spent() == setting.epsilon(2.0) > replace(setting, steps=4).epsilon(2.0)


def test_another_key_starts_a_new_period():
    """Otherwise the rest of a period could draw examples that already had their batch."""
    setting = replace(COMMON, dataset_size=64, batch_size=16, steps=8)
    one, two = (Budget(setting, 2.0, RunKey.published(seed)) for seed in (0, 1))
    for batch, _ in zip(one.batches(), range(2), strict=False):
        one.release(torch.zeros(len(batch)), 1.0)
    two.load_state_dict(one.state_dict())
    assert (
        two.remaining_batches().start == 4 and one.remaining_batches().start == 3
    )  # one had drawn a third batch


def test_a_batch_size_that_does_not_divide_the_data_has_one_batch_more():
    assert replace(COMMON, dataset_size=1000).period == 16
    assert replace(COMMON, dataset_size=1000).epsilon(2.0) == COMMON.epsilon(2.0)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_one_batch_a_period_is_a_full_batch(mechanism):
    setting = replace(COMMON, mechanism=mechanism, batch_size=1024, steps=3)
    assert setting.epsilon(3.0) == replace(setting, sampling="full_batch").epsilon(3.0)


def test_several_directions_are_one_release_of_higher_sensitivity():
    assert replace(COMMON, directions=4).epsilon(8.0) == pytest.approx(COMMON.epsilon(4.0), rel=1e-9)


def test_pure_epsilon_is_that_of_one_release_a_period():
    """In the worst case all outputs of a period are as informative as the one with the example."""
    pure = replace(COMMON, mechanism="laplace", delta=0.0)
    assert pure.epsilon(126.0) == pytest.approx(0.5)
    assert pure.noise_scale(0.5) == pytest.approx(126.0)


@pytest.mark.parametrize("delta", [1e-12, 1e-30])
def test_random_allocation_is_accounted_at_small_deltas(delta):
    setting = replace(COMMON, delta=delta)
    scale = setting.noise_scale(2.0)
    assert setting.epsilon(scale) <= 2.0
    assert scale == pytest.approx(replace(setting, sampling="poisson", steps=1008).noise_scale(2.0), rel=0.05)


def test_mu_and_dp_accountings_own_composition_follow_from_the_same_law():
    assert COMMON.loss_distribution(4.0).get_epsilon_for_delta(1e-5) == pytest.approx(
        COMMON.epsilon(4.0), rel=2e-4
    )
    assert COMMON.gdp_mu(4.0) == pytest.approx(replace(COMMON, sampling="poisson").gdp_mu(4.0), rel=0.03)
    assert COMMON.epsilon_rdp(4.0) is None
    assert "random allocation" in COMMON.accountant


def test_replacing_an_example_is_refused():
    with pytest.raises(
        ValueError, match="no proven accounting for gaussian with random_allocation sampling, replace_one"
    ):
        replace(COMMON, adjacency="replace_one")


@pytest.mark.parametrize("sampling", ["shuffle", "shuffled_epochs"])
def test_shuffling_is_refused_and_the_message_names_random_allocation(sampling):
    with pytest.raises(
        ValueError, match=f"no proven accounting .*{sampling}.*To shuffle, use random_allocation"
    ):
        replace(COMMON, sampling=sampling)


# The sampler ----------------------------------------------------------------------------------------------

SIZE, BATCH, PERIODS = 20, 5, 4000


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    """The batch of each example in each period, [period, example]; each is in exactly one."""
    sampler = RandomAllocation(SIZE, BATCH, RunKey.published(0).stream("sampling"))
    batch_of = np.full((PERIODS, SIZE), -1)
    for step in range(PERIODS * 4):
        batch = sampler.batch(step)
        assert (batch_of[step // 4, batch] == -1).all()
        batch_of[step // 4, batch] = step % 4
    return batch_of


def test_each_example_is_in_exactly_one_batch_of_each_period(places):
    assert places.min() == 0 and places.max() == 3
    assert SAMPLERS["random_allocation"] is RandomAllocation


def test_each_batch_is_as_likely_for_each_example(places):
    """Chi-square with 3 degrees of freedom for each of 20 examples: false alarm 20 * 2e-8."""
    for example in places.T:
        assert stats.chisquare(np.bincount(example, minlength=4)).pvalue > 2e-8


def test_the_batches_of_examples_and_periods_are_independent(places):
    """Joint tables of 4 x 4, uniform: shuffled batches fail here.

    False alarm below 1e-6 over all 209 of them.
    """
    pairs = [(places[:, i], places[:, j]) for i in range(SIZE) for j in range(i)]
    pairs += [(places[1:, i], places[:-1, i]) for i in range(SIZE - 1)]
    for one, other in pairs:
        assert stats.chisquare(np.bincount(4 * one + other, minlength=16)).pvalue > 4e-9


def test_batch_sizes_are_binomial(places):
    sizes = (places == 2).sum(1)
    assert (
        stats.chisquare(
            np.bincount(np.clip(sizes, 1, 9), minlength=10)[1:],
            PERIODS * np.diff(stats.binom.cdf([-1, 1, 2, 3, 4, 5, 6, 7, 8, SIZE], SIZE, 0.25)),
        ).pvalue
        > 1e-7
    )


def test_the_last_batch_is_not_smaller_if_the_size_does_not_divide_the_data():
    sampler = RandomAllocation(19, 5, RunKey.published(1).stream("sampling"))
    period = np.concatenate([sampler.batch(step) for step in range(8, 12)])
    assert np.array_equal(np.sort(period), np.arange(19))
