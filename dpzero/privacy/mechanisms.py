"""Gaussian and Laplace noise for a sum whose terms are bounded by `clip`, in float or in exact arithmetic.

`float` noise is exact in distribution up to rounding, which attacks on the low-order bits exploit (Mironov
2012). `exact` noise is for scalars: every clipped value is rounded to an integer multiple of clip *
2^-GRID_BITS, the integers are summed, discrete noise is added, and an integer is released.

What `exact` proves. Laplace: the ratio of probabilities is that of the continuous law, so pure epsilon holds
unchanged. Gaussian, and Laplace at delta > 0: the discrete law lies within total variation TV of the rounded
continuous one, and rounding is post-processing of the continuous release of the same integer sum. So T
scalars cost at most (1 + exp(epsilon)) T TV of delta beyond the accountant's. TV is below 2^-80 /
noise_scale^2 (see `delta_excess`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import discrete_noise
from .randomness import Stream

# fine enough for the excess above, coarse enough for sums of 2^12 values and their noise in a float64
GRID_BITS = 40
ARITHMETICS = ("float", "exact")
CHUNK = 2**18  # noise numbers drawn at once: 2 MiB
# of vectors before truncation to the grid: covers the rounding of norms that a release accepts
SHRINK = 1 - 2.0**-39


class Gaussian:
    """Noise with standard deviation noise_scale * clip."""

    name = "gaussian"
    unit_noise = staticmethod(Stream.normals)

    @staticmethod
    def grid_noise(stream: Stream, noise_scale: float, *counter: int) -> int:
        """Noise in units of clip * 2^-GRID_BITS, with at least the variance of noise_scale."""
        return discrete_noise.gaussian(
            discrete_noise.Bits(stream, *counter), math.ceil(_on_grid(noise_scale) ** 2)
        )


class Laplace:
    """Noise with density exp(-|x| / b) / 2b, b = noise_scale * clip, for scalars bounded by clip."""

    name = "laplace"
    unit_noise = staticmethod(Stream.laplaces)

    @staticmethod
    def grid_noise(stream: Stream, noise_scale: float, *counter: int) -> int:
        return discrete_noise.laplace(discrete_noise.Bits(stream, *counter), math.ceil(_on_grid(noise_scale)))


MECHANISMS: dict[str, type[Gaussian] | type[Laplace]] = {law.name: law for law in (Gaussian, Laplace)}


class Noise:
    """Adds noise to sums. The noise of draw t depends on t and the stream alone.

    Args:
        mechanism: gaussian or laplace.
        scale: standard deviation or Laplace scale, over the clip.
        arithmetic: exact (integers, for scalars) or float.
        stream: of the run key.
    """

    def __init__(self, mechanism: str, scale: float, arithmetic: str, stream: Stream) -> None:
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"noise_arithmetic is {arithmetic!r}: give one of {', '.join(ARITHMETICS)}")
        self.law, self.scale, self.arithmetic, self._stream = MECHANISMS[mechanism], scale, arithmetic, stream

    def with_stream(self, stream: Stream) -> Noise:
        """The same law on another stream."""
        return type(self)(self.law.name, self.scale, self.arithmetic, stream)

    def terms(self, values: Tensor, clip: float, norm: bool = False) -> Tensor:
        """Return the terms of the sum: the values or, for exact noise, integers times clip * 2^-GRID_BITS.

        Args:
            values: float64 [batch, K].
            clip: the bound on each value.
            norm: whether `clip` bounds each row's Euclidean norm instead.
        """
        if self.arithmetic == "float":
            return values
        scaled = values / clip * 2.0**GRID_BITS
        return torch.trunc(scaled * SHRINK) if norm else torch.round(scaled)

    def totals(self, columns: Sequence[Sequence[float]]) -> list[float]:
        """The exact sum of each column of terms; an integer for exact noise."""
        return [math.fsum(c) if self.arithmetic == "float" else sum(map(int, c)) for c in columns]

    def sums(self, draw: int, totals: Sequence[float], clip: float) -> list[float]:
        """Totals -> noisy sums. For exact noise the last line post-processes the released integers."""
        if self.arithmetic == "float":
            noise = self.unit(len(totals), draw, 0, 0)
            return [total + self.scale * clip * float(z) for total, z in zip(totals, noise, strict=True)]
        noisy = [
            total + self.law.grid_noise(self._stream, self.scale, draw, k) for k, total in enumerate(totals)
        ]
        return [n * 2.0**-GRID_BITS * clip for n in noisy]

    def add_(self, draw: int, sums: Sequence[Tensor], clip: float, first: int = 0) -> None:
        """Add float noise in place to tensors that together are one sum of vectors of norm at most clip.

        Tensors of one draw have numbers, from `first` on: equal ones have equal noise.
        """
        for index, tensor in enumerate(sums, first):
            flat = tensor.view(-1)
            for chunk, start in enumerate(range(0, flat.numel(), CHUNK)):
                part = flat[start : start + CHUNK]
                noise = torch.from_numpy(self.unit(part.numel(), draw, index, chunk))
                part.add_(noise.to(part), alpha=self.scale * clip)

    def unit(self, count: int, *counter: int) -> NDArray[np.float64]:
        """`count` noise numbers at scale 1."""
        return self.law.unit_noise(self._stream, count, *counter)


def delta_excess(noise_scale: float, scalars: int, epsilon: float) -> float:
    """Return what `exact` arithmetic adds to delta at most, over all scalars (steps times directions) of a run.

    The rounded Gaussian's mass at k is the mean of the density over k +- 1/2. It differs by the second
    derivative over 24, in all by at most 1 / (24 s^2) of mass for s = noise_scale 2^GRID_BITS; the rounded
    Laplace's by at most 1 / (4 s^2).
    """
    scale = noise_scale * 2.0**GRID_BITS
    return (1 + math.exp(min(epsilon, 700.0))) * scalars / (4 * scale * scale)


def _on_grid(noise_scale: float) -> Fraction:
    return Fraction(noise_scale) * Fraction(2) ** GRID_BITS
