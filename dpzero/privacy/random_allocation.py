"""Accounting of random allocation: each example in exactly one of the t batches of a period.

Proof. Let (P, Q) dominate a step with the example against one without it. By Blackwell's theorem a kernel
turns P and Q into the outputs of that step; it may depend on all earlier outputs and on the batches of the
other examples. Applied step by step, the kernels turn x_1 .. x_t into the outputs of a period. With the
example, one x_i, i uniform, is drawn from P and the others from Q; without it, all are drawn from Q. So these
two distributions dominate a period, in both directions. Their ratio is the mean of the t ratios r(x_i) =
P(x_i) / Q(x_i) (Feldman and Shenfeld, arXiv 2502.08202 and 2602.17284). A period that ends early is
post-processing of a whole one. Periods are independent, so they compose.

Computation. Under Q the mean Y of t independent ratios determines delta(epsilon) = E (Y - exp(epsilon))_+.
The distribution of Y is computed by doubling. A value between two points of a geometric grid has its
probability split so that its mean stays: a spread in convex order, which sums of independent terms preserve.
So delta is nowhere lowered, in either direction. Tails are cut the same way, towards 0 and infinity. Sums and
products of probabilities round to about 1e-13 of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from .composition import (
    INFINITE_LOSS,
    LOOSENESS,
    MAX_WINDOW,
    MIN_LOSS,
    TAIL_SHARE,
    Composition,
    LossPmf,
    connect_the_dots,
    is_unbounded,
)
from .dominating_pairs import TAIL_MASS, Array, Pair, largest_loss

FINENESS = 60  # grid cells per standard deviation of the logarithm
MAX_CELLS = 6000
MIN_SPACING = 1e-12  # below, grid points far from 0 coincide in floats


@dataclass(frozen=True)
class _Ratio:
    """Mass of a sum of ratios under Q: `mass[i]` at exp((first + i) * grid), `zero`, `infinite` (of the mean)."""

    grid: float
    first: int
    mass: Array
    zero: float
    infinite: float

    @property
    def values(self) -> Array:
        values: Array = np.exp(self.grid * (self.first + np.arange(len(self.mass))))
        return values

    def deviation(self) -> float:
        """Standard deviation of the logarithm."""
        logs = self.grid * np.arange(len(self.mass))
        mean = self.mass @ logs / self.mass.sum()
        return math.sqrt(self.mass @ (logs - mean) ** 2 / self.mass.sum())

    def cut(self, tail: float) -> _Ratio:
        """Without the ends that hold less than `tail` of the mass (below) or of the mean (above)."""
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
        return _Ratio(self.grid, self.first + low, mass, zero, self.infinite + beyond)

    def finer(self) -> _Ratio:
        """The same with half the spacing."""
        mass = np.zeros(2 * len(self.mass) - 1)
        mass[::2] = self.mass
        return _Ratio(self.grid / 2, 2 * self.first, mass, self.zero, self.infinite)

    def plus(self, other: _Ratio) -> _Ratio:
        """The independent sum of the two, on the finer of their grids."""
        a, b = self, other
        while a.grid > b.grid * 1.5:
            a = a.finer()
        while b.grid > a.grid * 1.5:
            b = b.finer()
        if len(b.mass) > len(a.mass):
            a, b = b, a
        grid = a.grid
        # exp(g i) + exp(g j) lies `rise` cells above i; rise depends on j - i alone
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
            # the other is 0: a value below the grid is split between the grid and 0
            places = one.first - first + np.arange(len(one.mass))
            low = places < 0
            lifted = float(one.mass[low] @ np.exp(grid * places[low]))
            mass[0] += chance * lifted
            nothing += chance * (float(one.mass[low].sum()) - lifted)
            mass[places[~low]] += chance * one.mass[~low]
        return _Ratio(grid, first, mass * ((1 - nothing) / mass.sum()), nothing, a.infinite + b.infinite)


def compose(base: Pair, batches: int, periods: int, delta: float, looseness: float) -> Composition:
    """Compose periods. At FINENESS, epsilon is looser by about LOOSENESS times the doublings of a period."""
    if is_unbounded(base, delta):
        return Composition([INFINITE_LOSS], periods)
    fine = max(FINENESS * math.sqrt(LOOSENESS / looseness), 6.0)
    fine = min(fine, MAX_WINDOW / 24 / math.sqrt(periods))
    return Composition(period_losses(base, batches, TAIL_SHARE * delta / periods, fine), periods)


def loss_distribution(base: Pair, batches: int, periods: int) -> PrivacyLossDistribution:
    """The same as a dp-accounting distribution."""
    return PrivacyLossDistribution(
        *(
            DensePLDPmf(pmf.grid, pmf.first, pmf.mass, pmf.infinite, True).self_compose(periods)
            for pmf in period_losses(base, batches, TAIL_MASS)
        )
    )


def period_losses(base: Pair, batches: int, tail: float, fine: float = FINENESS) -> tuple[LossPmf, LossPmf]:
    """The loss of one period for removal and for addition.

    Args:
        base: the symmetric dominating pair of a step that surely includes the example.
        batches: of a period.
        tail: the mass that may count as infinite, approximately.
        fine: grid cells per standard deviation.
    """
    share = tail / 4 / (1 + batches.bit_length())
    power = _one_ratio(base, batches, share, fine)
    total: _Ratio | None = None
    for k in range(batches.bit_length()):
        if k:
            power = power.plus(power).cut(share * 2**k / batches)
        while power.grid > max(power.deviation() / fine, MIN_SPACING) and len(power.mass) < MAX_CELLS / 2:
            power = power.finer()
        if batches >> k & 1:
            total = power if total is None else total.plus(power).cut(share)
    assert total is not None
    removed = total.mass * total.values
    removal = LossPmf(
        total.grid, total.first, removed * ((1 - total.infinite) / removed.sum()), total.infinite
    )
    added = total.mass[::-1] * ((1 - total.zero) / total.mass.sum())
    return removal, LossPmf(total.grid, 1 - total.first - len(added), added, total.zero)


def _one_ratio(base: Pair, batches: int, tail: float, fine: float) -> _Ratio:
    """The ratio of one step, over the number of batches."""
    top, bottom = largest_loss(base, tail, MIN_LOSS), largest_loss(base, tail / batches, MIN_LOSS)
    grid, shift = (top + bottom) / (25 * fine), 0
    if batches > 1:  # make log(batches) a whole number of cells
        shift = math.ceil(math.log(batches) / grid)
        grid = math.log(batches) / shift
    cells = np.arange(math.floor(-bottom / grid), math.ceil(top / grid) + 1)
    losses = cells * grid
    mass, infinite = connect_the_dots(base, losses, grid)
    mass, zero = mass * np.exp(-losses), max(float(base.reverse(-losses[:1])[0]), 0.0)
    return _Ratio(grid, int(cells[0]) - shift, mass * ((1 - zero) / mass.sum()), zero, infinite / batches)
