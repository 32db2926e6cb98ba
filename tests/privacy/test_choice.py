"""Permute and flip: its law, its guarantee by exact probabilities, and what the budget and the ledger make of it."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
from scipy.stats import chi2

from dpzero.privacy import Budget, RunKey
from dpzero.privacy.choice import gdp_mu, permute_and_flip
from dpzero.privacy.discrete import Bits
from dpzero.privacy.gdp import gaussian_delta

SIZES = {"epsilon": 1, "delta": 1e-5, "dataset_size": 500, "batch_size": 50, "steps": 10}


def law(counts: tuple[int, ...], epsilon: float) -> list[float]:
    """P(place), over all orders: the first place whose coin shows heads, the largest count's always does."""
    heads = [math.exp(-epsilon / 2 * (max(counts) - count)) for count in counts]
    orders = list(permutations(range(len(counts))))
    found = [0.0] * len(counts)
    for order in orders:
        reached = 1.0 / len(orders)
        for place in order:
            found[place] += reached * heads[place]
            reached *= 1 - heads[place]
    return found


def drawn(counts: tuple[int, ...], epsilon: float, times: int) -> list[int]:
    stream, found = RunKey.published(7).stream("choice"), [0] * len(counts)
    for i in range(times):
        found[permute_and_flip(counts, epsilon, Bits(stream, i))] += 1
    return found


@pytest.mark.parametrize("counts", [(5, 5), (5, 4, 2), (7, 7, 6, 3)])
def test_the_draws_have_the_law_of_permute_and_flip(counts):
    """Pearson's statistic of 4,000 draws; a false alarm once in 1e7."""
    expected = [4000 * p for p in law(counts, 1.5)]
    seen = drawn(counts, 1.5, 4000)
    distance = sum((n - e) ** 2 / e for n, e in zip(seen, expected, strict=True))
    assert distance < chi2.isf(1e-7, len(counts) - 1)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_one_example_in_out_or_replaced_is_told_no_better_than_epsilon_says(epsilon):
    """All neighbours of all small counts, exactly; and the bound is reached up to a third of epsilon."""
    worst = 0.0
    for counts in product(range(3), repeat=3):
        before = law(counts, epsilon)
        for moved in product((-1, 0, 1), repeat=3):
            after = law(tuple(c + m for c, m in zip(counts, moved, strict=True)), epsilon)
            worst = max(worst, *(abs(math.log(b / a)) for b, a in zip(before, after, strict=True)))
    assert 2 / 3 * epsilon < worst <= epsilon + 1e-12


def test_a_far_better_candidate_is_chosen_and_a_single_one_always_is():
    bits = Bits(RunKey.published(0).stream("choice"))
    assert permute_and_flip([10, 400, 30], 1.0, bits) == 1 and permute_and_flip([3], 0.1, bits) == 0


@pytest.mark.parametrize(
    "counts, epsilon", [([], 1.0), ([1, 2], 0.0), ([1, 2], math.inf), ([1, 2], math.nan)]
)
def test_what_makes_no_sense_is_refused(counts, epsilon):
    with pytest.raises(ValueError, match=r"no candidate|must be a positive number"):
        permute_and_flip(counts, epsilon, Bits(RunKey.published(0).stream("choice")))


def test_its_mu_dominates_randomised_response():
    """delta(e) of the Gaussian mechanism is nowhere below that of the worst that is epsilon-DP, and touches it at 0."""
    for epsilon in (0.3, 1.0, 4.0):
        high = math.exp(epsilon) / (1 + math.exp(epsilon))
        for e in (0.0, 0.2 * epsilon, 0.7 * epsilon, epsilon):
            worst = max(0.0, high - math.exp(e) * (1 - high))
            assert gaussian_delta(gdp_mu(epsilon), e) >= worst - 1e-12
        assert gaussian_delta(gdp_mu(epsilon), 0.0) == pytest.approx(2 * high - 1)


# Budget -----------------------------------------------------------------------------------------------------------------


def test_what_is_spent_is_the_larger_of_training_and_the_choice(tmp_path):
    budget = Budget.calibrated(**SIZES)
    assert "choice" not in budget.statement(1.0, 1.0)
    budget.choose([3, 5], 0.25)
    assert budget.epsilon_spent() == 0.25  # nothing was trained
    for step in range(10):
        budget.ledger.record(step, budget.key.name)
    trained = budget.epsilon_spent()
    said = budget.statement(1.0, 1.0)
    assert 0.9 < trained <= 1 and said["epsilon_spent"] == trained
    assert said["choice"] == {"mechanism": "permute and flip", "epsilon": 0.25}


def test_a_choice_of_the_runs_epsilon_leaves_its_guarantee_where_it_was():
    budget = Budget.calibrated(**SIZES)
    for step in range(10):
        budget.ledger.record(step, budget.key.name)
    trained = budget.statement(1.0, 1.0)
    budget.choose([3, 5, 5], 1.0)
    said = budget.statement(1.0, 1.0)
    assert said["epsilon_spent"] == 1.0 >= trained["epsilon_spent"]
    assert said["gdp_mu"] == pytest.approx(max(trained["gdp_mu"], gdp_mu(1.0)))
    assert said["epsilon_spent_rdp"] == max(trained["epsilon_spent_rdp"], 1.0)


def test_a_secret_key_chooses_once_and_an_interrupted_choice_counts_again(tmp_path):
    budget = Budget.calibrated(**SIZES)
    budget.choose([3, 5], 0.25)
    with pytest.raises(ValueError, match="a choice was made before under this secret key"):
        budget.choose([3, 5], 0.25)
    path, spent = tmp_path / "ledger", []
    for _ in range(2):  # two processes, each with a key of its own
        one = Budget(budget.setting, budget.noise_scale, RunKey.secret(), path)
        one.choose([3, 5], 0.25)
        one.ledger.close()
        spent.append(one.epsilon_spent())
    assert spent == [0.25, 0.5]


def test_a_published_key_chooses_the_same_again_and_it_counts_once(tmp_path):
    path, chosen = tmp_path / "ledger", set()
    for _ in range(3):
        one = Budget(Budget.calibrated(**SIZES).setting, 1.0, RunKey.published(3), path)
        chosen.add(one.choose([4, 5, 5, 3], 0.5))
        one.ledger.close()
        assert one.epsilon_spent() == 0.5
    assert len(chosen) == 1 and len(path.read_text().splitlines()) == 2
