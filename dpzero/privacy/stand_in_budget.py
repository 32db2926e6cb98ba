"""A budget for public or stand-in examples: to measure the cost of a step, and for tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, Self

from .accounting import Setting
from .budget import Budget
from .mechanisms import Noise
from .randomness import RunKey
from .sampling import Indices


class StandInBudget(Budget):
    """Accepts any batch, any number of times. No release is valid: epsilon is infinite."""

    probes_loss = False

    def __init__(
        self, setting: Setting, noise_scale: float, key: RunKey | None = None, **options: Any
    ) -> None:
        options = {"noise_arithmetic": "float"} | options
        super().__init__(setting, noise_scale, key or RunKey.published(0), **options)

    @classmethod
    def for_batches(cls, size: int, unit: str = "example") -> Self:
        """A budget with unit noise for batches of this expected size."""
        setting = Setting("gaussian", "poisson", "add_remove", 1000 * size, size, 1000, 1e-9)
        return cls(setting, 1.0, unit=unit)

    def admit(self, counts: int | Collection[int], batch: Indices | None = None) -> int:
        self._check_process()
        self.queue.admitted = True
        return counts if isinstance(counts, int) else max(counts)

    def _record(self, clip: float, total: Iterable[bytes | memoryview]) -> tuple[int, Noise]:
        """Release t gets the noise of batch t."""
        self._check_process()
        number, self._clip = self.queue.position, clip
        self.queue.admitted = False
        self.queue.position += 1
        self._released_here += 1
        self.ledger.record(number, self.key.name)
        return number, self._noise

    def _check_first_share(self, first_share: float) -> None:
        """Any share will do."""

    def _check_grid_delta(self, setting: Setting, noise_scale: float, arithmetic: str) -> None:
        """No delta is claimed."""

    @property
    def valid_release(self) -> bool:
        return False

    def _training_cost(self, measure: Callable[[Setting, float], float | None]) -> float | None:
        return math.inf if self._released_here else 0.0
