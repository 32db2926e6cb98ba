"""Composition at deltas that a plain Fourier transform cannot see.

A transform rounds each probability by about 1e-16 of the whole, which swamps a delta near 1e-13. Here the law p of the loss of
one release is tilted first: p_c(l) = p(l) exp(c l) / M(c), with M(c) = E exp(c L). Tilting commutes with convolution, so

    delta(epsilon) = M(c)^T sum over l > epsilon of p_c^{*T}(l) exp(-c l) (1 - exp(epsilon - l)).

At the c of Chernoff's bound the terms of that sum lie where p_c^{*T} has its bulk, and rounding is small against it, whatever
delta. Nothing is optimistic: the law is rounded to a grid by connecting the dots of its profile (Doroshenko, Ghazi, Kamath,
Kumar and Manurangsi 2022), what a tail holds is bounded by Chernoff and counted at the top of the grid, what wraps around only
adds, and each probability is raised by four times the usual first-order bound of the transforms' rounding. Where the answer
does not lie on the grid of the sum, Chernoff's bound itself is given.

How loose: 2e-5 of epsilon and 1e-5 of delta by construction, where 2^22 cells suffice: up to about 1e7 steps. Beyond, the grid is
coarser: measured are 0.2 % of epsilon for 1e9 steps and 2 % for 1e10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize, signal

from .dominating_pairs import LARGEST_LOSS, Pair, end

Array = NDArray[np.float64]

LOOSENESS = 2e-5  # relative, of epsilon: what rounding to a grid may add
UNFORESEEN = 1e-5  # of delta: what the losses beyond the top of the grid may take
COARSE = 4000  # cells of a first look
CELLS, WINDOW = 2**20, 2**22  # cells of one release and of all releases at most
BOTTOM = 1e-15  # what the losses below the grid may take: they are counted at its lowest
LEAST = 1e-15  # loss of one release that is told from none
BEYOND = 1e-20  # of a tilted sum: what may lie beyond each end of its window
ROUNDING = 2.0**-53


@dataclass(frozen=True)
class Law:
    """Of a loss: `mass[i]` at (first + i) * grid, and `infinite` at infinity."""

    grid: float
    first: int
    mass: Array
    infinite: float

    @property
    def losses(self) -> Array:
        return (self.first + np.arange(len(self.mass))) * self.grid

    def cumulant(self, c: float) -> float:
        """log E exp(c L) over the finite losses."""
        with np.errstate(divide="ignore"):
            return _log_sum(np.log(self.mass) + c * self.losses)


REVEALING = Law(1.0, 0, np.zeros(1), 1.0)


def unbounded(pair: Pair, delta: float) -> bool:
    """Whether one release alone has a larger loss than a grid reaches, with a probability above delta."""
    return float(pair(np.array([LARGEST_LOSS]))[0]) > delta


def law(pair: Pair, grid: float, tail: float) -> Law:
    """Of one release on a grid, never optimistic; losses beyond a probability of `tail` count as infinite."""
    top, bottom = end(pair, tail, LEAST), end(pair.swapped(), BOTTOM, LEAST)
    grid = max(grid, (top + bottom) / CELLS)
    grid = top / math.ceil(top / grid)  # a bounded loss often takes its largest value: keep it
    first, last = -math.ceil(bottom / grid - 1e-9), math.ceil(top / grid - 1e-9)
    mass, infinite = connect_the_dots(pair, grid * np.arange(first, last + 1), grid)
    return Law(grid, first, mass * ((1 - infinite) / mass.sum()), infinite)


def connect_the_dots(pair: Pair, losses: Array, grid: float) -> tuple[Array, float]:
    """Probabilities of the losses under P, and of infinity, to many digits of each.

    P's are second differences of the profile, which below 0 is 1 - exp(l) + exp(l) reverse(-l); the first two terms have none.
    """
    above, below = losses >= 0, losses < 0
    deltas, others = pair(losses), np.empty_like(losses)
    others[below] = np.exp(losses[below]) * pair.reverse(-losses[below])
    others[above] = deltas[above] + np.expm1(losses[above])
    others, growth = np.maximum(others, 0.0), math.exp(grid)

    def second(values: Array) -> Array:
        return (values[2:] - values[1:-1] - growth * (values[1:-1] - values[:-2])) / math.expm1(grid)

    inner = np.where(losses[1:-1] >= 0, second(deltas), second(others))
    lowest = (others[1] - growth * others[0]) / math.expm1(grid)
    highest = (deltas[-2] - deltas[-1]) / -math.expm1(-grid)
    return np.maximum(np.concatenate([[lowest], inner, [highest]]), 0.0), float(deltas[-1])


class Composition:
    """`steps` releases with the same loss, by the laws of a dominating pair and, where it is no other, of its reverse."""

    def __init__(self, laws: Sequence[Law], steps: int) -> None:
        self._laws, self._steps = laws, steps

    def get_epsilon_for_delta(self, delta: float) -> float:
        return max(_epsilon(law, self._steps, delta) for law in self._laws)

    def get_delta_for_epsilon(self, epsilons: Sequence[float]) -> Array:
        """Of epsilons in rising order."""
        return np.max([_deltas(law, self._steps, np.asarray(epsilons)) for law in self._laws], axis=0)


def compose(pairs: Sequence[Pair], steps: int, delta: float, looseness: float = LOOSENESS) -> Composition:
    """On a grid that adds `looseness` to epsilon at most, where CELLS and WINDOW allow."""
    if any(unbounded(pair, delta) for pair in pairs):
        return Composition([REVEALING], steps)
    tail, window = UNFORESEEN * delta / steps, WINDOW * min(1.0, math.sqrt(LOOSENESS / looseness))
    laws = []
    for pair in pairs:
        coarse = law(pair, (end(pair, tail, LEAST) + end(pair.swapped(), BOTTOM, LEAST)) / COARSE, tail)
        epsilon, c = _chernoff(coarse, steps, delta)
        # spreading a loss over a cell adds at most c (c + 1) grid^2 / 8 to the cumulant
        grid = math.sqrt(8 * looseness * max(epsilon, 0.0) / steps / (c + 1))
        low, high = _window(*_tilt(coarse, c), steps)
        laws.append(law(pair, max(grid, (high - low) / window), tail))
    return Composition(laws, steps)


def _chernoff(law: Law, steps: int, delta: float) -> tuple[float, float]:
    """The least epsilon of the Renyi orders 1 + c, and its c: delta <= M(c)^T exp(-c epsilon) c^c / (1 + c)^(1 + c)."""

    def bound(c: float) -> float:
        return (steps * law.cumulant(c) - math.log(delta) - math.log1p(c)) / c - math.log1p(1 / c)

    return _least(bound, law)


def _saddle(law: Law, steps: int, epsilon: float) -> float:
    """The c with the least of the same bounds on delta, for a given epsilon."""
    return _least(
        lambda c: steps * law.cumulant(c) - c * epsilon - c * math.log1p(1 / c) - math.log1p(c), law
    )[1]


def _least(value: Callable[[float], float], law: Law) -> tuple[float, float]:
    """The least value and where it is, over positive c."""
    around = np.arange(-14.0, 22.0, 1.5) - math.log(max(law.losses[-1], law.grid))
    best = around[int(np.argmin([value(math.exp(x)) for x in around]))]
    found = optimize.minimize_scalar(
        lambda x: value(math.exp(x)), bounds=(best - 1.5, best + 1.5), method="bounded"
    )
    return float(found.fun), math.exp(found.x)


# The tilted sum --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sum:
    """`tails[k]` and `next_tails[k]` are the sums over j >= k of p_c^{*T}(l_j) exp(-r (l_j - l_k)) for r = c and c + 1, where
    l_k = (low + k) * grid."""

    c: float
    log_scale: float  # of M(c)^T
    low: int
    bulk: int  # the index from which on rounding is small against p_c^{*T}
    tails: Array
    next_tails: Array


def _log_sum(exponents: Array) -> float:
    most = float(exponents.max())
    return most + math.log(float(np.exp(exponents - most).sum()))


def _tilt(law: Law, c: float) -> tuple[Array, Array]:
    """The losses, and their probabilities under p_c."""
    losses = law.losses
    with np.errstate(divide="ignore"):
        exponents = np.log(law.mass) + c * losses
    tilted = np.exp(exponents - exponents.max())
    return losses, tilted / tilted.sum()


def _window(losses: Array, tilted: Array, steps: int) -> tuple[float, float]:
    """Ends of the sum of `steps` losses: beyond each it has less than BEYOND, by Chernoff."""
    losses, tilted = losses[tilted > 0], tilted[tilted > 0]
    mean, logs = float(tilted @ losses), np.log(tilted)
    width = math.sqrt(steps * float(tilted @ (losses - mean) ** 2)) + 1e-300

    def reach(sign: int) -> float:
        found = math.inf
        for h in np.geomspace(1, 30, 6) / width:
            cumulant = _log_sum(logs + sign * h * (losses - mean))
            found = min(found, (steps * cumulant - math.log(BEYOND)) / h)
        return found

    return steps * mean - reach(-1), steps * mean + reach(1)


def _sum(law: Law, steps: int, c: float) -> _Sum:
    losses, tilted = _tilt(law, c)
    ends = _window(losses, tilted, steps)
    low, high = math.floor(ends[0] / law.grid), math.ceil(ends[1] / law.grid)
    size = fft.next_fast_len(max(high - low + 1, 16), real=True)
    # around the mean: small angles are raised to powers best
    middle = law.first + round(float(tilted @ np.arange(len(tilted))))
    places = (law.first - middle + np.arange(len(tilted))) % size
    spectrum = fft.rfft(np.bincount(places, tilted, size))
    moduli = np.abs(spectrum)
    powers = moduli**steps * np.exp(1j * steps * np.angle(spectrum))
    summed = np.roll(fft.irfft(powers, size), -((low - steps * middle) % size))
    # each of three roundings, of what they are made of: the transform, the power, the transform back
    of_one = 4 * math.log2(size) * ROUNDING
    error = steps * (of_one + 8 * ROUNDING) * float(np.mean(moduli ** (steps - 1))) * 2
    error += of_one * math.sqrt(2 * float(np.mean(np.abs(powers) ** 2)))
    summed = np.maximum(summed, 0.0) + error
    summed[-1] += BEYOND
    tails, next_tails = (
        signal.lfilter([1.0], [1.0, -math.exp(-rate * law.grid)], summed[::-1])[::-1] for rate in (c, c + 1)
    )
    bulk = int(np.argmax(summed > 1e-6 * summed.max()))
    return _Sum(c, steps * law.cumulant(c), low, bulk, tails, next_tails)


def _epsilon(law: Law, steps: int, delta: float) -> float:
    left = delta - _infinite(law, steps)
    if left <= 0:
        return math.inf
    bound, c = _chernoff(law, steps, left)
    if bound <= 0:
        return 0.0
    total = _sum(law, steps, c)
    losses = (total.low + np.arange(len(total.tails))) * law.grid
    with np.errstate(divide="ignore"):
        deltas = np.log(total.tails - total.next_tails) + (total.log_scale - c * losses)
    above = np.flatnonzero(deltas > math.log(left))
    k = int(above[-1]) + 1 if len(above) else 0
    if k == len(deltas):
        return bound
    if len(above) and losses[k] > 0:
        rest = total.tails[k] - math.exp(math.log(left) + c * losses[k] - total.log_scale)
        inside = losses[k] + math.log(max(rest / total.next_tails[k], math.exp(-law.grid)))
        return min(bound, max(float(inside), 0.0))
    return min(bound, max(float(losses[k]), 0.0))


def _deltas(law: Law, steps: int, epsilons: Array) -> Array:
    """Of epsilons in rising order, many of them from one tilt: those of the bulk of its sum."""
    found, left, infinite = np.ones(len(epsilons)), len(epsilons), _infinite(law, steps)
    while left and infinite < 1:
        c = _saddle(law, steps, float(epsilons[left - 1]))
        total = _sum(law, steps, c)
        k = np.ceil(epsilons[:left] / law.grid).astype(int) - total.low
        near = k >= min(k[-1], total.bulk)
        asked, inside = epsilons[:left][near], np.clip(k[near], 0, len(total.tails) - 1)
        losses = (total.low + inside) * law.grid
        with np.errstate(divide="ignore"):
            sums = total.tails[inside] - np.exp(asked - losses) * total.next_tails[inside]
            logs = np.log(np.maximum(sums, 0.0)) - c * losses
        chernoff = -c * asked - c * math.log1p(1 / c) - math.log1p(c)
        logs = np.where(k[near] < len(total.tails), np.minimum(logs, chernoff), chernoff)
        found[:left][near] = np.exp(np.minimum(logs + total.log_scale, 0.0))
        left -= int(near.sum())
    return np.minimum(found + infinite, 1.0)


def _infinite(law: Law, steps: int) -> float:
    return -math.expm1(steps * math.log1p(-law.infinite)) if law.infinite < 1 else 1.0
