"""Large sweeps: planning and tables take time in proportion to the runs. Processor time, so that company on the machine matters little."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable

import pytest

from dpzero.plan import sweep
from tests.project_copy import ProjectCopy

pytestmark = pytest.mark.slow
GROWTH = 2  # of the cost of one more run, from the small sweep to the large one; a quadratic step shows as 4
SIZES = (0, 1000, 4000)


@pytest.fixture
def project(tmp_path) -> ProjectCopy:
    """A copy with sweeps of many seeds: 10 runs a seed, and zero-shot."""
    project = ProjectCopy.build(tmp_path / "project", tmp_path / "cache")
    for runs in SIZES:
        text = (
            f"extends: quick\ndescription: many\nepsilons: ['2']\nseeds: {list(range(max(1, runs // 10)))}\n"
        )
        (project.sweeps / f"many-{runs}.yaml").write_text(text)
    return project


def cost(project: ProjectCopy, *command: object) -> float:
    """Seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = project.call(*command)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def assert_in_proportion(measure: Callable[[int], float]) -> list[float]:
    """The processor seconds of each size. The least of up to three measurements counts: company on the machine only ever adds to them."""
    costs = [float("inf")] * len(SIZES)
    for _ in range(3):
        costs = [min(cost, measure(runs)) for cost, runs in zip(costs, SIZES, strict=True)]
        start, small, large = costs
        if (large - start) / 4 < GROWTH * max(small - start, 0.5):
            return costs
    raise AssertionError(f"processor seconds of {SIZES} runs: {costs}")


def test_planning_takes_time_in_proportion_to_the_runs(project):
    plan = ["-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", 2, "--config"]
    start, small, _ = assert_in_proportion(lambda runs: cost(project, *plan, f"sweep=many-{runs}"))
    assert small < 6 * start  # about 2; one that reads the sweep's file for each run takes 15


def test_tables_take_time_in_proportion_to_the_records(project):
    spec = "toy/tiny-encoder/dpzero/eps-2/seed-0"
    assert (
        project.call(
            "-m", "dpzero", "run", "--sweep", "smoke", "--cell", spec, "--out", "one.json"
        ).returncode
        == 0
    )
    one = json.loads((project.folder / "one.json").read_text())

    def tables(runs: int) -> float:
        cells = sweep.load(str(project.sweeps / f"many-{runs}.yaml"))
        for run, cell in cells.items():
            path = project.folder / "records" / f"{run}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(one | {"run": run, "cell": {k: v for k, v in cell.items() if k != "title"}})
            )
        (project.folder / "cells.txt").write_text("\n".join(cells))
        places = ["--cells", "cells.txt", "--records", "records", "--out", "tables"]
        return cost(project, "-m", "dpzero", "tables", "--sweep", f"many-{runs}", *places)

    assert_in_proportion(tables)
