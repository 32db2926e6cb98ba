"""Which checkpoint of a run is reported: a named rule, which stands in the header of every table."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_whole
from ..privacy import Budget

RULES = {
    "last": "last iterate",
    "best_dev": "best dev checkpoint (published practice, not accounted)",
    "best_dev_accuracy": "dev checkpoint of the highest accuracy (published practice, not accounted)",
    "accounted": "dev checkpoint by a private choice (accounted)",
}
SCORES: dict[str, Callable[[Mapping[str, float]], float]] = {  # of a point of the curve, the more the better
    "best_dev": lambda point: -point["dev_loss"],
    "best_dev_accuracy": lambda point: point["dev_accuracy"],
}


class BestDev:
    """Holds the trained parameters at the point of the curve with the best score, the earliest of equals.

    The published trainers do the same: a later point must be strictly better. On OPT the score is the dev loss
    (`load_best_model_at_end` of MeZO, DPZero and DP-AggZO), on RoBERTa MeZO's is the dev accuracy
    (medium_models/src/trainer.py, line 809). Training itself goes on from the last iterate.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.score = -math.inf
        self.parameters: list[Tensor] = []  # on the CPU

    def offer(self, step: int, score: float, parameters: Sequence[Tensor]) -> None:
        """Keep this point of the curve if it is the best so far; a score that is not finite never is."""
        if score > self.score:
            self.step, self.score = step, score
            self.parameters = [parameter.detach().cpu().clone() for parameter in parameters]

    def restore(self, parameters: Sequence[Tensor]) -> None:
        """Write the best parameters into `parameters`, unless no point was offered."""
        write(self.parameters or parameters, parameters)

    def state_dict(self) -> dict:
        return {"step": self.step, "score": self.score, "parameters": self.parameters}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.score, self.parameters = state["step"], state["score"], state["parameters"]


class Candidates:
    """Keeps the trained parameters at each point of the curve in files, for a choice after the last step.

    No dev example is used before that choice, so an interrupted run leaves only post-processing of releases
    behind. The split into training and dev rows is fixed and public: a training example has the guarantee of
    training, and a dev example that of the choice, the run's epsilon.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.pt"))

    def offer(self, step: int, parameters: Sequence[Tensor]) -> None:
        """Write this point to disk before the run goes on: a resumed run finds it."""
        content = io.BytesIO()
        torch.save([parameter.detach().cpu() for parameter in parameters], content)
        write_whole(self.folder / f"{step}.pt", content.getvalue())

    def cut(self, taken: int) -> None:
        """Delete the points after this many steps, which will be taken again."""
        for step in self.steps():
            if step > taken:
                (self.folder / f"{step}.pt").unlink()

    def choose(
        self, parameters: Sequence[Tensor], correct: Callable[[], int], budget: Budget, epsilon: float
    ) -> int:
        """Write the parameters of a privately chosen point into `parameters` and return its step.

        correct: counts the dev examples that the model answers correctly with `parameters`.
        """
        counts = {}
        for step in self.steps():
            self._write(step, parameters)
            counts[step] = correct()
        chosen = budget.choose(counts, epsilon)
        self._write(chosen, parameters)
        return chosen

    def _write(self, step: int, parameters: Sequence[Tensor]) -> None:
        write(torch.load(self.folder / f"{step}.pt", weights_only=True), parameters)


@torch.no_grad()
def write(source: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for mine, theirs in zip(parameters, source, strict=True):
        mine.copy_(theirs)
