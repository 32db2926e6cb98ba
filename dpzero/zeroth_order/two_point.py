"""The two-point step: perturb, take the loss, perturb the other way, take the loss, then move along the direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .checks import check_independence, trainable
from .directions import law_of
from .graphs import Graphed
from .passes import Passes, read_numbers
from .ranks import CHECK_EVERY, Ranks, exact_sum
from .transcript import FORMAT, SecondMoment, Transcript, digest, rate_at, read, replay

PerExampleLoss = Callable[[nn.Module, Sized], Tensor]
"""(model, batch of B examples) -> losses [B], float32 or better, none of which depends on another example."""


class TwoPoint:
    """What every zeroth-order method shares: all of it but the scalar.

    A method says in `projected_gradient` what becomes of the per-example loss differences f(x + smoothing z) -
    f(x - smoothing z); the step is then x <- x - learning_rate * projected_gradient * z. Sums are divided by the expected
    batch size, a constant. Holds the memory of inference: z is drawn whenever it is needed and never stored.

    Every method also takes, by name, `direction_law` (gaussian, sphere, rademacher or low_rank, that with a `direction_rank`) and
    `perturb`: in_place; on_read, which copies one matrix at a time and never drifts by rounding (see `passes`); or both_signs, the same
    for both points in one batch of twice the size, which asks the loss for `both_sides(model, batch, pairs)` (see `_both_sides`). And
    `cuda_graphs`, which wants a loss that calls the model with tensors of few shapes (see `graphs`). With `second_moment`, a decay such as
    .99, a step's scalars are divided by the root of Adam's second moment of those released so far (see `transcript`).
    """

    title = "two-point step"
    order = 0
    unit = "example"
    directions = 1  # scalars that a step moves by
    ranks = Ranks()  # this process alone: see `join`

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        *,
        batch_size: int,
        learning_rate: float,
        smoothing: float,
        seed: int,
        direction_law: Literal["gaussian", "sphere", "rademacher", "low_rank"] = "gaussian",
        direction_rank: int = 1,
        perturb: Literal["in_place", "on_read", "both_signs"] = "in_place",
        cuda_graphs: bool = False,
        second_moment: float = 0.0,
    ) -> None:
        for name, value in (
            ("learning_rate", learning_rate),
            ("smoothing", smoothing),
            ("batch_size", batch_size),
        ):
            if not value > 0:
                raise ValueError(f"{name} is {value}: it must be positive")
        check_independence(model)
        if perturb == "both_signs" and not hasattr(loss, "both_sides"):
            raise ValueError(
                "both_signs needs a loss that takes both points in one batch, and this has no both_sides: perturb on_read"
            )
        if cuda_graphs and (perturb != "in_place" or direction_law == "low_rank"):
            raise ValueError(
                "cuda_graphs are of weights perturbed in_place, by a law that is not low_rank: choose these, or no graphs"
            )
        self.model, self.loss, self.perturb = model, loss, perturb
        self.forward = Graphed(model) if cuda_graphs else model
        self.batch_size, self.smoothing = batch_size, smoothing
        self.schedule = [(0, learning_rate)]  # (first step, learning rate)
        self.moment = SecondMoment(second_moment)
        self.parameters = trainable(model.parameters())
        self.seed, self.direction_law, self.direction_rank = seed, direction_law, direction_rank
        self.law = law_of(direction_law, seed, direction_rank)
        self.passes = Passes(self.parameters, self.law, read_numbers(model, self.parameters, perturb))
        self.steps_taken = 0
        self.transcript: Transcript | None = None
        # an un-noised function of the batch: only for benchmarks on public data
        self.training_loss: float | None = None

    @property
    def learning_rate(self) -> float:
        return rate_at(self.schedule, self.steps_taken)

    def projected_gradient(self, difference: Tensor) -> float:
        """Loss differences f(x + smoothing z) - f(x - smoothing z), float64 [B], B >= 0 -> the scalar that multiplies z.

        One value a unit: where the unit is the user, each is the mean over the user's examples. Sums are by `total` (or the budget's),
        which knows of other ranks.
        """
        raise NotImplementedError

    def join(self, ranks: Ranks) -> None:
        """From here on `step` takes this rank's share of each batch, or the whole with a loss that is 0 for the other ranks' examples. Any
        sharing gives the same step, bit for bit, if it leaves the bits of each example's loss as they are.

        Raises:
            ValueError: the unit is the user, whose examples might lie with two ranks.
            RankFailure: the ranks are not at the same step with the same weights. Also from `step`, see `ranks`.
        """
        if self.unit == "user":
            raise ValueError("the unit is the user, whose examples may lie with several ranks: use one rank")
        self.ranks = ranks
        if hasattr(self, "budget"):
            self.budget.terms = ranks.terms
        self.check_ranks()

    def check_ranks(self) -> None:
        if self.ranks.size > 1:
            self.ranks.check(self.steps_taken, digest(self.parameters))

    def total(self, values: Tensor) -> list[float]:
        """float64 [B, K] -> the K sums over all ranks' examples, each rounded once."""
        return [exact_sum(terms) for terms in self.ranks.terms(values)]

    @torch.no_grad()
    def step(self, batch: Sized, users: ArrayLike | None = None) -> float:
        """One step on a batch, which may be empty. Returns the scalar.

        Args:
            users: where the unit is the user, the number of each example's user among the users of the batch, int64 [B].

        Raises:
            ValueError: users where the unit is the example or none where it is the user, or not one for each example.
        """
        if (users is None) == (self.unit == "user"):
            raise ValueError(f"the unit is the {self.unit}: give `users` if it is the user, and only then")
        if users is not None and len(users) != len(batch):
            raise ValueError(f"{len(users)} users for {len(batch)} examples: give the user of each example")
        plus, minus = self._both_sides(batch)
        self.training_loss = self._mean((plus + minus) / 2)
        with self._restored_on_failure():
            gradients = self._record([self.projected_gradient(_user_means(plus - minus, users))])
        self._move(gradients)
        return gradients[0]

    def _mean(self, losses: Tensor) -> float | None:
        """None for an empty batch, and where this rank has a share alone."""
        return float(losses.mean()) if losses.numel() and self.ranks.size == 1 else None

    def _both_sides(self, batch: Sized, direction: int = 0) -> tuple[Tensor, Tensor]:
        """Losses [B] at x + smoothing z and at x - smoothing z, where the weights are left.

        `loss.both_sides(model, batch, pairs)` returns the two itself. It calls the model, inside `pairs(n)`, on n examples twice: first
        all of them, then all again.
        """
        if self.perturb == "both_signs" and len(batch):
            pairs = self.passes.pairs(self.steps_taken, direction, self.smoothing)
            plus, minus = self.loss.both_sides(self.model, batch, pairs)
            return self._checked(plus, batch), self._checked(minus, batch)
        sides = []
        for scale in (self.smoothing, -self.smoothing):
            with self.passes.perturbed(self.steps_taken, direction, scale):
                sides.append(self._losses(batch))
        return sides[0], sides[1]

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """A refused release leaves the weights where the step found them, to rounding."""
        try:
            yield
        except BaseException:
            self.passes.restore()
            raise

    def _record(self, gradients: Sequence[float]) -> list[float]:
        """The scalars of rank 0, which the others learn when they are on its disk."""
        if self.transcript is not None:
            self.transcript.append(gradients)
        return self.ranks.agreed(gradients)

    def _move(self, gradients: Sequence[float]) -> None:
        """x <- x - learning_rate * sum over k of gradients[k] z_k (scaled), from wherever the weights are. Ends the step."""
        scaled = self.moment.scaled(gradients)
        self.passes.update(self.steps_taken, [-self.learning_rate * g for g in scaled])
        self.passes.flush()
        self.steps_taken += 1
        if self.steps_taken % CHECK_EVERY == 0:
            self.check_ranks()

    def _losses(self, batch: Sized) -> Tensor:
        if not len(batch):
            return torch.zeros(0, dtype=torch.float64)
        return self._checked(self.loss(self.forward, batch), batch)

    def _checked(self, losses: Tensor, batch: Sized) -> Tensor:
        if losses.shape != (len(batch),):
            raise ValueError(
                f"the loss returned shape {tuple(losses.shape)} for {len(batch)} examples: it must return one value per example"
            )
        if losses.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the loss returned {losses.dtype}, in which the difference of two losses drowns: compute it in float32"
            )
        return losses.double().cpu()

    def write_transcript(self, path: Path) -> None:
        """Keeps each scalar in a file from here on; with the base model the file is the fine-tuned model (see `transcript`).

        Where the file is there, the steps that it has beyond those taken are taken again from it: nothing is asked of the model.

        Raises:
            ValueError: a file of another run, a damaged one, or one that has fewer steps than were taken.
        """
        if self.steps_taken and not path.exists():
            raise ValueError(
                f"{self.steps_taken} steps were taken without a transcript at {path}: begin it before the first step"
            )
        base = digest(self.parameters) if self.steps_taken == 0 else read(path)[0]["base_sha256"]
        self.transcript = Transcript(path, self._header(base))
        if len(self.transcript) < self.steps_taken:
            raise ValueError(
                f"transcript {path} has {len(self.transcript)} of the {self.steps_taken} steps taken: start from the base model"
            )
        self.steps_taken = replay(self.parameters, path, self.steps_taken, self.passes)
        self.moment = SecondMoment(self.moment.decay, self.transcript.scalars.tolist())

    def _header(self, base_sha256: str) -> dict:
        return {
            "format": FORMAT,
            "method": self.title,
            "law": {
                "name": self.direction_law,
                "version": self.law.law,
                "seed": self.seed,
                "rank": self.direction_rank,
            },
            "directions": self.directions,
            "smoothing": self.smoothing,
            "schedule": self.schedule,
            "second_moment": self.moment.decay,
            "perturbed_on_read": sorted(self.passes.read),
            "base_sha256": base_sha256,
        }

    def state_dict(self) -> dict:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "second_moment": [self.moment.mean, self.moment.steps],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.steps_taken = state["steps_taken"]
        self.moment.mean, self.moment.steps = state["second_moment"]
        self.passes.at = (self.steps_taken, 0, 0.0)  # wherever a step that failed had left them


def _user_means(difference: Tensor, users: ArrayLike | None) -> Tensor:
    if users is None or not len(users):
        return difference
    users = torch.as_tensor(users)
    sums = torch.zeros(int(users.max()) + 1, dtype=difference.dtype).index_add_(0, users, difference)
    return sums / torch.bincount(users)
