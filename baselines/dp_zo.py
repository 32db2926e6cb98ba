"""DP-ZO (Tang et al., TMLR 2025, arXiv 2401.04343): the scalar of a zeroth-order step, privatised.

It differs from DPZero in what is clipped, the plain loss difference before the division by 2 smoothing, and
in its noise, Gaussian or Laplace. Laplace noise also gives pure epsilon-DP (delta 0). The authors published
no code: sampling (Poisson), adjacency (add/remove) and accounting are this project's, the same for every
private method.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dpzero.private_two_point import PrivateTwoPoint


class DPZO(PrivateTwoPoint):
    """`clip` bounds f(x + smoothing z) - f(x - smoothing z), in units of the loss. The paper's runs use 0.05."""

    title = "DP-ZO"
    clips_slopes = False

    def __init__(self, *arguments: Any, clip: float = 0.05, seed: int = 0, **settings: Any) -> None:
        super().__init__(*arguments, clip=clip, seed=seed, **settings)

    def projected_gradient(self, difference: Tensor) -> float:
        return self.noisy_sum(difference) / (2 * self.smoothing * self.batch_size)
