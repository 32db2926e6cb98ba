"""The two-point step: perturb, take the loss, perturb the other way, take the loss, then move along the direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from . import batches
from .directions import make_law
from .distributed import CHECK_EVERY, Ranks, exact_sum
from .perturbation import Perturbation
from .probe import probe
from .transcript import FORMAT, SecondMoment, Transcript, digest, rate_at, read, replay
from .validators import Watch, trainable

LEAST_SMOOTHING = 1e-10  # below it no weight of order 1 moves, in float64 either
PerExampleLoss = Callable[[nn.Module, Sized], Tensor]
"""(model, batch of B examples) -> losses [B], float32 or better, none of which depends on another example."""


class TwoPoint:
    """What every zeroth-order method shares: all of it but the scalar.

    A method says in `projected_gradient` what becomes of the per-example loss differences f(x + smoothing z) -
    f(x - smoothing z); the step is then x <- x - learning_rate * projected_gradient * z. Sums are divided by the expected
    batch size, a constant. Holds the memory of inference: z is drawn whenever it is needed and never stored.

    Every method also takes, by name, `direction_law` (gaussian, sphere, rademacher or low_rank, that with a `direction_rank`) and
    `perturb`: in_place, or on_read, which copies one matrix at a time and never drifts by rounding (see `perturbation`). With
    `second_moment`, a decay such as .99, a step's scalars are divided by the root of Adam's second moment of those released so far (see `transcript`). With `one_at_a_time`
    the loss gets each example alone: slower, and no other example can move its last bits, without which no release is called valid.
    """

    title = "two-point step"
    order = 0
    unit = "example"
    directions = 1  # scalars that a step moves by
    clips_quotients = True  # whether the clip bounds differences over 2 smoothing, or plain ones
    budget = None  # of a private method: a `privacy.Budget`
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
                raise ValueError(
                    f"{name} is {value}: it must be positive and finite{f', above {least:g}' if least else ''}"
                )
        self.model, self.loss, self.one_at_a_time = model, loss, one_at_a_time
        self.batch_size, self.smoothing = batch_size, smoothing
        self.schedule = [(0, learning_rate)]  # (first step, learning rate)
        self.moment = SecondMoment(second_moment)
        self.parameters = trainable(model.parameters())
        self.watch = Watch(model, self.parameters)
        self.seed, self.direction_law, self.direction_rank = seed, direction_law, direction_rank
        self.law = make_law(direction_law, seed, direction_rank)
        self.perturbation = Perturbation.of_model(model, self.parameters, self.law, perturb)
        self.steps_taken = 0
        self.transcript: Transcript | None = None
        self._probed = self._measured = False
        self.training_loss: float | None = (
            None  # of the last batch, without noise; None where the noise is secret
        )

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
        if self.budget is not None:
            self.budget.join_ranks(ranks.terms)
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
            batch: of a private method, the one that the budget handed out: a list, an array of indices, or what a collator makes of it.
            users: where the unit is the user, the user of each example, integers or strings [B].

        Raises:
            ValueError: another batch than the budget handed out, no step left, a model that breaks a promise (see `checks`), users where
                the unit is the example or none where it is the user. Nothing is released then, and the weights stay, to rounding.
        """
        count, positions = self._begin(batch, users)
        plus, minus = self._both_sides(batch, count)
        self.training_loss = self._mean((plus + minus) / 2)
        with self._restored_on_failure():
            gradients = self._record([self.projected_gradient(_user_means(plus - minus, positions))])
        self._move(gradients)
        return gradients[0]

    def _begin(self, batch: Sized, users: ArrayLike | None = None) -> tuple[int, np.ndarray | None]:
        """Asks model and batch before anything is computed. Returns the number of examples, and each one's user by number."""
        if (users is None) == (self.unit == "user"):
            raise ValueError(f"the unit is the {self.unit}: give `users` if it is the user, and only then")
        self.watch.check()
        counts, positions = batches.sizes(batch), None
        if users is not None:
            positions = _numbered(users, counts)
            drawn = len(np.unique(positions))
            count = len(positions)
            self._admit({drawn}, None)
        else:
            count = self._admit(counts, batches.indices(batch))
        return count, positions

    def _admit(self, counts: set[int], rows: np.ndarray | None) -> int:
        """Of a private method the budget says how many examples there are; of others a batch of fields is as long as these."""
        if self.budget is not None:
            return self.budget.admit(counts, rows)
        return max(counts) if len(counts) == 1 else max(counts - {0}, default=0)

    def probe(self, batch: Sized) -> None:
        """Asks on public examples, two or more, whether the loss mixes examples. Else the first batch of a private method is asked.

        Raises ValueError for a loss that does (see `probe`).
        """
        self._ask(batch, max(batches.sizes(batch)))

    def _probe_once(self, batch: Sized, count: int) -> None:
        """At a point of the first step, where the weights are anyway."""
        if self._asks and not self._probed:
            self._ask(batch, count, self.budget.collate_subset)

    @property
    def _asks(self) -> bool:
        """A rank's share of a loss is 0 for others' examples: it is not asked."""
        return self.budget is not None and self.budget.probes_loss and self.ranks.size == 1

    def _ask(self, batch: Sized, count: int, take: batches.Take | None = None) -> None:
        """What the probe measures is the budget's to tell, where parts of the batch are what its examples alone would give."""
        self.watch.held.begin()
        if self.one_at_a_time:  # in no company at all: twice the same bits are what is left to be asked
            moved = (self._losses(batch, count, take) - self._losses(batch, count, take)).abs()
        else:
            moved = probe(lambda part: self.loss(self.model, part), batch, count, take)
        some = batches.picker(batch, count, take)
        self._probed = moved is not None and count > 0
        if not self._probed and (count < 2 or some([0]) is not None):
            return  # of the next batch, or of none: the step says what is wrong with the losses
        self.watch.held.ask(lambda part: self.loss(self.model, part), some, count)
        if self.budget is not None and not self._measured:
            told = self._probed and not (take is None and batches.padded(batch, count))
            self.budget.record_influence(self._over_clip(moved) if told else None)
            self._measured = True

    def _ask_again(self, batch: Sized, count: int) -> None:
        """Whether the model keeps something of the examples in a plain attribute."""
        if self._asks and self._probed:
            some = batches.picker(batch, count, self.budget.collate_subset)
            self.watch.held.ask(lambda part: self.loss(self.model, part), some, count)

    def _over_clip(self, moved: Tensor) -> float:
        """How far the clipped values move together, over the clip, if losses move that far at both points: rounded up to a power of ten, which
        tells next to nothing of the examples."""
        clip, times = getattr(self, "clip", 0.0), 1 / self.smoothing if self.clips_quotients else 2.0
        if not moved.any():
            return 0.0
        far = float((moved * times).clamp_max(2 * clip).sum()) / clip if clip else math.inf
        return 10.0 ** math.ceil(math.log10(far)) if far < math.inf else far

    def _alone(self, batch: Sized, count: int, take: batches.Take | None) -> Iterator[Sized]:
        """Each example as a batch of its own."""
        pick = batches.picker(batch, count, take)
        for row in range(count):
            part = pick([row])
            if part is None:
                raise ValueError(
                    f"of a batch of type {type(batch).__name__} it cannot be told how to take one example: give step indices, a list of "
                    "examples, or what budget.loader hands out"
                )
            yield part

    def _mean(self, losses: Tensor) -> float | None:
        """None for an empty batch, where this rank has a share alone, and where the noise is secret: it has none."""
        secret = self.budget is not None and self.budget.key.valid_release
        return float(losses.mean()) if losses.numel() and self.ranks.size == 1 and not secret else None

    def _both_sides(self, batch: Sized, count: int, direction: int = 0) -> tuple[Tensor, Tensor]:
        """Losses [B] at x + smoothing z and at x - smoothing z, where the weights are left."""
        sides = []
        for scale in (self.smoothing, -self.smoothing):
            with self.perturbation.perturbed(self.steps_taken, direction, scale), self.watch.passes():
                self._probe_once(batch, count)
                sides.append(self._losses(batch, count, self.budget and self.budget.collate_subset))
                if scale < 0:
                    self._ask_again(batch, count)
        return sides[0], sides[1]

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """A refused release leaves the weights where the step found them, to rounding."""
        try:
            yield
        except BaseException:
            self.perturbation.restore()
            raise

    def _record(self, gradients: Sequence[float]) -> list[float]:
        """The scalars of rank 0, which the others learn when they are on its disk."""
        if self.transcript is not None:
            self.transcript.append(gradients)
        return self.ranks.agreed(gradients)

    def _move(self, gradients: Sequence[float]) -> None:
        """x <- x - learning_rate * sum over k of gradients[k] z_k (scaled), from wherever the weights are. Ends the step."""
        scaled = self.moment.scaled(gradients)
        self.perturbation.plan_update(self.steps_taken, [-self.learning_rate * g for g in scaled])
        self.perturbation.apply()
        self.steps_taken += 1
        if self.steps_taken % CHECK_EVERY == 0:
            self.check_ranks()

    def _losses(self, batch: Sized, count: int, take: batches.Take | None) -> Tensor:
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        if not self.one_at_a_time:
            return self._checked(self.loss(self.model, batch), count)
        alone = self._alone(batch, count, take)
        return torch.cat([self._checked(self.loss(self.model, part), 1) for part in alone])

    def _checked(self, losses: Tensor, count: int) -> Tensor:
        if losses.shape != (count,):
            raise ValueError(
                f"the loss returned shape {tuple(losses.shape)} for {count} examples: it must return one value per example"
            )
        if losses.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the loss returned {losses.dtype}, in which the difference of two losses drowns: compute it in float32"
            )
        if not losses.is_floating_point():
            raise ValueError(
                f"the loss returned {losses.dtype}: it must return real numbers, float32 or better"
            )
        return losses.double().cpu()

    def write_transcript(self, path: Path) -> None:
        """Keeps each scalar in a file from here on; with the base model the file is the fine-tuned model (see `transcript`).

        Where the file is there, the steps that it has beyond those taken are taken again from it: nothing is asked of the model. What
        they released becomes the budget's, whose ledger counts it.

        Raises:
            ValueError: a file of another run or budget, a damaged one, one that has fewer steps than were taken, or a ledger that lacks
                some of them.
        """
        path = Path(path)
        if self.steps_taken and not path.exists():
            raise ValueError(
                f"{self.steps_taken} steps were taken without a transcript at {path}: begin it before the first step"
            )
        before = read(path)[0] if path.exists() and path.stat().st_size else {}
        base = digest(self.parameters) if self.steps_taken == 0 else before["base_sha256"]
        self.transcript = Transcript(path, self._header(base, before.get("privacy") or {}))
        if not len(self.transcript):  # whoever releases the first row gives it the name of a key
            self.transcript.begin(self._header(base, {}))
        if len(self.transcript) < self.steps_taken:
            raise ValueError(
                f"transcript {path} has {len(self.transcript)} of the {self.steps_taken} steps taken: start from the base model"
            )
        if self.budget is not None:
            self.budget.record_transcript(len(self.transcript), self.transcript.header["privacy"]["key_name"])
        self.steps_taken = replay(self.parameters, path, self.steps_taken, self.perturbation)
        self.moment = SecondMoment(self.moment.decay, self.transcript.scalars.tolist())

    def _header(self, base_sha256: str, privacy: Mapping) -> dict:
        """`privacy`: of a file that is there. Its first key may be another."""
        if self.budget is not None:
            begun = privacy.get("key_name", self.budget.key.name)
            privacy = self.budget.ledger.event.as_dict() | {
                "clip": getattr(self, "clip", None),
                "key_name": begun,
            }
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
            "perturbed_on_read": sorted(self.perturbation.on_read),
            "still": [[j, row] for j, row in self.perturbation.fixed_rows.items()],
            "base_sha256": base_sha256,
            "privacy": dict(privacy) or None,
        }

    def state_dict(self) -> dict:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "schedule": self.schedule,
            "second_moment": [self.moment.mean, self.moment.steps],
            **({"budget": self.budget.state_dict()} if self.budget is not None else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        if self.budget is not None:
            self.budget.load_state_dict(state["budget"])
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.steps_taken, self.schedule = state["steps_taken"], state["schedule"]
        self.moment.mean, self.moment.steps = state["second_moment"]
        self.perturbation.position = (self.steps_taken, 0, 0.0)  # wherever a step that failed had left them


def _user_means(difference: Tensor, positions: np.ndarray | None) -> Tensor:
    if positions is None:
        return difference
    users = torch.from_numpy(positions)
    sums = torch.zeros(int(positions.max(initial=-1)) + 1, dtype=difference.dtype).index_add_(
        0, users, difference
    )
    return sums / torch.bincount(users, minlength=len(sums))


def _numbered(users: ArrayLike, counts: set[int]) -> np.ndarray:
    """Users of examples -> their numbers among those of the batch, int64 [B]."""
    names = np.asarray(users)
    if names.ndim != 1 or (names.dtype.kind not in "iuUS" and names.size):
        raise ValueError("`users` must be integers or strings, one for each example")
    if len(names) not in counts:
        raise ValueError(f"{len(names)} users for {max(counts)} examples: give the user of each example")
    return np.unique(names, return_inverse=True)[1].astype(np.int64) if names.size else np.zeros(0, np.int64)
