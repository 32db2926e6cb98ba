"""A two-point method is a torch optimizer: groups, schedulers, hooks, states; and what it refuses of them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from baselines.dp_aggzo import DPAggZO
from baselines.mezo import MeZO
from dpzero import DPZero
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.perturbation import PERTURB
from dpzero.zeroth_order.transcript import read, replay

STEPS, RATE = 8, 0.02
EXAMPLES = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(1))
SETTING = Setting("gaussian", "poisson", "add_remove", 20, 6, STEPS, 1e-3)


class Model(nn.Module):
    """A table that is tied to the head, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.table(words).mean(1))))


def base() -> Model:
    torch.manual_seed(0)
    return Model()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1], reduction="none")


def make(model: nn.Module, kind=DPZero, **settings):
    settings = {"learning_rate": RATE, "seed": 3} | settings
    if kind is MeZO:
        return MeZO(model, loss, 6, **settings)
    return kind(model, loss, StandInBudget(SETTING, 0.5, RunKey.published(0)), clip=2.0, **settings)


def body_and_rest(model: Model, body: float | None, rest: float | None) -> list[dict]:
    """Two groups, in another order than the model's, one of them without a rate if it is None."""
    inner = list(model.inner.parameters())
    others = [p for p in model.parameters() if all(p is not q for q in inner)]
    groups = ({"params": inner, "lr": body}, {"params": others, "lr": rest})
    return [{key: value for key, value in group.items() if value is not None} for group in groups]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainable(model.parameters())]


def same(these, those) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 3)),  # a warm-up from 0
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, RATE, total_steps=STEPS + 1, cycle_momentum=False),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ConstantLR(o, 0.5)], [3]
    ),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def train(me, scheduler, steps=STEPS) -> list[list[float]]:
    """Takes the steps up to number `steps`. Returns the rates of each."""
    rates = []
    for _ in range(me.steps_taken, steps):
        rates.append(me.learning_rates())
        me.step(EXAMPLES)
        scheduler.step()
    return rates


# Learning rates ------------------------------------------------------------------------------------------------------


@every_scheduler
def test_a_schedulers_rates_are_used_and_recorded_and_replayed_to_the_bit(scheduler, tmp_path):
    model, plain, x = base(), nn.Linear(1, 1), weights(base())
    me = make(model)
    me.write_transcript(tmp_path / "t")
    used = train(me, SCHEDULERS[scheduler](me))
    sgd = torch.optim.SGD(plain.parameters(), lr=RATE)
    theirs, expected = SCHEDULERS[scheduler](sgd), []
    for _ in range(STEPS):
        expected.append([sgd.param_groups[0]["lr"]])
        sgd.step()
        theirs.step()
    assert used == expected and len(set(np.ravel(used))) > 1
    assert read(tmp_path / "t").rates.tolist() == used
    assert replay(x, tmp_path / "t") == STEPS and same(x, weights(model))


@every_scheduler
def test_a_run_resumes_from_the_states_of_optimizer_and_scheduler(scheduler, tmp_path):
    whole, first, second = base(), base(), base()
    me = make(whole)
    train(me, SCHEDULERS[scheduler](me))
    me = make(first)
    theirs = SCHEDULERS[scheduler](me)
    train(me, theirs, 4)
    torch.save({"optimizer": me.state_dict(), "scheduler": theirs.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=False)
    me = make(second)
    theirs = SCHEDULERS[scheduler](me)
    theirs.load_state_dict(state["scheduler"])
    me.load_state_dict(state["optimizer"])
    train(me, theirs)
    assert same(weights(second), weights(whole))


@every_scheduler
def test_a_run_resumes_from_its_transcript_with_a_scheduler_that_catches_up(scheduler, tmp_path):
    whole, model, path = base(), base(), tmp_path / "t"
    me = make(whole)
    me.write_transcript(tmp_path / "whole")
    train(me, SCHEDULERS[scheduler](me))
    me = make(base())
    me.write_transcript(path)
    train(me, SCHEDULERS[scheduler](me), 5)
    me.transcript.close()
    me = make(model)
    theirs = SCHEDULERS[scheduler](me)
    me.write_transcript(path)
    assert me.steps_taken == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while theirs.last_epoch < me.steps_taken:
            theirs.step()
    train(me, theirs)
    assert same(weights(model), weights(whole)) and path.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf])
def test_a_rate_that_is_negative_or_not_finite_is_refused_before_anything_is_released(rate):
    model = base()
    with pytest.raises(ValueError, match=f"learning_rate is {rate}: it must be finite and not negative"):
        make(model, learning_rate=rate)
    with pytest.raises(ValueError, match=f"learning_rate of group 1 is {rate}"):
        make(model, groups=body_and_rest(model, 0.1, rate))
    me = make(model)
    me.param_groups[0]["lr"] = rate
    with pytest.raises(ValueError, match=f"learning_rate is {rate}"):
        me.step(EXAMPLES)
    assert len(me.budget.ledger) == 0 and same(weights(model), weights(base()))


