"""Whatever a user does with a budget, its epsilon is not too small, or the next step is refused.

Each of these uses once gave a too small epsilon without an error. Expected epsilons were computed beforehand.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import re
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from transformers import BatchEncoding

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey, Setting
from dpzero.privacy.sampling import Users

SIZE, BATCH_SIZE, STEPS = 256, 32, 20
X = torch.randn(SIZE, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
NOISE_SCALE = 1.5544222691647729  # epsilon 2 at delta 1e-5
SETTING = Setting("gaussian", "poisson", "add_remove", SIZE, BATCH_SIZE, STEPS, 1e-5)


def loss(model: nn.Module, rows) -> torch.Tensor:
    return functional.cross_entropy(model(X[rows]), Y[rows], reduction="none")


def make(budget: Budget, model: nn.Module | None = None, loss=loss, **settings) -> DPZero:
    settings = {"learning_rate": 0.01, "clip": 10.0} | settings
    return DPZero(model or linear(), loss, budget, **settings)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(10, 2)


def secret(**options) -> Budget:
    return Budget(SETTING, NOISE_SCALE, RunKey.secret(), **options)


def take(optimizer: DPZero, steps: int) -> None:
    for batch in itertools.islice(optimizer.budget.batches(), steps):
        optimizer.step(batch)


def epsilon(steps: int) -> float:
    """Epsilon of this many steps with fresh batches and noise."""
    return Setting(*[getattr(SETTING, f) for f in ("mechanism", "sampling", "adjacency")], SIZE, BATCH_SIZE, steps, 1e-5).epsilon(NOISE_SCALE)  # fmt: skip


# Epochs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [RunKey.secret, lambda: RunKey.published(0)], ids=["secret", "published"])
def test_a_loop_over_epochs_takes_the_steps_that_were_calibrated_for(key):
    """Regression: it took the same batches three times; the stated epsilon was 2.9, the true one 7.0."""
    budget, drawn = Budget(SETTING, NOISE_SCALE, key()), []
    optimizer = make(budget)
    for _ in range(3):
        for batch in budget.batches():
            optimizer.step(batch)
            drawn.append(batch.tolist())
    assert len(drawn) == len(budget.ledger) == STEPS and len({tuple(batch) for batch in drawn}) == STEPS
    assert 1.9999 < budget.epsilon_spent() <= 2.0
    with pytest.raises(
        ValueError,
        match=r"the 20 steps of this budget are spent: calibrate a new one .* or make it with overspend=True",
    ):
        optimizer.step(range(SIZE))


def test_an_overspent_budget_states_it_and_the_epsilon_spent():
    budget, drawn = secret(overspend=True), []
    optimizer = make(budget)
    for _ in range(3):
        for batch in budget.batches():
            optimizer.step(batch)
            drawn.append(tuple(batch))
    assert len(set(drawn)) == len(budget.ledger) == 3 * STEPS  # fresh batches each time
    assert (
        budget.epsilon_spent() == pytest.approx(epsilon(3 * STEPS), rel=1e-9) and budget.epsilon_spent() > 3.3
    )
    assert budget.statement()["overspent"] == "60 steps of 20"


def test_a_new_loop_continues_with_fresh_batches_and_loses_no_step():
    budget, drawn = secret(), []
    optimizer = make(budget)
    for _ in range(30):
        for number, batch in enumerate(budget.batches()):
            if number == 3:
                break
            optimizer.step(batch)
            drawn.append(tuple(batch))
    assert len(set(drawn)) == len(budget.ledger) == STEPS
    assert 1.9999 < budget.epsilon_spent() <= 2.0


def test_a_new_loop_ends_the_earlier_one():
    """Otherwise both would draw the same batches."""
    budget = secret()
    first, second = budget.batches(), budget.batches()
    next(first), next(second)
    with pytest.raises(ValueError, match="another loop over the batches of this budget has started"):
        next(first)


# Batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [range(SIZE), np.arange(BATCH_SIZE), []], ids=["all", "shuffled", "empty"])
def test_a_batch_that_nobody_drew_is_refused(batch):
    """Regression: twenty full batches were stated as epsilon 2.0; 15.8 was true."""
    budget = secret()
    with pytest.raises(
        ValueError,
        match=r"this batch was not handed out by the budget: take batches from budget\.batches\(\)",
    ):
        make(budget).step(batch)
    assert len(budget.ledger) == 0


def test_a_batch_of_another_size_than_the_draw_is_refused():
    budget = secret()
    optimizer, batches = make(budget), budget.batches()
    batch = next(batches)
    for other in (batch[1:], np.append(batch, 0), range(SIZE)):
        with pytest.raises(
            ValueError, match=f"step was given {len(other)} examples but the sampler drew {len(batch)}"
        ):
            optimizer.step(other)
    optimizer.step(batch)
    with pytest.raises(ValueError, match="was not handed out by the budget"):
        optimizer.step(batch)  # once
    assert len(budget.ledger) == 1


def test_other_indices_than_the_drawn_ones_are_refused():
    budget = secret()
    optimizer, batch = make(budget), next(budget.batches())
    for other in (np.repeat(batch[:1], len(batch)), (batch + 1) % SIZE):
        with pytest.raises(ValueError, match="integers that are not the indices that the sampler drew"):
            optimizer.step(other)
    optimizer.step(torch.from_numpy(batch[::-1].copy()))  # in any order


def test_a_skipped_empty_batch_is_refused():
    """The missing step would reveal that the batch was empty."""
    budget = Budget(Setting("gaussian", "poisson", "add_remove", 4, 1, 40, 1e-5), 1.0, RunKey.published(0))
    optimizer = make(budget)
    with pytest.raises(
        ValueError, match=r"step was given \d examples but the sampler drew 0: .* including the empty ones"
    ):
        for batch in budget.batches():
            if len(batch):
                optimizer.step(batch)


def test_batches_that_were_read_ahead_are_taken_in_order():
    budget = secret()
    optimizer, ahead = make(budget), list(budget.batches())
    for batch in ahead:
        optimizer.step(batch)
    assert len(budget.ledger) == STEPS


# A DataLoader ---------------------------------------------------------------------------------------------


class Words(Dataset):
    """Tokenized rows."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> dict:
        return {"input_ids": list(range(3 + i % 5)), "row": i}


