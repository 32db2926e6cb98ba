"""DP-ZOSO: DPZero's steps, in stages that double and halve, and a pull to where the stage began."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.dp_zoso import DPZOSO
from dpzero import DPZero
from dpzero.privacy import RunKey, Setting, StandInBudget

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
        mine, loss, StandInBudget(setting, 0.1, RunKey.published(0)), learning_rate=0.08, clip=5.0, **settings
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
        rates.extend(optimizer.learning_rates())  # of the next step
        optimizer.step(BATCH)
    assert rates == [0.08 / 2**stage for stage, length in enumerate(lengths) for _ in range(length)]


def test_the_first_stage_is_dpzero():
    mine, theirs = model(), model()
    first, second = zoso(mine), DPZero(theirs, loss, zoso(model()).budget, learning_rate=0.08, clip=5.0)
    for _ in range(2):
        assert first.step(BATCH) == second.step(BATCH)
    assert torch.equal(flat(mine), flat(theirs))


@pytest.mark.parametrize("wrong", [{"stages": 0}, {"first_stage": -1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        zoso(model(), **wrong)
