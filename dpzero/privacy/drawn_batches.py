"""Batches that a sampler has drawn and that wait for their release: each is released once, in order, whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sampling import Sampler

MAX_BATCHES = 2**63
Indices = NDArray[np.int64]


@dataclass
class Batch:
    """One batch of the run: its number, unique in the run, and the indices of its units."""

    number: int
    indices: Indices
    collate_subset: Callable[[Sequence[int]], object] | None = None  # set by a loader


class BatchQueue:
    """Draws batches in order; no number is drawn twice in a process.

    A batch is open from when it is drawn until it is released. A new loop starts after all batches drawn so
    far and drops those that an earlier loop left open.
    """

    def __init__(self, sampler: Sampler, unit: str) -> None:
        self.sampler, self.unit = sampler, unit
        self.position = 0  # number of the next batch
        self.admitted = False  # whether the caller's batch was compared with the oldest open one
        self._open: deque[Batch] = deque()
        self._loops = 0

    def draw(self, numbers: Iterable[int]) -> Iterator[Indices]:
        """Yield the batches with these numbers, which start at `position`."""
        self._loops += 1
        self._open.clear()
        self.admitted = False
        loop = self._loops
        for number in numbers:
            if loop != self._loops:
                raise ValueError(
                    "another loop over the batches of this budget has started: continue with that one"
                )
            batch = Batch(number, self.sampler.batch(number))
            self.position = number + 1
            self._open.append(batch)
            yield batch.indices

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
        if not self._open:
            raise ValueError(
                "this batch was not handed out by the budget: take batches from budget.batches() or "
                "budget.loader(), and give step each of them once"
            )
        drawn = self.oldest.indices
        if partial and min(counts) <= len(drawn):
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
        self._open.popleft()
        self.admitted = False

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    @property
    def oldest(self) -> Batch:
        return self._open[0]

    @property
    def latest(self) -> Batch:
        return self._open[-1]
