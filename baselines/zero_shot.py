"""The untrained model: it reads no private example, so epsilon is 0. Every method of a sweep starts from it."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from torch import nn

from dpzero.zeroth_order.protocols import PerExampleLoss


class ZeroShot:
    """Takes steps that change nothing."""

    title = "Zero-shot"
    private = False
    order = None
    forwards_per_example = 0

    def __init__(self, model: nn.Module, loss: PerExampleLoss, batch_size: int, *, seed: int = 0) -> None:
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch: Sized) -> None:
        self.steps_taken += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps_taken = state["steps_taken"]
