"""DP-AggZO (Bao et al., USENIX Security 2025): K directions a step, clipped and noised together as one vector.

d_ik = (f(x + smoothing z_k; i) - f(x - smoothing z_k; i)) / (2 smoothing)      for the K directions z_k of the step
v_i = (d_i1 .. d_iK) / K, clipped to the Euclidean norm `clip`                   (equation 21)
x <- x - learning_rate sum_k g_k z_k,   g = (sum_i v_i + noise) / batch_size      (noise: N(0, I) noise_scale clip)

One example moves the vector by `clip` at most, so K scalars cost what one costs; K = 1 is DPZero. The paper divides by a noisy
batch size, for 5 % of epsilon; here the size is public.
"""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor

from dpzero.privacy import Budget, check_clip
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order import TwoPoint


class DPAggZO(TwoPoint):
    """`clip` bounds the norm of an example's vector: some 100 / sqrt(directions) in the paper, which takes 16 to 512."""

    title = "DP-AggZO"
    private = True

    def __init__(
        self,
        model,
        loss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        directions: int = 4,
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
        if not (directions > 0 and budget.unit == "example"):
            raise ValueError("directions must be positive, and the unit the example")
        self.budget, self.clip, self.directions = budget, clip, directions

    @torch.no_grad()
    def step(self, batch: Sized) -> list[float]:
        """One step on a batch, which may be empty. Returns the K released scalars over the batch size."""
        count, _ = self._begin(batch)
        means, differences = zip(*(self._along(batch, count, k) for k in range(self.directions)), strict=True)
        self.training_loss = self._mean(torch.stack(means))
        with self._restored_on_failure():
            released = self.budget.release_vectors(self._clipped(torch.stack(differences, dim=1)), self.clip)
            gradient = self._record([scalar / self.batch_size for scalar in released])
        self._move(gradient)
        return gradient

    def _along(self, batch: Sized, count: int, k: int) -> tuple[Tensor, Tensor]:
        """Along direction k: mean losses [B] and finite differences [B]."""
        plus, minus = self._both_sides(batch, count, k)
        return (plus + minus) / 2, (plus - minus) / (2 * self.smoothing)

    def _clipped(self, differences: Tensor) -> Tensor:
        """Finite differences [B, K], float64 -> clipped vectors [B, K]. What is not finite counts as absent."""
        vectors = differences / self.directions
        factors = clip_factors(vectors.square().sum(1), self.clip)
        return factors[:, None] * torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
