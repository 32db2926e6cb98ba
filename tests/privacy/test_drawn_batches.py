"""A release is called valid only if its batch is surely the drawn one, in each process that continued the ledger."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey, Setting
from dpzero.privacy.sampling import Users

SIZE, STEPS = 60, 8
X = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
ROWS = [{"x": x, "row": i} for i, x in enumerate(X)]
DATA = TensorDataset(X, torch.arange(SIZE))
WHOSE = [f"user {i % 20}" for i in range(SIZE)]


def make_budget(ledger: Path | None = None, key: RunKey | None = None, **options) -> Budget:
    size = 20 if options.get("unit") == "user" else SIZE
    setting = Setting("gaussian", "without_replacement", "replace_one", size, 6, STEPS, 1e-3)
    return Budget(setting, 4.0, key or RunKey.secret(), ledger, **options)


def inputs(batch) -> torch.Tensor:
    if isinstance(batch, dict):
        return batch["x"]
    return batch[0] if isinstance(batch[0], torch.Tensor) else torch.stack([row["x"] for row in batch])


def alone(model: nn.Module, batch) -> torch.Tensor:
    """A loss whose bits are each example's own."""
    return torch.stack([model(x[None])[0, 0].square() for x in inputs(batch).float()])


def make(budget: Budget, loss=alone) -> DPZero:
    torch.manual_seed(0)
    return DPZero(nn.Linear(3, 1), loss, budget, learning_rate=1e-3, clip=1.0)


def step_once(budget: Budget, change=lambda batch: batch, **loader) -> Budget:
    """One step on what `change` makes of a loader's batch."""
    make(budget).step(change(next(iter(budget.loader(**({"dataset": DATA} | loader))))))
    return budget


@pytest.fixture
def restart(monkeypatch):
    """Simulate a new process, which knows earlier ones from files and states alone."""

    def renew(*budgets: Budget) -> None:
        for budget in budgets:
            budget.close()
        monkeypatch.setattr("dpzero.privacy.ledger._lineages", {})

    return renew


# What is known to be the drawn batch --------------------------------------------------------------------------


def test_other_examples_of_the_right_number_give_no_valid_release():
    """Regression: 20 steps on the same few examples were stated as a valid release at the drawn batches' epsilon."""
    budget = make_budget()
    optimizer = make(budget)
    with pytest.warns(
        UserWarning, match=r"no release is called valid: give step what budget.loader"
    ) as warned:
        for indices in budget.batches():
            optimizer.step([ROWS[i] for i in range(len(indices))])
    assert len(warned) == 1 and not budget.valid_release and not budget.statement()["valid_release"]
    assert "valid release: no, a batch may hold other examples than those that were drawn" in str(budget)


KEPT = {
    "as it is": lambda batch: batch,
    "in a new tuple": lambda batch: tuple(batch),
    "copied": lambda batch: [field.clone() for field in batch],
    "moved in its own list": lambda batch: moved(batch),
}


def moved(batch: list[torch.Tensor]) -> list[torch.Tensor]:
    batch[0] = batch[0].clone()
    return batch


