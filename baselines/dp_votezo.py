"""DP-VoteZO: K directions a step from K + 1 forward passes, and one vote of bounded norm an example.

At each step, for K random directions z_1 .. z_K, which are public:
    f_i = f(x; i)                                        for each example i of the Poisson batch
    d_ik = (f(x + smoothing z_k; i) - f_i) / smoothing
    v_i = min(1, (1 - exp(-f_i)) / doubt) d_i / |d_i|    (the vote, of norm at most 1)
    g = (sum_i v_i + noise) / batch_size                 (noise: N(0, I) noise_scale)
    m <- shrinkage m + (1 - shrinkage) |g|^2 / K         (bias-corrected, as Adam's)
    x <- x - learning_rate max(0, 1 - (noise_scale / batch_size)^2 / m) sum_k g_k z_k

1. *One release for K directions*, as in DP-AggZO, with one base point for all: K + 1 passes in place of 2 K. At
   equal passes that is nearly twice as many pairs of example and direction, whose number F bounds the error of
   sampling, d / F for d weights and votes of norm 1. The error of privacy, d / (n mu)^2 for n examples and mu of
   Gaussian differential privacy, does not depend on K, the batch size or the number of steps.
2. *Votes need no clip to be chosen.* Where noise rules, what counts of an example is the direction of its slopes:
   a clip far below them is best, and |v_i| = 1 is its limit. An example that the model is sure of (1 - exp(-f_i)
   is the probability of a wrong answer, by the model) votes less. A vote has no scale.
3. *Step size from the releases.* The noise in the released scalars is known. The factor is the part of their
   second moment that is not noise (James and Stein 1961). It is post-processing, and makes steps small where noise
   rules, so that the learning rate need not follow epsilon.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpzero.private_two_point import PrivateTwoPoint


class DPVoteZO(PrivateTwoPoint):
    """`clip` scales all votes and the noise: only its product with `learning_rate` matters."""

    title = "DP-VoteZO"
    one_sided = True
    # without shrinkage, which may take a first step back whole
    contract_settings = {"directions": 4, "shrinkage": 0.0, "learning_rate": 5e-3}

    def __init__(
        self,
        *arguments: Any,
        directions: int = 8,
        doubt: float = 0.2,
        clip: float = 1.0,
        shrinkage: float = 0.997,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.directions, self.doubt = directions, doubt
        super().__init__(*arguments, clip=clip, shrinkage=shrinkage, seed=seed, **settings)
        if not (directions > 0 and doubt > 0 and self.unit != "user"):
            raise ValueError("directions and doubt must be positive, and the unit the example")

    def released_scalars(self, first: Tensor, second: Tensor, users: np.ndarray | None) -> list[float]:
        released = self.budget.release_vectors(self._votes((first - second).T, second[0]), self.clip)
        return [scalar / self.batch_size for scalar in released]

    def _votes(self, differences: Tensor, losses: Tensor) -> Tensor:
        """Differences float64 [B, K] and losses [B] at x -> votes [B, K]; 0 if a number is not finite."""
        weights = (-torch.expm1(-losses.abs()) / self.doubt).clamp(0, 1)
        units = differences / torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        votes = self.clip * weights[:, None] * units
        return torch.where(votes.isfinite().all(1, keepdim=True), votes, 0.0)

    def _influence(self, moved: Tensor) -> float:
        """A vote is as long however small the slopes, so a loss that moves at all may turn it round."""
        count = int(moved.count_nonzero())
        return 10.0 ** math.ceil(math.log10(2 * count)) if count else 0.0
