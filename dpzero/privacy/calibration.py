"""The search for the least noise, and a cache of what it found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from ..files import write_whole

TOLERANCE = 2e-5  # relative, of the noise scale
FAR = 3.0  # of logarithms of epsilons: beyond it the distance does not matter


def least_scale(epsilon_of: Callable[[float, float], float], epsilon: float, grid: float) -> float:
    """The least scale with epsilon_of(scale, grid) <= epsilon, to TOLERANCE and never below it.

    epsilon falls smoothly with the scale, nearly a straight line in logarithms. Coarse grids are cheap, fine ones take up to
    a second where the scale is small: each grid starts from the answer of the one before.
    """

    def excess(x: float, grid: float) -> float:
        ratio = epsilon_of(math.exp(x), grid) / epsilon  # 0, even, for much noise; infinite for little
        return min(max(math.log(ratio) if ratio else -FAR, -FAR), FAR)

    x, slope = 0.0, -1.0
    for finer, near in ((100 * grid, 1e-2), (10 * grid, 1e-3), (grid, TOLERANCE)):
        x, slope = _crossing(lambda x, finer=finer: excess(x, finer), x, slope, near)
    return math.exp(x)


def _crossing(excess: Callable[[float], float], x: float, slope: float, near: float) -> tuple[float, float]:
    """x with excess(x) <= 0, at most `near` above where a falling function crosses 0; and the slope there."""
    low, high = -math.inf, math.inf
    y = excess(x)
    for _ in range(100):
        low, high = (x, high) if y > 0 else (low, x)
        if y <= 0 and (-y <= -slope * near or high - low <= near):
            return x, slope
        # A secant, aimed just above the crossing: the answer must not spend more.
        new = x + min(max(near / 2 - y / slope, -1.0), 1.0)
        if not low < new < high:
            new = (low + high) / 2
        x, y, before = new, excess(new), (x, y)
        if max(abs(y), abs(before[1])) < FAR:
            slope = min((y - before[1]) / (x - before[0]), -0.1)
    raise ValueError("the search for the noise scale did not settle: give a larger delta or fewer steps")


def cached(question: dict, folder: Path, answer: Callable[[], float]) -> float:
    """`answer()`, kept in `folder` under a hash of the whole question."""
    path = folder / (sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32] + ".json")
    if path.exists():
        return json.loads(path.read_text("utf-8"))["noise_scale"]
    found = answer()
    write_whole(path, json.dumps({**question, "noise_scale": found}))
    return found
