"""The sweep `quadratic`: the synthetic experiment of DPZero (Zhang et al., ICML 2024, section 5.1, appendix B.1 and table 6).

A run is one method on one rank law, dimension and seed: the last gradient norm of every setting of its grid (see `descents`).
Batches are full, neighbours differ by one example replaced, as in the paper; epsilon is this project's own. Keys are published
and the data are drawn: nothing here is a private release.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..plan.cell import run_id
from ..plan.experiment_types import QUADRATIC_METHODS
from ..run import record
from ..run.provenance import provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .quadratic_solver import Draw, Grid, Quadratic

ADJACENCY, SAMPLING = "replace_one", "full_batch"
SELECTION = "the best of the grid by the measured gradient norm, a choice that epsilon does not cover"
SOURCE = ("quadratic.py", "quadratic_solver.py")


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Descend with every setting of the cell's grid, write the record to `out` and return it."""
    started, run, method = time.perf_counter(), run_id(cell), QUADRATIC_METHODS[cell["method"]]
    try:
        found, privacy = descend(cell, log)
    except ValueError as error:
        raise UsageError(f"{run}: {error}") from error
    code = b"\0".join(Path(__file__).with_name(name).read_bytes() for name in SOURCE)
    made = {
        "version": record.VERSION,
        "run": run,
        "cell": cell,
        "method": {"title": method.title, "private": method.private, "order": method.order},
        "status": "ok",
        "error": None,
        "metrics": {"gradient_norm": _least(found["train"]), "selection": SELECTION},
        "privacy": privacy,
        "quadratic": found,
        "time": {"wall_seconds": time.perf_counter() - started},
        "provenance": provenance("dpzero", "cpu") | {"method_code": hashlib.sha256(code).hexdigest()[:16]},
    }
    record.write(out, made)
    return made


def descend(cell: dict, log: Callable[[str], object] = print) -> tuple[dict, dict | None]:
    """The `quadratic` part of a record, and its `privacy` part, which is of the best setting.

    Gradient norms after the last step, on the examples (`train`) and on as many others (`test`): nested lists [steps][learning
    rates][clips] in the order of the settings; of a method that does not clip [steps][learning rates][1].
    """
    import numpy as np

    from . import quadratic_solver

    settings, seed, method = cell["settings"], cell["seed"], QUADRATIC_METHODS[cell["method"]]
    size, dimension = settings["dataset_size"], settings["dimension"]
    problem = quadratic_solver.Quadratic.drawn(
        size, dimension, settings["decay"], settings["informative"], seed
    )
    releases = Releases(cell) if method.private else None
    grids = [settings["steps"], settings["learning_rates"], settings.get("clips") or [np.inf]]
    shape = tuple(len(grid) for grid in grids)
    log(f"{run_id(cell)}: {np.prod(shape)} settings")
    scales = [releases.noise_scale(steps) for steps in settings["steps"]] if releases else ()
    grid = quadratic_solver.Grid.product(*grids[:2], settings.get("clips", ()), scales, size)
    count = 1 if cell["method"] == "dpzero" else dimension
    noise = (lambda step: releases.unit_noise(step, count)) if releases else None
    points = solve(cell["method"], problem, grid, public_directions(dimension, seed), noise)
    by_length = np.argsort(settings["steps"])[::-1]  # the grid has the longest runs first

    def listed(norms: np.ndarray) -> list:
        ordered = np.empty(shape)
        ordered[by_length] = norms.reshape(shape)
        return [[[float(f"{n:.6g}") for n in row] for row in rows] for rows in ordered]

    train = problem.gradient_norms(points)
    found = {
        "start": float(problem.gradient_norms(np.zeros((1, dimension)))[0]),
        "effective_rank": float(problem.curvature.sum()),
        "train": listed(train),
        "test": listed(problem.gradient_norms(points, of_test=True)),
    }
    best = int(train.argmin())
    return found, releases.statement(int(grid.steps[best]), float(grid.clips[best])) if releases else None


def solve(method: str, problem: Quadratic, grid: Grid, directions: Draw, noise: Draw | None) -> NDArray:
    """The last points [K, d] of a method at each setting of a grid."""
    from . import quadratic_solver

    if QUADRATIC_METHODS[method].order == 1:
        return quadratic_solver.first_order(problem, grid, noise)
    return quadratic_solver.zeroth_order(problem, grid, directions, noise, vector=method == "dpgd_0th")


class Releases:
    """The budget of each number of steps in the grid, and the noise of unit scale that they share: a published key's."""

    def __init__(self, cell: dict) -> None:
        from ..language.data import assets
        from ..privacy import Budget, RunKey, Setting

        settings, self.epsilon = cell["settings"], float(cell["epsilon"])
        key, size = RunKey.published(cell["seed"]), settings["dataset_size"]
        self.budgets, folder = {}, assets.cache_folder() / "calibrations"
        for steps in settings["steps"]:
            setting = Setting("gaussian", SAMPLING, ADJACENCY, size, size, steps, settings["delta"])
            scale = setting.cached_noise_scale(self.epsilon, folder)
            self.budgets[steps] = Budget(setting, scale, key)
        self.stream = key.stream("noise")

    def noise_scale(self, steps: int) -> float:
        return self.budgets[steps].noise_scale

    def unit_noise(self, step: int, count: int):
        """[count] standard normals, those that a budget would add in this step. The ledgers have the release before it is made."""
        for steps, budget in self.budgets.items():
            if step < steps:
                budget.ledger.record(step, budget.key.name)
        return self.stream.normals(count, step, 0, 0)

    def statement(self, steps: int, clip: float) -> dict:
        return self.budgets[steps].statement(clip, self.epsilon)


def public_directions(dimension: int, seed: int):
    """Step -> the Gaussian direction [d], float64, that DPZero and MeZO of this seed take on one tensor."""
    import torch

    from ..zeroth_order.directions import make_law

    law = make_law("gaussian", seed)

    def direction(step: int):
        z = torch.zeros(dimension, dtype=torch.float64)
        law.add_([z], step, 1.0)
        return z.numpy()

    return direction


def _least(norms: list) -> float:
    return min(norm for rows in norms for row in rows for norm in row)
