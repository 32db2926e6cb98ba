"""The sweep `quadratic`: the synthetic experiment of DPZero (Zhang et al., ICML 2024, section 5.1, table 6).

A run is one method on one rank law, dimension and seed: the final gradient norm at every setting of its grid.
Batches are full, and neighbours differ by one replaced example, as in the paper; the accountant is this
project's. Keys are published and the data are random: nothing here is a private release.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError
from ..language.data import assets
from ..plan.cell import run_id
from ..plan.experiment_types import QUADRATIC_METHODS
from ..privacy import Budget, RunKey, Setting
from ..run import record_file
from ..run.provenance import provenance
from ..zeroth_order.directions import make_law
from . import quadratic_solver
from .quadratic_solver import Draw, Grid, Quadratic

ADJACENCY, SAMPLING = "replace_one", "full_batch"
SELECTION = "the best of the grid by the measured gradient norm, a choice that epsilon does not cover"
SOURCE = ("quadratic.py", "quadratic_solver.py")


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Optimise at every setting of the cell's grid, write the record to `out` and return it."""
    started, run, method = time.perf_counter(), run_id(cell), QUADRATIC_METHODS[cell["method"]]
    try:
        norms, privacy = descend(cell, log)
    except ValueError as error:
        raise UsageError(f"{run}: {error}") from error
    best = min(norm for rates in norms["train"] for clips in rates for norm in clips)
    code = b"\0".join(Path(__file__).with_name(name).read_bytes() for name in SOURCE)
    result = record_file.make(
        cell,
        asdict(method),
        metrics={"gradient_norm": best, "selection": SELECTION},
        privacy=privacy,
        quadratic=norms,
        time={"wall_seconds": time.perf_counter() - started},
        provenance=provenance("dpzero", "cpu") | {"method_code": hashlib.sha256(code).hexdigest()[:16]},
    )
    record_file.write(out, result)
    return result


def descend(cell: dict, log: Callable[[str], object] = print) -> tuple[dict, dict | None]:
    """The `quadratic` part of a record, and its `privacy` part, which describes the best setting.

    The first has the gradient norms after the last step, on the examples (`train`) and on as many others
    (`test`), as nested lists [steps][learning rates][clips] in the order of the settings; without clipping
    the last has length 1.
    """
    settings, seed, method = cell["settings"], cell["seed"], cell["method"]
    size, dimension = settings["dataset_size"], settings["dimension"]
    steps, rates, clips = settings["steps"], settings["learning_rates"], settings.get("clips", [])
    shape = (len(steps), len(rates), max(1, len(clips)))
    log(f"{run_id(cell)}: {math.prod(shape)} settings")
    problem = Quadratic.drawn(size, dimension, settings["decay"], settings["informative"], seed)
    releases = Releases(cell) if QUADRATIC_METHODS[method].private else None
    noise, scales = None, []
    if releases:
        noise = partial(releases.unit_noise, count=1 if method == "dpzero" else dimension)
        scales = [releases.noise_scale(n) for n in steps]
    grid = Grid.product(steps, rates, clips, scales, size)
    points = solve(method, problem, grid, public_directions(dimension, seed), noise)
    longest_first = np.argsort(steps)[::-1]  # as the grid has them

    def nested(norms: NDArray) -> list:
        ordered = np.empty(shape)
        ordered[longest_first] = norms.reshape(shape)
        return [[[float(f"{n:.6g}") for n in row] for row in rows] for rows in ordered]

    train = problem.gradient_norms(points)
    norms = {
        "start": float(problem.gradient_norms(np.zeros((1, dimension)))[0]),
        "effective_rank": float(problem.curvature.sum()),
        "train": nested(train),
        "test": nested(problem.gradient_norms(points, of_test=True)),
    }
    best = int(train.argmin())
    privacy = releases.statement(int(grid.steps[best]), float(grid.clips[best])) if releases else None
    return norms, privacy


def solve(method: str, problem: Quadratic, grid: Grid, directions: Draw, noise: Draw | None) -> NDArray:
    """The last points [K, d] of a method at each setting of a grid."""
    if QUADRATIC_METHODS[method].order == 1:
        return quadratic_solver.first_order(problem, grid, noise)
    return quadratic_solver.zeroth_order(problem, grid, directions, noise, vector=method == "dpgd_0th")


class Releases:
    """The budget of each number of steps in the grid, and the unit noise of a published key that they share."""

    def __init__(self, cell: dict) -> None:
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

    def unit_noise(self, step: int, count: int) -> NDArray:
        """[count] standard normals, those of a budget in this step. The ledgers record the release first."""
        for steps, budget in self.budgets.items():
            if step < steps:
                budget.ledger.record(step, budget.key.name)
        return self.stream.normals(count, step, 0, 0)

    def statement(self, steps: int, clip: float) -> dict:
        return self.budgets[steps].statement(clip, self.epsilon)


def public_directions(dimension: int, seed: int) -> Draw:
    """Step -> the Gaussian direction [d], float64, that DPZero and MeZO with this seed take on one tensor."""
    law = make_law("gaussian", seed)

    def direction(step: int) -> NDArray:
        z = torch.zeros(dimension, dtype=torch.float64)
        law.add_([z], step, 1.0)
        return z.numpy()

    return direction