def test_a_rate_of_0_releases_and_moves_nothing():
    model = base()
    me = make(model, learning_rate=0.0)
    assert me.step(EXAMPLES) != 0.0 and len(me.budget.ledger) == 1
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(model), weights(base()), strict=True))


# Groups --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DPZero, MeZO, DPAggZO])
@pytest.mark.parametrize("perturb", PERTURB)
def test_a_group_moves_at_its_own_rate_along_the_same_direction(kind, perturb):
    model, slow = base(), base()
    settings = {"perturb": perturb, "smoothing": 2.0**-9} | ({"directions": 2} if kind is DPAggZO else {})
    me = make(slow, kind, groups=body_and_rest(slow, RATE / 4, None), **settings)
    other = make(model, kind, **settings)
    assert me.step(EXAMPLES) == other.step(EXAMPLES)  # the points x ± smoothing z are the same
    for (name, start), moved, quarter in zip(
        base().named_parameters(), model.parameters(), slow.parameters(), strict=True
    ):
        factor = 0.25 if name.startswith("inner") else 1.0
        assert torch.allclose(factor * (moved - start), quarter - start, atol=1e-6)
        assert not torch.allclose(moved, start, atol=1e-3)


def test_groups_with_one_rate_are_one_group_to_the_bit():
    model, grouped = base(), base()
    me, other = make(model), make(grouped, groups=body_and_rest(grouped, None, None))
    for _ in range(STEPS):
        assert me.step(EXAMPLES) == other.step(EXAMPLES)
    assert same(weights(model), weights(grouped))


@pytest.mark.parametrize("perturb", PERTURB)
def test_a_run_of_groups_and_a_scheduler_is_replayed_and_resumed_to_the_bit(perturb, tmp_path):
    def scheduled(model: nn.Module):
        me = make(model, perturb=perturb, groups=body_and_rest(model, 0.01, 0.05))
        return me, lr_scheduler.LambdaLR(me, [lambda step: 0.9**step, lambda step: 1.0])

    model, x, again = base(), weights(base()), base()
    me, theirs = scheduled(model)
    me.write_transcript(tmp_path / "t")
    used = train(me, theirs)
    assert used[-1] == [0.01 * 0.9 ** (STEPS - 1), 0.05] == read(tmp_path / "t").rates[-1].tolist()
    assert replay(x, tmp_path / "t") == STEPS and same(x, weights(model))
    resumed, _ = scheduled(again)
    resumed.write_transcript(tmp_path / "t")
    assert same(weights(again), weights(model))
    with pytest.raises(ValueError, match="is of another run"):
        make(base()).write_transcript(tmp_path / "t")


GROUPS = {
    "parameter inner.bias is trained and in no group: add it to one, or freeze it": lambda m: [
        {"params": [p for name, p in m.named_parameters() if name != "inner.bias"]}
    ],
    "frozen or not of the model: take it out": lambda m: [{"params": [*m.parameters(), nn.Parameter()]}],
    "appear in more than one parameter group": lambda m: [{"params": m.parameters()}, {"params": m.parameters()}],
    "a group has params, weight_decay: give `params` and `lr` alone": lambda m: [
        {"params": m.parameters(), "weight_decay": 0.1}
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", GROUPS)
def test_groups_that_are_not_all_trained_parameters_once_are_refused(message):
    model = base()
    with pytest.raises(ValueError, match=message):
        make(model, groups=GROUPS[message](model))


def test_a_group_is_not_added_later():
    me = make(base())
    with pytest.raises(ValueError, match="was added to an optimizer that exists: make a new one"):
        me.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(me.param_groups) == 1


def test_a_state_of_another_step_than_the_open_transcript_is_refused(tmp_path):
    me = make(base())
    me.write_transcript(tmp_path / "t")
    state = me.state_dict()
    me.load_state_dict(state)
    me.step(EXAMPLES)
    with pytest.raises(
        ValueError, match="a state of step 0 was loaded at step 1 of a transcript: load it before"
    ):
        me.load_state_dict(state)


# The rest of an optimizer --------------------------------------------------------------------------------------------


def test_it_is_a_torch_optimizer():
    model = base()
    me = make(model)
    assert isinstance(me, torch.optim.Optimizer) and me.defaults == {"lr": RATE}
    assert "lr: 0.02" in repr(me)
    loss(model, EXAMPLES).sum().backward()  # a user may want the gradient of public examples
    me.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("scheduled", [False, True])
def test_hooks_of_the_step_are_called_around_it(scheduled):
    me, calls = make(base()), []
    theirs = SCHEDULERS["CosineAnnealingLR"](me) if scheduled else None
    before = me.register_step_pre_hook(lambda *_: calls.append(("before", me.steps_taken)))
    me.register_step_post_hook(lambda *_: calls.append(("after", me.steps_taken)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        me.step(EXAMPLES)
        if theirs:
            theirs.step()
    before.remove()
    me.step(EXAMPLES)
    assert calls == [("before", 0), ("after", 1), ("after", 2)]
