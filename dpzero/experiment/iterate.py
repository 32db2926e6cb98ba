"""Which iterate of a run is reported: a named rule, that stands in the header of every table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..privacy import Budget

RULES = {
    "last": "last iterate",
    "best_dev": "best dev checkpoint (published practice, not accounted)",
    "accounted": "dev checkpoint by a private choice (accounted)",
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

    def restore(self, parameters: Sequence[Tensor]) -> None:
        """Write the best ones into `parameters`; leave them where no point was offered."""
        write(self.parameters or parameters, parameters)

    def state_dict(self) -> dict:
        return {"step": self.step, "loss": self.loss, "parameters": self.parameters}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.loss, self.parameters = state["step"], state["loss"], state["parameters"]


class Candidates:
    """Holds the trained parameters at each point of the learning curve after the start, for a choice after the last step.

    Dev examples are asked of none before: what an interrupted run leaves behind are functions of releases alone. No dev example is a
    training example, so each has the guarantee of the choice, the run's epsilon, and each training example that of training.
    """

    def __init__(self) -> None:
        self.at: dict[int, list[Tensor]] = {}  # step -> parameters, on the CPU

    def offer(self, step: int, parameters: Sequence[Tensor]) -> None:
        self.at[step] = [parameter.detach().cpu().clone() for parameter in parameters]

    def choose(
        self, parameters: Sequence[Tensor], right: Callable[[], int], budget: Budget, epsilon: float
    ) -> int:
        """Write the chosen one's into `parameters`; return its step. `right` counts the dev examples answered right with them."""
        counts = []
        for candidate in self.at.values():
            write(candidate, parameters)
            counts.append(right())
        step = list(self.at)[budget.choose(counts, epsilon)]
        write(self.at[step], parameters)
        return step

    def state_dict(self) -> dict:
        return self.at

    def load_state_dict(self, state: dict) -> None:
        self.at = state

    def cut(self, taken: int) -> None:
        """Without those after this many steps, which will be taken again."""
        self.at = {step: parameters for step, parameters in self.at.items() if step <= taken}


@torch.no_grad()
def write(source: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for mine, theirs in zip(parameters, source, strict=True):
        mine.copy_(theirs)
