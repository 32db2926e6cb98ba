"""Noise laws for a sum whose terms are bounded by `clip`. Scales are in units of clip."""

from __future__ import annotations

import numpy as np

from .streams import Stream


class Gaussian:
    """Noise with standard deviation noise_scale * clip."""

    name = "gaussian"

    @staticmethod
    def unit_noise(stream: Stream, count: int, *counter: int) -> np.ndarray:
        return stream.normals(count, *counter)


class Laplace:
    """Noise with density exp(-|x| / b) / 2b, b = noise_scale * clip. For scalars: clip bounds an absolute value."""

    name = "laplace"

    @staticmethod
    def unit_noise(stream: Stream, count: int, *counter: int) -> np.ndarray:
        return stream.laplaces(count, *counter)


MECHANISMS = {cls.name: cls for cls in (Gaussian, Laplace)}
