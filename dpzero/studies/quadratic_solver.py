"""Optimises a quadratic from the origin at all settings of a grid at once.

f(x; x_i) = 1/2 (x - x_i)^T A (x - x_i) with A diagonal. Its two-point difference u^T A (x - x_i) does not
depend on the smoothing. So the settings of a grid share the slopes u^T A x_i, and a clipped mean over the
examples needs two positions in their sorted order. Settings also share directions and unit noise. Each
setting is the plain algorithm, number for number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

PIECE = 64  # steps whose slopes are one matrix product
Draw = Callable[[int], NDArray]
"""Step -> a direction [d], or unit noise [d] or [1]; float64."""


@dataclass(frozen=True)
class Quadratic:
    """Diagonal of A, `curvature` [d]; `examples` [n, d]; `test_mean` [d], of n test examples. All float64."""

    curvature: NDArray
    examples: NDArray
    test_mean: NDArray

    @classmethod
    def drawn(cls, size: int, dimension: int, decay: float, informative: int, seed: int) -> Quadratic:
        """Curvature i^-decay; examples N(1, 1) in the first `informative` coordinates (0: in all), else 0.

        The examples depend on seed and dimension only, so all methods and decays share them.
        """
        normals = np.random.default_rng([seed, dimension]).standard_normal
        examples, test_mean = 1 + normals((size, dimension)), 1 + normals(dimension) / np.sqrt(size)
        examples[:, informative or dimension :] = test_mean[informative or dimension :] = 0
        return cls(np.arange(1, dimension + 1) ** -float(decay), examples, test_mean)

    @cached_property
    def mean(self) -> NDArray:
        return self.examples.mean(0)

    def gradient_norms(self, points: NDArray, of_test: bool = False) -> NDArray:
        """Gradient norms [K] of the mean loss at points [K, d]; infinite after divergence."""
        with np.errstate(over="ignore", invalid="ignore"):
            offsets = points - (self.test_mean if of_test else self.mean)
            norms = np.linalg.norm(self.curvature * offsets, axis=1)
        return np.where(np.isfinite(norms), norms, np.inf)


@dataclass(frozen=True)
class Grid:
    """K settings, the longest first. `noise`: standard deviation on the mean, in one coordinate."""

    steps: NDArray
    learning_rates: NDArray
    clips: NDArray
    noise: NDArray

    @classmethod
    def product(
        cls,
        steps: Sequence[int],
        learning_rates: Sequence[float],
        clips: Sequence[float] = (),
        noise_scales: Sequence[float] = (),
        size: int = 1,
    ) -> Grid:
        """All combinations. `noise_scales`: for each of `steps`, over the clip bound; no clips: no noise."""
        scales = dict(zip(steps, noise_scales, strict=True)) if clips else {}
        points = product(sorted(steps, reverse=True), learning_rates, clips or (np.inf,))
        rows = [(t, rate, clip, scales[t] * clip / size if clips else 0.0) for t, rate, clip in points]
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    def live(self, step: int) -> int:
        """The number of settings, the first ones, that take this step."""
        return int((self.steps > step).sum())

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of at most PIECE steps within which no setting ends."""
        for low, high in pairwise([0, *np.unique(self.steps).tolist()]):
            for start in range(low, high, PIECE):
                yield start, min(start + PIECE, high)


