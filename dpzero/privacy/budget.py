"""The privacy budget of one run: it draws batches, adds noise, and keeps the ledger.

`release`, `release_vectors`, `release_` and `choose` are the only ways by which a function of private
examples leaves. Each release belongs to a batch that the budget drew, and each batch is released once: the
ledger counts what the accountant assumes.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import names_checked
from .accounting import Setting
from .clipping import check_clip
from .data_loader import BudgetLoader
from .discrete_noise import Bits
from .handed_out import HandedOut
from .ledger import Event, Ledger
from .ledger_epsilon import Spending, grid_delta
from .ledger_lines import Release
from .mechanisms import Noise
from .permute_and_flip import permute_and_flip
from .randomness import RunKey
from .row_releases import Rows, add_noise_
from .sampling import SAMPLERS, BatchQueue, CollateSubset, Indices, Sampler

UNITS = ("example", "user", "group")
NORM_ROUNDING = 1e-12  # of a norm that was clipped in float64
ELSEWHERE = dict.fromkeys(
    ("learning_rate", "clip", "smoothing"), "that belongs to the optimizer, DPZero(model, loss, budget, ...)"
) | {
    "noise_scale": "the noise follows from epsilon, and Budget(setting, noise_scale, key) has noise of your own"
}
Terms = Callable[[Tensor], list[list[float]]]


class BudgetExhausted(ValueError):
    """No step is left."""


class Budget(Spending):
    """The privacy budget that a private method spends.

    Batches come from `batches` or `loader`; `epsilon_spent` and `statement` say what the releases cost. The
    setting is public, including dataset_size: add_remove hides who takes part, not the size that the sampling
    rate is computed from.

    Args:
        setting: mechanism, sampling, adjacency, sizes and delta.
        noise_scale: over the clip, for the noisy sum.
        key: of sampling and noise. Only releases under a secret key are private.
        ledger: file that keeps each release; a budget made with an existing file counts its releases.
        noise_arithmetic: exact (integers, for scalars) or float; by default exact if the key is secret. Float
            noise makes no valid release: its low-order bits reveal the sum.
        unit: example, user or group. With user, dataset_size and batch_size count users (see `sampling.Users`). With
            group, users are protected whose examples, at most `setting.group_size` each (see `Users.kept`), are
            drawn one by one.
        first_share: of releases of two sums, see `release_rows_`.
        overspend: whether more steps may be taken than were calibrated for; `statement` then says so.
        epsilon_target: the epsilon that the noise was calibrated for, for the statement.

    Raises:
        ValueError: an invalid setting, key or noise; a ledger of another setting, or in use by another
            process.

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=1024, batch_size=64, steps=1000)
    """

    probes_loss = True  # whether methods test before the first release that the loss does not mix examples

    def __init__(
        self,
        setting: Setting,
        noise_scale: float,
        key: RunKey,
        ledger: str | Path | None = None,
        *,
        noise_arithmetic: str | None = None,
        unit: str = "example",
        first_share: float = 0.0,
        overspend: bool = False,
        epsilon_target: float | None = None,
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit is {unit!r}: give one of {', '.join(UNITS)}")
        if setting.group_size > 1 and unit != "group":
            raise ValueError(f"group_size is {setting.group_size} and unit {unit}: groups need unit group")
        if not 0 <= noise_scale < math.inf:
            raise ValueError(f"noise_scale is {noise_scale}: it must be a finite number of at least 0")
        if noise_scale == 0 and key.valid_release:
            raise ValueError("noise_scale is 0 under a secret key: a private release needs noise")
        arithmetic = noise_arithmetic or ("exact" if key.valid_release else "float")
        self._noise = Noise(setting.mechanism, noise_scale, arithmetic, key.stream("noise"))
        self._check_grid_delta(setting, noise_scale, arithmetic)
        key.claim()
        self.sampler = self._make_sampler(setting, key)
        fields = asdict(setting) | {"sampling": self.sampler.name, "noise_scale": noise_scale, "unit": unit}
        fields |= {"noise_arithmetic": arithmetic, "first_share": first_share}
        event = Event(**fields, noise_key=key.noise_key)
        super().__init__(
            setting, key, Ledger(event, None if ledger is None else Path(ledger)), epsilon_target
        )
        self.overspend = overspend
        self.queue = BatchQueue(self.sampler, unit)
        self._process, self._released_here = os.getpid(), 0
        self.lock = threading.RLock()  # else two threads would take the same batch and noise
        self._rank_terms: Terms | None = None
        if any(name != key.name for _, name in self.ledger):
            self.start_at(len(self.ledger))
        if warning := setting.delta_warning(unit):
            warnings.warn(warning, stacklevel=2)

    @classmethod
    @names_checked(ELSEWHERE)
    def calibrated(
        cls,
        *,
        epsilon: float,
        delta: float,
        dataset_size: int,
        batch_size: int,
        steps: int,
        mechanism: str = "gaussian",
        sampling: str = "poisson",
        adjacency: str = "add_remove",
        directions: int = 1,
        group_size: int = 1,
        key: RunKey | None = None,
        ledger: str | Path | None = None,
        noise_arithmetic: str | None = None,
        unit: str = "example",
        overspend: bool = False,
    ) -> Budget:
        """Make the budget with the least noise for (epsilon, delta).

        Args:
            epsilon: the target at delta.
            delta, dataset_size, batch_size, steps, mechanism, sampling, adjacency, directions, group_size: see `Setting`. As
                many Poisson batches as make an epoch leave out about 1/e of the examples: `Setting.share_seen`.
            key: secret by default.
            ledger, noise_arithmetic, unit, overspend: as for a budget of given noise.
        """
        setting = Setting(
            mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions, group_size
        )
        scale = setting.noise_scale(epsilon)
        return cls(
            setting,
            scale,
            key or RunKey.secret(),
            ledger=ledger,
            noise_arithmetic=noise_arithmetic,
            unit=unit,
            overspend=overspend,
            epsilon_target=epsilon,
        )

    @staticmethod
    def require(given: object) -> Budget:
        """Return the argument of a private method if it is a budget; raise TypeError otherwise."""
        if not isinstance(given, Budget):
            raise TypeError(
                f"budget is {given!r}: give a private method Budget.calibrated(epsilon=..., delta=..., "
                "dataset_size=..., batch_size=..., steps=...)"
            )
        return given

    @classmethod
    def resume(cls, ledger: str | Path, *, key: RunKey | None = None, overspend: bool = False) -> Budget:
        """Continue a ledger file under a new secret key, with what it has spent and the steps that are left.

        Raises:
            ValueError: the file is no ledger, or was begun under a published key that is not given.
        """
        event = Ledger.read_event(Path(ledger))
        if event.noise_key == "published" and key is None:
            raise ValueError(
                f"ledger {ledger} was started under a published key: pass it as key=RunKey.published(seed)"
            )
        names = ("noise_arithmetic", "unit", "first_share")
        options: dict[str, Any] = {name: getattr(event, name) for name in names}
        key = key or RunKey.secret()
        return cls(event.setting(), event.noise_scale, key, ledger, overspend=overspend, **options)

    def _make_sampler(self, setting: Setting, key: RunKey) -> Sampler:
        return SAMPLERS[setting.sampling](setting.dataset_size, setting.batch_size, key.stream("sampling"))

    @property
    def batch_size(self) -> int:
        """The expected batch size: the constant by which released sums are divided."""
        return self.setting.batch_size

    # -- batches ---------------------------------------------------------------------------------------------

    def batches(self, take: Callable[[Indices], Any] | None = None) -> Iterator[Any]:
        """Yield index arrays of the remaining batches; an empty batch is a step like any other.

        With `overspend`, a call that finds none left yields as many as were calibrated for. Without, it yields
        nothing and warns.

        Args:
            take: yields what this makes of each index array, also of an empty one, such as
                `lambda rows: [data[i] for i in rows]`.
        """
        self._check_process()
        if not (numbers := self.remaining_batches()):
            warnings.warn(
                f"the {self.setting.steps} steps of this budget are spent, so there is no batch left: calibrate a new "
                "one for more steps",
                stacklevel=2,
            )
        for indices in self.queue.draw(takewhile(self._may_release, numbers)):
            if take is None:
                yield indices
            else:
                subset = partial(_take_some, take, indices) if self.unit != "user" else None
                yield self.queue.hand_out(take(indices), subset)

    def loader(
        self, dataset: Dataset[Any], users: Sequence[Any] | None = None, **options: Any
    ) -> BudgetLoader:
        """Make a DataLoader over the remaining batches. Give each one to `step`, the empty ones too.

        It has no epochs: Poisson batches may have an example several times before another (`Setting.share_seen`).

        Args:
            dataset: of dataset_size examples, with `len` and integer indices.
            users: if the unit is the user, the user of each example. Batches are then pairs for `step(batch,
                users)`.
            options: collate_fn, num_workers, pin_memory and others of DataLoader, except those that draw
                batches.

        Raises:
            ValueError: another data set size than the budget's, a data set without indices, options that draw
                batches, or users that do not fit the unit.
        """
        return BudgetLoader(self, dataset, users, **options)

    def remaining_batches(self) -> range:
        """Numbers of the remaining batches, including those that a killed process released under this key."""
        first = self.queue.position
        replayed = sum(number >= first for number in self.ledger.by_key().get(self.key.name, []))
        left = self.setting.steps - len(self.ledger)
        if left <= 0 and self.overspend:
            left = self.setting.steps
        stop = first + replayed + max(0, left)
        if not (self.sampler.independent or self.overspend):
            stop = min(stop, self.setting.steps)  # a dropped batch is not replaced by one of a further period
        return range(first, max(first, stop))

    def _may_release(self, number: int) -> bool:
        """Whether a step is left (another budget may have spent the rest), or the batch is a replay."""
        left = self.overspend or len(self.ledger) < self.setting.steps
        return left or (number, self.key.name) in self.ledger

    @property
    def handed_out(self) -> HandedOut | None:
        """What a loader, or `take`, made of the next batch; None for indices."""
        return self.queue.open[0].made if self.queue.open else None

    def has_handed_out(self, batch: Any) -> bool:
        """Whether a batch is one of those that are still to be released."""
        return any(
            each.indices is batch or (each.made and each.made.holds(batch)) for each in self.queue.open
        )

    @property
    def collate_subset(self) -> CollateSubset | None:
        """Makes what was handed out anew, of the examples at some positions of the next batch."""
        return self.queue.open[0].collate_subset if self.queue.open else None

    def admit(self, counts: int | Collection[int], batch: Indices | None = None) -> int:
        """Compare a method's batch with the one that was drawn; the next release is then of that batch.

        Args:
            counts: the number of units in the method's batch; several numbers if its structure is ambiguous.
            batch: the method's batch, if it consists of indices.

        Returns:
            The number of units.

        Raises:
            ValueError: another batch than the next one in order, or no step left.
            RuntimeError: a forked process.
        """
        self._check_process()
        self._check_left(self.key.name)
        counts = {counts} if isinstance(counts, int) else set(counts)
        count = self.queue.check(counts, batch, partial=self._rank_terms is not None)
        self.queue.admitted = True
        return count

    def join_ranks(self, terms: Terms) -> None:
        """Make this process one of several ranks; `terms` gathers the columns of all ranks' values."""
        self._rank_terms = terms

    # -- releases --------------------------------------------------------------------------------------------

    def release(self, clipped: Tensor, clip: float) -> float | list[float]:
        """Release the noisy sum of the next batch's clipped scalars, after recording it in the ledger.

        Args:
            clipped: [batch], one value in [-clip, clip] per unit, or [batch, directions] if the setting has
                several.
            clip: the clipping threshold.

        Returns:
            One scalar, or a list with one per direction.

        Raises:
            ValueError: a value beyond the clip, another number of values than units in the batch, another
                number of directions.
        """
        values = clipped.double()[:, None] if clipped.dim() == 1 else clipped.double()
        if values.shape[1:] != (self.setting.directions,):
            raise ValueError(
                f"values of shape {tuple(clipped.shape)} to be released: the setting has "
                f"{self.setting.directions} for each {self.unit}"
            )
        check_clip(clip)
        if not (values.abs() <= clip).all():
            raise ValueError(f"a value to be released lies beyond the clip of {clip}: clip each one first")
        noisy = self._noisy_sums(values, clip)
        return noisy[0] if self.setting.directions == 1 else noisy

    def release_vectors(self, clipped: Tensor, clip: float) -> list[float]:
        """Release the noisy sum of the next batch's clipped vectors, accounted as one release.

        Args:
            clipped: [batch, K], one vector of norm at most clip per example.
            clip: the clipping threshold.

        Raises:
            ValueError: a vector beyond the clip, another number of vectors than examples, Laplace noise, unit
                user.
        """
        self._check_vectors()
        check_clip(clip)
        values = clipped.double()
        if not (torch.linalg.vector_norm(values, dim=1) <= clip * (1 + NORM_ROUNDING)).all():
            raise ValueError(
                f"a vector to be released is longer than the clip of {clip}: clip each one first"
            )
        return self._noisy_sums(values, clip, norm=True)

    def release_(self, clipped_sums: Sequence[Tensor], clip: float, unit: str = "example") -> None:
        """Add noise in place to the sum of the admitted batch's clipped gradients.

        The noise is in floats, so such a release is never called valid (see `statement`).

        Args:
            clipped_sums: tensors that together are one sum of vectors of norm at most clip.
            clip: the clipping threshold.
            unit: what the caller clipped the gradient of: example, or user.
        """
        self.check_gradients(unit)
        check_clip(clip)
        with self.lock:
            if not self.queue.admitted:
                raise ValueError(
                    "this sum of gradients belongs to no batch: call admit with the batch's size first"
                )
            number, noise = self._record(clip, map(_as_bytes, clipped_sums))
        noise.add_(number, clipped_sums, clip)

    def release_rows_(
        self, rows: Rows, clip: float, *, threshold: float, first_share: float
    ) -> tuple[Tensor, Tensor]:
        """Release how many examples use each row of a table, then the gradient of the rows of which enough do.

        In floats, as `release_`. The two sums are one release in the ledger, whose noise scale is the joint one.

        Args:
            rows: of the admitted batch; the counts and the tensors beside the table get their noise in place.
            clip: of the gradients.
            threshold: in standard deviations of the noise of the counts.
            first_share: the part of noise_scale^-2 that the counts have.

        Returns:
            The rows of the table, int64 [S], and their noisy gradients [S, H].

        Raises:
            ValueError: another share than the budget was made with; see `release_`.
        """
        self.check_gradients()
        check_clip(clip)
        check_clip(rows.counts_clip)
        self._check_first_share(first_share)
        with self.lock:
            if not self.queue.admitted:
                raise ValueError("these rows belong to no batch: call admit with the batch's size first")
            number, noise = self._record(clip, map(_as_bytes, rows.tensors))
        return add_noise_(noise, number, rows, clip, threshold, first_share)

    def _noisy_sums(self, values: Tensor, clip: float, norm: bool = False) -> list[float]:
        with self.lock:
            self.admit(len(values))
            terms = self._noise.terms(values, clip, norm)
            columns = self._rank_terms(terms) if self._rank_terms else terms.T.tolist()
            bound = self.setting.dataset_size * (clip if self.noise_arithmetic == "float" else math.inf)
            if not all(abs(math.fsum(column)) <= bound for column in columns):
                raise ValueError("the clipped sum over all ranks exceeds its bound: a rank sent corrupt data")
            totals = self._noise.totals(columns)
            number, noise = self._record(clip, [repr(totals).encode()])
        return noise.sums(number, totals, clip)

    def _record(self, clip: float, total: Iterable[bytes | memoryview]) -> tuple[int, Noise]:
        """Record the release of the next batch in the ledger.

        Args:
            clip: the clipping threshold, for the statement.
            total: the bytes of the sum, which identify the release if the key is published.

        Returns:
            The batch's number and the noise for it.
        """
        self._check_process()
        number, name, noise = self.queue.open[0].number, self.key.name, self._noise
        if not self.key.valid_release:
            digest = _digest(total)
            _, name = self.ledger.lineage.place(Release(number, name), digest)
            if name != self.key.name:
                # the same batch with another sum: the same noise would cancel in the difference of the two
                self._check_left(name)
                noise = self._noise.with_stream(self.key.stream(f"noise {name}"))
            self.ledger.record(number, name, digest)
        elif (number, name) in self.ledger:
            raise ValueError(
                f"batch {number} was released before under this secret key and its noise cannot be used "
                "again: make a new budget"
            )
        else:
            self.ledger.record(number, name)
        self.queue.close_oldest()
        self._clip = clip
        self._released_here += 1
        return number, noise

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        """Select a candidate with a large count by permute and flip, and keep it in the ledger.

        Args:
            counts: candidate -> number to which one example adds 0 or 1. The examples must be disjoint from
                the training set: each example then has one of two guarantees, and the larger epsilon is
                spent.
            epsilon: of the selection.

        Raises:
            ValueError: no candidate, an earlier choice at another epsilon, units other than examples.
        """
        self._check_process()
        if self.unit != "example":
            raise ValueError(
                f"a choice is offered for unit example: a {self.unit} adds more than 1 to a count"
            )
        with self.lock:
            choice = next((choice for choice in self.ledger.choices if choice.chosen is not None), None)
            if choice is None:
                candidates, bits = list(counts), Bits(self.key.stream("choice"))
                place = permute_and_flip([counts[candidate] for candidate in candidates], epsilon, bits)
                choice = self.ledger.record_choice(self.key.name, epsilon, candidates[place])
        if choice.epsilon != epsilon:
            raise ValueError(
                f"a choice was made before with epsilon {choice.epsilon:g}, not {epsilon:g}: make a new "
                "budget"
            )
        assert choice.chosen is not None
        return choice.chosen

    # -- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return setting, ledger and the number of the next batch, without the key, for a checkpoint.

        Budgets of one process that load the same state count each other's releases. A state cannot know of
        releases in other
        processes: keep the ledger in a file.
        """
        self.ledger.sync()
        return {"position": self.queue.position, **self.ledger.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count the releases of a saved state and continue after them.

        Raises:
            ValueError: a state of another setting; a ledger that has releases, but not all of those in the
                state.
        """
        self._check_process()
        known = self.ledger.path or not self.key.valid_release or self.ledger.knows_what_followed(state)
        self.ledger.load_state_dict(state)
        if not known:
            warnings.warn(
                "this state is of another process, and no file says what that released after it was saved, so that "
                "epsilon may be too small: give each budget of a run the same ledger=...",
                stacklevel=2,
            )
        self.start_at(state["position"])

    def start_at(self, number: int) -> None:
        """Continue with this batch number, but never before a batch that was drawn in this process."""
        other_keys = any(name != self.key.name for _, name in self.ledger)
        self.queue.start_at(self.sampler.first_step_of_new_key(number) if other_keys else number)

    def record_transcript(self, count: int, key_name: str) -> None:
        """Count the rows of a transcript, begun under the key of this name, as releases.

        Raises:
            ValueError: a ledger file that lacks some of them; a budget that has already released.
        """
        if count and self._released_here:
            raise ValueError(
                "this budget has already taken steps, so it cannot resume a transcript: call write_transcript before "
                "the first step"
            )
        self.ledger.record_transcript(count, key_name)
        self.start_at(count)

    def close(self) -> None:
        """Unlock the ledger's file for other processes."""
        self.ledger.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a budget cannot be copied, because the copy would draw the same noise: keep state_dict() and load it "
            "into a new budget, or resume the ledger's file (Budget.resume)"
        )

    # -- checks ----------------------------------------------------------------------------------------------

    def check_gradients(self, unit: str = "example") -> None:
        """Raise ValueError if `release_` is not offered for this setting, or for gradients of this unit."""
        self._check_vectors(unit)
        if self.noise_arithmetic == "exact":
            raise ValueError(
                "exact noise is offered for scalars: make the budget with noise_arithmetic='float' for "
                "gradients, whose releases are then not called valid"
            )

    def _check_vectors(self, unit: str = "example") -> None:
        if self.setting.mechanism != "gaussian":
            raise ValueError(
                f"the {self.setting.mechanism} mechanism is offered for scalars: use gaussian for vectors"
            )
        if (self.unit == "user") != (unit == "user"):
            raise ValueError(f"unit {self.unit} is offered for scalars: use unit example for vectors")

    def _check_first_share(self, first_share: float) -> None:
        known = self.ledger.event.first_share
        if not 0 < first_share < 1 or first_share != known:
            raise ValueError(
                f"the counts have {first_share} of each release, and the budget was made with first_share {known}: make it "
                "with the same, above 0 and below 1"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this budget was made in process {self._process} and this is process {os.getpid()}, its fork, "
                "which would draw the same noise: make a new budget here"
            )

    def _check_left(self, key_name: str) -> None:
        """Raise BudgetExhausted if no step is left; replaying a release under this key needs none."""
        replay = self.queue.open and (self.queue.open[0].number, key_name) in self.ledger
        if len(self.ledger) >= self.setting.steps and not self.overspend and not replay:
            others = sum(name != self.key.name for _, name in self.ledger)
            by_others = f", {others} of them by other budgets of the same state or ledger" if others else ""
            raise BudgetExhausted(
                f"the {self.setting.steps} steps of this budget are spent{by_others}: calibrate a new one for more "
                "steps, or make it with overspend=True; epsilon_spent() then includes the additional steps"
            )

    def _check_grid_delta(self, setting: Setting, noise_scale: float, arithmetic: str) -> None:
        added = grid_delta(setting, noise_scale, arithmetic)
        if added > 1e-3 * setting.delta:
            raise ValueError(
                f"delta is {setting.delta:g}, but exact noise adds up to {added:.1g} to it: give a larger "
                "delta, or noise_arithmetic='float', whose releases are not called valid"
            )


def _take_some(take: Callable[[Indices], Any], indices: Indices, positions: Sequence[int]) -> object:
    return take(indices[list(positions)])


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    """16 hexadecimal digits of a sum."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
