"""A budget that samples, adds and divides as a public implementation does, to match its numbers.

Its epsilon is what that gives, not the claim. One thing is not reproduced: the noise comes from the run key, as everywhere in
this project, and is as secret as that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .budget import Budget
from .public_implementations import PublicRun
from .randomness import RunKey
from .sampling import Sampler, ShuffledEpochs


class PublicCodeBudget(Budget):
    """In place of a `Budget`, for the method whose practice it is. No valid release."""

    def __init__(self, published: PublicRun, key: RunKey, ledger: str | Path | None = None) -> None:
        self.published, self.practice = published, published.practice
        setting = published.setting
        if self.practice.adjacency == "replace_one":
            setting = replace(setting, adjacency="replace_one")
        super().__init__(setting, published.noise_scale, key, ledger, noise_arithmetic="float")
        if self.practice.divisor == "noisy_count":
            count = setting.dataset_size + published.count_scale * key.stream("count").laplaces(1)[0]
            self.divisor = setting.rate * float(count)

    def _make_sampler(self) -> Sampler:
        if self.practice.sampling == "poisson":
            return super()._make_sampler()
        return ShuffledEpochs(self.setting.dataset_size, self.setting.batch_size, self.key.stream("sampling"))

    def _released(self, values: Tensor, clip: float, norm: bool = False) -> list[float]:
        """Such that division by the expected batch size, which follows, is the practice's."""
        own = self.batch_size / max(1, len(values))
        if self.practice.divisor == "actual":
            return super()._released(own * values, clip, norm)
        factor = self.batch_size / self.divisor if self.practice.divisor == "noisy_count" else own
        return [factor * noisy for noisy in super()._released(values, clip, norm)]

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        raise ValueError("public code accounts for no choice: use a budget of this project")

    @property
    def valid_release(self) -> bool:
        return False

    def epsilon_spent(self) -> float:
        """An upper bound, from the ledger."""
        return self.published.epsilon_upper(len(self.ledger)) if len(self.ledger) else 0.0

    def _of_what_ran(self, epsilon) -> None:
        """RDP and mu of the setting are not those of what runs."""

    def statement(self, clip: float, epsilon_target: float) -> dict:
        claim = f"the claim of {epsilon_target:g} is by {self.practice.accountant} for Poisson sampling"
        return super().statement(clip, epsilon_target) | {
            "adjacency": self.practice.adjacency,
            "accountant": f"{self.published.bound}; {claim}",
        }