def padded(rows: list[dict]) -> BatchEncoding:
    """Pad like the collators of Hugging Face."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return BatchEncoding({"input_ids": ids, "row": torch.tensor([row["row"] for row in rows])})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("dataset", "collate", "rows"),
    [
        (TensorDataset(X, Y, torch.arange(SIZE)), None, lambda batch: batch[2]),
        (Words(), padded, lambda batch: batch["row"]),
        (Words(), list, lambda batch: [row["row"] for row in batch]),
    ],
    ids=["tensors", "BatchEncoding", "rows"],
)
def test_a_loader_hands_out_the_budgets_batches_the_empty_ones_too(dataset, collate, rows, workers):
    setting = Setting("gaussian", "poisson", "add_remove", SIZE, 2, STEPS, 1e-5)
    expected = [batch.tolist() for batch in Budget(setting, NOISE_SCALE, RunKey.published(0)).batches()]
    assert [] in expected
    budget, drawn = Budget(setting, NOISE_SCALE, RunKey.published(0)), []
    optimizer = make(budget, loss=lambda model, batch: loss(model, rows(batch)))
    loader = budget.loader(dataset, collate_fn=collate, num_workers=workers)
    assert isinstance(loader, torch.utils.data.DataLoader) and len(loader) == STEPS
    for batch in itertools.islice(loader, 5):
        drawn.append(list(map(int, rows(batch))))
        optimizer.step(batch)
    for _ in range(2):
        for batch in loader:
            drawn.append(list(map(int, rows(batch))))
            optimizer.step(batch)
    assert drawn == expected and len(budget.ledger) == STEPS and len(loader) == 0


def test_a_loss_that_depends_on_collator_padding_is_refused():
    """No part of a padded batch shows this, so the probe collates some examples anew. Without a mask one long
    text moves all others.
    """

    def unmasked(model, batch):
        return model(batch["input_ids"].float()[..., None] / 9)[..., 0].mean(1) ** 2

    budget = Budget(SETTING, NOISE_SCALE, RunKey.published(0))
    optimizer = make(budget, nn.Linear(1, 2), loss=unmasked)
    with pytest.raises(ValueError, match=r"an example's loss changes .* for padding that is not masked"):
        optimizer.step(next(iter(budget.loader(Words(), collate_fn=padded))))
    assert len(budget.ledger) == 0


def test_a_loader_of_users_gives_the_user_of_each_example():
    whose = [f"user {i % 64}" for i in range(SIZE)]
    setting = Setting("gaussian", "poisson", "add_remove", 64, 8, 5, 1e-5)
    budget = Budget(setting, NOISE_SCALE, RunKey.published(0), unit="user")
    optimizer = make(budget, loss=lambda model, batch: loss(model, batch[2]))
    for batch, users in budget.loader(TensorDataset(X, Y, torch.arange(SIZE)), users=whose):
        assert len(users) == len(batch[0]) == 4 * len(np.unique(users))
        optimizer.step(batch, users)
    assert len(budget.ledger) == 5


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (TensorDataset(X[:100]), {}, "the data set has 100 examples and the budget was made for 256: make it with dataset_size=100"),
        (TensorDataset(X), {"shuffle": True}, "shuffle would draw other batches than those that are accounted: leave it out"),
        (TensorDataset(X), {"batch_size": 8}, "batch_size would draw other batches"),
        (TensorDataset(X), {"users": [0] * SIZE}, "the unit is the example: give `users` if it is the user"),
        (Stream(), {}, "the data set has no indices to draw from"),
    ],
)  # fmt: skip
def test_a_loader_that_would_draw_other_batches_is_refused(dataset, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        secret().loader(dataset, **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"a": torch.zeros(3), "b": torch.zeros(4)},
            "fields do not agree on the number of examples (a 3, b 4)",
        ),
        ({"a": 3}, "fields do not agree on the number of examples (no field with a length)"),
        (iter([1]), "a batch of type list_iterator has no length"),
    ],
)
def test_a_batch_of_ambiguous_size_is_refused(batch, message):
    budget = secret()
    next(budget.batches())
    with pytest.raises(ValueError, match=re.escape(message)):
        make(budget).step(batch)


# State ----------------------------------------------------------------------------------------------------


def test_a_state_that_is_loaded_into_a_new_budget_brings_what_was_spent():
    """Regression: ten steps and ten more were stated to cost 1.4."""
    one, two = make(secret()), make(secret())
    take(one, 10)
    two.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    take(two, 50)
    assert two.steps_taken == len(two.budget.ledger) == STEPS
    assert 1.9999 < two.budget.epsilon_spent() <= 2.0


def test_loading_an_earlier_state_counts_the_later_releases():
    optimizer = make(secret())
    take(optimizer, 5)
    state = optimizer.state_dict()
    take(optimizer, 5)
    optimizer.load_state_dict(state)
    take(optimizer, 50)
    assert optimizer.steps_taken == STEPS - 5 and len(optimizer.budget.ledger) == STEPS


def test_a_state_of_another_run_is_refused_by_a_budget_that_has_spent():
    one, two = make(secret()), make(secret())
    take(one, 3)
    take(two, 2)
    with pytest.raises(ValueError, match="the state has 3 releases that this budget's ledger lacks"):
        two.load_state_dict(one.state_dict())


@pytest.mark.parametrize("change", [{"steps": 40}, {"batch_size": 16}, {"delta": 1e-6}])
def test_a_state_of_another_setting_is_refused(change):
    from dataclasses import replace

    one = make(secret())
    other = make(Budget(replace(SETTING, **change), NOISE_SCALE, RunKey.secret()))
    (name,) = change
    with pytest.raises(ValueError, match=f"the state was saved with {name} "):
        other.load_state_dict(one.state_dict())


def test_a_budget_resumes_from_its_ledgers_file(tmp_path):
    path = tmp_path / "ledger"
    one = Budget.calibrated(
        epsilon=2, delta=1e-5, dataset_size=SIZE, batch_size=BATCH_SIZE, steps=STEPS, ledger=path
    )
    take(make(one), 12)
    with pytest.raises(ValueError, match="is in use by another budget, whose releases count too"):
        Budget.resume(path)
    one.close()
    two = Budget.resume(str(path))
    assert (two.setting, two.noise_scale, two.noise_arithmetic) == (SETTING, one.noise_scale, "exact")
    assert len(two.ledger) == 12 and two.key != one.key
    take(make(two), 50)
    assert len(two.ledger) == STEPS
    with pytest.raises(ValueError, match="is not a ledger of this version"):
        Budget.resume(tmp_path / "nothing")


def test_a_run_that_began_under_a_published_key_is_never_resumed_as_a_valid_release(tmp_path):
    path = tmp_path / "ledger"
    one = Budget(SETTING, NOISE_SCALE, RunKey.published(0), path, noise_arithmetic="exact")
    take(make(one), 10)
    state = one.state_dict()
    one.close()
    with pytest.raises(
        ValueError, match=r"was started under a published key: pass it as key=RunKey.published\(seed\)"
    ):
        Budget.resume(path)
    with pytest.raises(ValueError, match="the state was saved with noise_key 'published'"):
        secret().load_state_dict(state)
    assert not Budget.resume(path, key=RunKey.published(0)).valid_release


def test_random_allocation_starts_a_new_period_under_another_key(tmp_path):
    """An example may be in a batch of either half of a period that two keys share."""
    path, setting = (
        tmp_path / "ledger",
        Setting("gaussian", "random_allocation", "add_remove", 64, 16, 8, 1e-5),
    )
    one = Budget(setting, setting.noise_scale(2.0), RunKey.secret(), path)
    take(make(one), 2)
    one.close()
    two = Budget.resume(path)
    take(make(two), 99)
    assert len(two.ledger) == 2 + 4 and not two.overspent and two.epsilon_spent() <= 2.0


def test_a_transcript_that_is_resumed_brings_its_releases(tmp_path):
    """The README's way to resume. Regression: 25 steps and 25 more counted as 25."""
    path, model = tmp_path / "run", linear()
    one = make(secret(), model)
    one.write_transcript(path)
    take(one, 12)
    two = make(secret())
    two.write_transcript(path)
    assert two.steps_taken == len(two.budget.ledger) == 12
    assert all(torch.equal(a, b) for a, b in zip(two.parameters, one.parameters, strict=True))
    take(two, 50)
    assert two.steps_taken == len(two.budget.ledger) == STEPS
    three = make(secret())  # the whole loop once more
    three.write_transcript(path)
    take(three, 50)
    assert three.steps_taken == len(three.budget.ledger) == STEPS


