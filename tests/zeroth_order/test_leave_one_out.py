"""What one example that leaves moves in the others: measured, for any loss, and exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dpzero.zeroth_order import Gaussian
from dpzero.zeroth_order.leave_one_out import others_move

SMOOTHING = 2.0**-10


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


X = torch.arange(15, dtype=torch.float64).reshape(5, 3)


def own(model, x):
    return model(x)[:, 0]


def in_company(model, x):
    """A batch's mean is in each loss, as batch norm has it."""
    return own(model, x) + own(model, x).mean()


def alike(x: torch.Tensor) -> list:
    return [x, x.numpy(), list(x), {"x": x}]


@pytest.mark.parametrize("form", range(4))
def test_a_loss_of_each_example_alone_moves_nothing(model, form):
    def loss(model, batch):
        x = batch["x"] if form == 3 else torch.stack(batch) if form == 2 else torch.as_tensor(batch)
        return (x[:, None] * model.weight).sum(2)[:, 0]

    moved = others_move(loss, model, alike(X)[form], clip=1e6, smoothing=SMOOTHING)
    assert moved == {"others_move_over_clip": 0.0, "others_move_together_over_clip": 0.0}


def test_a_loss_with_the_batchs_mean_moves_the_others_by_what_the_mean_moves(model):
    weight, bias = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    Gaussian(0).add_([weight, bias], 0, 1.0)
    own_slopes = (X @ weight.T + bias)[:, 0]
    expected = max(4 * abs(own_slopes.mean() - own_slopes[np.arange(5) != i].mean()).item() for i in range(5))
    moved = others_move(in_company, model, X, clip=1e6, smoothing=SMOOTHING)
    assert moved["others_move_over_clip"] * 1e6 == pytest.approx(expected, rel=1e-6)
    assert moved["others_move_together_over_clip"] * 1e6 == pytest.approx(expected, rel=1e-6)
    only = others_move(in_company, model, X, clip=1e6, smoothing=SMOOTHING, leaving=[2])
    assert only["others_move_over_clip"] < 1e-12  # the example at the mean


def test_what_the_clip_cuts_off_does_not_move(model):
    assert others_move(in_company, model, X, clip=1e-9, smoothing=SMOOTHING)["others_move_over_clip"] < 5


def test_weights_are_put_back_to_the_bit(model):
    before = [p.detach().clone() for p in model.parameters()]
    others_move(in_company, model, X, clip=1.0, smoothing=SMOOTHING)
    with pytest.raises(RuntimeError):
        others_move(lambda model, x: model(x[:, :2]), model, X, clip=1.0, smoothing=SMOOTHING)
    assert all(torch.equal(p, x) for p, x in zip(model.parameters(), before, strict=True))
