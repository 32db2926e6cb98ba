"""What ordinary users do that would make epsilon too small: it is refused, or said in a warning and in the statement."""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from dpzero import Budget, DPZero, suggest
from dpzero.privacy import RunKey
from dpzero.privacy.sampling import Users

SIZE = 60
X = torch.randn(SIZE, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
DATA = TensorDataset(X, Y)


def make_budget(size: int = SIZE, **options) -> Budget:
    sizes = {"dataset_size": size, "batch_size": 12, "steps": 10}
    return Budget.calibrated(**({"epsilon": 2, "delta": 1e-3} | sizes | options))


def fixed_sizes(**options) -> Budget:
    return make_budget(sampling="without_replacement", adjacency="replace_one", **options)


def cross_entropy(model: nn.Module, batch) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean(model: nn.Module, batch) -> torch.Tensor:
    return cross_entropy(model, batch).mean().expand(len(batch[0]))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(10, 2)


def make(budget: Budget, model: nn.Module | None = None, loss=cross_entropy, **settings) -> DPZero:
    settings = {"learning_rate": 0.01, "clip": 1.0, "one_at_a_time": True} | settings
    return DPZero(model or linear(), loss, budget, **settings)


def take(optimizer: DPZero, steps: int | None = None) -> None:
    for batch in itertools.islice(optimizer.budget.loader(DATA), steps):
        optimizer.step(batch)


# The loss -----------------------------------------------------------------------------------------------------


def masked(model: nn.Module, batch) -> torch.Tensor:
    """Dropout from a generator of its own, to be the same at both points: a mask belongs to a place in the batch."""
    mask = torch.rand(batch[0].shape, generator=torch.Generator().manual_seed(1)) < 0.5
    return cross_entropy(model, [batch[0] * mask, batch[1]])


def weighted(model: nn.Module, batch, weight: float, first: int = 0) -> torch.Tensor:
    return cross_entropy(model, batch) * (1 + weight * torch.arange(len(batch[0])).clamp_min(first))


PLACED = [masked, partial(weighted, weight=0.5), partial(weighted, weight=0.001)]


@pytest.mark.parametrize("loss", [*PLACED, partial(weighted, weight=0.5, first=9)])
def test_a_loss_that_depends_on_the_place_in_the_batch_is_refused(loss):
    """Regression: without one example all behind it change, and the release was called valid."""
    optimizer = make(fixed_sizes(), loss=loss, one_at_a_time=False)
    with pytest.raises(
        ValueError, match=r"an example's loss changes .* numbers that belong to places in the batch"
    ):
        take(optimizer)
    assert len(optimizer.budget.ledger) == 0


def test_bits_that_depend_on_the_place_in_the_batch_are_measured():
    def rounded(model, batch):
        return cross_entropy(model, batch).double() + 1e-9 * torch.arange(len(batch[0]))

    optimizer = make(make_budget(), loss=rounded, one_at_a_time=False)
    with pytest.warns(
        UserWarning, match="the last bits of an example's loss depend on the rest of its batch"
    ):
        take(optimizer)
    assert optimizer.budget.others_move_over_clip > 0 and not optimizer.budget.valid_release


def test_a_loss_that_is_given_later_is_checked_too():
    """Regression: the outcome of the first one held for it."""
    optimizer = make(make_budget())
    take(optimizer, 2)
    optimizer.loss, optimizer.one_at_a_time = mean, False
    with pytest.raises(ValueError, match="an example's loss changes"):
        take(optimizer, 1)
    assert len(optimizer.budget.ledger) == 2


def test_a_loss_that_mixes_later_batches_alone_makes_no_valid_release():
    """As padding that is not masked, if all texts of the first batch are equally long."""
    mixes = []

    def loss(model, batch):
        return mean(model, batch) if mixes else cross_entropy(model, batch)

    optimizer = make(make_budget(steps=20), loss=loss, one_at_a_time=False)
    take(optimizer, 9)
    mixes.append(True)
    with pytest.warns(
        UserWarning, match="the last bits of an example's loss depend on the rest of its batch"
    ):
        take(optimizer)
    assert optimizer.steps_taken == 20 and not optimizer.budget.valid_release


def test_a_precision_that_is_chosen_later_is_measured_too():
    """Regression: what was measured in float32 held for bfloat16."""
    optimizer = make(make_budget(), one_at_a_time=False, loss=lambda model, batch: slightly(model, batch))
    take(optimizer, 1)
    assert optimizer.budget.valid_release
    with pytest.warns(UserWarning, match="the last bits"), torch.autocast("cpu", torch.bfloat16):
        take(optimizer, 1)
    assert not optimizer.budget.valid_release


def slightly(model: nn.Module, batch) -> torch.Tensor:
    """Each example's own in float32; in bfloat16 the rounding depends on the batch, as it may on a GPU."""
    rounding = 1e-9 * len(batch[0]) if torch.is_autocast_enabled("cpu") else 0.0
    apart = [cross_entropy(model, [x[None].clone(), y[None]]) for x, y in zip(*batch, strict=True)]
    return torch.cat(apart).double() + rounding


# The optimizer ------------------------------------------------------------------------------------------------


def test_the_size_of_the_drawn_batch_is_no_divisor():
    """Regression: it was taken, and the scalar over the noise's scale told the size of the batch."""
    optimizer = make(fixed_sizes())
    batch = next(iter(optimizer.budget.loader(DATA)))
    optimizer.batch_size = len(batch[0]) + 1
    with pytest.raises(
        ValueError, match="sums are divided by the expected size, 12, because the size of a batch is"
    ):
        optimizer.step(batch)
    assert len(optimizer.budget.ledger) == 0


def test_weights_that_another_budget_moved_are_warned_of():
    """As when a notebook's cell is run again. Regression: each budget stated its own epsilon without a word."""
    model = linear()
    take(make(make_budget(), model))
    with pytest.warns(
        UserWarning, match="moved by 10 releases of another budget, whose epsilon adds up"
    ) as warned:
        take(make(make_budget(), model))
    assert len(warned) == 1


def test_nothing_is_warned_of_where_one_budget_knows_all():
    model, one = linear(), make_budget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(make(one, model), 3)
        take(make(one, model), 3)  # another optimizer of the same budget
        two = make(make_budget(), model)
        two.load_state_dict(make(one, model).state_dict())
        take(two)
        take(make(make_budget()))  # another model
        for _ in range(2):
            take(make(make_budget(key=RunKey.published(0)), model))
    assert len(one.ledger) == len(two.budget.ledger) == 10


def test_weights_that_another_optimizer_moves_are_warned_of():
    """Regression: epsilon was stated without a word of the gradients of the same examples."""
    optimizer = make(make_budget())
    other = torch.optim.SGD(optimizer.model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="weights were changed between two steps, not by this optimizer"):
        for batch in optimizer.budget.loader(DATA):
            optimizer.step(batch)
            if len(batch[0]):
                cross_entropy(optimizer.model, batch).mean().backward()
            other.step()


def test_no_other_move_is_seen_where_there_is_none():
    optimizer = make(make_budget(), perturb="on_read")
    state = optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(optimizer, 3)
        optimizer.load_state_dict(state)
        for batch in optimizer.budget.loader(DATA):
            optimizer.step(batch)
            optimizer.model.eval()(X)  # an evaluation


def test_threads_that_step_at_once_take_each_batch_once():
    """Regression: one batch's values were released as those of the next."""
    budget = fixed_sizes(steps=40)
    optimizer, (first, *_) = make(budget, one_at_a_time=False, loss=slowly), list(budget.loader(DATA))
    with warnings.catch_warnings(record=True), ThreadPoolExecutor(4) as threads:
        warnings.simplefilter("always")
        list(threads.map(lambda _: optimizer.step(first), range(4)))
    assert len(budget.ledger) == optimizer.steps_taken == 4 and not budget.valid_release


def slowly(model: nn.Module, batch) -> torch.Tensor:
    torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) @ torch.ones(200, 200)
    return cross_entropy(model, batch)


