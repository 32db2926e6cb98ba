"""Random allocation: each example in exactly one of the t batches of a period, chosen uniformly and independently of the others.

Proof. Let (P, Q) dominate a step that has the example against one that does not. By Blackwell some kernel, which may depend on
all earlier outputs and on where the other examples are, turns P and Q into the outputs of that step. Applied step by step, the
kernels turn x_1 .. x_t into the outputs of a period: with the example where one x_i, i uniform, is drawn from P and the others
from Q, without it where all are drawn from Q. So these two laws dominate a period, in both directions, and their ratio is the
mean of the t ratios r(x_i) = P(x_i) / Q(x_i) (Feldman and Shenfeld, arXiv 2502.08202 and 2602.17284). A period that ends early
is a function of a whole one. Periods are independent, so they compose.

Law. Under Q the mean Y of t independent ratios decides everything: delta(epsilon) = E (Y - exp(epsilon))_+. Here Y's law is
computed by doubling. Wherever a value falls between two of a geometric grid, its probability is split so that its mean stays:
that is a spread in convex order, which sums of independent terms keep, so delta is nowhere lowered, in either direction. Tails
are cut the same way, towards 0 and infinity. Sums and products of probabilities round to about 1e-13 of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy.typing import NDArray

from .composition import (
    LEAST,
    LOOSENESS,
    REVEALING,
    UNFORESEEN,
    WINDOW,
    Composition,
    Law,
    connect_the_dots,
    unbounded,
)
from .dominating_pairs import TAIL_MASS, Pair, end

Array = NDArray[np.float64]

FINE = 60  # cells of the grid to a standard deviation of the logarithm
CELLS = 6000  # of a grid at most
FINEST = 1e-12  # spacing of a grid that is told from none far from 0


@dataclass(frozen=True)
class _Values:
    """A law under Q: `mass[i]` at exp((first + i) * grid), `zero` at 0, and `infinite` of the mean at infinity."""

    grid: float
    first: int
    mass: Array
    zero: float
    infinite: float

    @property
    def values(self) -> Array:
        return np.exp(self.grid * (self.first + np.arange(len(self.mass))))

    def deviation(self) -> float:
        """Standard deviation of the logarithm."""
        logs = self.grid * np.arange(len(self.mass))
        mean = self.mass @ logs / self.mass.sum()
        return math.sqrt(self.mass @ (logs - mean) ** 2 / self.mass.sum())

    def cut(self, tail: float) -> _Values:
        """Without ends that hold less than `tail` of the mean, or of the mass."""
        values = self.values
        means = self.mass * values
        low = int(np.searchsorted(np.cumsum(self.mass), tail))
        high = len(means) - int(np.searchsorted(np.cumsum(means[::-1]), tail))
        mass = self.mass[low:high].copy()
        lifted = float(means[:low].sum() / values[low])
        mass[0] += lifted
        mass[-1] += self.mass[high:].sum()
        beyond = float(self.mass[high:] @ (values[high:] - values[high - 1]))
        zero = self.zero + float(self.mass[:low].sum()) - lifted
        return _Values(self.grid, self.first + low, mass, zero, self.infinite + beyond)

    def finer(self) -> _Values:
        """The same on a grid of half the spacing."""
        mass = np.zeros(2 * len(self.mass) - 1)
        mass[::2] = self.mass
        return _Values(self.grid / 2, 2 * self.first, mass, self.zero, self.infinite)

    def plus(self, other: _Values) -> _Values:
        """Of the sum of one of each, on the finer of the two grids."""
        a, b = self, other
        while a.grid > b.grid * 1.5:
            a = a.finer()
        while b.grid > a.grid * 1.5:
            b = b.finer()
        if len(b.mass) > len(a.mass):
            a, b = b, a
        grid = a.grid
        # exp(g i) + exp(g j) lies `rise` cells above i, and rise depends on j - i alone
        ends = (
            np.logaddexp(a.grid * i, b.grid * j) / grid
            for i, j in ((a.first, b.first), (a.first + len(a.mass), b.first + len(b.mass)))
        )
        first, last = (math.floor(x) + more for x, more in zip(ends, (-1, 2), strict=True))
        mass = np.zeros(last - first + 1)
        near = np.arange(len(b.mass)) + (b.first - a.first)
        least = 0 if self is other else int(near[0]) - len(a.mass) + 1
        for gap in range(least, int(near[-1]) + 1):
            low, high = max(0, int(near[0]) - gap), min(len(a.mass), int(near[-1]) - gap + 1)
            rise = max(gap, 0) * grid + math.log1p(math.exp(-abs(gap) * grid))
            cells = math.floor(rise / grid)
            part = math.expm1(rise - cells * grid) / math.expm1(grid)
            both = a.mass[low:high] * b.mass[low + gap - int(near[0]) : high + gap - int(near[0])]
            if self is other and gap:
                both *= 2
            place = a.first - first + low + cells
            mass[place : place + high - low] += both * (1 - part)
            mass[place + 1 : place + 1 + high - low] += both * part
        nothing = a.zero * b.zero
        for one, chance in ((a, b.zero), (b, a.zero)):
            # where the other is 0, a value below the grid is split between the grid and 0
            places = one.first - first + np.arange(len(one.mass))
            low = places < 0
            lifted = float(one.mass[low] @ np.exp(grid * places[low]))
            mass[0] += chance * lifted
            nothing += chance * (float(one.mass[low].sum()) - lifted)
            mass[places[~low]] += chance * one.mass[~low]
        return _Values(grid, first, mass * ((1 - nothing) / mass.sum()), nothing, a.infinite + b.infinite)


def compose(base: Pair, batches: int, periods: int, delta: float, looseness: float) -> Composition:
    """Of `periods` periods: a fineness of FINE makes epsilon looser by about LOOSENESS times the doublings of a period."""
    if unbounded(base, delta):
        return Composition([REVEALING], periods)
    fine = max(FINE * math.sqrt(LOOSENESS / looseness), 6.0)
    fine = min(fine, WINDOW / 24 / math.sqrt(periods))
    return Composition(of_period(base, batches, UNFORESEEN * delta / periods, fine), periods)


def loss_distribution(base: Pair, batches: int, periods: int) -> PrivacyLossDistribution:
    """The same as a distribution of dp-accounting's."""
    return PrivacyLossDistribution(
        *(
            DensePLDPmf(law.grid, law.first, law.mass, law.infinite, True).self_compose(periods)
            for law in of_period(base, batches, TAIL_MASS)
        )
    )