def test_a_transcript_of_another_budget_is_refused(tmp_path):
    make(secret()).write_transcript(tmp_path / "run")
    other = make(Budget(SETTING, 3.0, RunKey.secret()))
    with pytest.raises(ValueError, match="is of another run"):
        other.write_transcript(tmp_path / "run")


def test_a_transcript_is_not_resumed_by_a_ledger_that_lacks_its_releases(tmp_path):
    one = make(secret())
    one.write_transcript(tmp_path / "run")
    take(one, 4)
    with pytest.raises(
        ValueError, match="lacks 4 of the 4 releases of the transcript, so epsilon is unknown"
    ):
        make(secret(ledger=tmp_path / "ledger")).write_transcript(tmp_path / "run")


def test_a_transcript_is_not_resumed_by_a_budget_that_has_taken_steps(tmp_path):
    one, budget = make(secret()), secret()
    one.write_transcript(tmp_path / "run")
    take(one, 4)
    take(make(budget), 2)
    with pytest.raises(ValueError, match="call write_transcript before the first step"):
        make(budget).write_transcript(tmp_path / "run")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_budget_is_not_copied_nor_is_an_optimizer_with_it(copied):
    optimizer = make(secret())
    for thing in (optimizer, optimizer.budget) if copied is not copy.copy else (optimizer.budget,):
        with pytest.raises(TypeError, match=r"the copy would draw the same noise: keep state_dict\(\)"):
            copied(thing)