@pytest.mark.filterwarnings("ignore:this batch")
def test_a_batch_that_is_skipped_after_an_error_makes_no_valid_release():
    """The next one is of the same size, and is not the one that is still to be released."""
    calls, budget = itertools.count(), fixed_sizes()

    def failing(model, batch):
        if next(calls) == 100:
            raise RuntimeError("out of memory")
        return cross_entropy(model, batch)

    optimizer, failed = make(budget, loss=failing), 0
    for batch in budget.loader(DATA):
        try:
            optimizer.step(batch)
        except RuntimeError:
            failed += 1
    assert failed == 1 and len(budget.ledger) == optimizer.steps_taken == 9 and not budget.valid_release


class Twice(DPZero):
    """A method of one's own that wants a second look at the batch."""

    def projected_gradient(self, difference):
        return self.noisy_sum(difference) + self.noisy_sum(difference.abs())


def test_a_second_sum_of_a_step_is_refused():
    """Regression: if batches were read ahead, it was counted as the sum of the next one, another sample."""
    budget = fixed_sizes()
    optimizer = Twice(linear(), cross_entropy, budget, learning_rate=0.01, clip=1.0, one_at_a_time=True)
    for batch in list(budget.loader(DATA))[:2]:
        with pytest.raises(ValueError, match="Twice asks for two noisy sums in one step"):
            optimizer.step(batch)
    assert len(budget.ledger) == 2 and optimizer.steps_taken == 0


