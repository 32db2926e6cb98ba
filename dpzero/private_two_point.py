"""The private two-point step: what DPZero and the private zeroth-order baselines share.

A budget hands out the batches, adds the noise and counts the releases. Before the first release the step
checks that no example's loss depends on the others, because clipping bounds an example's influence only then.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .privacy import Budget, check_clip, clip_scalars
from .zeroth_order import TwoPoint, batches
from .zeroth_order.distributed import Ranks
from .zeroth_order.loss_checks import check_independence, products_are_coarse
from .zeroth_order.protocols import PerExampleLoss
from .zeroth_order.transcript import SecondMoment, Transcript
from .zeroth_order.untracked_tensors import AttributeCheck

# Steps: the first batch may not show what a loss depends on
CHECKED_AGAIN = frozenset({10, 100, 1000, 10_000})
OTHER_BUDGET = (
    "these weights were moved by {} releases of another budget, whose epsilon adds up with this one's, and the budget "
    "knows of its own alone: go on with that budget, or begin with the base model, loaded anew"
)
OTHER_MOVE = (
    "weights were changed between two steps, not by this optimizer: if by private examples (as another optimizer in the "
    "same loop does), epsilon does not cover it"
)
# Parameter -> lineage of the ledger whose releases moved it last
_moved_by: MutableMapping[Tensor, Any] = WeakIdKeyDictionary()


class PrivateTwoPoint(TwoPoint):
    """A two-point step whose scalars are released by a budget. A method overrides `projected_gradient`.

    Args:
        model, loss, learning_rate, smoothing: see `TwoPoint`.
        budget: `Budget.calibrated(epsilon=..., delta=..., dataset_size=..., batch_size=..., steps=...)`. It
            hands out the batches (`budget.loader(dataset)` as a DataLoader, `budget.batches()` as indices),
            and `step` takes no other. After a batch that was put together by hand, no release is called valid.
            If its unit is the user, they are batches of users (`privacy.sampling.Users`).
        clip: bound on what one unit contributes to a sum.
        seed: of the directions, which are public. The noise does not depend on it.
        shrinkage: a decay such as 0.99 multiplies a step's scalars by the part of their second moment so far that is
            not noise, whose size is known; 0 by 1. It is post-processing, and costs no privacy.
        moment_floor: with `second_moment`, the least share of the moment that is left where the part that is noise is
            taken out of it; 0 leaves it in. It is post-processing, too.
        engine: `direction_law`, `direction_rank`, `perturb`, `second_moment`, `one_at_a_time`: see
            `TwoPoint`.

    Raises:
        TypeError: no budget.
        ValueError: as `TwoPoint`, or a clip that is not positive and finite.
    """

    private = True
    how_to_step = "for batch in budget.loader(dataset): optimizer.step(batch)"
    elsewhere = dict.fromkeys(
        [
            "epsilon",
            "delta",
            "dataset_size",
            "batch_size",
            "steps",
            "noise_scale",
            "mechanism",
            "unit",
            "ledger",
        ],
        "that belongs to the budget, Budget.calibrated(epsilon=..., delta=..., dataset_size=..., batch_size=..., "
        "steps=...), which sets the noise",
    )
    clips_slopes = True  # whether `clip` bounds differences over 2 smoothing, or the differences themselves

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        smoothing: float = 1e-3,
        seed: int = 0,
        shrinkage: float = 0.0,
        moment_floor: float = 0.0,
        **engine: Any,
    ) -> None:
        settings = {"learning_rate": learning_rate, "smoothing": smoothing, "seed": seed} | engine
        super().__init__(model, loss, Budget.require(budget).batch_size, **settings)
        check_clip(clip)
        self.budget, self.clip, self.unit = budget, clip, budget.unit
        if shrinkage:
            if self.moment.decay:
                raise ValueError("second_moment and shrinkage both scale the scalars: give one of them")
            self.moment = SecondMoment(shrinkage, noise=self._noise_deviation())
        if moment_floor:
            if shrinkage or not self.moment.decay or not 0 < moment_floor <= 1:
                raise ValueError(
                    f"moment_floor is {moment_floor}: give a share of at most 1, beside second_moment and without shrinkage"
                )
            self.moment = SecondMoment(self.moment.decay, noise=self._noise_deviation(), floor=moment_floor)
        self.attribute_check: AttributeCheck | None = None
        self._independent = self._recorded = False  # checked, and the budget knows the outcome
        self._checked_under: tuple[object, ...] | None = None
        self._foreign = False  # whether the step's batch may not be the drawn one
        self._again = False  # whether the loss is checked at one of the later steps
        self._known_to_weights = False
        self._sums_of_step: int | None = None  # None outside of a step
        self._weights = list(model.parameters())
        self._versions_left: list[int] | None = None  # of the weights, by the last step

    @contextmanager
    def _whole_step(self) -> Iterator[None]:
        with self.budget.lock:  # two threads would take the same batch
            self._look_for_other_moves()
            self._sums_of_step = 0
            try:
                yield
            finally:
                self._sums_of_step = None
            self._versions_left = self._versions()

    def _noise_deviation(self) -> float:
        """Standard deviation of the noise in a scalar that multiplies z."""
        laplace = self.budget.setting.mechanism == "laplace"
        deviation = self.budget.noise_scale * self.clip / self.batch_size * (math.sqrt(2) if laplace else 1.0)
        return deviation if self.clips_slopes else deviation / (2 * self.smoothing)

    def noisy_sum(self, values: Tensor) -> float:
        """Clips each unit's value, float64 [B], and releases the sum with noise. Once a step."""
        if self._sums_of_step:  # it would be the sum of the next batch, if that has as many units
            raise ValueError(
                f"{type(self).__name__} asks for two noisy sums in one step: release all scalars of a step together, by "
                "`projected_gradients` and budget.release_vectors"
            )
        clipped = clip_scalars(values, self.clip)
        released = self.budget.release(clipped, self.clip)
        assert isinstance(released, float)  # a list only if the setting has several directions
        self._sums_of_step = None if self._sums_of_step is None else 1
        return released

    def check_loss(self, batch: Any) -> None:
        """Checks on public examples, two or more, that no example's loss depends on the others.

        Without it the first private batch is checked, and under a secret key a few later ones are.

        Raises:
            ValueError: a loss that depends on the other examples (see `loss_checks`).
        """
        self._check_independence(batch, max(batches.sizes(batch)), None)

    def _begin(self, batch: Any, users: ArrayLike | None) -> tuple[int, np.ndarray | None]:
        if self.batch_size != self.budget.batch_size:
            raise ValueError(
                f"batch_size was set to {self.batch_size}: sums are divided by the expected size, "
                f"{self.budget.batch_size}, because the size of a batch is private, so leave it"
            )
        begun = super()._begin(batch, users)
        self._again = self.steps_taken in CHECKED_AGAIN and self.budget.key.valid_release
        if self._again or self._checked_under not in (None, self._conditions()):
            self._independent = self._recorded = False
        if not self._known_to_weights:
            self._look_for_other_budgets()
        self._foreign = self.budget.key.valid_release and not self._was_handed_out(batch, users)
        if self._foreign:
            self.budget.record_foreign_batch()
        return begun

    def _conditions(self) -> tuple[object, ...]:
        """What the outcome of a check depends on: if it changes, the next batch is checked anew."""
        first = self.parameters[0]
        kind = first.device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        numbers = first.device, first.dtype, cast, products_are_coarse()
        return self.model, self.loss, self.one_at_a_time, *numbers

    def _versions(self) -> list[int]:
        """How often each weight was changed in place."""
        return [p._version for p in self._weights]

    def _look_for_other_moves(self) -> None:
        """Warns of weights that were changed since the last step, as by another optimizer in the same loop."""
        left, self._versions_left = self._versions_left, None
        if left is not None and self.budget.key.valid_release and left != self._versions():
            warnings.warn(OTHER_MOVE, stacklevel=3)

    def _look_for_other_budgets(self) -> None:
        """Warns of weights that releases of another budget have moved, as when a cell of a notebook is run again."""
        mine = self.budget.ledger.lineage
        others = {id(p): _moved_by.get(p, mine) for p in self.parameters}
        unknown = {release for other in others.values() for release in other.releases} - mine.releases.keys()
        if unknown and self.budget.key.valid_release:
            warnings.warn(OTHER_BUDGET.format(len(unknown)), stacklevel=2)
        for p in self.parameters:
            _moved_by[p] = mine
        self._known_to_weights = True

    def _was_handed_out(self, batch: Any, users: ArrayLike | None) -> bool:
        """Whether these are certainly the drawn examples: their indices, or what the budget made of them."""
        handed_out = self.budget.handed_out
        if handed_out is None:
            return users is None and batches.indices(batch) is not None
        return handed_out.holds(batch) if users is None else handed_out.holds(batch, users)

    def _admit(self, sizes: set[int], indices: np.ndarray | None) -> int:
        count: int = self.budget.admit(sizes, indices)
        return count

    def _losses(self, batch: Any, count: int) -> Tensor:
        """A rank's share of a loss is 0 for others' examples, so it is not checked."""
        checks = self.budget.probes_loss and self.ranks.size == 1
        collate = None if self._foreign else self.budget.collate_subset
        pick = collate or partial(batches.take, batch, size=count)
        if checks and not self._independent:
            self._check_independence(batch, count, collate)
        losses = self._evaluate(batch, count, pick)
        if checks and self._independent and self.attribute_check and self.perturbation.position[2] <= 0:
            self.attribute_check.check(partial(self.loss, self.model), pick, count)
        return losses

    def _check_independence(self, batch: Any, count: int, collate: batches.Take | None) -> None:
        """Measures how far other examples move a loss, and tells the budget before the first release.

        Args:
            collate: makes a batch of some of the examples, if a loader collated this one.
        """
        self._checked_under = self._conditions()
        pick, loss = collate or partial(batches.take, batch, size=count), partial(self.loss, self.model)
        self.attribute_check = self.attribute_check or AttributeCheck(self.model)
        if self.one_at_a_time:  # no other examples: only the same bits twice remain to be checked
            first, second = (self._evaluate(batch, count, pick) for _ in range(2))
            moved: Tensor | None = (first - second).abs()
        else:
            try:
                moved = check_independence(loss, batch, count, pick)
            except ValueError:
                if not self._again:
                    raise
                moved = torch.full((count,), math.inf)  # releases were made: they are not called valid
        self._independent = moved is not None and count > 0
        if not self._independent and (count < 2 or pick([0]) is not None):
            return  # the next batch can be checked, or the step says what is wrong with the losses
        self.attribute_check.check(loss, pick, count)
        if not self._recorded:
            known = self._independent and (collate is not None or not batches.padded(batch, count))
            self.budget.record_influence(self._influence(moved) if moved is not None and known else None)
            self._recorded = True

    def _influence(self, moved: Tensor) -> float:
        """How far the clipped values move together, over the clip, if losses move so far at both points.

        Rounded up to a power of ten, which reveals next to nothing about the examples.
        """
        if not moved.any():
            return 0.0
        values = moved * (1 / self.smoothing if self.clips_slopes else 2.0)
        influence = float(values.clamp_max(2 * self.clip).sum()) / self.clip
        return 10.0 ** math.ceil(math.log10(influence)) if influence < math.inf else influence

    def _mean_loss(self, losses: Tensor) -> float | None:
        """Also None if the noise is secret, because the mean has none."""
        return None if self.budget.key.valid_release else super()._mean_loss(losses)

    def join(self, ranks: Ranks) -> None:
        mine = self.budget.key.name.encode()
        if ranks.size > 1 and ranks.shared(mine) != mine:
            raise ValueError(
                f"rank {ranks.rank} has a key of its own, so that its batches are not those of rank 0: give all ranks the "
                "key of rank 0"
            )
        super().join(ranks)
        self.budget.join_ranks(ranks.terms)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"budget": self.budget.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.budget.load_state_dict(state["budget"])
        super().load_state_dict(state)
        self._versions_left = None

    def _privacy_header(self, existing: Mapping[str, Any]) -> dict[str, Any]:
        key_name = existing.get("key_name", self.budget.key.name)
        return {**asdict(self.budget.ledger.event), "clip": self.clip, "key_name": key_name}

    def _count_releases(self, transcript: Transcript) -> None:
        self.budget.record_transcript(len(transcript), transcript.header["privacy"]["key_name"])
