"""Budgets that continue the same state, ledger or transcript count each other's releases."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey, Setting

SETTING = Setting("gaussian", "poisson", "add_remove", 256, 32, 20, 1e-5)
SCALE = 1.6


def secret(ledger: Path | None = None, **options) -> Budget:
    return Budget(SETTING, SCALE, RunKey.secret(), ledger, **options)


def published(ledger: Path | None = None, **options) -> Budget:
    return Budget(SETTING, SCALE, RunKey.published(0), ledger, **options)


def release(budget: Budget, steps: int, value: float = 0.5) -> list[float]:
    """Release the next batches; each example adds `value`."""
    drawn = itertools.islice(budget.batches(), steps)
    return [budget.release(torch.full((len(batch),), value), 1.0) for batch in drawn]


def epsilon(steps: int) -> float:
    return replace(SETTING, steps=steps).epsilon(SCALE)


@pytest.fixture
def restart(monkeypatch):
    """Simulate a new process, which knows earlier releases from files and states alone."""
    return lambda: monkeypatch.setattr("dpzero.privacy.ledger._lineages", {})


# One state, two budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [secret, published])
def test_two_budgets_that_load_one_state_count_each_others_releases(make):
    """Regression: each counted 10 steps, and 15 were released."""
    one, two, three = make(), make(), make()
    release(one, 5)
    state = one.state_dict()
    two.load_state_dict(copy.deepcopy(state))
    three.load_state_dict(pickle.loads(pickle.dumps(state)))
    release(two, 5, 0.1)
    release(three, 5, 0.2)
    assert len(one.ledger) == len(two.ledger) == len(three.ledger) == 15
    assert one.epsilon_spent() == two.epsilon_spent() == three.epsilon_spent() == epsilon(15)


@pytest.mark.parametrize("make", [secret, published])
def test_loading_the_best_checkpoint_into_a_new_budget_counts_the_later_releases(make):
    one, two = make(), make()
    release(one, 5)
    best = one.state_dict()
    release(one, 5, 0.1)
    two.load_state_dict(best)
    assert len(release(two, 99, 0.2)) == 10
    assert len(two.ledger) == 20 and two.epsilon_spent() == epsilon(20)
    with pytest.raises(
        ValueError, match=r"the 20 steps of this budget are spent, \d+ of them by other budgets of"
    ):
        two.admit(3)


def test_a_state_of_another_process_is_one_lineage_from_then_on(restart):
    one = secret()
    release(one, 5)
    state = one.state_dict()
    restart()
    two, three = secret(), secret()
    two.load_state_dict(state)
    release(two, 7)
    three.load_state_dict(state)
    assert len(three.ledger) == 12


def test_budgets_that_share_no_release_share_nothing():
    one, two, three = secret(), secret(), published()
    fresh = one.state_dict()
    for budget in (one, two, three):
        release(budget, 5)
    other = published()
    release(other, 3, 0.1)
    four = secret()
    four.load_state_dict(fresh)
    assert [len(budget.ledger) for budget in (one, two, three, other, four)] == [5, 5, 5, 3, 0]


def test_each_ledger_file_holds_the_releases_of_all_budgets(tmp_path, restart):
    """A later process may find either of them."""
    one, two = secret(tmp_path / "one"), secret(tmp_path / "two")
    release(one, 4)
    two.load_state_dict(one.state_dict())
    release(two, 3)
    release(one, 2)
    for budget in (one, two):
        budget.close()
    with pytest.raises(ValueError, match="is closed: make a new budget to continue"):
        release(one, 1)
    restart()
    assert {len(Budget.resume(tmp_path / name).ledger) for name in ("one", "two")} == {9}


def test_a_copy_of_a_ledger_is_no_second_budget(tmp_path):
    one = secret(tmp_path / "one")
    release(one, 4)
    (tmp_path / "two").write_bytes((tmp_path / "one").read_bytes())
    two = Budget.resume(tmp_path / "two")
    release(two, 10)
    assert len(release(one, 99)) == 6 and len(one.ledger) == len(two.ledger) == 20


def test_an_empty_transcript_belongs_to_the_run_that_takes_the_first_step(tmp_path):
    """Regression: it kept the name of the key that released nothing, which separated its continuation from
    that of a state.
    """

    def begin(budget: Budget) -> DPZero:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        return DPZero(
            model, lambda m, rows: m.weight.expand(len(rows), 1)[:, 0], budget, learning_rate=0.1, clip=1
        )

    none, one, two, three = (begin(secret()) for _ in range(4))
    path = tmp_path / "transcript"
    none.write_transcript(path)
    one.write_transcript(path)
    one.step(next(one.budget.batches()))
    state = one.state_dict()
    two.write_transcript(path)
    two.step(next(two.budget.batches()))
    three.load_state_dict(state)
    assert len(three.budget.ledger) == len(two.budget.ledger) == 2


def test_a_loop_ends_where_another_budget_has_spent_the_rest():
    one, two = secret(), secret()
    release(one, 1)
    two.load_state_dict(one.state_dict())
    loop = one.batches()
    batch = next(loop)
    release(two, 99)
    with pytest.raises(ValueError, match="the 20 steps of this budget are spent"):
        one.release(torch.zeros(len(batch)), 1.0)
    assert list(loop) == []
    allowed = secret(overspend=True)
    allowed.load_state_dict(two.state_dict())
    release(allowed, 2)
    assert two.statement()["overspent"] == "22 steps of 20" and two.epsilon_spent() == epsilon(22)


def test_a_choice_counts_for_all_budgets_of_a_lineage():
    one, two = secret(), secret()
    release(one, 1)
    two.load_state_dict(one.state_dict())
    two.choose({1: 4, 2: 5}, 3.0)
    assert one.epsilon_spent() == 3.0


# One batch, two sums --------------------------------------------------------------------------------------


def test_a_published_batch_that_is_released_again_with_another_sum_is_a_further_release(tmp_path):
    """Regression: it counted once, and the difference of the two had no noise."""
    path, released = tmp_path / "ledger", []
    for value in (0.5, 0.25, 0.25, 0.5):
        budget = published(path)
        budget.start_at(0)
        released.append(release(budget, 1, value)[0])
        budget.close()
    count = len(published(path).ledger)
    size = len(next(published().batches()))
    assert released[1] == released[2] and released[0] == released[3]  # replays
    assert abs(released[0] - released[1]) != pytest.approx(0.25 * size, abs=1e-3)
    assert count == 2


def test_a_published_batch_of_gradients_released_again_with_another_sum_is_a_further_release(tmp_path):
    path, released = tmp_path / "ledger", []
    for value in (0.5, 0.25, 0.25, 0.5):
        budget, sums = published(path), [torch.full((3,), value), torch.ones(2, 2)]
        budget.start_at(0)
        budget.admit(len(next(budget.batches())))
        budget.release_(sums, 1.0)
        released.append(sums[1])
        budget.close()
    assert torch.equal(released[1], released[2]) and torch.equal(released[0], released[3])
    assert not torch.allclose(released[0], released[1], atol=1e-3)
    assert len(published(path).ledger) == 2


def test_a_further_release_beyond_the_calibrated_steps_is_refused(tmp_path):
    path = tmp_path / "ledger"
    first = published(path)
    release(first, 20)
    first.close()
    again = published(path)
    again.start_at(17)
    assert len(release(again, 1)) == 1  # a replay
    with pytest.raises(ValueError, match="the 20 steps of this budget are spent"):
        release(again, 1, 0.25)
    assert len(again.ledger) == 20
