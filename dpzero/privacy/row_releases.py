"""Noise for the rows of a table of which each example uses few: the mechanism of DP-AdaFEST.

Ghazi et al. (2023, arXiv 2311.08357), algorithm 1: the number of examples that use each row is released with
noise sigma_1; then the gradient, with noise sigma_2, of those rows alone whose noisy number reaches a
threshold. The first sum over its clip is a vector of sensitivity 1, and so is the second given the first. So
both together lose what one Gaussian release loses with noise sigma, sigma^-2 = sigma_1^-2 + sigma_2^-2: the
trade-off function of the one after the other is G(1 / sigma) (Dong, Roth and Su 2022, corollary 3.3, where
the second may depend on the outcome of the first). Poisson sampling of the batch amplifies the two as a whole,
and a ledger's noise_scale is sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .mechanisms import Noise


class Rows(NamedTuple):
    """Sums over a batch for a table of V rows of width H.

    Attributes:
        counts: float64 [V], a sum of vectors of norm at most `counts_clip`, one an example.
        numbers: int64 [R], the rows that the batch uses, ascending.
        gradients: [R, H], their part of the sum of clipped gradients.
        others: the rest of that sum, without the table.
    """

    counts: Tensor
    counts_clip: float
    numbers: Tensor
    gradients: Tensor
    others: Sequence[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.counts, self.numbers, self.gradients, *self.others]


def noise_scales(noise_scale: float, first_share: float) -> tuple[float, float]:
    """Sigma_1 and sigma_2, over their clips, whose joint noise is `noise_scale`.

    Args:
        first_share: the part of sigma^-2 that is sigma_1^-2; above 0 and below 1.
    """
    return noise_scale / math.sqrt(first_share), noise_scale / math.sqrt(1 - first_share)


def add_noise_(
    noise: Noise, draw: int, rows: Rows, clip: float, threshold: float, first_share: float
) -> tuple[Tensor, Tensor]:
    """Add noise to the counts and the other tensors in place, and to the rows whose count survives.

    Returns:
        The surviving rows, int64 [S], most of which may be rows that no example uses, and their noisy gradients [S, H].
    """
    first, second = noise_scales(noise.scale, first_share)
    noise.add_(draw, [rows.counts], rows.counts_clip * first / noise.scale)
    survive = rows.counts >= threshold * first * rows.counts_clip
    numbers, used = survive.nonzero()[:, 0], survive[rows.numbers]
    gradients = rows.gradients.new_zeros(len(numbers), rows.gradients.shape[1])
    gradients[torch.searchsorted(numbers, rows.numbers[used])] = rows.gradients[used]
    noise.add_(draw, [gradients, *rows.others], clip * second / noise.scale, first=1)
    return numbers, gradients
