"""A budget that samples, adds and divides as a public implementation does, to match its numbers.

Its epsilon is what that gives, not the claim. One thing is not reproduced: the noise comes from the run key, as everywhere in
this project, and is as secret as that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .budget import Budget
from .published import Published
from .sampling import Sampler, ShuffledEpochs
from .streams import RunKey


class AsPublished(Budget):
    """In place of a `Budget`, for the method whose practice it is. No valid release."""

    def __init__(self, published: Published, key: RunKey, ledger: Path | None = None) -> None:
        self.published, self.practice = published, published.practice
        setting = published.setting
        if self.practice.adjacency == "replace_one":
            setting = replace(setting, adjacency="replace_one")
        super().__init__(setting, published.noise_scale, key, ledger)
        if self.practice.divisor == "noisy_count":
            count = setting.dataset_size + published.count_scale * key.stream("count").laplaces(1)[0]
            self.divisor = setting.rate * float(count)

    def _make_sampler(self) -> Sampler:
        if self.practice.sampling == "poisson":
            return super()._make_sampler()
        return ShuffledEpochs(self.setting.dataset_size, self.setting.batch_size, self.key.stream("sampling"))

    def _float_sums(self, step: int, values: Tensor, clip: float) -> list[float]:
        """Such that division by the expected batch size, which follows, is one by the batch's own."""
        own = self.batch_size / max(1, len(values))
        if self.practice.divisor == "actual":
            return super()._float_sums(step, own * values, clip)
        return [own * noisy for noisy in super()._float_sums(step, values, clip)]

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        raise ValueError("public code accounts for no choice: use a budget of this project")

    def release_(self, step: int, clipped_sums: Sequence[Tensor], clip: float) -> None:
        super().release_(step, clipped_sums, clip)
        for noisy in clipped_sums:
            noisy.mul_(self.batch_size / self.divisor)

    def epsilon_spent(self) -> float:
        """An upper bound, from the ledger."""
        return self.published.at_most(len(self.ledger)) if len(self.ledger) else 0.0

    def _of_what_ran(self, epsilon) -> None:
        """RDP and mu of the setting are not those of what runs."""

    def statement(self, clip: float, epsilon_target: float) -> dict:
        claim = f"the claim of {epsilon_target:g} is by {self.practice.accountant} for Poisson sampling"
        return super().statement(clip, epsilon_target) | {
            "adjacency": self.practice.adjacency,
            "accountant": f"{self.published.bound}; {claim}",
            "valid_release": False,
        }
