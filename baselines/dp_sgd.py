"""DP-SGD and DP-Adam (Abadi et al., 2016, arXiv 1607.00133): clip every example's gradient, add noise to the sum.

Opacus supplies the per-sample gradients and nothing else: sampler, clip, noise and accountant are the same as those of the
zeroth-order methods. Adam's moments are computed from the noisy sums alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sized
from typing import Literal

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from baselines.fine_tuning import FineTuning
from dpzero.privacy import Budget
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order.two_point import check_independence

# Opacus' hooks do not need the gradient of a module's input, which torch warns of where the first layers are frozen.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


class DPSGD(FineTuning):
    """`clip` bounds the Euclidean norm of one example's gradient over all trained parameters together."""

    title = "DP-SGD"
    private = True
    order = 1

    def __init__(
        self,
        model,
        loss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        optimizer: Literal["adamw", "adam", "sgd"] = "sgd",
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, loss, budget.batch_size, learning_rate=learning_rate, optimizer=optimizer, seed=seed
        )
        if not clip > 0:
            raise ValueError(f"clip is {clip}: it must be positive")
        self.budget, self.clip = budget, clip
        # Opacus' hooks sleep in evaluation mode; dropout, which has no parameters, stays off
        for module in model.modules():
            module.training = bool(module._parameters)
        check_independence(model)
        self.per_sample = GradSampleModule(model, loss_reduction="sum")

    def gradients(self, batch: Sized) -> float:
        sums = [torch.zeros_like(p) for p in self.parameters]
        total = 0.0
        for part in self.loss.parts(batch):
            losses = self.loss(self.per_sample, part)
            losses.sum().backward()
            total += losses.sum().item()
            self._add_clipped(sums, len(part))
        self.budget.release_(self.steps_taken, sums, self.clip)
        for p, released in zip(self.parameters, sums, strict=True):
            p.grad = released.div_(self.batch_size)
        return total

    @torch.no_grad()
    def _add_clipped(self, sums: list[Tensor], size: int) -> None:
        squared = torch.zeros(size, dtype=torch.float64, device=sums[0].device)
        for p in self.parameters:
            if p.grad_sample.shape[0] != size:
                # a layer that flattens batch and length would be clipped per token
                raise RuntimeError(
                    f"Opacus returned {p.grad_sample.shape[0]} gradients for {size} examples in a parameter of shape "
                    f"{tuple(p.shape)}: this model needs a patch before DP-SGD is private on it"
                )
            squared += p.grad_sample.flatten(1).square().sum(1)
        factors = clip_factors(squared, self.clip)
        for total, p in zip(sums, self.parameters, strict=True):
            # a gradient that is not finite has factor 0, but 0 * inf is not a number
            gradients = torch.nan_to_num(p.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
            total += torch.tensordot(factors.to(gradients), gradients, dims=1)
            p.grad_sample = p.grad = None
