"""DP-ZOSO (Liu et al., NDSS 2025, arXiv 2402.07818): DPZero's release, in stages.

A stage takes twice the steps of the one before at half its learning rate. Differences are clipped after the
division by 2 smoothing. The paper also pulls the weights towards the point where the stage began. In the
public code this pull is zero, because the stored point is an alias of the weights, and it is left out here.
(DP-ZOPO is the same on a mask of the weights.)
"""

from __future__ import annotations

from typing import Any

from dpzero.algorithm import DPZero


class DPZOSO(DPZero):
    """`stages` share the budget's steps as 1 : 2 : 4 ..., or the first takes `first_stage` steps if given."""

    title = "DP-ZOSO"

    def __init__(
        self, *arguments: Any, stages: int = 3, first_stage: int = 0, seed: int = 0, **settings: Any
    ) -> None:
        super().__init__(*arguments, seed=seed, **settings)
        if not (stages > 0 and first_stage >= 0):
            raise ValueError("stages must be positive, first_stage not negative")
        self.stages = stages
        self.first_stage = first_stage or -(-self.budget.setting.steps // (2**stages - 1))

    def learning_rates(self) -> list[float]:
        """Of the stage in which the next step is: stage k begins at step first_stage (2^k - 1)."""
        stage = min((self.steps_taken // self.first_stage + 1).bit_length(), self.stages) - 1
        return [rate / 2**stage for rate in super().learning_rates()]
