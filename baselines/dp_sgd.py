"""DP-SGD and DP-Adam (Abadi et al., 2016, arXiv 1607.00133): clip every example's gradient, add noise to the sum.

Opacus supplies the per-sample gradients and nothing else: sampler, clip, noise and accountant are the same as those of the
zeroth-order methods. Adam's moments are computed from the noisy sums alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sized

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from dpzero.privacy import Budget
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order.two_point import trainable

# Opacus' hooks do not need the gradient of a module's input, which torch warns of where the first layers are frozen.
warnings.filterwarnings("ignore", message="Full backward hook is firing")

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class DPSGD:
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
        optimizer: str = "sgd",
        seed: int = 0,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}: give one of {', '.join(OPTIMIZERS)}")
        if not clip > 0:
            raise ValueError(f"clip is {clip}: it must be positive")
        self.model, self.loss, self.budget, self.clip = model, loss, budget, clip
        self.parameters = trainable(model.parameters())
        self.optimizer = OPTIMIZERS[optimizer](self.parameters, lr=learning_rate)
        self.per_sample = GradSampleModule(model, loss_reduction="sum")
        for module in (
            model.modules()
        ):  # Opacus' hooks sleep in evaluation mode; dropout, which has no parameters, stays off
            module.training = bool(module._parameters)
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch: Sized) -> None:
        sums = [torch.zeros_like(p) for p in self.parameters]
        total = 0.0
        for part in self.loss.parts(batch):
            losses = self.loss(self.per_sample, part)
            losses.sum().backward()
            total += losses.sum().item()
            self._add_clipped(sums, len(part))
        self.training_loss = total / len(batch) if len(batch) else None
        self.budget.release_(self.steps_taken, sums, self.clip)
        for p, released in zip(self.parameters, sums, strict=True):
            p.grad = released.div_(self.budget.batch_size)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_taken += 1

    @torch.no_grad()
    def _add_clipped(self, sums: list[Tensor], size: int) -> None:
        squared = torch.zeros(size, dtype=torch.float64, device=sums[0].device)
        for p in self.parameters:
            if (
                p.grad_sample.shape[0] != size
            ):  # a layer that flattens batch and length would be clipped per token
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

    def state_dict(self) -> dict:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.steps_taken = state["steps_taken"]
