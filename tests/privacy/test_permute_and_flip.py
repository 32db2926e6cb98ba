"""Permute and flip: its distribution, its exact guarantee, and its entries in budget and ledger."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
from scipy.stats import chi2

from dpzero.privacy import Budget, RunKey
from dpzero.privacy.discrete_noise import Bits
from dpzero.privacy.gdp import gaussian_delta, mu_of_epsilon
from dpzero.privacy.imitation_budget import PublicCodeBudget
from dpzero.privacy.permute_and_flip import permute_and_flip
from dpzero.privacy.public_implementations import IMPLEMENTATIONS, PublicRun

SIZES = {"epsilon": 1, "delta": 1e-5, "dataset_size": 500, "batch_size": 50, "steps": 10}


def law(counts: tuple[int, ...], epsilon: float) -> list[float]:
    """P(place) over all orders: the first place whose coin shows heads; that of the largest count always
    does.
    """
    heads = [math.exp(-epsilon / 2 * (max(counts) - count)) for count in counts]
    orders = list(permutations(range(len(counts))))
    probabilities = [0.0] * len(counts)
    for order in orders:
        reached = 1.0 / len(orders)
        for place in order:
            probabilities[place] += reached * heads[place]
            reached *= 1 - heads[place]
    return probabilities


def drawn(counts: tuple[int, ...], epsilon: float, times: int) -> list[int]:
    stream, tallies = RunKey.published(7).stream("choice"), [0] * len(counts)
    for i in range(times):
        tallies[permute_and_flip(counts, epsilon, Bits(stream, i))] += 1
    return tallies


@pytest.mark.parametrize("counts", [(5, 5), (5, 4, 2), (7, 7, 6, 3)])
def test_the_draws_have_the_law_of_permute_and_flip(counts):
    """Pearson's statistic of 4,000 draws; false alarm 1e-7."""
    expected = [4000 * p for p in law(counts, 1.5)]
    observed = drawn(counts, 1.5, 4000)
    distance = sum((n - e) ** 2 / e for n, e in zip(observed, expected, strict=True))
    assert distance < chi2.isf(1e-7, len(counts) - 1)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_permute_and_flip_is_epsilon_dp_for_each_adjacency(epsilon):
    """All neighbours of all small counts, exactly; the bound is tight up to a third of epsilon."""
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
def test_invalid_counts_and_epsilons_are_refused(counts, epsilon):
    with pytest.raises(ValueError, match=r"no candidate|must be a positive number"):
        permute_and_flip(counts, epsilon, Bits(RunKey.published(0).stream("choice")))


def test_its_mu_dominates_randomised_response():
    """delta(e) of the Gaussian mechanism is nowhere below that of the worst epsilon-DP mechanism, and equals
    it at 0.
    """
    for epsilon in (0.3, 1.0, 4.0):
        high = math.exp(epsilon) / (1 + math.exp(epsilon))
        for e in (0.0, 0.2 * epsilon, 0.7 * epsilon, epsilon):
            worst = max(0.0, high - math.exp(e) * (1 - high))
            assert gaussian_delta(mu_of_epsilon(epsilon), e) >= worst - 1e-12
        assert gaussian_delta(mu_of_epsilon(epsilon), 0.0) == pytest.approx(2 * high - 1)
    assert mu_of_epsilon(1e4) > 100 and mu_of_epsilon(0.0) == 0


# Budget ---------------------------------------------------------------------------------------------------


def test_what_is_spent_is_the_larger_of_training_and_the_choice(tmp_path):
    budget = Budget.calibrated(**SIZES)
    assert "choice" not in budget.statement(1.0, 1.0)
    budget.choose({10: 3, 20: 5}, 0.25)
    assert budget.epsilon_spent() == 0.25  # nothing was trained
    for step in range(10):
        budget.ledger.record(step, budget.key.name)
    trained = budget.epsilon_spent()
    statement = budget.statement(1.0, 1.0)
    assert 0.9 < trained <= 1 and statement["epsilon_spent"] == trained
    assert statement["choice"] == {"mechanism": "permute and flip", "epsilon": 0.25}


