"""DP-ZO (Tang et al., TMLR 2025, arXiv 2401.04343): the scalar of a zeroth-order step, privatised.

It differs from DPZero in what is clipped, the plain loss difference before the division by 2 smoothing, and in its noise,
Gaussian or Laplace; Laplace also gives pure epsilon-DP (delta 0). The authors published no code: sampling (Poisson),
adjacency (add/remove) and accounting are this project's, the same for every private method.
"""

from __future__ import annotations

from torch import Tensor

from dpzero.privacy import Budget, check_clip, clip_scalars
from dpzero.zeroth_order import TwoPoint


class DPZO(TwoPoint):
    """`clip` bounds f(x + smoothing z) - f(x - smoothing z), in units of the loss; the paper's runs use 0.05."""

    title = "DP-ZO"
    private = True
    clips_quotients = False

    def __init__(
        self,
        model,
        loss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float = 0.05,
        smoothing: float = 1e-3,
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
        self.budget, self.clip, self.unit = budget, clip, budget.unit

    def projected_gradient(self, difference: Tensor) -> float:
        clipped = clip_scalars(difference, self.clip)
        released = self.budget.release(clipped, self.clip)
        return released / (2 * self.smoothing * self.batch_size)