@np.errstate(over="ignore", invalid="ignore")  # a large step without clipping diverges
def zeroth_order(
    problem: Quadratic, grid: Grid, direction: Draw, noise: Draw | None = None, vector: bool = False
) -> NDArray:
    """The last points [K, d] of x <- x - rate (mean_i clip(u^T A (x - x_i)) + noise z) u, float64.

    Args:
        noise: on the scalar (DPZero); None: neither clipping nor noise (MeZO).
        vector: noise on the whole update, and the clip bounds the norm of the vector u^T A (x - x_i) u
            (DPGD-0th).
    """
    points = np.zeros((len(grid.steps), len(problem.curvature)))
    for start, stop in grid.pieces():
        live, steps = grid.live(start), range(start, stop)
        rates, clips, spread = grid.learning_rates[:live], grid.clips[:live], grid.noise[:live]
        u = np.stack([direction(step) for step in steps])
        z = np.stack([noise(step) for step in steps]) if noise else np.zeros((len(u), 1))
        curved = problem.curvature * u
        start_slopes = points[:live] @ curved.T  # u_t^T A x
        coupling = u @ curved.T  # how a step changes it
        if vector:  # how the noise of earlier steps changes it
            start_slopes -= np.outer(rates * spread, ((np.cumsum(z, 0) - z) * curved).sum(1))
            points[:live] -= np.outer(rates * spread, z.sum(0))
        slopes = np.sort(curved @ problem.examples.T, axis=1) if noise else curved @ problem.mean
        moves = np.empty((live, len(u)))
        for t in range(len(u)):
            place = start_slopes[:, t] - moves[:, :t] @ coupling[:t, t]
            if noise is None:
                slope = place - slopes[t]
            else:
                bounds = clips / np.linalg.norm(u[t]) if vector else clips
                slope = clipped_mean(place, slopes[t], bounds)
            moves[:, t] = rates * (slope if vector else slope + spread * z[t, 0])
        points[:live] -= moves @ u
    return points


def clipped_mean(places: NDArray, slopes: NDArray, bounds: NDArray) -> NDArray:
    """Mean [K] over the sorted slopes [n] of places [K] - slopes, each clipped to +-bounds [K]."""
    low, high = np.searchsorted(slopes, places - bounds), np.searchsorted(slopes, places + bounds, "right")
    sums = np.concatenate([[0.0], np.cumsum(slopes)])
    inside = (high - low) * places - (sums[high] - sums[low])
    return (inside + bounds * (low - (len(slopes) - high))) / len(slopes)


@np.errstate(over="ignore", invalid="ignore")
def first_order(problem: Quadratic, grid: Grid, noise: Draw | None = None) -> NDArray:
    """The last points [K, d] of x <- x - rate (mean_i clip(A (x - x_i)) + noise z), float64.

    Without `noise` there is no clipping either (SGD).
    """
    points = np.zeros((len(grid.steps), len(problem.curvature)))
    gradients = ClippedGradients(problem) if noise else None
    for step in range(int(grid.steps.max())):
        live = grid.live(step)
        x, rates = points[:live], grid.learning_rates[:live, None]
        move = gradients.means(x, grid.clips[:live]) if gradients else problem.curvature * (x - problem.mean)
        if noise:
            move += grid.noise[:live, None] * noise(step)
        x -= rates * move
    return points


class ClippedGradients:
    """Means of clipped gradients at several points. The products with the examples are float32."""

    def __init__(self, problem: Quadratic) -> None:
        self.problem = problem
        offsets = problem.curvature * problem.examples  # A x_i
        self.squares = (offsets**2).sum(1)
        self.filled = np.flatnonzero(offsets.any(0))  # coordinates that the products need
        self.offsets = offsets[:, self.filled].astype(np.float32)

    def means(self, points: NDArray, clips: NDArray) -> NDArray:
        """Means [K, d] at points [K, d] with bounds [K]."""
        curved = self.problem.curvature * points
        squares = (curved**2).sum(1)
        means = curved - self.problem.curvature * self.problem.mean
        # if even the triangle inequality does not reach the bound, nothing is clipped
        clipped = np.flatnonzero(np.sqrt(squares) + np.sqrt(self.squares.max()) > clips)
        if len(clipped):
            norms = -2 * (curved[np.ix_(clipped, self.filled)].astype(np.float32) @ self.offsets.T)
            norms += (squares[clipped, None] + self.squares).astype(np.float32)
            np.sqrt(np.maximum(norms, np.finfo(np.float32).tiny, out=norms), out=norms)
            factors = np.minimum(1, clips[clipped, None].astype(np.float32) / norms)
            means[clipped] = factors.mean(1, dtype=np.float64)[:, None] * curved[clipped]
            means[np.ix_(clipped, self.filled)] -= factors @ self.offsets / len(self.offsets)
        return means