# Processes ------------------------------------------------------------------------------------------------


def in_a_fork(work) -> str:
    """Return the error that `work` raised in a forked process."""
    reading, writing = os.pipe()
    if not os.fork():
        try:
            work()
            message = "nothing"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writing, message.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    os.wait()
    return message


@pytest.mark.parametrize("after", ["nothing", "a batch"])
def test_a_forked_process_does_not_draw_its_parents_noise(after):
    """Regression: both released step 0 with the same noise, so the difference was exact."""
    budget = secret()
    optimizer, batches = make(budget), budget.batches()
    batch = next(batches) if after == "a batch" else None
    for work in (
        (lambda: optimizer.step(batch)) if after == "a batch" else lambda: next(budget.batches()),
        lambda: budget.choose({0: 1}, 1.0),
        lambda: budget.load_state_dict(budget.state_dict()),
    ):
        assert "its fork, which would draw the same noise: make a new budget here" in in_a_fork(work)
    optimizer.step(batch if after == "a batch" else next(batches))
    assert len(budget.ledger) == 1


def test_a_forked_process_may_have_a_budget_of_its_own():
    secret()
    assert in_a_fork(lambda: take(make(secret()), 3)) == "nothing"


def test_a_secret_key_drawn_before_a_fork_is_refused_in_the_child():
    """Regression: two workers made their budgets with it, so the difference of their releases was exact."""
    key = RunKey.secret()
    assert "this secret key was drawn in process" in in_a_fork(
        lambda: Budget(SETTING, NOISE_SCALE, pickle.loads(pickle.dumps(key)))
    )
    assert in_a_fork(lambda: Budget(SETTING, NOISE_SCALE, RunKey.secret())) == "nothing"


