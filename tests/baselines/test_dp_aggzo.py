"""DP-AggZO: its step is the paper's formula, and DPZero with one direction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.dp_aggzo import DPAggZO
from dpzero import DPZero
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.zeroth_order import Gaussian

SILENT = 1e-12  # noise over clip
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1).double()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(X[batch]).squeeze(1) - 3).square()


def budget(noise_scale=SILENT) -> StandInBudget:
    return StandInBudget(
        Setting("gaussian", "poisson", "add_remove", 6, 3, 10, 1e-3), noise_scale, RunKey.published(0)
    )


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_one_direction_is_dpzero():
    ends = []
    for method in (DPZero, lambda *a, **k: DPAggZO(*a, directions=1, **k)):
        mine = model()
        optimizer = method(mine, loss, budget(), learning_rate=0.01, clip=1.5)
        for step in range(4):
            optimizer.step(torch.arange(step, 6))
        ends.append(flat(mine))
    assert torch.allclose(*ends, atol=1e-9)


def test_a_step_is_the_papers():
    """Differences over K, clipped as a vector (some are), summed, over the expected batch size, along all directions."""
    mine, directions, smoothing, clip = model(), 3, 1e-3, 3.0
    start, batch = flat(mine), torch.arange(5)
    z = []
    for k in range(directions):
        parts = [torch.zeros_like(p) for p in mine.parameters()]
        Gaussian(7).add_(parts, 0, 1.0, k)
        z.append(torch.cat([part.flatten() for part in parts]))

    def losses(weights: torch.Tensor) -> torch.Tensor:
        return (X[batch] @ weights[:2] + weights[2] - 3).square()

    vectors = torch.stack([losses(start + smoothing * d) - losses(start - smoothing * d) for d in z], 1)
    vectors /= 2 * smoothing * directions
    norms = vectors.norm(dim=1)
    assert (norms > clip).any() and (norms < clip).any()
    gradient = (vectors * (clip / norms).clamp_max(1)[:, None]).sum(0) / 3

    optimizer = DPAggZO(
        mine, loss, budget(), learning_rate=0.1, clip=clip, directions=directions, smoothing=smoothing, seed=7
    )
    assert optimizer.step(batch) == pytest.approx(gradient.tolist(), abs=1e-6)
    assert torch.allclose(flat(mine), start - 0.1 * torch.stack(z, 1) @ gradient, atol=1e-6)


def test_each_direction_has_noise_of_its_own():
    released = DPAggZO(model(), loss, budget(1.0), learning_rate=0.1, clip=2.0, directions=4).step(
        torch.arange(0)
    )
    assert len(set(released)) == 4 and max(map(abs, released)) < 2.0 / 3 * 8


def test_the_unit_is_the_example():
    users = StandInBudget(budget().setting, 1.0, RunKey.published(0), unit="user")
    with pytest.raises(ValueError, match="the unit the example"):
        DPAggZO(model(), loss, users, learning_rate=0.1, clip=1.0)
