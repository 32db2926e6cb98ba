"""DP-AggZO (Bao et al., USENIX Security 2025): K directions a step, clipped and noised together as one vector.

d_ik = (f(x + smoothing z_k; i) - f(x - smoothing z_k; i)) / (2 smoothing)      for the K directions z_k of the step
v_i = (d_i1 .. d_iK) / K, clipped to the Euclidean norm `clip`                   (equation 21)
x <- x - learning_rate sum_k g_k z_k,   g = (sum_i v_i + noise) / batch_size      (noise: N(0, I) noise_scale clip)

One example moves the vector by `clip` at most, so K scalars cost as much as one, and K = 1 is DPZero. The
paper divides by a noisy batch size, which costs 5 % of epsilon. Here the expected size is public.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpzero.privacy.clipping import clip_factors
from dpzero.private_two_point import PrivateTwoPoint


class DPAggZO(PrivateTwoPoint):
    """`clip` bounds the norm of an example's vector. The paper: 100 / sqrt(directions), 16 to 512 directions."""

    title = "DP-AggZO"
    contract_settings = {"directions": 2}  # the contract suite is quicker than with 4

    def __init__(self, *arguments: Any, directions: int = 4, seed: int = 0, **settings: Any) -> None:
        self.directions = directions
        super().__init__(*arguments, seed=seed, **settings)
        if not (directions > 0 and self.unit != "user"):
            raise ValueError("directions must be positive, and the unit the example")

    def projected_gradients(self, differences: Tensor) -> list[float]:
        slopes = differences / (2 * self.smoothing)
        released = self.budget.release_vectors(self._clipped(slopes / self.directions), self.clip)
        return [scalar / self.batch_size for scalar in released]

    def _clipped(self, vectors: Tensor) -> Tensor:
        """float64 [B, K] -> the same with norms of at most `clip`. A vector that is not finite counts as absent."""
        factors = clip_factors(vectors.square().sum(1), self.clip)
        return factors[:, None] * torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
