"""A budget that samples, adds noise and divides like a public implementation, to reproduce its numbers.

It reports the epsilon of what runs, not the claimed one. Unlike in the public code, the noise comes from the
run key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .accounting import Setting
from .budget import Budget
from .public_implementations import PublicRun
from .randomness import RunKey
from .sampling import Sampler, ShuffledEpochs


class PublicCodeBudget(Budget):
    """Replaces `Budget` for the method whose public implementation is reproduced. Makes no valid release."""

    def __init__(self, run: PublicRun, key: RunKey, ledger: str | Path | None = None) -> None:
        self.run, self.implementation = run, run.implementation
        replaced = self.implementation.adjacency == "replace_one"
        setting = replace(run.setting, adjacency="replace_one") if replaced else run.setting
        super().__init__(setting, run.noise_scale, key, ledger, noise_arithmetic="float")
        self.divisor = float(setting.batch_size)
        if self.implementation.divisor == "noisy_count":
            count = setting.dataset_size + run.count_scale * key.stream("count").laplaces(1)[0]
            self.divisor = setting.rate * float(count)

    def _make_sampler(self, setting: Setting, key: RunKey) -> Sampler:
        if self.implementation.sampling == "poisson":
            return super()._make_sampler(setting, key)
        return ShuffledEpochs(setting.dataset_size, setting.batch_size, key.stream("sampling"))

    def _noisy_sums(self, values: Tensor, clip: float, norm: bool = False) -> list[float]:
        """Scale such that the caller's division by the expected batch size matches the public code."""
        actual = self.batch_size / max(1, len(values))
        if self.implementation.divisor == "actual":
            return super()._noisy_sums(actual * values, clip, norm)
        factor = (
            actual if self.implementation.divisor == "actual_with_noise" else self.batch_size / self.divisor
        )
        return [factor * noisy for noisy in super()._noisy_sums(values, clip, norm)]

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        raise ValueError("public code accounts for no choice: use a budget of this project")

    def epsilon_spent(self) -> float:
        """An upper bound, from the ledger."""
        return self.run.epsilon_upper(len(self.ledger)) if len(self.ledger) else 0.0

    def _training_cost(self, measure: Callable[[Setting, float], float | None]) -> float | None:
        """RDP and mu of the setting are not those of what runs."""
        return None

    def statement(self, clip: float | None = None, epsilon_target: float | None = None) -> dict[str, Any]:
        target = self.run.epsilon if epsilon_target is None else epsilon_target
        claim = f"the claim of {target:g} is by {self.implementation.accountant} for Poisson sampling"
        return super().statement(clip, target) | {
            "adjacency": self.implementation.adjacency,
            "accountant": f"{self.run.bound}; {claim}",
        }
