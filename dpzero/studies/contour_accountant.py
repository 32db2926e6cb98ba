"""A second, independent accountant: delta by a contour integral through the saddle point.

delta(epsilon) = E (1 - exp(epsilon - L))_+ has the transform exp(-s epsilon) / (s (s + 1)). For L a sum of T
independent privacy losses with moment generating function M therefore

    delta(epsilon) = 1 / (2 pi i) * integral over s from c - i inf to c + i inf of
                     M(s)^T exp(-s epsilon) / (s (s + 1)),

with c > 0 at the minimum of the integrand on the real axis. There is no grid, no truncated tail and no
pessimistic rounding.

If losses have atoms, or nearly (few draws in all, few Laplace releases), M^T does not decay along the contour.
Then the T-fold convolution of the law tilted to the saddle is computed by FFT on a lattice of 2^20 points. Each
loss is spread over the lattice so that its first three moments stay; the error has either sign and is of the
order of the squared spacing.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import logsumexp

from ..privacy import Setting

Array = NDArray[np.float64]
Law = tuple[Array, Array]  # losses of one release, and the logarithms of their probabilities

LEGENDRE = np.polynomial.legendre.leggauss(12)
LAWS = {"gaussian": stats.norm, "laplace": stats.laplace}


def delta_for(setting: Setting, noise_scale: float, epsilon: float) -> float:
    """The exact delta of the dominating pairs, the worse of the two directions."""
    deltas = []
    for pair, law in enumerate(loss_laws(setting, noise_scale)):
        try:
            deltas.append(by_contour(law, setting.steps, epsilon))
        except ArithmeticError:
            finer = loss_laws(setting, noise_scale, panels_between=640)[pair]
            deltas.append(by_lattice(finer, setting.steps, epsilon))
    return max(deltas)


# The loss of one release ------------------------------------------------------------------------------------


def loss_laws(setting: Setting, noise_scale: float, panels_between: int = 40) -> list[Law]:
    """The law of each dominating pair's loss under its first distribution, by Gauss-Legendre quadrature."""
    scale = noise_scale / math.sqrt(setting.directions)
    points, weights = panels(_breaks(setting, scale), panels_between)
    weights, rate = np.log(weights), setting.rate

    def density(shift: float) -> Array:
        return LAWS[setting.mechanism].logpdf(points, shift, scale)

    def mixture(shift: float) -> Array:
        if rate == 1:
            return density(shift)
        return np.logaddexp(math.log1p(-rate) + density(0), math.log(rate) + density(shift))

    if setting.adjacency == "add_remove":
        pairs = [(mixture(1), density(0)), (density(0), mixture(1))]
    elif setting.sampling == "poisson":
        pairs = [(mixture(1), mixture(-1))]
    elif rate == 1:
        pairs = [(density(1), density(-1))]
    else:
        return [_of_subsets(density(1), density(-1), weights, rate)]
    return [(p - q, p + weights) for p, q in pairs]


def _of_subsets(p: Array, q: Array, weights: Array, rate: float) -> Law:
    """Sampling without replacement, from the pair (p, q) of full batches.

    The law follows from P(L > e) = delta(e) - delta'(e), from delta(log(1 + rate (exp(u) - 1))) = rate
    delta_full(u), and from the symmetry of replacement.
    """
    more, less, weights = (array[p > q] for array in (p, q, weights))
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + more - less)
    mass = np.logaddexp(math.log1p(-rate) + less, math.log(rate) + more) + weights
    total_variation = np.exp(more + weights).sum() - np.exp(less + weights).sum()
    atom = math.log((1 - rate) * total_variation)
    return np.concatenate([loss, -loss, [0.0]]), np.concatenate([mass, less + weights, [atom]])


def panels(breaks: Array, count: int) -> tuple[Array, Array]:
    """Gauss-Legendre points and weights, `count` panels between any two break points."""
    edges = np.unique(np.concatenate([np.linspace(a, b, count + 1) for a, b in pairwise(breaks)]))
    half, middle = np.diff(edges)[:, None] / 2, (edges[:-1] + edges[1:])[:, None] / 2
    return (middle + half * LEGENDRE[0]).ravel(), (half * LEGENDRE[1]).ravel()