def of_period(base: Pair, batches: int, tail: float, fine: float = FINE) -> tuple[Law, Law]:
    """The loss of one period for removal and for addition, `base` a symmetric pair. At most about `tail` counts as infinite."""
    share = tail / 4 / (1 + batches.bit_length())
    power, total = _ratio(base, batches, share, fine), None
    for k in range(batches.bit_length()):
        if k:
            power = power.plus(power).cut(share * 2**k / batches)
        while power.grid > max(power.deviation() / fine, FINEST) and len(power.mass) < CELLS / 2:
            power = power.finer()
        if batches >> k & 1:
            total = power if total is None else total.plus(power).cut(share)
    removed = total.mass * total.values
    law = Law(total.grid, total.first, removed * ((1 - total.infinite) / removed.sum()), total.infinite)
    added = total.mass[::-1] * ((1 - total.zero) / total.mass.sum())
    return law, Law(total.grid, 1 - total.first - len(added), added, total.zero)


def _ratio(base: Pair, batches: int, tail: float, fine: float) -> _Values:
    """One ratio over the number of batches."""
    top, bottom = end(base, tail, LEAST), end(base, tail / batches, LEAST)
    grid, shift = (top + bottom) / (25 * fine), 0
    if batches > 1:  # its logarithm is a whole number of cells
        shift = math.ceil(math.log(batches) / grid)
        grid = math.log(batches) / shift
    cells = np.arange(math.floor(-bottom / grid), math.ceil(top / grid) + 1)
    losses = cells * grid
    mass, infinite = connect_the_dots(base, losses, grid)
    mass, zero = mass * np.exp(-losses), max(float(base.reverse(-losses[:1])[0]), 0.0)
    return _Values(grid, int(cells[0]) - shift, mass * ((1 - zero) / mass.sum()), zero, infinite / batches)
