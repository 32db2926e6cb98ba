"""DP-ZOSO: DPZero's steps, in stages that double and halve, and a pull to where the stage began."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.dp_zoso import DPZOSO
from dpzero import DPZero
from dpzero.privacy import Rehearsal, RunKey, Setting

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
BATCH = torch.arange(4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1).double()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(X[batch]).squeeze(1) - 3).square()


def zoso(mine: nn.Module, steps=14, **settings) -> DPZOSO:
    setting = Setting("gaussian", "poisson", "add_remove", 6, 3, steps, 1e-3)
    return DPZOSO(
        mine, loss, Rehearsal(setting, 0.1, RunKey.published(0)), learning_rate=0.08, clip=5.0, **settings
    )


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "settings, lengths",
    [({}, [2, 4, 8]), ({"stages": 2}, [5, 9]), ({"first_stage": 3}, [3, 6, 5]), ({"stages": 1}, [14])],
)
def test_stages_double_their_steps_and_halve_their_rate(settings, lengths):
    """The last one takes what is left."""
    optimizer, rates = zoso(model(), **settings), []
    for _ in range(14):
        rates.append(optimizer.learning_rate)  # of the next step
        optimizer.step(BATCH)
    assert rates == [0.08 / 2**stage for stage, length in enumerate(lengths) for _ in range(length)]


def test_the_first_stage_is_dpzero():
    mine, theirs = model(), model()
    first, second = zoso(mine), DPZero(theirs, loss, zoso(model()).budget, learning_rate=0.08, clip=5.0)
    for _ in range(2):
        assert first.step(BATCH) == second.step(BATCH)
    assert torch.equal(flat(mine), flat(theirs))


def test_the_pull_is_towards_the_start_of_the_stage():
    """After each step the distance to where the stage began is less by learning_rate * regularization of it."""
    plain, pulled = model(), model()
    without, with_pull = zoso(plain), zoso(pulled, regularization=2.0)
    for step in range(14):
        if step in (0, 2, 6):  # where the stages begin
            start = flat(pulled)
        with torch.no_grad():
            for p, q in zip(plain.parameters(), pulled.parameters(), strict=True):
                p.copy_(q)
        rate = with_pull.learning_rate
        assert without.step(BATCH) == pytest.approx(with_pull.step(BATCH))
        expected = flat(plain) + rate * 2.0 * (start - flat(plain))
        assert torch.allclose(flat(pulled), expected, atol=1e-12)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_pulled_run_goes_on_from_its_state_to_the_bit(stop):
    whole, cut = model(), model()
    uncut, first = zoso(whole, regularization=2.0), zoso(cut, regularization=2.0)
    for _ in range(stop):
        first.step(BATCH)
    resumed = model()
    second = zoso(resumed, regularization=2.0)
    second.load_state_dict(first.state_dict())
    for _ in range(stop, 8):
        second.step(BATCH)
    for _ in range(8):
        uncut.step(BATCH)
    assert torch.equal(flat(whole), flat(resumed))


def test_without_a_pull_nothing_is_copied():
    optimizer = zoso(model())
    optimizer.step(BATCH)
    assert optimizer.start == [] and "start" not in optimizer.state_dict()


@pytest.mark.parametrize("wrong", [{"stages": 0}, {"first_stage": -1}, {"regularization": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        zoso(model(), **wrong)
