"""The search for the least noise, and a cache of what it found."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

TOLERANCE = 2e-5  # relative, of the noise scale


def least_scale(epsilon_of: Callable[[float, float], float], epsilon: float, grid: float) -> float:
    """The least scale with epsilon_of(scale, grid) <= epsilon, to TOLERANCE and never below it.

    epsilon falls smoothly with the scale, nearly a straight line in logarithms. Coarse grids are cheap, fine ones take up to
    a second where the scale is small: each grid starts from the answer of the one before.
    """
    coarse = 100 * grid
    high = 1.0
    while epsilon_of(high, coarse) > epsilon:
        high *= 2
    low = high / 2
    while epsilon_of(low, coarse) <= epsilon:
        low, high = low / 2, low
    x, slope = math.log(high), math.log(epsilon_of(high, coarse) / epsilon_of(low, coarse)) / math.log(2)
    for finer, tolerance in ((coarse, 1e-2), (10 * grid, 1e-3), (grid, TOLERANCE)):
        x, slope = _secant(lambda x, h=finer: math.log(epsilon_of(math.exp(x), h) / epsilon), x, slope, tolerance)
    return math.exp(x)


def _secant(excess: Callable[[float], float], x: float, slope: float, tolerance: float) -> tuple[float, float]:
    """x with excess(x) <= 0, at most `tolerance` above the root of a falling function; and the slope there."""
    y = excess(x)
    for _ in range(50):
        if 0 <= -y <= -slope * tolerance:
            return x, slope
        step = -y / slope + tolerance / 2  # aims just above: the answer must not spend more
        new = excess(x + step)
        if new != y:
            slope = min((new - y) / step, -1e-3)
        x, y = x + step, new
    raise ArithmeticError("the search for the noise scale did not settle: give a larger delta or fewer steps")


def cached(question: dict, folder: Path, answer: Callable[[], float]) -> float:
    """`answer()`, kept in `folder` under a hash of the whole question."""
    path = folder / (sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32] + ".json")
    if path.exists():
        return json.loads(path.read_text())["noise_scale"]
    found = answer()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump({**question, "noise_scale": found}, file)
    Path(file.name).replace(path)
    return found
