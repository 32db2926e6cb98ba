"""Ordinary fine-tuning with AdamW or SGD on the same Poisson batches, not private."""

from __future__ import annotations

import copy
from collections.abc import Sized
from typing import Literal

import torch
from torch import Tensor

from dpzero.zeroth_order.validators import trainable

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
# The same update at other speeds and peaks: torch takes foreach on CUDA and the loop elsewhere
IMPLEMENTATIONS = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class FineTuning:
    """The gradient of the batch's losses is used as it is: nothing is clipped, no noise is added."""

    title = "Fine-tuning"
    private = False
    order = 1

    def __init__(
        self,
        model,
        loss,
        batch_size: int,
        *,
        learning_rate: float,
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        weight_decay: float = 0.0,
        implementation: Literal["default", "loop", "foreach", "fused"] = "default",
        seed: int = 0,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}: give one of {', '.join(OPTIMIZERS)}")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation is {implementation!r}: give one of {', '.join(IMPLEMENTATIONS)}"
            )
        self.model, self.loss, self.batch_size = model, loss, batch_size
        self.parameters = trainable(model.parameters())
        self.optimizer = OPTIMIZERS[optimizer](
            self.parameters, lr=learning_rate, weight_decay=weight_decay, **IMPLEMENTATIONS[implementation]
        )
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch: Sized) -> None:
        total = self.gradients(batch)
        self.training_loss = total.item() / len(batch) if len(batch) else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_taken += 1

    def gradients(self, batch: Sized) -> Tensor | float:
        """Leave each parameter's gradient in `grad`; return the sum of the losses, a tensor unless the batch is empty."""
        total = 0.0
        for part in self.loss.parts(batch):
            losses = self.loss(self.model, part)
            (losses.sum() / self.batch_size).backward()
            total += losses.detach().sum()
        return total

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
