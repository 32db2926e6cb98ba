"""What a printed budget says, and that its loader has a length for a progress bar."""

from __future__ import annotations

import pytest
import torch
from tqdm import tqdm

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey

DATA = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def squares(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)[:, 0].square()


def alone(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A loss whose bits are each example's own."""
    return torch.stack([model(row[None])[0, 0].square() for row in batch]) if len(batch) else batch[:, 0]


def budget(**options) -> Budget:
    sizes = {"dataset_size": 40, "batch_size": 8, "steps": 20}
    return Budget.calibrated(epsilon=2, delta=1e-3, **sizes, **options)


def trained(given: Budget, loss=alone, steps: int = 5) -> Budget:
    optimizer = DPZero(torch.nn.Linear(3, 1), loss, given, learning_rate=1e-3, clip=2.5)
    for _, batch in zip(range(steps), given.loader(DATA), strict=False):
        optimizer.step(batch)
    return given


def test_a_printed_budget_is_the_privacy_statement():
    given = trained(budget())
    statement = given.statement()
    assert str(given).splitlines() == [
        f"epsilon {statement['epsilon_spent']:.4g} of 2 spent at delta 0.001, in 5 of 20 steps",
        "protects: each example of 40, adjacency add_remove",
        "batches: poisson, 8 expected",
        f"noise: gaussian, {given.noise_scale:.4g} times the clip of 2.5, exact",
        f"accountant: {statement['accountant']}, from the ledger of what was released",
        "valid release: yes",
    ]
    assert repr(given) == str(given)


REASONS = {
    "nothing was released yet": budget,
    "the key of the noise is published": lambda: trained(budget(key=RunKey.published(0))),
    "noise in floats leaks": lambda: trained(budget(noise_arithmetic="float")),
}


@pytest.mark.parametrize("reason", REASONS)
def test_it_says_why_a_release_is_not_valid(reason):
    given = REASONS[reason]()
    assert not given.valid_release
    assert f"valid release: no, {reason}" in str(given)


def test_a_new_budget_has_spent_nothing():
    assert str(budget()).startswith("epsilon 0 of 2 spent at delta 0.001, in 0 of 20 steps")


def test_a_loader_has_a_length_for_a_progress_bar():
    given = budget(key=RunKey.published(0))
    optimizer = DPZero(torch.nn.Linear(3, 1), squares, given, learning_rate=1e-3, clip=2.5)
    bar = tqdm(given.loader(DATA), disable=None, mininterval=0)
    assert bar.total == len(given.loader(DATA)) == 20
    for batch in bar:
        optimizer.step(batch)
    assert optimizer.steps_taken == 20 and len(given.loader(DATA)) == 0


def test_a_loop_over_a_spent_budget_says_that_there_is_no_batch():
    budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=20, batch_size=4, steps=1)
    for indices in budget.batches():
        budget.release(torch.zeros(len(indices)), 1.0)
    with pytest.warns(UserWarning, match="the 1 steps of this budget are spent, so there is no batch left"):
        assert list(budget.batches()) == []
