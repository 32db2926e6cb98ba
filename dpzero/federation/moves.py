"""The two halves of a two-point step, for a client: the slope here, then the move by a scalar from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..zeroth_order import TwoPoint, transcript
from ..zeroth_order.batches import user_means
from ..zeroth_order.loss_checks import explained
from ..zeroth_order.model_requirements import trainable
from ..zeroth_order.perturbation import points
from ..zeroth_order.protocols import PerExampleLoss

# of the transcript's header
AGREED = ("format", "law", "groups", "perturbed_on_read", "still", "base_sha256")


class Moves(TwoPoint):
    """The two halves of a step: the slope here, then the move by a scalar from elsewhere."""

    title = "client of a federation"
    _visited = -1  # the last step whose points the weights went through

    @classmethod
    def by_header(cls, model: nn.Module, loss: PerExampleLoss, header: transcript.Header) -> Moves:
        """Raises ValueError if base model, parameters or directions are not those of the header."""
        law, trained = header["law"], trainable(model.parameters())
        moves = cls(
            model,
            loss,
            header["privacy"]["batch_size"],
            learning_rate=0.0,  # rates are those of the rows
            smoothing=header["smoothing"],
            seed=law["seed"],
            direction_law=law["name"],
            direction_rank=law["rank"],
            perturb="on_read" if len(header["perturbed_on_read"]) == len(trained) else "in_place",
            groups=[{"params": [trained[j] for j in group]} for group in header["groups"]],
        )
        moves.moment = transcript.SecondMoment.of_header(header)
        mine = json.loads(json.dumps(moves._header(transcript.digest(trained), {})))
        if other := [name for name in AGREED if mine[name] != header[name]]:
            raise ValueError(
                f"this client has another {other[0]} than the server's transcript: start from the server's base model, "
                "parameters and version"
            )
        return moves

    def slope(self, examples: Any) -> Tensor:
        """The mean slope of some examples along the direction of this step, float64 [1]."""
        self.model_check.check()
        with self.model_check.deterministic(), explained():
            losses = self._losses_at_points(examples, len(examples))
        self._visited = self.steps_taken
        one_user = np.zeros(len(examples), np.int64)
        return user_means((losses[0] - losses[1]).T, one_user)[:, 0] / (2 * self.smoothing)

    def follow(self, scalars: Sequence[float], rates: Sequence[float]) -> None:
        """Moves by a row of the transcript as the server does: through the points of the step, if not there yet."""
        if not math.isfinite(sum(scalars) + sum(rates)):
            raise ValueError(f"the scalar of step {self.steps_taken} is not finite: distrust the server")
        if self._visited != self.steps_taken:
            for k, _, scale in points(self.directions, self.smoothing, self.one_sided):
                self.perturbation.plan_point(self.steps_taken, k, scale)
        self.perturbation.plan_update(
            self.steps_taken, self.moment.scaled(scalars), [-rate for rate in rates]
        )
        self.steps_taken += 1
        if self.steps_taken % transcript.STEPS_A_PASS == 0:
            self.perturbation.apply()
