"""Noise on sums whose terms are bounded by `clip`: the arithmetic of a release. Knows neither batches nor ledgers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .mechanisms import ARITHMETICS, GRID_BITS, MECHANISMS
from .streams import Stream

CHUNK = 2**18  # numbers of noise drawn at once: 2 MiB
SHRINK = (
    1 - 2.0**-39
)  # of vectors before they are cut to the grid: more than the rounding of norms that a release lets pass
Terms = Callable[[Tensor], list[list[float]]]


def own_terms(values: Tensor) -> list[list[float]]:
    """float64 [batch, K] -> for each of the K columns the numbers whose exact sum is released."""
    return values.T.tolist()


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

    def sums(
        self, draw: int, values: Tensor, clip: float, terms: Terms = own_terms, norm: bool = False
    ) -> list[float]:
        """Noisy sums over the batch of float64 [batch, K], one for each column.

        Args:
            terms: of several ranks, those of all.
            norm: whether `clip` bounds each row's Euclidean norm, in place of each number.
        """
        if self.arithmetic == "exact":
            return self._exact(draw, values, clip, terms, norm)
        noise = self.unit(values.shape[1], draw, 0, 0)
        return [
            math.fsum(column) + self.scale * clip * float(z)
            for column, z in zip(terms(values), noise, strict=True)
        ]

    def _exact(self, draw: int, values: Tensor, clip: float, terms: Terms, norm: bool) -> list[float]:
        """Integers in units of clip * 2^-GRID_BITS up to the last line, which is a function of the released integers."""
        scaled = values / clip * 2.0**GRID_BITS
        whole = torch.trunc(scaled * SHRINK) if norm else torch.round(scaled)
        noisy = [
            sum(map(int, column)) + self.law.grid_noise(self._stream, self.scale, draw, k)
            for k, column in enumerate(terms(whole))
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