def test_ranks_with_keys_of_their_own_are_refused():
    """Regression: each drew batches of its own, so that an example was in two of them at once."""

    class Second:
        """The second of two ranks, as it hears from the first."""

        rank, size = 1, 2

        def shared(self, data: bytes) -> bytes:
            return RunKey.secret().name.encode()

    with pytest.raises(ValueError, match="rank 1 has a key of its own"):
        make(make_budget()).join(Second())


def test_a_state_of_another_process_without_a_ledger_is_warned_of(tmp_path, monkeypatch):
    """What was released between the last state and the end of its process. Regression: it was left out in silence."""
    one = make(make_budget(ledger=tmp_path / "ledger"))
    take(one, 3)
    state = one.state_dict()
    take(one, 2)
    one.budget.close()
    monkeypatch.setattr("dpzero.privacy.ledger._lineages", {})
    with pytest.warns(
        UserWarning, match="no file says what that released after it was saved, so that epsilon may"
    ):
        make(make_budget()).load_state_dict(state)
    monkeypatch.setattr("dpzero.privacy.ledger._lineages", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two = make(make_budget(ledger=tmp_path / "ledger"))
        two.load_state_dict(state)
        three = make(make_budget())
        three.load_state_dict(two.state_dict())
    assert len(two.budget.ledger) == len(three.budget.ledger) == 5


# The data -----------------------------------------------------------------------------------------------------


TWICE = {
    "a subset": lambda: Subset(DATA, [*range(30), *range(30)]),
    "a data set and itself": lambda: ConcatDataset([Subset(DATA, range(30)), Subset(DATA, range(30))]),
    "a list of one class twice": lambda: 2 * [{"x": x, "y": y} for x, y in zip(X[:30], Y[:30], strict=True)],
    "a list of pairs twice": lambda: 2 * list(zip(X[:30], Y[:30], strict=True)),
    "a part of a part": lambda: Subset(Subset(DATA, [*range(50), *range(10)]), range(SIZE)),
}


@pytest.mark.parametrize("twice", TWICE)
def test_an_example_that_a_data_set_has_twice_is_refused(twice):
    """As when a class is oversampled. Regression: epsilon covered one of its copies."""
    with pytest.raises(
        ValueError, match=r"\d+ of the 60 examples are there before, so that epsilon would cover only"
    ):
        make_budget().loader(TWICE[twice]())


def test_equal_rows_of_a_list_are_taken():
    """They are of several people, who may say the same."""
    words = ["good", "bad"] * 30
    assert (
        len(make_budget().loader(words))
        == len(make_budget().loader([{"text": word} for word in words]))
        == 10
    )


def test_parts_that_share_no_example_are_taken():
    parts = ConcatDataset([Subset(DATA, range(0, SIZE, 2)), Subset(DATA, range(1, SIZE, 2))])
    optimizer = make(make_budget())
    for batch in optimizer.budget.loader(Subset(parts, torch.randperm(SIZE).tolist())):
        optimizer.step(batch)
    assert optimizer.budget.valid_release


def test_copies_of_an_example_are_one_user():
    copies = Subset(DATA, [*range(30), *range(30)])
    budget = make_budget(30, unit="user")
    optimizer = make(budget)
    for batch, users in budget.loader(copies, users=[*range(30), *range(30)]):
        optimizer.step(batch, users)
    assert budget.valid_release


def test_a_first_rate_is_not_suggested_from_private_examples():
    budget = make_budget()
    batch = next(iter(budget.loader(DATA)))
    with pytest.raises(ValueError, match="these examples are private, as the budget handed them out"):
        suggest(linear(), cross_entropy, batch, budget)
    assert suggest(linear(), cross_entropy, [torch.randn(20, 10), Y[:20]], budget)["clip"] > 0


def test_users_in_a_tensor_are_numbers():
    """Regression: each was a user of its own, and the message said to make the budget for as many."""
    whose = torch.arange(SIZE) % 20
    assert len(Users(whose)) == len(Users(whose.numpy())) == 20
    budget = make_budget(20, unit="user")
    optimizer = make(budget)
    for batch, users in budget.loader(DATA, users=whose):
        assert len(batch[0]) == 3 * len(set(users.tolist()))
        optimizer.step(batch, users)
    assert budget.valid_release


def test_a_user_who_is_missing_is_refused():
    """Regression: each NaN was a user of its own."""
    with pytest.raises(ValueError, match=r"the user of example 1 is missing \(nan\): give each example one"):
        Users([0.0, float("nan"), float("nan")])


def test_batches_in_another_order_than_drawn_are_refused():
    with pytest.raises(ValueError, match="in_order=False would hand out batches in another order than drawn"):
        make_budget().loader(DATA, num_workers=2, in_order=False)