def test_threads_that_release_at_once_share_no_noise(tmp_path):
    """Regression: all threads took the oldest batch; the ledger had one line, and the differences were exact."""
    setting, threads = Setting("gaussian", "full_batch", "add_remove", 8, 8, 4, 1e-5), 4
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for trial in range(8):
            options = {"ledger": tmp_path / str(trial), "noise_arithmetic": "float"}
            budget = Budget(setting, 10.0, RunKey.secret(), **options)
            ready, released = list(budget.batches()), []
            start = threading.Barrier(threads)

            def release(budget=budget, start=start, released=released):
                start.wait()
                released.append(budget.release(torch.zeros(8), 1.0))

            several = [threading.Thread(target=release) for _ in ready]
            for thread in several:
                thread.start()
            for thread in several:
                thread.join()
            assert len(set(released)) == len(budget.ledger) == threads
    finally:
        sys.setswitchinterval(interval)


# The model ------------------------------------------------------------------------------------------------


class Ema(nn.Linear):
    """Keeps a running mean of its inputs, as observers do."""

    def __init__(self) -> None:
        super().__init__(10, 2)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(inputs.mean(0), 0.5)
        return super().forward(inputs)


def through(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 4), layer, nn.Linear(4, 2))


def frozen(model: nn.Module) -> None:
    model.weight.requires_grad_(False)


def replaced(model: nn.Module) -> None:
    model.weight = nn.Parameter(model.weight.detach().clone())


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (lambda: through(nn.BatchNorm1d(4)).eval(), nn.Module.train, "layer 1 normalises over the batch"),
        (
            lambda: through(nn.Dropout(0.5)).eval(),
            nn.Module.train,
            "layer 1 drops out, differently at the two points",
        ),
        (linear, frozen, "parameter weight was frozen after the optimizer was made"),
        (
            linear,
            replaced,
            "parameter or buffer weight was replaced by another after the optimizer was made",
        ),
    ],
)
def test_the_models_requirements_are_checked_at_each_step(model, change, message):
    model, budget = model(), secret()
    optimizer, batches = make(budget, model), budget.batches()
    optimizer.step(next(batches))
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.step(next(batches))
    assert len(budget.ledger) == 1


