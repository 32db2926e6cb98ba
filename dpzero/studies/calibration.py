"""The calibrated noise of 50 settings compared with the exact one of a second accountant.

The exact scale is the one at which the second accountant's delta equals the setting's.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict

from scipy import optimize

from ..privacy import Setting
from .contour_accountant import delta_for

EXAMPLES = 67_000
KINDS = [
    *[(mechanism, "poisson", "add_remove") for mechanism in ("gaussian", "laplace") * 3],
    ("gaussian", "without_replacement", "replace_one"),
    ("laplace", "without_replacement", "replace_one"),
    ("gaussian", "poisson", "replace_one"),
    ("laplace", "full_batch", "replace_one"),
]


def rows() -> Iterator[dict]:
    """One row for each setting.

    `relative_distance`: (noise_scale - exact_scale) / exact_scale. `seconds`: of the calibration alone; the
    first also loads the accountant.
    """
    for setting, epsilon in draw_settings():
        start = time.perf_counter()
        scale = setting.noise_scale(epsilon)
        seconds = time.perf_counter() - start
        exact = exact_scale(setting, epsilon, near=scale)
        yield {
            **{
                name: str(value) for name, value in asdict(setting).items() if name != "group_size"
            },  # single examples
            "epsilon": str(epsilon),
            "noise_scale": f"{scale:.9g}",
            "exact_scale": f"{exact:.9g}",
            "relative_distance": f"{scale / exact - 1:.1e}",
            "seconds": f"{seconds:.2f}",
        }


def draw_settings(count: int = 50, seed: int = 2026) -> list[tuple[Setting, float]]:
    """Settings with an epsilon each: KINDS in turn, everything else random, with the ends of all ranges."""
    choose = random.Random(seed).choice
    drawn: list[tuple[Setting, float]] = []
    while len(drawn) < count:
        mechanism, sampling, adjacency = KINDS[len(drawn) % len(KINDS)]
        batch_size = choose([1, 4, 16, 64, 256, 1024, 4096, EXAMPLES // 4])
        steps, delta = choose([1, 10, 100, 1000, 3000, 10_000]), choose([1e-3, 1e-4, 1e-5, 1e-6])
        epsilon = choose([0.5, 1.0, 2.0, 4.0, 8.0])
        if sampling == "full_batch":
            batch_size = EXAMPLES
        if -math.expm1(steps * math.log1p(-min(batch_size / EXAMPLES, 0.5))) < 2 * delta:
            continue  # an example is drawn so rarely that delta would allow any release
        setting = Setting(mechanism, sampling, adjacency, EXAMPLES, batch_size, steps, delta)
        drawn.append((setting, epsilon))
    return drawn


def exact_scale(setting: Setting, epsilon: float, near: float) -> float:
    """The scale within 1 % of `near` at which the second accountant gives the setting's delta."""

    def excess(log_scale: float) -> float:
        return delta_for(setting, math.exp(log_scale), epsilon) / setting.delta - 1

    return math.exp(optimize.brentq(excess, math.log(near) - 0.01, math.log(near) + 0.01, xtol=1e-9))
