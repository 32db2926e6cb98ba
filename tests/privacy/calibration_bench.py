"""The noise of 50 settings beside the exact one, as a table: python -m tests.privacy.calibration_bench FILE.csv

relative_distance is (noise_scale - exact_scale) / exact_scale, where the exact scale is that at which the second accountant's
delta is the setting's. seconds is the time of the calibration alone; the first one also loads the accountant.
"""

from __future__ import annotations

import csv
import math
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

from scipy import optimize

from dpzero.privacy import Setting
from tests.privacy.contour import delta_for

EXAMPLES = 67_000
KINDS = [
    *[(mechanism, "poisson", "add_remove") for mechanism in ("gaussian", "laplace") * 3],
    ("gaussian", "without_replacement", "replace_one"),
    ("laplace", "without_replacement", "replace_one"),
    ("gaussian", "poisson", "replace_one"),
    ("laplace", "full_batch", "replace_one"),
]


def targets(count: int = 50, seed: int = 2026) -> list[tuple[Setting, float]]:
    """Settings, each with an epsilon: kinds in turn, everything else drawn, ends of all ranges among what is drawn from."""
    draw, found = random.Random(seed).choice, []
    while len(found) < count:
        mechanism, sampling, adjacency = KINDS[len(found) % len(KINDS)]
        batch_size = draw([1, 4, 16, 64, 256, 1024, 4096, EXAMPLES // 4])
        steps, delta = draw([1, 10, 100, 1000, 3000, 10_000]), draw([1e-3, 1e-4, 1e-5, 1e-6])
        epsilon = draw([0.5, 1.0, 2.0, 4.0, 8.0])
        if sampling == "full_batch":
            batch_size = EXAMPLES
        if -math.expm1(steps * math.log1p(-min(batch_size / EXAMPLES, 0.5))) < 2 * delta:
            continue  # so few draws that delta would allow any release
        setting = Setting(mechanism, sampling, adjacency, EXAMPLES, batch_size, steps, delta)
        found.append((setting, epsilon))
    return found


def exact_scale(setting: Setting, epsilon: float, near: float) -> float:
    """Sought within 1 percent of `near`."""

    def excess(log_scale: float) -> float:
        return delta_for(setting, math.exp(log_scale), epsilon) / setting.delta - 1

    return math.exp(optimize.brentq(excess, math.log(near) - 0.01, math.log(near) + 0.01, xtol=1e-9))


def rows() -> list[dict]:
    table = []
    for setting, epsilon in targets():
        start = time.perf_counter()
        scale = setting.noise_scale(epsilon)
        seconds = time.perf_counter() - start
        exact = exact_scale(setting, epsilon, scale)
        found = {"noise_scale": f"{scale:.9g}", "exact_scale": f"{exact:.9g}"}
        found |= {"relative_distance": f"{scale / exact - 1:.1e}", "seconds": f"{seconds:.2f}"}
        table.append(asdict(setting) | {"epsilon": epsilon} | found)
        print(*table[-1].values(), flush=True)
    return table


if __name__ == "__main__":
    _table = rows()
    with Path(sys.argv[1]).open("w", newline="") as _file:
        _writer = csv.DictWriter(_file, _table[0])
        _writer.writeheader()
        _writer.writerows(_table)
