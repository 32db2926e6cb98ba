"""Which iterate of a run is reported: a named rule, that stands in the header of every table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RULES = {
    "last": "last iterate",
    "best_dev": "best dev checkpoint (published practice, not accounted)",
}


class BestDev:
    """Holds the trained parameters at that point of the learning curve where the loss on dev is least, the earliest of equals.

    So do MeZO's and DPZero's code on OPT: `load_best_model_at_end`, whose criterion is the loss. Training itself goes on from the
    last iterate.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.loss = math.inf
        self.parameters: list[Tensor] = []  # on the CPU

    def offer(self, step: int, loss: float, parameters: Sequence[Tensor]) -> None:
        """A point of the curve; a loss that is not finite is never the best."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.parameters = [parameter.detach().cpu().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Sequence[Tensor]) -> None:
        """Write the best ones into `parameters`; leave them where no point was offered."""
        for mine, best in zip(parameters, self.parameters or parameters, strict=True):
            mine.copy_(best)

    def state_dict(self) -> dict:
        return {"step": self.step, "loss": self.loss, "parameters": self.parameters}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.loss, self.parameters = state["step"], state["loss"], state["parameters"]
