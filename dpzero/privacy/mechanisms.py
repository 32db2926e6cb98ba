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
from fractions import Fraction

import numpy as np

from . import discrete_noise
from .randomness import Stream

# fine enough for the excess above, coarse enough for sums of 2^12 values and their noise in a float64
GRID_BITS = 40
ARITHMETICS = ("float", "exact")


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


def delta_excess(noise_scale: float, scalars: int, epsilon: float) -> float:
    """What `exact` arithmetic adds to delta at most, over all scalars (steps times directions) of a run.

    The rounded Gaussian's mass at k is the mean of the density over k +- 1/2: it differs by the second derivative over 24,
    in all by at most 1 / (24 s^2) of mass for s = noise_scale 2^GRID_BITS; the rounded Laplace's by at most 1 / (4 s^2).
    """
    scale = noise_scale * 2.0**GRID_BITS
    return (1 + math.exp(min(epsilon, 700.0))) * scalars / (4 * scale * scale)
