"""The sweep `quadratic`: the synthetic experiment of DPZero (Zhang et al., ICML 2024, section 5.1, table 6).

A run is one method on one rank law, dimension and seed: the final gradient norm at every setting of its grid.
Batches are full, and neighbours differ by one replaced example, as in the paper; the accountant is this
project's. Keys are published and the data are random: nothing here is a private release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from ..files import run_id
from ..language.data import assets
from ..plan.study_sweeps import QUADRATIC_METHODS
from ..privacy import Budget, RunKey, Setting
from ..run.provenance import provenance
from ..zeroth_order.directions import make_law
from .quadratic_solver import Draw, Grid, Quadratic, first_order, zeroth_order

SELECTION = "the best of the grid by the measured gradient norm, a choice that epsilon does not cover"


def measure(cell: dict, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """The parts of a record; `privacy` describes the best setting.

    `quadratic` has the gradient norms after the last step, on the examples (`train`) and on as many others
    (`test`), as nested lists [steps][learning rates][clips] in the order of the settings; without clipping
    the last has length 1.
    """
    settings, method = cell["settings"], cell["method"]
    problem, grid, budgets = prepare(cell)
    log(f"{run_id(cell)}: {len(grid.steps)} settings")
    noise = unit_noise(budgets, 1 if method == "dpzero" else settings["dimension"]) if budgets else None
    points = solve(method, problem, grid, public_directions(settings["dimension"], cell["seed"]), noise)
    longest_first = np.argsort(settings["steps"])[::-1]  # as the grid has them

    def nested(norms: NDArray) -> list:
        shape = (len(settings["steps"]), len(settings["learning_rates"]), -1)
        ordered = norms.reshape(shape)[np.argsort(longest_first)]
        return [[[float(f"{n:.6g}") for n in row] for row in rows] for rows in ordered]

    train = problem.gradient_norms(points)
    best, privacy = int(train.argmin()), None
    if budgets:
        budget = budgets[int(grid.steps[best])]
        privacy = budget.statement(float(grid.clips[best]), float(cell["epsilon"]))
    return {
        "method": asdict(QUADRATIC_METHODS[method]),
        "metrics": {"gradient_norm": float(f"{train[best]:.6g}"), "selection": SELECTION},
        "privacy": privacy,
        "quadratic": {
            "start": float(problem.gradient_norms(np.zeros((1, settings["dimension"])))[0]),
            "effective_rank": float(problem.curvature.sum()),
            "train": nested(train),
            "test": nested(problem.gradient_norms(points, of_test=True)),
        },
        "provenance": provenance("dpzero", "cpu"),
    }


def prepare(cell: dict) -> tuple[Quadratic, Grid, dict[int, Budget]]:
    """The problem of a cell, its grid, and its budgets: one for each number of steps; none without privacy.

    The budgets share a published key.
    """
    settings, size = cell["settings"], cell["settings"]["dataset_size"]
    problem = Quadratic.drawn(
        size, settings["dimension"], settings["decay"], settings["informative"], cell["seed"]
    )
    budgets: dict[int, Budget] = {}
    for steps in settings["steps"] if QUADRATIC_METHODS[cell["method"]].private else ():
        setting = Setting("gaussian", "full_batch", "replace_one", size, size, steps, settings["delta"])
        scale = setting.cached_noise_scale(float(cell["epsilon"]), assets.cache_folder() / "calibrations")
        budgets[steps] = Budget(setting, scale, RunKey.published(cell["seed"]))
    scales = [budget.noise_scale for budget in budgets.values()]
    clips = settings.get("clips", [])
    return problem, Grid.product(settings["steps"], settings["learning_rates"], clips, scales, size), budgets


def solve(method: str, problem: Quadratic, grid: Grid, directions: Draw, noise: Draw | None) -> NDArray:
    """The last points [K, d] of a method at each setting of a grid."""
    if QUADRATIC_METHODS[method].order == 1:
        return first_order(problem, grid, noise)
    return zeroth_order(problem, grid, directions, noise, vector=method == "dpgd_0th")


def unit_noise(budgets: dict[int, Budget], count: int) -> Draw:
    """Step -> [count] standard normals, which the budgets share. Their ledgers record the release first."""
    stream = next(iter(budgets.values())).key.stream("noise")

    def draw(step: int) -> NDArray:
        for steps, budget in budgets.items():
            if step < steps:
                budget.ledger.record(step, budget.key.name)
        return stream.normals(count, step, 0, 0)

    return draw


def public_directions(dimension: int, seed: int) -> Draw:
    """Step -> the Gaussian direction [d], float64, that DPZero and MeZO with this seed take on one tensor."""
    law = make_law("gaussian", seed)

    def direction(step: int) -> NDArray:
        z = torch.zeros(dimension, dtype=torch.float64)
        law.add_([z], step, 1.0)
        return z.numpy()

    return direction
