"""Bounds on epsilon for shuffled epochs: each example once an epoch, in batches of a fixed size.

No amplification by shuffling is proven here, so the accounting of Poisson batches does not hold (Chua et al.
2024, arXiv 2403.17673). Epsilon is bounded from both sides. Shifts are in standard deviations of the noise of
a batch's sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld import pld_pmf
from numpy.typing import NDArray
from scipy.special import ndtr

from .accounting import DISCRETISATION
from .dominating_pairs import Array, gaussian, loss_distribution

CELLS = 2**18  # grid of the statistic of `epsilon_lower`
NEGLIGIBLE = 1e-15  # less probable values are left out, which lowers the bound
REACH = 5.0  # standard deviations of a batch's noise that the grid spans: tried 4 to 8


@dataclass(frozen=True)
class Epochs:
    """A run in shuffled epochs.

    Args:
        shift: by which one example changes the sum of its batch.
        batches: per epoch.
        epochs: of the run.
        last_share: probability that the example is in an epoch's last batch.
        last_growth: factor on the shift in the last batch (a mean over fewer rows, with the noise of a full
            batch).
    """

    shift: float
    batches: int
    epochs: int
    last_share: float
    last_growth: float = 1.0

    def epsilon_upper(self, delta: float) -> float:
        """Upper bound on epsilon, for any other examples, even if the batches are known.

        An epoch is one release on all data: only one of its batches has the example (parallel composition).
        Which of the two shifts applies does not depend on the data and may be revealed, so the profile is the
        mean of the two.
        """
        full, last = gaussian(1 / self.shift), gaussian(1 / (self.shift * self.last_growth))

        def profile(epsilon: Array) -> Array:
            return (1 - self.last_share) * full(epsilon) + self.last_share * last(epsilon)

        run = loss_distribution((profile,), DISCRETISATION).self_compose(self.epochs)
        return float(run.get_epsilon_for_delta(delta))

    def epsilon_lower(self, delta: float, without: float = 0.0) -> float:
        """Lower bound on epsilon: a worst-case pair of data sets, each epoch seen through one statistic.

        All other examples contribute -clip, so every batch's sum is known except that of the example's batch.
        It is higher by `without` in one data set and by `without + shift` in the other (without = shift is
        the pair of Chua et al.). From an epoch's sums y_1 .. y_b, less the known part, the statistic is sum_j
        w_j exp(t_j y_j), each term rounded; for without = 0 it is the likelihood ratio. Its distribution is a
        convolution. Rounding, clipping and wrap-around lose information, which lowers the bound; the
        floating-point error lies far below the printed digits.
        """
        if self.batches < 2:
            raise ValueError("an epoch of one batch is no shuffled epoch: give batches smaller than the data")
        tilt = without + self.shift
        present, absent = self._statistic(tilt, tilt), self._statistic(without, tilt)
        kept = (present > NEGLIGIBLE) & (absent > NEGLIGIBLE)
        p, q = present[kept], absent[kept]
        return max(self._epsilon(p, q, delta), self._epsilon(q, p, delta))

    def _statistic(self, shift: float, tilt: float) -> Array:
        """The distribution of one epoch's statistic if the sum of the example's batch is higher by `shift`."""
        others = self.batches - 1
        full = (tilt, (1 - self.last_share) / others)
        last = (tilt * self.last_growth, self.last_share)
        top = 2 + max(weight * math.exp(t * (t / 2 + REACH)) for t, weight in (full, last))

        def term(t: float, weight: float, higher: float) -> NDArray[np.complex128]:
            """Fourier transform of weight exp(t y - t^2 / 2), y ~ N(higher, 1), rounded and clipped."""
            edges = (np.arange(CELLS // 2) + 0.5) * (2 * top / CELLS)
            below = ndtr((np.log(edges / weight) + t * t / 2) / t - higher)
            below[-1] = 1.0
            return np.fft.rfft(np.diff(below, prepend=0.0), CELLS)

        in_full = term(*full, 0.0) ** (others - 1) * term(*full, shift) * term(*last, 0.0)
        in_last = term(*full, 0.0) ** others * term(*last, shift * self.last_growth)
        mixed = (1 - self.last_share) * in_full + self.last_share * in_last
        return np.maximum(np.fft.irfft(mixed, CELLS), 0.0)

    def _epsilon(self, p: Array, q: Array, delta: float) -> float:
        """Epsilon of all epochs if the statistic of one has distribution p or q; losses are rounded down."""
        losses = np.floor(np.log(p / q) / self._grid).astype(int)
        lowest = int(losses.min())
        pmf = pld_pmf.DensePLDPmf(self._grid, lowest, np.bincount(losses - lowest, p), 0.0, False)
        return float(pmf.self_compose(self.epochs, NEGLIGIBLE).get_epsilon_for_delta(delta))

    @property
    def _grid(self) -> float:
        """Spacing of the losses. Rounding down takes half of it per epoch: at most a hundredth in all."""
        return min(DISCRETISATION, 0.01 / self.epochs)
