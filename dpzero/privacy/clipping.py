"""Bound what one example can contribute. An example's clipped value depends on that example alone."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_CLIP, MAX_CLIP = 1e-30, 1e30  # beyond, noise_scale * clip or value / clip leaves the range of floats
MIN_NORM = 1e-12  # of what is divided by its norm


def check_clip(clip: float) -> None:
    """Raise ValueError if the clipping threshold is not positive, or too small or large to compute with."""
    if not MIN_CLIP <= clip <= MAX_CLIP:
        raise ValueError(
            f"clip is {clip}: give a bound from {MIN_CLIP:g} to {MAX_CLIP:g}, in units of what is clipped"
        )


def clip_scalars(values: Tensor, clip: float) -> Tensor:
    """Clip each scalar to [-clip, clip].

    A NaN becomes 0 and an infinity the bound: `x * min(1, clip / |x|)` would give NaN for both, which ends
    the run and reveals that the example was there.

    Args:
        values: [batch], any float dtype.
        clip: the clipping threshold.

    Returns:
        float64 [batch].
    """
    return torch.nan_to_num(values.double(), nan=0.0, posinf=clip, neginf=-clip).clamp(-clip, clip)


def clip_factors(squared_norms: Tensor, clip: float) -> Tensor:
    """Squared norms [batch] -> factors [batch] that clip each vector's norm; 0 for a norm that is not finite."""
    norms = squared_norms.double().sqrt()
    factors = (clip / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def automatic_factors(squared_norms: Tensor, clip: float, stability: float) -> Tensor:
    """Factors clip / (norm + stability) of automatic clipping (AUTO-S; Bu et al., 2023, arXiv 2206.07136).

    They take each vector's norm below clip, and lengthen short ones, too. A stability of 0 is the paper's AUTO-V;
    then a norm below MIN_NORM counts as that, so that a vector of length 0 stays one.

    Args:
        squared_norms: [batch].
        clip: the bound on the norm.
        stability: the paper's gamma, 0.01 in the authors' code (fastDP).

    Returns:
        [batch], float64; 0 for a norm that is not finite.
    """
    norms = squared_norms.double().sqrt()
    factors = clip / (norms + stability).clamp_min(MIN_NORM)
    return factors.where(norms.isfinite(), 0.0)
