"""Ordinary fine-tuning with AdamW or SGD on the same Poisson batches, not private."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.protocols import PartitionedLoss

OPTIMIZERS: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
# The same update with another speed and peak memory; by default torch takes foreach on CUDA and the loop elsewhere
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class FineTuning:
    """Uses the gradient of the batch's losses as it is: nothing is clipped, no noise is added."""

    title = "Fine-tuning"
    private = False
    order = 1
    forwards_per_example = 3  # one, and a backward pass

    def __init__(
        self,
        model: nn.Module,
        loss: PartitionedLoss,
        batch_size: float,
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
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[optimizer](
            self.parameters, lr=learning_rate, weight_decay=weight_decay, **IMPLEMENTATIONS[implementation]
        )
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch: Any) -> None:
        total = self.gradients(batch)
        self.training_loss = float(total) / len(batch) if len(batch) else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_taken += 1

    def gradients(self, batch: Any) -> Tensor | float:
        """Leaves each parameter's gradient in `grad`. Returns the sum of the losses."""
        total: Tensor | float = 0.0
        for part in self.loss.parts(batch):
            losses = self.loss(self.model, part)
            (losses.sum() / self.batch_size).backward()  # type: ignore[no-untyped-call]
            total += losses.detach().sum()
        return total

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.steps_taken = state["steps_taken"]