def test_a_buffer_that_a_forward_pass_changes_is_refused_and_put_back():
    model, budget = Ema(), secret()
    start = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        ValueError,
        match="parameter or buffer mean was changed by a forward pass: it would keep a function of private",
    ):
        make(budget, model).step(next(budget.batches()))
    assert len(budget.ledger) == 0 and not model.mean.any()
    assert all(torch.allclose(p, x, atol=1e-6) for p, x in zip(model.parameters(), start, strict=True))


def test_a_parameter_that_a_forward_pass_changes_is_refused():
    class Codes(nn.Linear):
        """Keeps a mean of its inputs in a frozen parameter, as code books do."""

        def __init__(self) -> None:
            super().__init__(10, 2)
            self.code = nn.Parameter(torch.zeros(10), requires_grad=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.code.lerp_(inputs.mean(0), 0.5)
            return super().forward(inputs)

    budget = secret()
    with pytest.raises(ValueError, match="parameter or buffer code was changed by a forward pass"):
        make(budget, Codes()).step(next(budget.batches()))
    assert len(budget.ledger) == 0


@pytest.mark.parametrize(
    "mask",
    [
        functional.dropout,
        lambda x: x * torch.from_numpy(np.random.rand(*x.shape) < 0.5),  # noqa: NPY002
        lambda x: x * float(random.random() < 2),
    ],
    ids=["torch", "numpy", "python"],
)
def test_a_loss_that_draws_random_numbers_is_refused(mask):
    """Functional dropout has no layer that could be inspected."""
    budget = secret()

    def dropping(model, rows):
        return functional.cross_entropy(model(mask(X[rows])), Y[rows], reduction="none")

    with pytest.raises(ValueError, match="the loss drew random numbers"):
        make(budget, loss=dropping).step(next(budget.batches()))
    assert len(budget.ledger) == 0


def test_a_buffer_changed_through_its_data_is_refused():
    class Hidden(Ema):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.mean.data.lerp_(inputs.mean(0), 0.5)
            return nn.Linear.forward(self, inputs)

    budget, model = secret(), Hidden()
    with pytest.raises(ValueError, match="parameter or buffer mean was changed by a forward pass"):
        make(budget, model).step(next(budget.batches()))
    assert len(budget.ledger) == 0 and not model.mean.any()


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(torch.as_tensor(rows)[:, None] % 9 * torch.tensor([1, 0])).mean(1))


@pytest.mark.parametrize("perturb", ["in_place", "on_read"])
def test_the_padding_row_of_an_embedding_does_not_change(perturb, tmp_path):
    from dpzero import replay

    model, budget = Padded(), secret()
    start = copy.deepcopy(model)
    assert not model.table.weight[0].any()
    optimizer = make(
        budget,
        model,
        loss=lambda m, rows: functional.cross_entropy(m(rows), Y[rows], reduction="none"),
        perturb=perturb,
    )
    optimizer.write_transcript(tmp_path / "run")
    take(optimizer, 5)
    assert not model.table.weight[0].any() and not torch.equal(model.table.weight, start.table.weight)
    assert replay(start.parameters(), str(tmp_path / "run")) == 5
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True))


def test_embeddings_that_are_read_in_another_thread_are_refused():
    """Regression: there they were read without perturbation, but updated."""
    from concurrent.futures import ThreadPoolExecutor

    def elsewhere(model, rows):
        with ThreadPoolExecutor(1) as pool:
            return functional.cross_entropy(pool.submit(model, rows).result(), Y[rows], reduction="none")

    budget = secret()
    with pytest.raises(ValueError, match="a layer of type Embedding is read in another thread"):
        make(budget, Padded(), loss=elsewhere).step(next(budget.batches()))
    assert len(budget.ledger) == 0


