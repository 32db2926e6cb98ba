"""Which examples are in the batch of step t. The sampler that runs is the sampler that is accounted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .accounting import period
from .randomness import Stream


class Sampler:
    """Batches as index arrays, int64; `batch(step)` needs no earlier step. `batch_size` is the expected size: the divisor."""

    name: str
    independent = True  # whether a batch says nothing of the others

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if not 1 <= batch_size <= dataset_size:
            raise ValueError(
                f"batch_size is {batch_size}, dataset_size {dataset_size}: the batch size must be between 1 and the data set's"
            )
        self.dataset_size, self.batch_size, self.stream = dataset_size, batch_size, stream

    def batch(self, step: int) -> np.ndarray:
        raise NotImplementedError

    def begin(self, step: int) -> int:
        """The first step from `step` on at which a run may go on under another key."""
        return step


class Poisson(Sampler):
    """Every example joins independently with probability batch_size / dataset_size. The batch may be empty."""

    name = "poisson"

    def batch(self, step: int) -> np.ndarray:
        rate = self.batch_size / self.dataset_size
        return np.flatnonzero(self.stream.uniforms(self.dataset_size, step) < rate)


class WithoutReplacement(Sampler):
    """A uniform subset of exactly batch_size examples, drawn anew in each step."""

    name = "without_replacement"

    def batch(self, step: int) -> np.ndarray:
        order = np.argsort(self.stream.words(self.dataset_size, step), kind="stable")
        return np.sort(order[: self.batch_size])


class FullBatch(Sampler):
    """All examples in every step (DPZero's Algorithm 2)."""

    name = "full_batch"

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if batch_size != dataset_size:
            raise ValueError(f"batch_size is {batch_size}: full_batch needs dataset_size, {dataset_size}")
        super().__init__(dataset_size, batch_size, stream)

    def batch(self, step: int) -> np.ndarray:
        return np.arange(self.dataset_size)


class RandomAllocation(Sampler):
    """Each example in exactly one batch of each period, whichever the others are in: for whoever must shuffle.

    A period has dataset_size / batch_size steps, rounded up. Batches differ in size, as Poisson batches do, and may be empty.
    """

    name = "random_allocation"
    independent = False

    @property
    def period(self) -> int:
        return period(self.dataset_size, self.batch_size)

    def begin(self, step: int) -> int:
        return -(-step // self.period) * self.period

    def batch(self, step: int) -> np.ndarray:
        passed, place = divmod(step, self.period)
        return np.flatnonzero(
            np.floor(self.stream.uniforms(self.dataset_size, passed) * self.period) == place
        )


class ShuffledEpochs(Sampler):
    """What most public code runs: the data in a new order each epoch, cut into batches, the last one short.

    Not among SAMPLERS: no amplification is proven for it, so no `Setting` can ask for it (see `published`).
    """

    name = "shuffled_epochs"

    def batch(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, period(self.dataset_size, self.batch_size))
        order = np.argsort(self.stream.words(self.dataset_size, epoch), kind="stable")
        return np.sort(order[position * self.batch_size : (position + 1) * self.batch_size])


class Users:
    """For user-level privacy: the sampler draws users, a user's examples come together, and the mean is clipped per user.

    Args:
        users: the user of each example, any hashable, length n.
    """

    def __init__(self, users: Sequence[Hashable]) -> None:
        self._examples: dict[Hashable, list[int]] = {}
        for index, user in enumerate(users):
            self._examples.setdefault(user, []).append(index)
        self._names = list(self._examples)

    def __len__(self) -> int:
        """Number of users: the dataset_size of a `Setting` whose unit is the user."""
        return len(self._names)

    def examples(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of users, as a sampler draws them -> (indices of their examples, position in the batch of each one's user)."""
        own = [self._examples[self._names[user]] for user in batch]
        positions = np.repeat(np.arange(len(own)), [len(e) for e in own])
        return np.array([i for e in own for i in e], dtype=np.int64), positions


SAMPLERS = {cls.name: cls for cls in (Poisson, WithoutReplacement, FullBatch, RandomAllocation)}
