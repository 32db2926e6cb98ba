"""Samplers of batches, and the queue of drawn ones. The sampler that runs is the sampler that is accounted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accounting import batches_per_pass
from .handed_out import HandedOut
from .randomness import Stream

MAX_BATCHES = 2**63
Indices = NDArray[np.int64]
CollateSubset = Callable[[Sequence[int]], object]


class Sampler:
    """Draws batches of example indices; no call depends on earlier ones. `batch_size` is the expected size."""

    name: str
    independent = True  # whether a batch tells nothing about the others

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if not 1 <= batch_size <= dataset_size:
            raise ValueError(
                f"batch_size is {batch_size}, dataset_size {dataset_size}: the batch size must be between 1 "
                "and the data set's"
            )
        self.dataset_size, self.batch_size, self.stream = dataset_size, batch_size, stream

    def batch(self, step: int) -> Indices:
        """Indices of the examples in the batch of this step."""
        raise NotImplementedError

    def first_step_of_new_key(self, step: int) -> int:
        """The first step from `step` on at which a run may continue under another key."""
        return step


class Poisson(Sampler):
    """Every example joins independently with probability batch_size / dataset_size. The batch may be empty."""

    name = "poisson"

    def batch(self, step: int) -> Indices:
        rate = self.batch_size / self.dataset_size
        return np.flatnonzero(self.stream.uniforms(self.dataset_size, step) < rate)


class WithoutReplacement(Sampler):
    """A uniform subset of exactly batch_size examples, drawn anew in each step."""

    name = "without_replacement"

    def batch(self, step: int) -> Indices:
        order = np.argsort(self.stream.words(self.dataset_size, step), kind="stable")
        return np.sort(order[: self.batch_size])


class FullBatch(Sampler):
    """All examples in every step (DPZero's Algorithm 2)."""

    name = "full_batch"

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if batch_size != dataset_size:
            raise ValueError(f"batch_size is {batch_size}: full_batch needs dataset_size, {dataset_size}")
        super().__init__(dataset_size, batch_size, stream)

    def batch(self, step: int) -> Indices:
        return np.arange(self.dataset_size)


class RandomAllocation(Sampler):
    """Each example in one uniformly chosen batch of each period, independently of the others.

    A period has dataset_size / batch_size steps, rounded up. Batch sizes vary, as with Poisson sampling; a
    batch may be empty.
    """

    name = "random_allocation"
    independent = False

    @property
    def period(self) -> int:
        return batches_per_pass(self.dataset_size, self.batch_size)

    def first_step_of_new_key(self, step: int) -> int:
        return -(-step // self.period) * self.period

    def batch(self, step: int) -> Indices:
        passed, place = divmod(step, self.period)
        return np.flatnonzero(
            np.floor(self.stream.uniforms(self.dataset_size, passed) * self.period) == place
        )


class ShuffledEpochs(Sampler):
    """What most public code runs: the data in a new order each epoch, cut into batches, the last one short.

    Not in SAMPLERS: no amplification is proven for it, so no `Setting` offers it (see
    `public_implementations`).
    """

    name = "shuffled_epochs"

    def batch(self, step: int) -> Indices:
        epoch, position = divmod(step, batches_per_pass(self.dataset_size, self.batch_size))
        order = np.argsort(self.stream.words(self.dataset_size, epoch), kind="stable")
        return np.sort(order[position * self.batch_size : (position + 1) * self.batch_size])


class Users:
    """Maps drawn users to their examples, for user-level privacy. The mean over a user's examples is clipped.

    Args:
        users: the user of each example, any hashable, length n.

    Raises:
        ValueError: a user that is NaN.
    """

    def __init__(self, users: Sequence[Hashable]) -> None:
        self._examples: dict[Hashable, list[int]] = {}
        # tensors, each of which would be a user of its own, become numbers
        for index, user in enumerate(users.tolist() if hasattr(users, "tolist") else users):
            if user != user:
                raise ValueError(f"the user of example {index} is missing ({user}): give each example one")
            self._examples.setdefault(user, []).append(index)
        self._names = list(self._examples)

    def __len__(self) -> int:
        """Number of users: the dataset_size of a `Setting` whose unit is the user."""
        return len(self._names)

    def kept(self, at_most: int) -> Indices:
        """The first `at_most` examples of each user, as a data set for group privacy: their indices, ascending."""
        return np.sort([i for examples in self._examples.values() for i in examples[:at_most]])

    def mean_examples(self, at_most: int = 0) -> float:
        """How many examples a drawn user brings, on average."""
        counts = [len(examples) for examples in self._examples.values()]
        return float(np.mean(np.minimum(counts, at_most or max(counts))))

    def examples(
        self, batch: Indices, at_most: int = 0, choice: Stream | None = None, step: int = 0
    ) -> tuple[Indices, Indices]:
        """Indices of drawn users -> (indices of their examples, each one's user as a position in `batch`).

        Args:
            batch: the drawn users.
            at_most: of each user's examples, chosen by the stream for this step; 0: all.
            choice: by default the first ones are taken.
            step: the number of the batch.
        """
        examples = [self._examples[self._names[user]] for user in batch]
        if at_most and choice is not None:
            order = [
                np.argsort(choice.words(len(e), step, int(u))) for u, e in zip(batch, examples, strict=True)
            ]
            examples = [[e[i] for i in chosen] for e, chosen in zip(examples, order, strict=True)]
        examples = [e[: at_most or None] for e in examples]
        positions = np.repeat(np.arange(len(examples)), [len(e) for e in examples])
        return np.array([i for e in examples for i in e], dtype=np.int64), positions


SAMPLERS: dict[str, type[Sampler]] = {
    sampler.name: sampler for sampler in (Poisson, WithoutReplacement, FullBatch, RandomAllocation)
}


@dataclass
class Batch:
    """One batch of the run: its number, unique in the run, and the indices of its units."""

    number: int
    indices: Indices
    made: HandedOut | None = None  # what a loader or the caller's function made of the indices
    collate_subset: CollateSubset | None = None  # makes the same of the examples at some positions


class BatchQueue:
    """Draws batches in order, each to be released once, whole; no number is drawn twice in a process.

    A batch is open from when it is drawn until it is released. A new loop starts after all batches drawn so
    far and drops those that an earlier loop left open.
    """

    def __init__(self, sampler: Sampler, unit: str) -> None:
        self.sampler, self.unit = sampler, unit
        self.position = 0  # number of the next batch
        self.admitted = False  # whether the caller's batch was compared with the oldest open one
        self.open: deque[Batch] = deque()
        self._loops = 0

    def draw(self, numbers: Iterable[int]) -> Iterator[Indices]:
        """Yield the batches with these numbers, which start at `position`."""
        self._loops += 1
        self.open.clear()
        self.admitted = False
        loop = self._loops
        for number in numbers:
            if loop != self._loops:
                raise ValueError(
                    "another loop over the batches of this budget has started: continue with that one"
                )
            batch = Batch(number, self.sampler.batch(number))
            self.position = number + 1
            self.open.append(batch)
            yield batch.indices.copy()  # one that is changed in place does not pass `check`

    def hand_out(self, made: Any, collate_subset: CollateSubset | None) -> Any:
        """Remember what was made of the newest batch, and return it."""
        kept = HandedOut(*made) if self.unit == "user" and isinstance(made, tuple) else HandedOut(made)
        self.open[-1].made, self.open[-1].collate_subset = kept, collate_subset
        return made

    def check(self, counts: Collection[int], indices: Indices | None = None, partial: bool = False) -> int:
        """Compare the caller's batch with the oldest open one.

        Args:
            counts: possible numbers of units in the caller's batch; several if its structure is ambiguous.
            indices: the caller's batch, if it consists of indices.
            partial: whether the caller is one of several ranks and may have a part of the batch.

        Returns:
            The number of units.

        Raises:
            ValueError: no batch is open, or the open one is another batch.
        """
        if not self.open:
            raise ValueError(
                "this batch was not handed out by the budget: take batches from budget.batches() or "
                "budget.loader(), and give step each of them once"
            )
        drawn = self.open[0].indices
        if partial and min(counts) <= len(drawn) and (indices is None or np.isin(indices, drawn).all()):
            return min(counts)
        if len(drawn) not in counts:
            given = " or ".join(map(str, sorted(counts)))
            raise ValueError(
                f"step was given {given} {self.unit}s but the sampler drew {len(drawn)}: give it every batch of the "
                "budget, complete and in order, including the empty ones"
            )
        if indices is not None and not np.array_equal(np.sort(indices), np.sort(drawn)):
            raise ValueError(
                "step was given integers that are not the indices that the sampler drew: give it the batch "
                "that the budget handed out (integers that are examples go in an array of two dimensions)"
            )
        return len(drawn)

    def start_at(self, number: int) -> None:
        """Continue with this batch number, but never before a batch that was drawn in this process."""
        if not 0 <= number < MAX_BATCHES:
            raise ValueError(f"batch {number} is asked for: give a number from 0 to {MAX_BATCHES - 1}")
        self.position = max(self.position, number) if self._loops else number

    def close_oldest(self) -> None:
        """Remove the oldest open batch: it was released."""
        self.open.popleft()
        self.admitted = False
