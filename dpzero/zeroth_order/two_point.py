"""The two-point step (SPSA): two losses at x ± smoothing z, and a move along z."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from . import batches
from .directions import make_law
from .distributed import CHECK_EVERY, Ranks, exact_sum
from .loss_checks import per_example_losses
from .model_requirements import ModelCheck, trainable
from .perturbation import Perturbation
from .protocols import PerExampleLoss
from .transcript import FORMAT, SecondMoment, Transcript, digest, rate_at, read, replay

LEAST_SMOOTHING = 1e-10  # below it no weight of order 1 moves, even in float64


class TwoPoint:
    """What all zeroth-order methods share: everything but the scalar.

    A method turns per-example loss differences f(x + smoothing z) - f(x - smoothing z) into a scalar in
    `projected_gradient`. The step is x <- x - learning_rate * projected_gradient * z. Sums are divided by the
    expected batch size, a constant. Memory is that of inference: z is regenerated whenever it is needed and
    never stored.

    Args:
        model: its parameters with `requires_grad` are trained, in place.
        loss: (model, batch) -> one loss per example.
        batch_size: the expected size of a batch.
        learning_rate: step size.
        smoothing: distance of the two points from x, along z.
        seed: of the directions.
        direction_law: of z.
        direction_rank: of low_rank directions.
        perturb: in_place, or on_read, which copies one matrix at a time and never drifts by rounding.
        second_moment: a decay such as 0.99 divides a step's scalars by the root of Adam's second moment of
            the scalars so far; 0 divides by nothing.
        one_at_a_time: gives the loss each example alone. Slower, but no other example can change its last
            bits, without which no release is called valid.

    Raises:
        ValueError: nothing to train, weights in half precision, or a setting that makes no sense.
    """

    title = "two-point step"
    order: int | None = 0
    unit = "example"
    directions = 1  # scalars of a step
    ranks = Ranks()  # one process: see `join`

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        batch_size: float,
        *,
        learning_rate: float,
        smoothing: float = 1e-3,
        seed: int = 0,
        direction_law: Literal["gaussian", "sphere", "rademacher", "low_rank"] = "gaussian",
        direction_rank: int = 1,
        perturb: Literal["in_place", "on_read"] = "in_place",
        second_moment: float = 0.0,
        one_at_a_time: bool = False,
    ) -> None:
        for name, value, least in (
            ("learning_rate", learning_rate, 0.0),
            ("smoothing", smoothing, LEAST_SMOOTHING),
            ("batch_size", batch_size, 0.0),
        ):
            if not least < value < math.inf:
                above = f", above {least:g}" if least else ""
                raise ValueError(f"{name} is {value}: it must be positive and finite{above}")
        self.model, self.loss, self.one_at_a_time = model, loss, one_at_a_time
        self.batch_size, self.smoothing = batch_size, smoothing
        self.schedule = [(0, learning_rate)]
        self.moment = SecondMoment(second_moment)
        self.parameters = trainable(model.parameters())
        self.model_check = ModelCheck(model, self.parameters)
        self.law = make_law(direction_law, seed, direction_rank)
        self.law_settings = {"name": direction_law, "seed": seed, "rank": direction_rank}
        self.perturbation = Perturbation.of_model(model, self.parameters, self.law, perturb)
        self.steps_taken = 0
        self.transcript: Transcript | None = None
        self.training_loss: float | None = None

    def projected_gradient(self, difference: Tensor) -> float:
        """The scalar that multiplies z.

        Args:
            difference: f(x + smoothing z) - f(x - smoothing z) for each unit, float64 [B], B >= 0. If the
                unit is the user, each value is the mean over the user's examples. Sum with `total` or a
                budget, which know of other ranks.
        """
        raise NotImplementedError

    def projected_gradients(self, differences: Tensor) -> list[float]:
        """The scalars that multiply the K directions, from differences float64 [B, K]."""
        return [self.projected_gradient(differences[:, 0])]

    @torch.no_grad()
    def step(self, batch: Any, users: ArrayLike | None = None) -> float | list[float]:
        """Takes one step on a batch, which may be empty.

        Args:
            batch: for a private method the batch that the budget handed out: a list, an array of indices, or
                what a collator made of it.
            users: if the unit is the user, the user of each example, integers or strings [B].

        Returns:
            The scalar by which the weights moved along z; K scalars if the method has K > 1 directions.

        Raises:
            ValueError: another batch than the budget handed out, no step left, a model that does not
                meet `model_requirements`, users if the unit is the example or none if it is the user. Nothing is
                released then, and the weights stay, up to rounding.
        """
        count, user_numbers = self._begin(batch, users)
        plus, minus = self._losses_at_both_points(batch, count)
        self.training_loss = self._mean_loss((plus + minus) / 2)
        try:
            scalars = self.projected_gradients(batches.user_means((plus - minus).T, user_numbers))
            if self.transcript is not None:
                self.transcript.append(scalars)  # on disk before the weights move
            scalars = self.ranks.agreed(scalars)
        except BaseException:
            self.perturbation.restore()  # a release was refused
            raise
        # x <- x - learning_rate * sum over k of scalars[k] z_k, from wherever the weights are
        rate, scaled = self.learning_rate, self.moment.scaled(scalars)
        self.perturbation.plan_update(self.steps_taken, [-rate * scalar for scalar in scaled])
        self.perturbation.apply()
        self.steps_taken += 1
        if self.steps_taken % CHECK_EVERY == 0:
            self.check_ranks()
        return scalars if self.directions > 1 else scalars[0]

    def _losses_at_both_points(self, batch: Any, count: int) -> Tensor:
        """Losses at x + smoothing z_k and then x - smoothing z_k, where weights are left: float64 [2, K, B]."""
        losses = torch.zeros(2, self.directions, count, dtype=torch.float64)
        for k in range(self.directions):
            for side, scale in enumerate((self.smoothing, -self.smoothing)):
                with (
                    self.perturbation.perturbed(self.steps_taken, k, scale),
                    self.model_check.forward_passes(),
                ):
                    losses[side, k] = self._losses(batch, count)
        return losses

    def _begin(self, batch: Any, users: ArrayLike | None) -> tuple[int, np.ndarray | None]:
        """Checks model and batch. Returns the number of examples and, if given, their users as numbers."""
        if (users is None) == (self.unit == "user"):
            raise ValueError(f"the unit is the {self.unit}: give `users` if it is the user, and only then")
        self.model_check.check()
        sizes = batches.sizes(batch)
        if users is None:
            return self._admit(sizes, batches.indices(batch)), None
        numbers = batches.number_users(users, sizes)
        self._admit({len(np.unique(numbers))}, None)
        return len(numbers), numbers

    def _admit(self, sizes: set[int], indices: np.ndarray | None) -> int:
        """The number of units in a batch: of several possible ones (see `batches.sizes`) the fields' length."""
        return max(sizes) if len(sizes) == 1 else max(sizes - {0}, default=0)

    def _losses(self, batch: Any, count: int) -> Tensor:
        """Losses at the current weights, float64 [count]."""
        return self._evaluate(batch, count, partial(batches.take, batch, size=count))

    def _evaluate(self, batch: Any, count: int, pick: batches.Take) -> Tensor:
        """`pick` makes a batch of some of the examples."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        if not self.one_at_a_time:
            return per_example_losses(self.loss, self.model, batch, count)
        examples = batches.single_examples(batch, count, pick)
        return torch.cat([per_example_losses(self.loss, self.model, one, 1) for one in examples])

    def _mean_loss(self, losses: Tensor) -> float | None:
        """None for an empty batch, and if this rank has only a share of the batch."""
        return float(losses.mean()) if losses.numel() and self.ranks.size == 1 else None

    # -- state and transcript

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return rate_at(self.schedule, self.steps_taken)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "schedule": self.schedule,
            "second_moment": [self.moment.mean, self.moment.steps],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.steps_taken, self.schedule = state["steps_taken"], state["schedule"]
        self.moment.mean, self.moment.steps = state["second_moment"]
        self.perturbation.position = (self.steps_taken, 0, 0.0)  # wherever a step that failed left them

    def write_transcript(self, path: str | Path) -> None:
        """Writes the scalars of every further step to a file: with the base model it is the fine-tuned model.

        If the file exists, the steps that it has beyond those taken are replayed from it, without asking the
        model. A private method's budget counts what they released.

        Raises:
            ValueError: the file of another run or budget, a damaged file, one with fewer steps than were
                taken, or a ledger that lacks some of them.
        """
        path = Path(path)
        if self.steps_taken and not path.exists():
            raise ValueError(
                f"{self.steps_taken} steps were taken without a transcript at {path}: begin it before the first step"
            )
        before = read(path)[0] if path.exists() and path.stat().st_size else {}
        base = digest(self.parameters) if self.steps_taken == 0 else before["base_sha256"]
        transcript = Transcript(path, self._header(base, before.get("privacy") or {}))
        if not len(transcript):  # the first release decides under which key the run began
            transcript.begin(self._header(base, {}))
        if len(transcript) < self.steps_taken:
            raise ValueError(
                f"transcript {path} has {len(transcript)} of the {self.steps_taken} steps taken: start from the base "
                "model"
            )
        self._count_releases(transcript)
        self.transcript = transcript
        self.steps_taken = replay(self.parameters, path, self.steps_taken, self.perturbation)
        self.moment = SecondMoment(self.moment.decay, transcript.scalars.tolist())

    def _header(self, base_sha256: str, privacy: Mapping[str, Any]) -> dict[str, Any]:
        law = self.law_settings
        return {
            "format": FORMAT,
            "method": self.title,
            "law": {"name": law["name"], "version": self.law.law, "seed": law["seed"], "rank": law["rank"]},
            "directions": self.directions,
            "smoothing": self.smoothing,
            "schedule": self.schedule,
            "second_moment": self.moment.decay,
            "perturbed_on_read": sorted(self.perturbation.on_read),
            "still": [[j, row] for j, row in self.perturbation.fixed_rows.items()],
            "base_sha256": base_sha256,
            "privacy": self._privacy_header(privacy),
        }

    def _privacy_header(self, existing: Mapping[str, Any]) -> dict[str, Any] | None:
        """The part of a private method. `existing` is that of an existing file, whose key may be another."""
        return None

    def _count_releases(self, transcript: Transcript) -> None:
        """A private method's budget counts the releases of a transcript."""

    # -- several ranks

    def join(self, ranks: Ranks) -> None:
        """Makes `step` take this rank's share of each batch, or all of it with losses of 0 for other shares.

        Any division of a batch gives the same step to the bit, if it keeps the bits of each example's loss.

        Raises:
            ValueError: the unit is the user, whose examples several ranks might have.
            RankFailure: the ranks are not at the same step with the same weights. Also from `step`: see
                `distributed`.
        """
        if self.unit == "user":
            raise ValueError("the unit is the user, whose examples may lie with several ranks: use one rank")
        self.ranks = ranks
        self.check_ranks()

    def check_ranks(self) -> None:
        """Compares step and weights with the other ranks."""
        if self.ranks.size > 1:
            self.ranks.check(self.steps_taken, digest(self.parameters))

    def total(self, values: Tensor) -> list[float]:
        """float64 [B, K] -> the K sums over all ranks' examples, each rounded once."""
        return [exact_sum(terms) for terms in self.ranks.terms(values)]
