"""Group privacy: what a user loses whose examples are drawn one by one, and that nobody loses more than is said."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from scipy.stats import binom, norm

from dpzero.privacy import Budget, Ledger, RunKey, Setting, dominating_pairs
from dpzero.privacy.sampling import Users
from dpzero.studies.contour_accountant import panels

EPSILONS = np.concatenate([-np.geomspace(1e-3, 4, 12)[::-1], [0.0], np.geomspace(1e-3, 4, 12)])
SETTING = Setting("gaussian", "poisson", "add_remove", 400, 40, 50, 1e-5, group_size=4)


def divergence(p: np.ndarray, q: np.ndarray, weights: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    return np.array([np.maximum(p - math.exp(e) * q, 0) @ weights for e in epsilons])


@pytest.mark.parametrize("noise", [0.5, 2.0, 20.0])
@pytest.mark.parametrize(("rate", "size"), [(0.004, 8), (0.3, 3), (1.0, 4), (0.1, 1)])
def test_the_profile_is_the_divergence_of_its_two_densities(noise, rate, size):
    points, weights = panels(np.arange(-9 * noise, size + 9 * noise + 1, max(noise, 1.0)), 200)
    chances = binom.pmf(np.arange(size + 1), size, rate)
    p = sum(c * norm.pdf(points, j, noise) for j, c in enumerate(chances))
    q, pair = norm.pdf(points, 0, noise), dominating_pairs.group(noise, rate, size)
    for profile, first, second in ((pair, p, q), (pair.swapped(), q, p)):
        expected = divergence(first, second, weights, EPSILONS)
        np.testing.assert_allclose(profile(EPSILONS), expected, rtol=1e-5, atol=1e-9)


def test_a_group_of_one_is_an_example():
    pair, alone = (
        dominating_pairs.group(1.3, 0.2, 1),
        dominating_pairs.removed(dominating_pairs.gaussian(1.3), 0.2),
    )
    np.testing.assert_allclose(pair(EPSILONS), alone(EPSILONS), rtol=1e-9, atol=1e-14)


def test_no_user_of_a_small_data_set_exceeds_the_profile():
    """Three examples of a user beside two of others, with every subset drawn, in both orders and many places."""
    rate, noise, epsilons = 0.3, 0.8, np.geomspace(0.01, 3, 8)
    pair = dominating_pairs.group(noise, rate, 3)
    points, weights = panels(np.linspace(-13, 13, 27), 60)

    def density(values) -> np.ndarray:
        total = np.zeros_like(points)
        for drawn in product((0, 1), repeat=len(values)):
            chance = math.prod(rate if d else 1 - rate for d in drawn)
            total += chance * norm.pdf(points, np.dot(drawn, values), noise)
        return total

    random, largest = np.random.default_rng(3), 0.0
    for own in [(1, 1, 1), (-1, -1, -1), (1, -1, 1), (1, 0, 0), *random.uniform(-1, 1, (6, 3))]:
        for others in [(0, 0), (1, 1), (1, -1), *random.uniform(-1, 1, (2, 2))]:
            with_user, without = density((*own, *others)), density(others)
            for profile, p, q in ((pair, with_user, without), (pair.swapped(), without, with_user)):
                deltas, bound = divergence(p, q, weights, epsilons), profile(epsilons)
                assert (deltas <= bound * (1 + 1e-6) + 1e-12).all()
                largest = max(largest, float(np.max(deltas[bound > 0] / bound[bound > 0])))
    assert largest > 0.999  # three equal examples reach it


@pytest.mark.parametrize("size", [2, 8])
def test_epsilon_is_that_of_dp_accounting_and_between_one_example_and_the_conversion(size):
    """The conversion: (epsilon, delta) of an example gives a group (k epsilon, delta (e^(k epsilon) - 1) / (e^epsilon - 1))."""
    setting, noise = replace(SETTING, group_size=size), 4.0
    mixture = from_mixture_gaussian_mechanism(
        noise,
        [float(j) for j in range(size + 1)],
        binom.pmf(range(size + 1), size, setting.rate).tolist(),
        use_connect_dots=True,
    ).self_compose(setting.steps)
    epsilon = setting.epsilon(noise)
    assert epsilon == pytest.approx(mixture.get_epsilon_for_delta(1e-5), rel=1e-4)
    example = replace(setting, group_size=1)
    each = np.linspace(1e-3, 8, 2000)
    deltas = np.array(example.loss_distribution(noise).get_delta_for_epsilon(each.tolist()))
    converted = size * each[deltas * np.expm1(size * each) / np.expm1(each) <= 1e-5][0]
    assert example.epsilon(noise) * 1.5 < epsilon <= converted


def test_noise_for_a_group_never_spends_more_than_the_target():
    scale = SETTING.noise_scale(2.0)
    assert 1.999 < SETTING.epsilon(scale) <= 2.0
    assert scale > 2 * replace(SETTING, group_size=1).noise_scale(2.0)
    small = replace(SETTING, delta=1e-13)  # composed in another way
    assert SETTING.epsilon(scale) < small.epsilon(scale) < 6


@pytest.mark.parametrize(
    "change", [{"mechanism": "laplace"}, {"sampling": "random_allocation"}, {"group_size": 65}]
)
def test_a_group_without_a_proof_is_refused(change):
    with pytest.raises(ValueError, match=r"no accounting for groups of \d+ examples"):
        replace(SETTING, **change)


def test_a_budget_names_the_user_and_draws_examples(tmp_path):
    with pytest.raises(ValueError, match="groups need unit group"):
        Budget(SETTING, 3.0, RunKey.published(0))
    file = tmp_path / "ledger"
    budget = Budget(SETTING, 3.0, RunKey.published(0), file, unit="group")
    for batch in budget.batches():
        import torch

        budget.release(torch.zeros(len(batch)), 1.0)
    said = budget.statement()
    assert said["unit"] == "user, as a group of at most 4 examples"
    assert said["epsilon_spent"] == pytest.approx(SETTING.epsilon(3.0), rel=1e-9)
    assert said["epsilon_spent"] > replace(SETTING, group_size=1).epsilon(3.0)
    assert "of at most 4 examples" in repr(budget)
    with pytest.raises(ValueError, match="unit example"):
        budget.choose({1: 1, 2: 2}, 1.0)
    budget.close()
    assert Ledger.read_event(file).setting() == SETTING


def test_a_ledger_of_before_there_were_groups_is_read(tmp_path):
    setting, file = replace(SETTING, group_size=1), tmp_path / "ledger"
    Budget(setting, 3.0, RunKey.published(0), file).close()
    file.write_text(file.read_text().replace(', "group_size": 1', ""))
    assert "group_size" not in file.read_text()
    Budget(setting, 3.0, RunKey.published(0), file).close()


def test_of_each_user_so_many_examples_are_kept_or_drawn():
    users, stream = Users(list("abacaba")), RunKey.published(0).stream("examples of users")
    assert users.kept(2).tolist() == [0, 1, 2, 3, 5]
    assert users.mean_examples() == pytest.approx(7 / 3) and users.mean_examples(2) == pytest.approx(5 / 3)
    seen: set[int] = set()
    for step in range(40):
        rows, whose = users.examples(np.array([0, 2]), 2, stream, step)
        assert whose.tolist() == [0, 0, 1] and rows[2] == 3 and set(rows[:2]) <= {0, 2, 4, 6}
        again, _ = users.examples(np.array([0]), 2, stream, step)
        assert again.tolist() == rows[:2].tolist()  # whoever else is drawn
        seen |= set(rows[:2].tolist())
    assert seen == {0, 2, 4, 6}
