"""MeZO (Malladi et al., NeurIPS 2023, arXiv 2305.17333), Algorithm 1: zeroth-order SGD, not private."""

from __future__ import annotations

from torch import Tensor

from dpzero.zeroth_order import TwoPoint


class MeZO(TwoPoint):
    """Uses the mean loss difference as it is: nothing is clipped, no noise is added."""

    title = "MeZO"
    private = False

    def projected_gradient(self, difference: Tensor) -> float:
        return self.total(difference[:, None])[0] / (2 * self.smoothing * self.batch_size)
