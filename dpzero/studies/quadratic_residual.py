"""Which coordinates of the quadratic the best settings leave unfinished, at effective rank O(log d).

Takes the best setting of each method from the table `norms` and descends again on the data of seed 0, with
REPEATS other draws of directions and noise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..plan import sweep
from ..plan.study_sweeps import QUADRATIC_METHODS
from . import quadratic
from .quadratic_solver import Draw

NORMS = Path("results/quadratic/tables/norms.csv")
RANK, DIMENSIONS, METHODS = "rank_log_d", (20, 200, 2000), ("dpzero", "dpgd_0th", "dp_sgd", "mezo")
REPEATS, EDGES = 8, (0, 10, 100)


def rows() -> Iterator[dict]:
    """One row for each dimension, method and range of coordinates.

    `remaining`: final over initial gradient, averaged over the coordinates; 1 if a coordinate did not move.
    `share`: of the squared norm. `bias`: the fraction of the squared norm that is due to the mean gradient,
    not to the variance over draws.
    """
    if not NORMS.exists():
        raise UsageError(f"no table {NORMS}: run the sweep quadratic first")
    for norms in csv.DictReader(NORMS.read_text("utf-8").splitlines()):
        dimension, method = int(norms["dimension"]), norms["method"]
        if norms["task"] == RANK and dimension in DIMENSIONS and method in METHODS:
            best = {"steps": [int(norms["steps"])], "learning_rates": [float(norms["learning_rates"])]}
            yield from _residuals(
                dimension, method, best | {"clips": [float(c) for c in norms["clips"].split()]}
            )


def _residuals(dimension: int, method: str, best: dict) -> Iterator[dict]:
    first, last = _gradients(dimension, method, best)
    mean, variance, squared_norm = last.mean(0), last.var(0, ddof=1), (last**2).sum(1).mean()
    for low, high in pairwise([edge for edge in (*EDGES, dimension) if edge <= dimension]):
        part = slice(low, high)
        yield {
            "dimension": dimension,
            "method": method,
            "steps": best["steps"][0],
            "norm": f"{np.sqrt(squared_norm):.4g}",
            "coordinates": f"{low + 1} to {high}",
            "remaining": f"{(mean[part] / first[part]).mean():.3f}",
            "share": f"{(last[:, part] ** 2).sum(1).mean() / squared_norm:.3f}",
            "bias": f"{(mean[part] ** 2 - variance[part] / REPEATS).sum() / squared_norm:.3f}",
        }


def _gradients(dimension: int, method: str, best: dict) -> tuple[NDArray, NDArray]:
    """The gradient at the start [d] and after the last step [REPEATS, d]."""
    private = QUADRATIC_METHODS[method].private
    cell = sweep.load("quadratic")[f"{RANK}/d-{dimension}/{method}/eps-{'2' if private else 'inf'}/seed-0"]
    problem, grid, _ = quadratic.prepare(cell | {"settings": cell["settings"] | best})
    points = []
    for repeat in range(REPEATS):
        random = np.random.default_rng([1, repeat])
        noise = _normals(random, 1 if method == "dpzero" else dimension) if private else None
        points.append(quadratic.solve(method, problem, grid, _normals(random, dimension), noise)[0])
    return -problem.curvature * problem.mean, problem.curvature * (np.stack(points) - problem.mean)


def _normals(random: np.random.Generator, count: int) -> Draw:
    return lambda step: random.standard_normal(count)
