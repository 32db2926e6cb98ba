"""PAZO (Gong and Li, NeurIPS 2025, arXiv 2511.10859): gradients of public examples guide private two-point steps.

G_j is the gradient of the mean loss of a batch of public examples at x, one for each candidate j. The private batch is only
evaluated, never differentiated. `variant` names the step, for K directions v_k, slopes d_ik = (f(x + smoothing v_k; i) - f(x - smoothing
v_k; i)) / (2 smoothing), noisy means g_k of the d_ik, and the learning rate lr:

    mixed (PAZO-M)      v_k = z_k / d^(1/4), z_k ~ N(0, I_d)
                        x <- x - lr (public_weight G_1 + (1 - public_weight) sum_k g_k v_k / K)
    subspace (PAZO-P)   v_k = sum_j c_kj b_j, c_k ~ N(0, I), b_j = G_j / |G_j| (or an orthonormal basis of their span)
                        x <- x - lr sum_k g_k v_k / K
    select (PAZO-S)     v_j = G_j, and G_j + exploration z_j as candidates of their own
                        x <- x - lr v_j for the j with the least noisy mean of losses f(x - lr v_j; i)

Sensitivity. A step releases one vector of m scalars, the sum over the batch of an example's m slopes or losses. Each of
an example's scalars is clipped to [-clip / sqrt(m), clip / sqrt(m)], so that its vector has norm `clip` at most, and one
example more or less moves the sum by `clip` at most. The noise is N(0, I_m) noise_scale clip. x, the directions and the
candidates are functions of public examples and of earlier releases, and the argmin is post-processing of this one. So a
step costs what one of DPZero does. Public examples are not protected, and not among those that the batches are drawn from.

The paper's code (`xuchengong/PAZO`, commit 028e8ef) was followed for what the abstract leaves open: d^(1/4), the scalar
clips, whose bound C is `clip` / sqrt(m) here, SGD, and its ranges of settings. The text of the paper could not be read
whole. Its defects are not followed: it shuffles in place of Poisson sampling, divides by the size of the batch, draws
noise from a generator whose seed is public, and in pazo-s.py all candidates are one object, the last gradient (not so
in pazo-s_vec.py). One departure: its PAZO-S scores k candidates, perturbs the best and scores that on the same batch, a
second release with sqrt(k + 1) times the noise. Here a batch is released once, so that each candidate is scored with its
perturbed twin, at sqrt(2 k) times the noise; with exploration 0 there are k scores, as in pazo-s_nonoise.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Never

import numpy as np
import torch
from torch import Tensor, nn

from dpzero.privacy import Budget, clip_scalars
from dpzero.private_two_point import PrivateTwoPoint
from dpzero.zeroth_order.protocols import PerExampleLoss

VARIANTS, BASES = ("mixed", "subspace", "select"), ("normalized", "orthonormal")


class PAZO(PrivateTwoPoint):
    """`public` holds the public examples, from which an array of indices picks some: assign it before the first step.

    A run takes `public_examples` of them, from the task's training rows, which are then not private, or from those of
    `public_task`. A gradient is that of `public_batch_size` of them, drawn by seed and step.

    Raises:
        ValueError: a setting out of range, units other than examples; in `step`, no public examples.
    """

    title = "PAZO"
    order = 1  # it asks for gradients, if of public examples alone: its memory is that of backpropagation
    public_data = True
    contract_settings = {"learning_rate": 0.01, "clip": 5.0}

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        variant: Literal["mixed", "subspace", "select"] = "mixed",
        directions: int = 1,
        smoothing: float = 1e-3,
        public_weight: float = 0.5,
        candidates: int = 3,
        basis: Literal["normalized", "orthonormal"] = "normalized",
        exploration: float = 0.01,
        public_examples: int = 64,
        public_task: str = "",
        public_batch_size: int = 8,
        one_at_a_time: bool = False,
        seed: int = 0,
    ) -> None:
        if variant not in VARIANTS or basis not in BASES:
            raise ValueError(
                f"variant is {variant!r} and basis {basis!r}: give one of {', '.join(VARIANTS)}, and one of "
                f"{', '.join(BASES)}"
            )
        if (
            min(directions, candidates, public_batch_size) < 1
            or not 0 <= public_weight <= 1
            or exploration < 0
        ):
            raise ValueError(
                "directions, candidates and public_batch_size must be positive, exploration not negative and public_weight "
                "from 0 to 1"
            )
        self.variant, self.basis, self.seed = variant, basis, seed
        self.public_weight, self.exploration = public_weight, exploration
        self.candidates = 1 if variant == "mixed" else candidates
        self.directions = directions if variant != "select" else candidates * (2 if exploration else 1)
        self.public: Any = None
        self.public_batch_size = public_batch_size
        self.clips_slopes = variant != "select"
        settings: dict[str, Any] = {"learning_rate": learning_rate, "clip": clip, "smoothing": smoothing}
        super().__init__(model, loss, budget, one_at_a_time=one_at_a_time, seed=seed, **settings)
        if self.unit != "example":
            raise ValueError(
                f"the unit is the {self.unit}: PAZO clips examples, so make a budget for examples"
            )
        self.fixed_rows = self.perturbation.fixed_rows
        self.perturbation: Any = StoredMoves(self.parameters, self._direction)
        self.guides = torch.zeros(0)  # of the step, [candidates, d]

    @property
    def forwards_per_example(self) -> int:
        return self.directions if self.variant == "select" else 2 * self.directions

    @property
    def public_forwards(self) -> int:
        """Forward passes of public examples in a step; a backward pass counts two."""
        size = (
            self.public_batch_size if self.public is None else min(self.public_batch_size, len(self.public))
        )
        return 3 * self.candidates * size

    # -- public examples

    def _public_gradients(self) -> Tensor:
        """float32 [candidates, d] at x, made into a basis for the variant subspace."""
        if self.public is None or not len(self.public):
            raise ValueError("there are no public examples: assign them to `public`")
        gradients = torch.stack([self._public_gradient(j) for j in range(self.candidates)])
        if self.variant != "subspace":
            return gradients
        if self.basis == "orthonormal":
            basis: Tensor = torch.linalg.qr(gradients.T).Q.T
            return basis
        return nn.functional.normalize(gradients, eps=torch.finfo(gradients.dtype).tiny)

    def _public_gradient(self, candidate: int) -> Tensor:
        """The gradient of the mean loss of a draw of public examples, [d]."""
        draw = np.random.default_rng([self.seed, self.steps_taken, candidate])
        chosen = self.public[draw.permutation(len(self.public))[: self.public_batch_size]]
        total = torch.zeros(())
        for part in getattr(self.loss, "parts", lambda batch: [batch])(chosen):
            with torch.enable_grad():
                mean = self.loss(self.model, part).sum() / len(chosen)
                gradients = torch.autograd.grad(mean, self.parameters, materialize_grads=True)
            total = total + flattened(gradients)
        return total

    # -- directions: of a step number k, [d]

    def _direction(self, k: int) -> Tensor:
        if self.variant == "subspace":
            coefficients = torch.zeros(len(self.guides))
            self.law.add_([coefficients], self.steps_taken, 1.0, k)
            return coefficients.to(self.guides) @ self.guides
        if self.variant == "mixed":  # the public gradient comes after the random directions
            return self._random(k, self.guides.shape[1] ** -0.25) if k < self.directions else self.guides[0]
        guide = self.guides[k % self.candidates]
        return guide if k < self.candidates else guide + self._random(k, self.exploration)

    def _random(self, k: int, scale: float) -> Tensor:
        """scale * z_k. Rows that never move (padding) are 0."""
        parts = [torch.zeros_like(p) for p in self.parameters]
        self.law.add_(parts, self.steps_taken, scale, k)
        for number, row in self.fixed_rows.items():
            parts[number][row] = 0.0
        return flattened(parts)

    # -- the step

    def _losses_at_points(self, batch: Any, count: int) -> Tensor:
        with self.model_check.forward_passes():
            self.guides = self._public_gradients()
        if self.variant != "select":
            return super()._losses_at_points(batch, count)
        losses = torch.zeros(2, self.directions, count, dtype=torch.float64)
        for k in range(self.directions):
            with (
                self.perturbation.perturbed(self.steps_taken, k, -self.learning_rates()[0]),
                self.model_check.forward_passes(),
            ):
                losses[:, k] = self._losses(batch, count)
        return losses

    def released_scalars(self, first: Tensor, second: Tensor, users: np.ndarray | None) -> list[float]:
        """The coefficients of the directions: noisy mean slopes, and 1 for the selected candidate."""
        values = first if self.variant == "select" else (first - second) / (2 * self.smoothing)
        released = self.budget.release_vectors(self._clipped(values.T), self.clip)
        if self.variant == "select":
            best = min(range(self.directions), key=released.__getitem__)
            return [float(k == best) for k in range(self.directions)]
        share = 1.0 if self.variant == "subspace" else 1 - self.public_weight
        own = [share * scalar / (self.batch_size * self.directions) for scalar in released]
        return own if self.variant == "subspace" else [*own, self.public_weight]

    def _clipped(self, values: Tensor) -> Tensor:
        """Slopes or losses float64 [B, m] -> the same, each clipped. A slope that is not finite is 0, a loss the bound."""
        bound = self.clip / math.sqrt(self.directions)
        finite = torch.where(values.isfinite(), values, bound if self.variant == "select" else 0.0)
        return clip_scalars(finite, bound)

    def _influence(self, moved: Tensor) -> float:
        """All scalars of an example may move together."""
        return super()._influence(moved * math.sqrt(self.directions))

    def write_transcript(self, path: str | Path) -> Never:
        raise ValueError("a step of PAZO follows the gradients of public examples, which no transcript holds")


class StoredMoves:
    """The moves of `Perturbation`, along directions that are given in memory. Weights return to x to the bit.

    Args:
        parameters: the trained tensors.
        direction: k -> direction k of this step, [d].
    """

    def __init__(self, parameters: Sequence[Tensor], direction: Callable[[int], Tensor]) -> None:
        self.parameters, self.direction = parameters, direction
        self.position = (0, 0, 0.0)
        self._planned: list[tuple[int, float]] = []

    @contextmanager
    def perturbed(self, step: int, k: int, scale: float) -> Iterator[None]:
        start = [p.detach().clone() for p in self.parameters]
        self.position = (step, k, scale)
        self._add(k, scale)
        try:
            yield
        finally:
            for p, value in zip(self.parameters, start, strict=True):
                p.copy_(value)
            self.position = (step, 0, 0.0)

    def restore(self) -> None:
        """Nothing is left to restore: each point returns to x."""

    def plan_update(self, step: int, coefficients: Sequence[float], multipliers: Sequence[float]) -> None:
        [multiplier] = multipliers  # there is one group
        self._planned = [
            (k, multiplier * coefficient) for k, coefficient in enumerate(coefficients) if coefficient
        ]

    def apply(self) -> None:
        for k, scale in self._planned:
            self._add(k, scale)
        self._planned = []

    def _add(self, k: int, scale: float) -> None:
        parts = torch.split(self.direction(k), [p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.add_(part.view_as(p), alpha=scale)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
