"""What DP-SGD is compared with: one backward pass an example, clipped and summed; and models of a line."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from baselines.dp_sgd import DPSGD
from dpzero.privacy import RunKey, Setting, StandInBudget

BATCH_SIZE, CLIP = 8, 0.1
SETTING = Setting("gaussian", "poisson", "add_remove", 240, BATCH_SIZE, 10, 1e-5)


def budget(noise_scale: float) -> StandInBudget:
    return StandInBudget(SETTING, noise_scale, RunKey.published(0))


def brute_force(model, loss, batch, trained, clip, factors=None) -> tuple[list[torch.Tensor], int]:
    """The sum of clipped gradients, one backward pass an example, and how many examples the bound bites on.

    `factors`: the factor of each parameter's gradient, from the norms of the example's gradients; flat clipping by default.
    """
    sums, bitten = [torch.zeros_like(p) for p in trained], 0
    for i in range(len(batch)):
        gradients = torch.autograd.grad(loss(model, batch[np.array([i])]).sum(), trained)
        norms = [g.double().norm().item() for g in gradients]
        norm = math.hypot(*norms)
        bitten += norm > clip
        shares = factors(norms) if factors else [min(1.0, clip / norm)] * len(trained)
        for total, gradient, share in zip(sums, gradients, shares, strict=True):
            total += gradient * share
    return sums, bitten


def check_step(model, loss, batch, clip, clipping, factors=None, **settings) -> int:
    """One step of rate 1 without noise moves by the sum of clipped gradients; returns on how many examples the bound bites."""
    trained = [p for p in model.parameters() if p.requires_grad]
    expected, bitten = brute_force(model, loss, batch, trained, clip, factors)
    before = [p.detach().clone() for p in trained]
    settings |= {"learning_rate": 1.0, "clip": clip, "clipping": clipping}
    DPSGD(model, loss, budget(0.0), **settings).step(batch)
    largest = max(total.abs().max().item() for total in expected)
    for start, p, total in zip(before, trained, expected, strict=True):
        assert ((start - p.detach()) * BATCH_SIZE - total).abs().max() < 1e-5 * largest + 2e-6
    return bitten


class Plain:
    """The model's own output is the losses, and a tensor the batch."""

    def parts(self, batch):
        yield batch

    def __call__(self, model, batch):
        return model(batch)


class Calling(nn.Module):
    """`forward(model, x)` as a model with the layers that are given."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def method(model, clipping) -> DPSGD:
    return DPSGD(model, Plain(), budget(1.0), learning_rate=1.0, clip=CLIP, clipping=clipping)
