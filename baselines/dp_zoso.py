"""DP-ZOSO (Liu et al., NDSS 2025, arXiv 2402.07818): DPZero's release, in stages.

A stage takes twice the steps of the one before at half its learning rate, and is pulled towards the point where it began:
x <- x - learning_rate g z, then x <- x - learning_rate regularization (x - start of the stage). Clipped after the division by
2 smoothing. (DP-ZOPO is the same on a mask of the weights. The pull of the public code is nil, because its start is an alias of
the weights: so it is here unless asked for.)
"""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import torch
from torch import Tensor

from dpzero.privacy import Budget, check_clip, clip_scalars
from dpzero.zeroth_order import TwoPoint


class DPZOSO(TwoPoint):
    """`stages` share the budget's steps as 1 : 2 : 4 ..., or the first takes `first_stage` steps where that is given.

    A `regularization` above 0 keeps a copy of what is trained, which is more than the memory of inference.
    """

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
        regularization: float = 0.0,
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
        if not (stages > 0 and first_stage >= 0 and regularization >= 0):
            raise ValueError("stages must be positive, first_stage and regularization not negative")
        self.budget, self.clip, self.unit = budget, clip, budget.unit
        self.regularization = regularization
        first_stage = first_stage or -(-budget.setting.steps // (2**stages - 1))
        self.begins = [first_stage * (2**k - 1) for k in range(stages)]  # the step at which each stage does
        self.schedule = [(begin, learning_rate / 2**k) for k, begin in enumerate(self.begins)]
        self.start: list[Tensor] = []  # empty where there is no pull

    def projected_gradient(self, difference: Tensor) -> float:
        clipped = clip_scalars(difference / (2 * self.smoothing), self.clip)
        return self.budget.release(clipped, self.clip) / self.batch_size

    @torch.no_grad()
    def step(self, batch: Sized, users: Tensor | None = None) -> float:
        rate = self.learning_rate
        if self.regularization and self.steps_taken in self.begins:
            self.start = [p.clone() for p in self.parameters]
        gradient = super().step(batch, users)
        for p, start in zip(self.parameters, self.start, strict=False):
            p.lerp_(start, rate * self.regularization)
        return gradient

    def write_transcript(self, path: Path) -> None:
        if self.regularization:
            raise ValueError(
                "a pull towards weights that the transcript does not have: none is kept with regularization"
            )
        super().write_transcript(path)

    def state_dict(self) -> dict:
        return super().state_dict() | ({"start": [s.clone() for s in self.start]} if self.start else {})

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.start = [s.clone() for s in state.get("start", [])]
