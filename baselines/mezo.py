"""MeZO (Malladi et al., NeurIPS 2023, arXiv 2305.17333), Algorithm 1: zeroth-order SGD, not private."""

from __future__ import annotations

from torch import Tensor

from dpzero.zeroth_order import TwoPoint


class MeZO(TwoPoint):
    """The mean of the loss differences is used as it is: nothing is clipped, no noise is added."""

    title = "MeZO"
    private = False

    def __init__(
        self,
        model,
        loss,
        batch_size: int,
        *,
        learning_rate: float,
        smoothing: float = 1e-3,
        seed: int = 0,
        **engine,
    ) -> None:
        super().__init__(
            model,
            loss,
            batch_size=batch_size,
            learning_rate=learning_rate,
            smoothing=smoothing,
            seed=seed,
            **engine,
        )

    def projected_gradient(self, difference: Tensor) -> float:
        return self.total(difference[:, None])[0] / (2 * self.smoothing * self.batch_size)