def _breaks(setting: Setting, scale: float) -> Array:
    """Points at which the densities have kinks, and ends beyond which their mass is negligible against delta."""
    beyond = 60 - min(math.log(setting.delta) + 23, 0)
    reach = scale * (beyond if setting.mechanism == "laplace" else max(13, 2 + math.sqrt(2 * beyond)))
    return np.array([-1 - reach, -1, 0, 1, 1 + reach])


# delta of many ----------------------------------------------------------------------------------------------


def by_contour(law: Law, steps: int, epsilon: float) -> float:
    """Delta of the sum of `steps` losses, to a relative error of 1e-7.

    Raises:
        ArithmeticError: the integrand decays too slowly.
    """
    loss, mass = (array[law[1] > -700] for array in law)
    if steps * loss.max() <= epsilon:
        return 0.0

    c, cumulant = _saddle(loss, mass, steps, epsilon)
    tilted = np.exp(mass + c * loss - cumulant)
    variance = steps * (tilted @ (loss - tilted @ loss) ** 2) + 1 / c**2 + 1 / (1 + c) ** 2

    def integral(start: float, end: float, count: int) -> float:
        half = (end - start) / count / 2
        offsets, centres = half * LEGENDRE[0], start + half * (2 * np.arange(count) + 1)
        within, total = tilted * np.exp(1j * np.outer(offsets, loss)), 0.0
        for some in np.array_split(centres, math.ceil(count / 64)):
            moments = within @ np.exp(1j * np.outer(loss, some))  # of the tilted law, at every offset
            s = c + 1j * (offsets[:, None] + some)
            values = np.exp(steps * np.log(moments) - (s - c) * epsilon) / (s * (s + 1))
            total += half * float(LEGENDRE[1] @ values.real.sum(1))
        return total

    # Twice as far until nothing is added.
    end, count = 30 / math.sqrt(variance), 30
    total, added = integral(0, end, count), math.inf
    while abs(added) > 1e-7 * total:
        if count > 1000:
            raise ArithmeticError("the integrand of the contour decays too slowly")
        added = integral(end, 2 * end, count)
        total, end, count = total + added, 2 * end, 2 * count
    return math.exp(steps * cumulant - c * epsilon) * total / math.pi


def _saddle(loss: Array, mass: Array, steps: int, epsilon: float) -> tuple[float, float]:
    """The minimum of the integrand on the real axis, and the cumulant at this point."""

    def exponent(u: float) -> float:
        c = math.exp(u)
        return steps * float(logsumexp(mass + c * loss)) - c * epsilon - u - math.log1p(c)

    bounds = (-7.0, 16 - math.log(loss.max()))
    c = math.exp(
        optimize.minimize_scalar(exponent, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    )
    return c, float(logsumexp(mass + c * loss))


def by_lattice(law: Law, steps: int, epsilon: float, points: int = 2**20) -> float:
    """Delta by FFT of the law tilted to its saddle: rounding in the transform does not swamp a small delta."""
    loss, mass = (array[law[1] > -700] for array in law)
    if steps * loss.max() <= epsilon:
        return 0.0
    c, cumulant = _saddle(loss, mass, steps, epsilon)
    mass = mass + c * loss - cumulant
    # Chernoff: the sum exceeds `high`, or falls below `low`, with probability at most exp(-36)
    high, low = (
        sign * min((steps * logsumexp(mass + sign * c * loss) + 36) / c for c in np.geomspace(1e-3, 1e3, 60))
        for sign in (1, -1)
    )
    spacing = (high - low) / points
    kept = (loss < high) & (loss > low - high)
    place, part = np.divmod(loss[kept] / spacing, 1.0)
    shares = {  # cubic interpolation, transposed
        -1: -part * (1 - part) * (2 - part) / 6,
        0: (1 - part**2) * (2 - part) / 2,
        1: part * (1 + part) * (2 - part) / 2,
        2: -part * (1 - part**2) / 6,
    }
    lattice = np.zeros(points)  # of losses modulo high - low
    for shift, share in shares.items():
        lattice += np.bincount((place.astype(int) + shift) % points, np.exp(mass[kept]) * share, points)
    summed = np.fft.irfft(np.fft.rfft(lattice) ** steps, points)
    above = np.arange(math.ceil(epsilon / spacing), math.floor(high / spacing))
    over = above * spacing - epsilon
    scale = math.exp(steps * cumulant - c * epsilon)
    return scale * float(summed[above % points] @ (-np.expm1(-over) * np.exp(-c * over)))