def test_a_choice_at_the_runs_epsilon_keeps_epsilon_and_raises_mu():
    budget = Budget.calibrated(**SIZES)
    for step in range(10):
        budget.ledger.record(step, budget.key.name)
    trained = budget.statement(1.0, 1.0)
    budget.choose({1: 3, 2: 5, 3: 5}, 1.0)
    statement = budget.statement(1.0, 1.0)
    assert statement["epsilon_spent"] == 1.0 >= trained["epsilon_spent"]
    assert (
        statement["gdp_mu"] == pytest.approx(mu_of_epsilon(1.0)) and statement["gdp_mu"] > trained["gdp_mu"]
    )
    assert statement["epsilon_spent_rdp"] == max(trained["epsilon_spent_rdp"], 1.0)


@pytest.mark.parametrize("noise_key", ["secret", "published"])
def test_a_choice_is_made_once(tmp_path, noise_key):
    """A process that ended after its choice has released it: the next process, with its own key, gets the
    same choice.
    """
    path, setting, chosen = tmp_path / "ledger", Budget.calibrated(**SIZES).setting, []
    for counts in ({10: 4, 20: 5, 30: 5, 40: 3}, {10: 100, 20: 0, 30: 0, 40: 0}, {40: 1}):
        one = Budget(setting, 1.0, RunKey.for_run(noise_key, 3), path)
        chosen += [one.choose(counts, 0.5), one.choose({10: 1}, 0.5)]
        one.ledger.close()
        assert one.epsilon_spent() == 0.5
    assert len(set(chosen)) == 1
    assert [line.split()[::2] for line in path.read_text().splitlines()[1:]] == [["choice", "0.5"]]


def test_choices_under_several_keys_add_up(tmp_path):
    """Regression: they counted once, because state and ledger kept one choice."""
    setting, states = Budget.calibrated(**SIZES).setting, []
    for _ in range(2):  # two processes, which know nothing of each other
        budget = Budget(setting, 1.0, RunKey.secret())
        budget.choose({10: 3, 20: 5}, 0.5)
        states.append(budget.state_dict())
    both = Budget(setting, 1.0, RunKey.secret(), tmp_path / "ledger")
    for state in (*states, *states):
        both.load_state_dict(state)
    assert both.epsilon_spent() == both.epsilon_of_choice == 1.0
    assert both.statement()["gdp_mu"] == mu_of_epsilon(1.0)
    both.close()
    again = Budget.resume(tmp_path / "ledger")
    assert again.epsilon_spent() == 1.0 and len(again.ledger.choices) == 2
    assert again.choose({10: 1}, 0.5) in (10, 20)  # no third one


def test_a_torn_choice_counts_in_addition_to_the_next(tmp_path):
    path, setting = tmp_path / "ledger", Budget.calibrated(**SIZES).setting
    budget = Budget(setting, 1.0, RunKey.secret(), path)
    budget.choose({10: 3, 20: 5}, 0.5)
    budget.close()
    path.write_bytes(path.read_bytes()[:-2])  # 1 or 2, of 10 or 20
    again = Budget.resume(path)
    assert again.epsilon_spent() == 0.5 and again.choose({10: 0, 20: 50}, 0.25) in (10, 20)
    assert again.epsilon_spent() == 0.75


def test_a_choice_at_another_epsilon_is_refused_and_so_is_one_that_is_not_accounted(tmp_path):
    budget = Budget.calibrated(**SIZES)
    budget.choose({1: 3, 2: 5}, 0.25)
    with pytest.raises(
        ValueError, match=r"a choice was made before with epsilon 0\.25, not 4: make a new budget"
    ):
        budget.choose({1: 9, 2: 1}, 4.0)
    with pytest.raises(ValueError, match="a user adds more than 1 to a count"):
        Budget.calibrated(**SIZES, unit="user").choose({1: 3, 2: 5}, 0.25)
    published = PublicRun(IMPLEMENTATIONS["dpzero"], 2.0, Budget.calibrated(**SIZES).setting)
    with pytest.raises(ValueError, match="public code accounts for no choice"):
        PublicCodeBudget(published, RunKey.published(0)).choose({1: 3, 2: 5}, 0.25)
