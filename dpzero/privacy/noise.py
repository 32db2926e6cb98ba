"""Noise on sums whose terms are bounded by `clip`: the arithmetic of a release. Knows neither batches nor ledgers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .mechanisms import ARITHMETICS, GRID_BITS, MECHANISMS
from .randomness import Stream

CHUNK = 2**18  # numbers of noise drawn at once: 2 MiB
SHRINK = (
    1 - 2.0**-39
)  # of vectors before they are cut to the grid: more than the rounding of norms that a release lets pass


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

    def of(self, stream: Stream) -> Noise:
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
