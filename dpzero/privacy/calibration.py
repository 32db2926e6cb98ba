"""The search for the least noise scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

TOLERANCE = 2e-5  # relative, of the noise scale
MAX_EXCESS = 3.0  # of the logarithm of epsilon: beyond it the distance does not matter


def least_scale(epsilon_of: Callable[[float, float], float], epsilon: float, grid: float) -> float:
    """Find the least scale with epsilon_of(scale, grid) <= epsilon: up to TOLERANCE too large, never too small.

    Epsilon falls smoothly with the scale and is nearly linear in logarithms. Coarse grids are cheap; a fine
    one takes up to a second if the scale is small. So each grid starts from the answer of the coarser one.

    Raises:
        ValueError: the search does not converge.
    """

    def excess(x: float, grid: float) -> float:
        ratio = epsilon_of(math.exp(x), grid) / epsilon  # 0 for much noise, infinite for little
        return min(max(math.log(ratio) if ratio else -MAX_EXCESS, -MAX_EXCESS), MAX_EXCESS)

    x, slope = 0.0, -1.0
    for finer, near in ((100 * grid, 1e-2), (10 * grid, 1e-3), (grid, TOLERANCE)):
        x, slope = _crossing(partial(excess, grid=finer), x, slope, near)
    return math.exp(x)


def _crossing(excess: Callable[[float], float], x: float, slope: float, near: float) -> tuple[float, float]:
    """Find x, at most `near` above the zero of a falling function. Returns x and the slope there."""
    low, high = -math.inf, math.inf
    y = excess(x)
    for _ in range(100):
        low, high = (x, high) if y > 0 else (low, x)
        if y <= 0 and (-y <= -slope * near or high - low <= near):
            return x, slope
        # a secant step, aimed just above the zero: the answer must not spend more
        new = x + min(max(near / 2 - y / slope, -1.0), 1.0)
        if not low < new < high:
            new = (low + high) / 2
        x, y, before = new, excess(new), (x, y)
        if max(abs(y), abs(before[1])) < MAX_EXCESS:
            slope = min((y - before[1]) / (x - before[0]), -0.1)
    raise ValueError("the search for the noise scale did not settle: give a larger delta or fewer steps")
