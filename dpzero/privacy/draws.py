"""What a sampler has handed out, and what of it is still to be released: each batch once, in order, whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .sampling import Sampler

MOST = 2**63  # batches


@dataclass
class Draw:
    """A batch: its number, which no other batch of the run has, and the indices of its units."""

    number: int
    indices: np.ndarray
    take: Callable[[Sequence[int]], object] | None = None  # a loader's: some of its examples, collated anew


class Draws:
    """Counts upwards: no batch is handed out twice in a process.

    A batch that was handed out is open until it is released. A new loop over batches begins behind all that were handed out;
    what an earlier loop left open is dropped, unread.
    """

    def __init__(self, sampler: Sampler, unit: str) -> None:
        self.sampler, self.unit = sampler, unit
        self.position = 0  # number of the next batch
        self._open: deque[Draw] = deque()
        self._loops = 0
        self.admitted = False  # whether the oldest open batch was compared with what the caller has

    def loop(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Hands out the batches of these numbers, which begin at `position`."""
        self._loops += 1
        self._open.clear()
        self.admitted = False
        this = self._loops
        for number in numbers:
            if this != self._loops:
                raise ValueError(
                    "another loop over the batches of this budget has begun: go on with that one"
                )
            draw = Draw(number, self.sampler.batch(number))
            self.position = number + 1
            self._open.append(draw)
            yield draw.indices

    def next(self, counts: Collection[int], batch: np.ndarray | None = None, share: bool = False) -> int:
        """The number of units in the oldest open batch, which must be one of `counts`.

        Args:
            counts: how many units the caller's batch may have: more than one number where its structure leaves that open.
            batch: the caller's batch where it is indices.
            share: whether the caller is one of several ranks and may have a part of the batch.

        Raises:
            ValueError: nothing is open, or what is open is another batch.
        """
        if not self._open:
            raise ValueError(
                "this batch was not handed out by the budget: take batches from budget.batches() or budget.loader(), and give step "
                "each of them once"
            )
        drawn = self._open[0].indices
        if share and min(counts) <= len(drawn):
            return min(counts)
        if len(drawn) not in counts:
            given = " or ".join(map(str, sorted(counts)))
            raise ValueError(
                f"step was given {given} {self.unit}s where the sampler drew {len(drawn)}: give it every batch of the budget, whole and in "
                "order, the empty ones too"
            )
        if batch is not None and not np.array_equal(np.sort(batch), np.sort(drawn)):
            raise ValueError(
                "step was given integers that are not the indices which the sampler drew: give it the batch that the budget handed out "
                "(integers that are examples go in an array of two dimensions)"
            )
        return len(drawn)

    def start_at(self, number: int) -> None:
        """The next batch is the one of this number; once a batch was handed out, none of an earlier number than that."""
        if not 0 <= number < MOST:
            raise ValueError(f"batch {number} is asked for: give a number from 0 to {MOST - 1}")
        self.position = max(self.position, number) if self._loops else number

    def close(self) -> None:
        """The oldest open batch is released."""
        self._open.popleft()
        self.admitted = False

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    @property
    def oldest(self) -> Draw:
        return self._open[0]

    @property
    def latest(self) -> Draw:
        return self._open[-1]
