"""A budget for public or stand-in examples: to measure what a step costs, and to hand in what a test likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np

from .accounting import Setting
from .budget import Budget
from .mechanisms import Noise
from .randomness import RunKey


class Rehearsal(Budget):
    """Takes any batch, counts nothing as spent, and calls nothing private: its epsilon is infinite from the first release on."""

    probes_loss = False

    def __init__(self, setting: Setting, noise_scale: float, key: RunKey | None = None, **how) -> None:
        how = {"noise_arithmetic": "float"} | how
        super().__init__(setting, noise_scale, key or RunKey.published(0), **how)

    def admit(self, counts: int | Collection[int], batch: np.ndarray | None = None) -> int:
        self._check_process()
        self._draws.admitted = True
        return counts if isinstance(counts, int) else max(counts)

    def _record(self, clip: float, value: Callable[[], str]) -> tuple[int, Noise]:
        """The noise of release t is that of batch t."""
        self._check_process()
        number, self._clip = self._draws.position, clip
        self._draws.admitted = False
        self._draws.position += 1
        self._released_here += 1
        self.ledger.record(number, self.key.name)
        return number, self._noise

    def _check_excess(self) -> None:
        """No delta is claimed."""

    @property
    def valid_release(self) -> bool:
        return False

    def _of_what_ran(self, epsilon) -> float:
        return math.inf if self._released_here else 0.0
