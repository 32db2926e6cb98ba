"""What is left of the gradient at the best settings of the sweep `quadratic`, where the effective rank is O(log d):
python tests/studies/unfinished_bench.py

The best setting of each method (results/quadratic/tables/norms.csv), descended again on the data of seed 0 with REPEATS other draws of
directions and noise. `remaining`: the mean final gradient over that at the start, mean over the coordinates, 1 where a coordinate is
left where it was. `bias`: the share of the squared norm that is the mean gradient's and not scatter of the draws. Writes
results/quadratic/tables/unfinished.csv; some ten minutes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from dpzero.plan import sweep
from dpzero.studies import quadratic, quadratic_solver

TABLES = Path("results/quadratic/tables")
RANK, DIMENSIONS, METHODS = "rank_log_d", (20, 200, 2000), ("dpzero", "dpgd_0th", "dp_sgd", "mezo")
REPEATS, EDGES = 8, (0, 10, 100)


def best_settings() -> Iterator[tuple[int, str, dict]]:
    with (TABLES / "norms.csv").open() as file:
        for row in csv.DictReader(file):
            if row["task"] == RANK and int(row["dimension"]) in DIMENSIONS and row["method"] in METHODS:
                grid = {"steps": [int(row["steps"])], "learning_rates": [float(row["learning_rates"])]}
                yield (
                    int(row["dimension"]),
                    row["method"],
                    grid | {"clips": [float(c) for c in row["clips"].split()]},
                )


def gradients(dimension: int, method: str, grid: dict) -> tuple[np.ndarray, np.ndarray]:
    """That of the start [d], and the last ones [REPEATS, d]."""
    card = quadratic.QUADRATIC_METHODS[method]
    run = f"{RANK}/d-{dimension}/{method}/eps-{'2' if card.private else 'inf'}/seed-0"
    cell = sweep.load("quadratic")[run]
    settings = cell["settings"] | grid
    size, of_problem = settings["dataset_size"], (settings["decay"], settings["informative"])
    problem = quadratic_solver.Quadratic.drawn(size, dimension, *of_problem, seed=0)
    scale = (
        [quadratic.Releases(cell | {"settings": settings}).noise_scale(grid["steps"][0])]
        if card.private
        else []
    )
    made = quadratic_solver.Grid.product(grid["steps"], grid["learning_rates"], grid["clips"], scale, size)
    points = np.stack([descend(problem, made, method, np.random.default_rng([1, k])) for k in range(REPEATS)])
    return -problem.curvature * problem.mean, problem.curvature * (points - problem.mean)


def descend(
    problem: quadratic_solver.Quadratic, grid: quadratic_solver.Grid, method: str, random: np.random.Generator
) -> np.ndarray:
    card, dimension = quadratic.QUADRATIC_METHODS[method], len(problem.curvature)
    count = 1 if method == "dpzero" else dimension
    noise = (lambda step: random.standard_normal(count)) if card.private else None
    if card.order == 1:
        return quadratic_solver.first_order(problem, grid, noise)[0]
    draw = lambda step: random.standard_normal(dimension)  # noqa: E731
    return quadratic_solver.zeroth_order(problem, grid, draw, noise, method == "dpgd_0th")[0]


def lines(dimension: int, method: str, grid: dict) -> Iterator[dict]:
    start, last = gradients(dimension, method, grid)
    scatter = last.var(0, ddof=1)
    squared = (last**2).sum(1).mean()
    for low, high in pairwise([edge for edge in (*EDGES, dimension) if edge <= dimension]):
        part = slice(low, high)
        yield {
            "dimension": dimension,
            "method": method,
            "steps": grid["steps"][0],
            "norm": f"{np.sqrt(squared):.4g}",
            "coordinates": f"{low + 1} to {high}",
            "remaining": f"{(last.mean(0)[part] / start[part]).mean():.3f}",
            "share": f"{(last[:, part] ** 2).sum(1).mean() / squared:.3f}",
            "bias": f"{(last.mean(0)[part] ** 2 - scatter[part] / REPEATS).sum() / squared:.3f}",
        }


if __name__ == "__main__":
    found = []
    for setting in best_settings():
        found += lines(*setting)
        print(found[-1], flush=True)
    with (TABLES / "unfinished.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
