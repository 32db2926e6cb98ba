"""Shuffled epochs: the data in a new order each epoch, cut into batches of a fixed size, each example once an epoch.

No amplification by this sampling is proven, so the accounting of Poisson batches does not hold for it (Chua et al. 2024, arXiv
2403.17673). Here epsilon is bounded from both sides. Shifts are in standard deviations of the noise of a batch's sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld import pld_pmf
from numpy.typing import NDArray
from scipy.special import ndtr

from .accounting import DISCRETISATION
from .dominating_pairs import gaussian, loss_distribution

CELLS = 2**18  # values that the statistic of `epsilon_lower` may take
NEGLIGIBLE = 1e-15  # a value with less probability is left out, which lowers the bound
REACH = 5.0  # standard deviations of a batch's noise that the values span: tried 4 to 8


@dataclass(frozen=True)
class Epochs:
    """One example changes the sum of its batch by `shift`. It is in the last batch of an epoch with probability `last_share`,
    and there it changes `last_growth` times as much (a mean over fewer rows, with the noise of a full batch)."""

    shift: float
    batches: int  # of an epoch
    epochs: int
    last_share: float
    last_growth: float = 1.0

    def epsilon_upper(self, delta: float) -> float:
        """An upper bound of epsilon, whatever the other examples are and even if the batches were known.

        An epoch is one release on all data, for only one of its batches has the example (parallel composition). Which of the
        two shifts it has there is chosen without looking at the data, and may be told: the profile is the mean of the two.
        """
        full, last = gaussian(1 / self.shift), gaussian(1 / (self.shift * self.last_growth))

        def profile(epsilon: NDArray) -> NDArray:
            return (1 - self.last_share) * full(epsilon) + self.last_share * last(epsilon)

        whole = loss_distribution((profile,), DISCRETISATION).self_compose(self.epochs)
        return float(whole.get_epsilon_for_delta(delta))

    def epsilon_lower(self, delta: float, without: float = 0.0) -> float:
        """A lower bound of epsilon: one bad pair of data sets, each epoch seen through one statistic.

        All other examples contribute -clip, so that the sum of every batch is known but for the one that has the example: that
        lies higher by `without` in one data set and by `without + shift` in the other (with without = shift the pair of Chua
        et al.). Of an epoch's sums y_1 .. y_b, less what is known of them, is seen sum_j w_j exp(t_j y_j), each term rounded: for
        without = 0 the likelihood ratio itself. Its law is a convolution. Seeing less lowers the bound, rounding, clipping
        and wrapping around included; the floating-point error lies far below the digits that are printed.
        """
        if self.batches < 2:
            raise ValueError("an epoch of one batch is no shuffled epoch: give batches smaller than the data")
        tilt = without + self.shift
        present, absent = self._law(tilt, tilt), self._law(without, tilt)
        seen = (present > NEGLIGIBLE) & (absent > NEGLIGIBLE)
        p, q = present[seen], absent[seen]
        return max(self._epsilon(p, q, delta), self._epsilon(q, p, delta))

    def _law(self, shift: float, tilt: float) -> NDArray[np.float64]:
        """Of one epoch's statistic, where the batch with the example lies higher by `shift`."""
        others = self.batches - 1
        full = (tilt, (1 - self.last_share) / others)
        last = (tilt * self.last_growth, self.last_share)
        top = 2 + max(weight * math.exp(t * (t / 2 + REACH)) for t, weight in (full, last))

        def term(t: float, weight: float, higher: float) -> NDArray[np.complex128]:
            """Transform of the law of weight exp(t y - t^2 / 2), y ~ N(higher, 1), rounded and clipped to the lower half."""
            edges = (np.arange(CELLS // 2) + 0.5) * (2 * top / CELLS)
            below = ndtr((np.log(edges / weight) + t * t / 2) / t - higher)
            below[-1] = 1.0
            return np.fft.rfft(np.diff(below, prepend=0.0), CELLS)

        in_full = term(*full, 0.0) ** (others - 1) * term(*full, shift) * term(*last, 0.0)
        in_last = term(*full, 0.0) ** others * term(*last, shift * self.last_growth)
        mixed = (1 - self.last_share) * in_full + self.last_share * in_last
        return np.maximum(np.fft.irfft(mixed, CELLS), 0.0)

    def _epsilon(self, p: NDArray, q: NDArray, delta: float) -> float:
        """Of all epochs, where one is seen as p with the example and as q without it; losses are rounded down."""
        losses = np.floor(np.log(p / q) / self._grid).astype(int)
        lowest = int(losses.min())
        law = pld_pmf.DensePLDPmf(self._grid, lowest, np.bincount(losses - lowest, p), 0.0, False)
        return float(law.self_compose(self.epochs, NEGLIGIBLE).get_epsilon_for_delta(delta))

    @property
    def _grid(self) -> float:
        """Rounding down takes half of it from the loss of each epoch: a hundredth in all at most."""
        return min(DISCRETISATION, 0.01 / self.epochs)
