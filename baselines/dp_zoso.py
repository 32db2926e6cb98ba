"""DP-ZOSO (Liu et al., NDSS 2025, arXiv 2402.07818): DPZero's release, in stages.

A stage takes twice the steps of the one before at half its learning rate. Differences are clipped after the division by
2 smoothing. The paper also pulls the weights towards the point where the stage began. In the public code this pull is zero,
because the stored point is an alias of the weights, and it is left out here. (DP-ZOPO is the same on a mask of the weights.)
"""

from __future__ import annotations

from torch import Tensor

from dpzero.privacy import Budget, check_clip, clip_scalars
from dpzero.zeroth_order import TwoPoint


class DPZOSO(TwoPoint):
    """`stages` share the budget's steps as 1 : 2 : 4 ..., or the first takes `first_stage` steps where that is given."""

    title = "DP-ZOSO"
    private = True

    def __init__(
        self,
        model,
        loss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        smoothing: float = 1e-3,
        stages: int = 3,
        first_stage: int = 0,
        seed: int = 0,
        **engine,
    ) -> None:
        super().__init__(
            model,
            loss,
            batch_size=Budget.require(budget).batch_size,
            learning_rate=learning_rate,
            smoothing=smoothing,
            seed=seed,
            **engine,
        )
        check_clip(clip)
        if not (stages > 0 and first_stage >= 0):
            raise ValueError("stages must be positive, first_stage not negative")
        self.budget, self.clip, self.unit = budget, clip, budget.unit
        first_stage = first_stage or -(-budget.setting.steps // (2**stages - 1))
        self.schedule = [(first_stage * (2**k - 1), learning_rate / 2**k) for k in range(stages)]

    def projected_gradient(self, difference: Tensor) -> float:
        clipped = clip_scalars(difference / (2 * self.smoothing), self.clip)
        return self.budget.release(clipped, self.clip) / self.batch_size