# The loss -------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """batch_first is missing: texts attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.MultiheadAttention(10, 1), nn.Linear(10, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs[:, None]
        return self.head(self.inner(inputs, inputs, inputs)[0][:, 0])


class Normalising(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out = super().forward(inputs)
        return (out - out.mean(0)) / (out.std(0) + 1e-3)


def contrastive(model, rows):
    out = model(X[rows])
    return functional.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none")


def mean(model, rows):
    return loss(model, rows).mean().expand(len(rows))


def shared_out(model, rows):
    return loss(model, rows) / len(rows)


def slightly(model, rows, weight):
    """Mixes like a mixture of experts whose capacity belongs to the batch."""
    own = loss(model, rows)
    return (1 - weight) * own + weight * own.mean()


MIXED = {
    **{f"a mean of weight {w:g}": (linear, partial(slightly, weight=w)) for w in (0.1, 0.01, 0.001)},
    "attention over the batch": (Attending, loss),
    "batch norm by hand": (lambda: Normalising(10, 2), loss),
    "in-batch negatives": (linear, contrastive),
    "a mean in place of losses": (linear, mean),
    "a mean's share": (linear, shared_out),
}


@pytest.mark.parametrize("options", MIXED)
def test_a_loss_that_mixes_examples_is_refused_before_the_first_release(options):
    model, mixing = MIXED[options]
    budget = secret()
    with pytest.raises(
        ValueError, match=r"an example's loss changes with (fewer|other) examples in the batch"
    ):
        make(budget, model(), loss=mixing).step(next(budget.batches()))
    assert len(budget.ledger) == 0


@pytest.mark.parametrize("options", MIXED)
def test_public_examples_can_be_probed_instead(options):
    model, mixing = MIXED[options]
    with pytest.raises(ValueError, match=r"an example's loss changes"):
        make(secret(), model(), loss=mixing).check_loss(np.arange(16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_of_each_example_alone_passes_in_any_precision(dtype):
    def computed(model, rows):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return functional.cross_entropy(model(X[rows]).float(), Y[rows], reduction="none")

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    for seed in range(20):
        take(make(Budget(SETTING, NOISE_SCALE, RunKey.published(seed)), model, loss=computed), 1)


def test_a_mixing_loss_is_refused_in_bfloat16_too():
    def computed(model, rows):
        with torch.autocast("cpu", torch.bfloat16):
            return slightly(model, rows, 0.2)

    with pytest.raises(ValueError, match=r"an example's loss changes"):
        make(secret(), loss=computed).check_loss(np.arange(16))


def test_a_private_optimizer_exposes_no_value_without_noise():
    optimizer = make(secret())
    take(optimizer, 3)
    assert optimizer.training_loss is None
    public = make(Budget(SETTING, NOISE_SCALE, RunKey.published(0)))
    take(public, 3)
    assert public.training_loss > 0


# Users ----------------------------------------------------------------------------------------------------


def by_user() -> Budget:
    return Budget(
        Setting("gaussian", "poisson", "add_remove", 64, 8, 5, 1e-5),
        NOISE_SCALE,
        RunKey.published(0),
        unit="user",
    )


def test_examples_that_were_sampled_in_place_of_users_are_refused():
    """64 users of 4 examples: a batch of 8 drawn users has 32 examples, and 8 examples have other users."""
    budget = by_user()
    optimizer, drawn = make(budget), next(budget.batches())
    with pytest.raises(ValueError, match=rf"step was given \d+ users but the sampler drew {len(drawn)}"):
        optimizer.step(np.arange(3 * len(drawn)), np.arange(3 * len(drawn)))
    assert len(budget.ledger) == 0


@pytest.mark.parametrize(
    "names", [str, lambda i: i - 10**9, lambda i: i + 2**62], ids=["words", "negative", "huge"]
)
def test_users_may_have_any_name(names):
    """Regression: a huge integer allocated terabytes."""
    users, ends = Users([i % 64 for i in range(SIZE)]), []
    for name in (int, names):
        budget = by_user()
        optimizer = make(budget)
        for drawn in budget.batches():
            rows, _ = users.examples(drawn)
            optimizer.step(rows, [name(i % 64) for i in rows])
        ends.append(nn.utils.parameters_to_vector(optimizer.parameters).detach())
    assert torch.allclose(*ends, rtol=1e-6)


@pytest.mark.parametrize("users", [[0.5] * 4, [None] * 4, [[0]] * 4])
def test_users_without_a_name_are_refused(users):
    budget = by_user()
    next(budget.batches())
    with pytest.raises(ValueError, match="`users` must be integers or strings, one for each example"):
        make(budget).step(np.arange(4), users)


def test_all_examples_of_a_user_give_one_value():
    """Also for more than 64 examples: a budget releases one value per drawn user."""
    budget = Budget(
        Setting("gaussian", "poisson", "add_remove", 2, 2, 5, 1e-5), 0.0, RunKey.published(0), unit="user"
    )
    slope = lambda model, rows: 1e6 * X[rows][:, 0].abs() * model.weight.sum()  # noqa: E731
    optimizer = make(budget, loss=slope, clip=1.0)
    for _ in budget.batches():
        assert abs(optimizer.step(np.arange(200), np.repeat([0, 1], 100))) <= 2 / 2 * (1 + 1e-9)


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-5, 2**64])
def test_a_batch_of_no_number_is_refused(number):
    with pytest.raises(ValueError, match=f"batch {number} is asked for: give a number from 0"):
        secret().start_at(number)


def test_a_sum_of_gradients_is_of_the_batch_that_was_compared():
    budget = secret(noise_arithmetic="float")
    budget.admit(len(next(budget.batches())))
    next(budget.batches())  # another loop, another batch
    with pytest.raises(ValueError, match="this sum of gradients belongs to no batch"):
        budget.release_([torch.zeros(3)], 1.0)


@pytest.mark.parametrize("noise_scale", [-1.0, float("nan"), float("inf")])
def test_an_invalid_noise_is_refused(noise_scale):
    with pytest.raises(
        ValueError, match=f"noise_scale is {noise_scale}: it must be a finite number of at least 0"
    ):
        Budget(SETTING, noise_scale, RunKey.published(0))


def test_a_secret_key_without_noise_is_refused():
    with pytest.raises(
        ValueError, match="noise_scale is 0 under a secret key: a private release needs noise"
    ):
        Budget(SETTING, 0.0, RunKey.secret())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 1e308}, "clip is 1e+308: give a bound from 1e-30 to 1e+30"),
        ({"clip": float("nan")}, "clip is nan: give a bound"),
        ({"smoothing": 1e-30}, "smoothing is 1e-30: it must be positive and finite, above 1e-10"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: it must be finite and not negative"),
    ],
)
def test_invalid_optimizer_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(secret(), **settings)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bfloat16])
def test_a_loss_of_unsuitable_dtype_is_refused(dtype):
    budget = secret()
    with pytest.raises(ValueError, match=f"the loss returned {dtype}"):
        make(budget, loss=lambda model, rows: torch.ones(len(rows)).to(dtype)).step(next(budget.batches()))
    assert len(budget.ledger) == 0


# Sizes beyond those that tests use ------------------------------------------------------------------------


def test_no_noise_and_no_batch_is_used_for_a_second_sum():
    """After any number of steps: a counter that wraps would repeat both."""
    budget = secret(noise_arithmetic="float", overspend=True)
    stream = budget.key.stream("noise")
    steps = [*range(64), *(2**k + d for k in range(6, 40) for d in (-1, 0, 1))]
    numbers = sorted(set(steps))
    assert len({float(stream.normals(1, n, 0, 0)[0]) for n in numbers}) == len(numbers)
    assert len({budget.sampler.batch(n).tobytes() for n in numbers}) == len(numbers)
    released = set()
    for number in numbers:
        budget.start_at(number)
        batch = next(budget.batches())
        released.add(budget.release(torch.zeros(len(batch)), 1.0))
    assert len(released) == len(numbers) == len(budget.ledger)
