"""Noise laws for a sum whose terms are bounded by `clip`. Scales are in units of clip.

Each law comes in two arithmetics. `float` is exact in distribution up to rounding, and rounding is what attacks on the
low-order bits use (Mironov 2012). `exact` is for scalars: every clipped value is rounded to an integer number of
clip * 2^-GRID_BITS, integers are summed, a discrete law is added, an integer is released.

What `exact` proves. Laplace: the ratio of probabilities is that of the continuous law, so pure epsilon holds as it stands.
Gaussian, and Laplace at delta > 0: the discrete law lies within total variation TV of the rounded continuous one, whose
release is a function of the continuous release of the same integer sum; so T scalars cost at most
(1 + exp(epsilon)) T TV of delta beyond what the accountant says. TV is below 2^-80 / noise_scale^2 (see `delta_excess`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from . import discrete_noise
from .randomness import Stream

# fine enough for the excess above, coarse enough for sums of 2^12 values and their noise in a float64
GRID_BITS = 40
ARITHMETICS = ("float", "exact")
CHUNK = 2**18  # numbers of noise drawn at once: 2 MiB
SHRINK = (
    1 - 2.0**-39
)  # of vectors before they are cut to the grid: more than the rounding of norms that a release lets pass


class Gaussian:
    """Noise with standard deviation noise_scale * clip."""

    name = "gaussian"

    @staticmethod
    def unit_noise(stream: Stream, count: int, *counter: int) -> np.ndarray:
        return stream.normals(count, *counter)

    @staticmethod
    def grid_noise(stream: Stream, noise_scale: float, *counter: int) -> int:
        """In units of clip * 2^-GRID_BITS, with no less variance than noise_scale has."""
        return discrete_noise.gaussian(
            discrete_noise.Bits(stream, *counter), math.ceil(_on_grid(noise_scale) ** 2)
        )


class Laplace:
    """Noise with density exp(-|x| / b) / 2b, b = noise_scale * clip. For scalars: clip bounds an absolute value."""

    name = "laplace"

    @staticmethod
    def unit_noise(stream: Stream, count: int, *counter: int) -> np.ndarray:
        return stream.laplaces(count, *counter)

    @staticmethod
    def grid_noise(stream: Stream, noise_scale: float, *counter: int) -> int:
        return discrete_noise.laplace(discrete_noise.Bits(stream, *counter), math.ceil(_on_grid(noise_scale)))


def _on_grid(noise_scale: float) -> Fraction:
    return Fraction(noise_scale) * 2**GRID_BITS


MECHANISMS = {cls.name: cls for cls in (Gaussian, Laplace)}


class Noise:
    """The noise of one run, in units of the clip; the noise of draw t depends on t and the stream alone.

    Args:
        mechanism: gaussian or laplace.
        scale: standard deviation or Laplace scale, over the clip.
        arithmetic: exact (integers, for scalars) or float (see `mechanisms`).
    """

    def __init__(self, mechanism: str, scale: float, arithmetic: str, stream: Stream) -> None:
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"noise_arithmetic is {arithmetic!r}: give one of {', '.join(ARITHMETICS)}")
        self.law, self.scale, self.arithmetic, self._stream = MECHANISMS[mechanism], scale, arithmetic, stream

    def with_stream(self, stream: Stream) -> Noise:
        """The same law, of another stream."""
        return type(self)(self.law.name, self.scale, self.arithmetic, stream)

    def summed(self, values: Tensor, clip: float, norm: bool = False) -> Tensor:
        """float64 [batch, K] -> what is added up over the batch: the values or, of exact noise, integers in units of clip * 2^-GRID_BITS.

        Args:
            norm: whether `clip` bounds each row's Euclidean norm, in place of each number.
        """
        if self.arithmetic == "float":
            return values
        scaled = values / clip * 2.0**GRID_BITS
        return torch.trunc(scaled * SHRINK) if norm else torch.round(scaled)

    def totals(self, columns: Sequence[Sequence[float]]) -> list[float]:
        """The exact sum of each column that `summed` makes: of exact noise an integer."""
        return [math.fsum(c) if self.arithmetic == "float" else sum(map(int, c)) for c in columns]

    def sums(self, draw: int, totals: Sequence[float], clip: float) -> list[float]:
        """Noisy sums. Exact noise: integers up to the last line, which is a function of the released integers."""
        if self.arithmetic == "float":
            noise = self.unit(len(totals), draw, 0, 0)
            return [total + self.scale * clip * float(z) for total, z in zip(totals, noise, strict=True)]
        noisy = [
            total + self.law.grid_noise(self._stream, self.scale, draw, k) for k, total in enumerate(totals)
        ]
        return [n * 2.0**-GRID_BITS * clip for n in noisy]

    def add_(self, draw: int, sums: Sequence[Tensor], clip: float) -> None:
        """In place, in floats: tensors that together are one sum of vectors with norms of at most clip."""
        for index, tensor in enumerate(sums):
            flat = tensor.view(-1)
            for chunk, start in enumerate(range(0, flat.numel(), CHUNK)):
                part = flat[start : start + CHUNK]
                noise = torch.from_numpy(self.unit(part.numel(), draw, index, chunk))
                part.add_(noise.to(part), alpha=self.scale * clip)

    def unit(self, count: int, *counter: int) -> np.ndarray:
        """`count` numbers at scale 1, float64."""
        return self.law.unit_noise(self._stream, count, *counter)


def delta_excess(noise_scale: float, scalars: int, epsilon: float) -> float:
    """What `exact` arithmetic adds to delta at most, over all scalars (steps times directions) of a run.

    The rounded Gaussian's mass at k is the mean of the density over k +- 1/2: it differs by the second derivative over 24,
    in all by at most 1 / (24 s^2) of mass for s = noise_scale 2^GRID_BITS; the rounded Laplace's by at most 1 / (4 s^2).
    """
    scale = noise_scale * 2.0**GRID_BITS
    return (1 + math.exp(min(epsilon, 700.0))) * scalars / (4 * scale * scale)
