"""Bound what one example can contribute. An example's clipped value depends on that example alone."""

from __future__ import annotations

import torch
from torch import Tensor

CLIPS = (
    1e-30,
    1e30,
)  # beyond them noise_scale times clip, or a value over the clip, leaves the range of floats


def check_clip(clip: float) -> None:
    """Raises ValueError for a bound that is none, or too small or large to compute with."""
    if not CLIPS[0] <= clip <= CLIPS[1]:
        raise ValueError(
            f"clip is {clip}: give a bound from {CLIPS[0]:g} to {CLIPS[1]:g}, in units of what is clipped"
        )


def clip_scalars(values: Tensor, clip: float) -> Tensor:
    """Scalars [batch], any float dtype -> float64 [batch] in [-clip, clip].

    A loss that is not a number contributes 0 and an infinite one the bound: `x * min(1, clip / |x|)` would give NaN for
    both, and a NaN in the release both ends the run and reveals that its example was there.
    """
    return torch.nan_to_num(values.double(), nan=0.0, posinf=clip, neginf=-clip).clamp(-clip, clip)


def clip_factors(squared_norms: Tensor, clip: float) -> Tensor:
    """Squared norms [batch] -> factors [batch] that bring each vector's norm to at most clip; 0 where it is not finite."""
    norms = squared_norms.double().sqrt()
    factors = (clip / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))