@pytest.mark.parametrize("change", KEPT)
def test_what_a_loader_hands_out_gives_a_valid_release(change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_once(make_budget(), KEPT[change]).valid_release


@pytest.mark.parametrize("kept", [("x", "row"), ("x",)], ids=["all fields", "some fields"])
def test_fields_that_were_moved_give_a_valid_release(kept):
    """As in `{key: field.to(device) for ...}`."""
    moved = lambda batch: {key: torch.clone(batch[key]) for key in kept}  # noqa: E731
    assert step_once(make_budget(), moved, dataset=ROWS).valid_release


CHANGED = {
    "other rows": lambda batch: [X[:6], torch.arange(6)],
    "one other row": lambda batch: [torch.cat([batch[0][1:], X[:1] + 1]), batch[1]],
    "another type": lambda batch: [batch[0].double(), batch[1]],
    "a further field": lambda batch: {"x": batch[0], "row": batch[1]},
    "rows put in place": lambda batch: put(batch, 0, X[:6]),
    "numbers changed in place": lambda batch: [batch[0].mul_(2), batch[1]],
}


def put(batch: list[torch.Tensor], place: int, field: torch.Tensor) -> list[torch.Tensor]:
    batch[place] = field
    return batch


@pytest.mark.filterwarnings("ignore:this batch")
@pytest.mark.parametrize("change", CHANGED)
def test_a_loaders_batch_that_was_changed_gives_no_valid_release(change):
    budget = make_budget()
    step_once(budget, CHANGED[change])
    assert not budget.valid_release


def test_a_list_of_examples_in_which_one_was_replaced_gives_no_valid_release():
    budget = make_budget()
    with pytest.warns(UserWarning, match="this batch is not what the budget handed out"):
        step_once(budget, lambda rows: put(rows, 2, ROWS[0]), dataset=ROWS[1:] + ROWS[:1], collate_fn=list)
    assert not budget.valid_release
    assert step_once(make_budget(), lambda rows: [*rows], dataset=ROWS, collate_fn=list).valid_release


def test_batches_that_were_read_ahead_and_exchanged_give_no_valid_release():
    budget = make_budget()
    optimizer, (first, second, *_) = make(budget), list(budget.loader(DATA))
    optimizer.step(first)
    assert budget.valid_release
    optimizer.step(second)
    assert budget.valid_release
    with pytest.warns(UserWarning, match="this batch is not what the budget handed out"):
        optimizer.step(first)
    assert not budget.valid_release


def test_batches_of_the_callers_own_function_give_a_valid_release():
    """Padded ones, too: the budget makes them anew from some of the examples."""
    budget, taken = make_budget(), []

    def take(rows: np.ndarray) -> dict[str, torch.Tensor]:
        taken.append(rows.tolist())
        return {"x": X[rows], "row": torch.from_numpy(rows)}

    optimizer = make(budget)
    for number, batch in enumerate(budget.batches(take)):
        assert batch["row"].tolist() == budget.sampler.batch(number).tolist()
        optimizer.step(batch)
    assert budget.others_move_over_clip == 0 and budget.valid_release and len(budget.ledger) == STEPS


def test_a_functions_batch_of_nobody_is_a_step_like_any_other():
    budget = Budget(Setting("gaussian", "poisson", "add_remove", SIZE, 1, 40, 1e-3), 4.0, RunKey.secret())
    optimizer, sizes = make(budget), []
    for batch in budget.batches(lambda rows: [ROWS[i] for i in rows]):
        optimizer.step(batch)
        sizes.append(len(batch))
    assert 0 in sizes and len(budget.ledger) == 40 and budget.valid_release


def test_indices_that_were_changed_in_place_are_refused():
    """Regression: the comparison was with the changed ones."""
    budget = make_budget()
    indices = next(budget.batches())
    indices += 1
    loss = lambda model, rows: alone(model, [X[np.asarray(rows) % SIZE]])  # noqa: E731
    with pytest.raises(ValueError, match="integers that are not the indices that the sampler drew"):
        make(budget, loss).step(indices)
    assert len(budget.ledger) == 0


def test_a_share_of_indices_that_were_not_drawn_is_refused():
    """One of several ranks may give a part of the batch."""
    budget = make_budget()
    budget.join_ranks(lambda terms: terms.T.tolist())
    drawn = next(budget.batches())
    assert budget.admit(2, drawn[:2]) == 2
    with pytest.raises(ValueError, match="sampler drew"):
        budget.admit(2, np.setdiff1d(np.arange(SIZE), drawn)[:2])


# Users --------------------------------------------------------------------------------------------------------


def test_users_of_a_loader_give_a_valid_release():
    budget = make_budget(unit="user")
    batch, users = next(iter(budget.loader(DATA, users=WHOSE)))
    make(budget).step(batch, users)
    assert budget.valid_release


@pytest.mark.parametrize("foreign", [True, False])
def test_users_that_were_put_together_by_hand_give_no_valid_release(foreign):
    """The budget knows how many users there are, and not whose an example is."""
    budget, users = make_budget(unit="user"), Users(WHOSE)
    rows, positions = users.examples(next(budget.batches()))
    batch = [X[: len(rows)] if foreign else X[rows]]
    with pytest.warns(UserWarning, match="this batch is not what the budget handed out"):
        make(budget).step(batch, positions)
    assert not budget.valid_release


def test_other_users_than_a_loaders_give_no_valid_release():
    budget = make_budget(unit="user")
    batch, users = next(iter(budget.loader(DATA, users=WHOSE)))
    with pytest.warns(UserWarning, match="this batch is not what the budget handed out"):
        make(budget).step(batch, users[::-1].copy())
    assert not budget.valid_release


# Later processes ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this batch")
@pytest.mark.parametrize("by", ["its ledger", "its state"])
def test_a_foreign_batch_is_known_to_later_processes(by, tmp_path, restart):
    budget = step_once(make_budget(tmp_path / "ledger"), CHANGED["other rows"])
    state = budget.state_dict()
    restart(budget)
    later = Budget.resume(tmp_path / "ledger") if by == "its ledger" else make_budget()
    if by == "its state":
        later.load_state_dict(state)
    assert not step_once(later).valid_release and "other examples" in str(later)


@pytest.mark.filterwarnings("ignore:the last bits")
def test_what_a_loss_depends_on_is_known_to_later_processes(tmp_path, restart):
    """Regression: a ledger that was continued with another loss was called valid as a whole."""

    def mixing(model, batch):
        return alone(model, batch).double() + 1e-9 * len(inputs(batch))

    budget = make_budget(tmp_path / "ledger")
    make(budget, mixing).step(next(iter(budget.loader(DATA))))
    moved = budget.others_move_over_clip
    assert moved > 0
    restart(budget)
    later = step_once(Budget.resume(tmp_path / "ledger"))
    assert later.others_move_over_clip == moved and not later.valid_release


def test_a_valid_release_stays_one_in_later_processes(tmp_path, restart):
    """Also if nothing is left to be released. Regression: the statement said that nothing was released yet."""
    budget = step_once(make_budget(tmp_path / "ledger"))
    restart(budget)
    later = Budget.resume(tmp_path / "ledger")
    assert later.valid_release and step_once(later).valid_release
    assert "valid release: yes" in str(later)


def test_releases_of_which_nothing_is_known_are_not_called_valid(tmp_path, restart):
    """As those of a caller that reported nothing, or of a transcript without its ledger."""
    budget = make_budget(tmp_path / "ledger")
    budget.release(torch.zeros(len(next(budget.batches()))), 1.0)
    restart(budget)
    later = step_once(Budget.resume(tmp_path / "ledger"))
    assert not later.valid_release and "valid release: no, it is unknown how an earlier process" in str(later)


@pytest.mark.filterwarnings("ignore:this batch")
def test_budgets_of_one_state_know_each_others_foreign_batches():
    one, two = step_once(make_budget()), make_budget()
    two.load_state_dict(one.state_dict())
    assert step_once(two).valid_release
    step_once(one, CHANGED["other rows"])
    assert not two.valid_release


@pytest.mark.parametrize("kept", [1, 7, 8, 20, 29])
def test_a_line_that_was_cut_while_it_was_written_preceded_no_release(kept, tmp_path, restart):
    path = tmp_path / "ledger"
    budget = step_once(make_budget(path))
    restart(budget)
    setting, finding, *others = path.read_text().splitlines()
    assert finding == f"finding {budget.key.name} 0.0" and f"0 {budget.key.name}" in others
    path.write_text(f"{setting}\n{finding[:kept]}")
    later = Budget.resume(path)
    assert len(later.ledger) == 0 and step_once(later).valid_release
