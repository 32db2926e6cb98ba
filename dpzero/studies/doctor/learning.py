"""Whether methods learn on this device: runs of the sweep `body` through all weights of MiniLM, side by side on one GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...files import run_id
from ...run import gpu_lock
from . import pack
from .machine import Machine, Skipped

SIDE_BY_SIDE = 3  # runs that share the GPU
LAST_SECONDS = 10  # left for the sections after this one


def rows(machine: Machine) -> Iterator[dict]:
    """One row for each run, as it ends: accuracy, epsilon, seconds. Runs that do not end in time are stopped."""
    if not machine.on_cuda:
        raise Skipped(
            "ten thousand steps through the whole model are for a GPU, or for `snakemake --config sweep=body`, which resumes"
        )
    yield from run_side_by_side(_cells(machine.packed), machine)


def run_side_by_side(cells: Sequence[dict], machine: Machine) -> Iterator[dict]:
    """One row for each run, as it ends, on the machine's device; what does not end in time is stopped."""
    waiting, running = list(cells), dict[subprocess.Popen, dict]()
    while (waiting or running) and machine.seconds_left() > LAST_SECONDS:
        while waiting and len(running) < SIDE_BY_SIDE:
            cell = waiting.pop(0)
            running[_start(cell, machine)] = cell
        time.sleep(0.5)
        for process in [process for process in running if process.poll() is not None]:
            yield _row(running.pop(process), machine)
    for process, cell in running.items():
        process.terminate()
        process.wait()
        yield {"run": run_id(cell), "status": "stopped", "error": "no time was left"}
    yield from ({"run": run_id(cell), "status": "not begun", "error": "no time was left"} for cell in waiting)


def _cells(packed: Path | None) -> list[dict]:
    if packed is None:
        return pack.cells()
    cells: list[dict] = json.loads((packed / "runs.json").read_text("utf-8"))
    return cells


def _file(cell: dict, machine: Machine) -> Path:
    return machine.out / "runs" / f"{run_id(cell)}.json"


def _start(cell: dict, machine: Machine) -> subprocess.Popen:
    environment = dict(os.environ) | {gpu_lock.SHARE: str(SIDE_BY_SIDE)}
    if machine.packed:
        environment |= pack.environment(machine.packed)
    file = _file(cell, machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # of an earlier examination
    command = [sys.executable, "-P", "-m", "dpzero", "run", "--spec", json.dumps(cell), "--out", str(file)]
    command += ["--device", machine.device, "--threads", "1"]
    with file.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _row(cell: dict, machine: Machine) -> dict:
    file = _file(cell, machine)
    row: dict[str, Any] = {"run": run_id(cell), "title": cell["title"], "epsilon": cell["epsilon"]}
    if not file.exists():
        lines = file.with_suffix(".log").read_text("utf-8", "replace").strip().splitlines() or [""]
        return row | {"status": "failed", "error": lines[-1]}
    record = json.loads(file.read_text("utf-8"))
    privacy, seconds = record.get("privacy") or {}, record["time"]
    row |= {
        "status": record["status"],
        "accuracy": record["metrics"].get("accuracy"),
        "steps": cell["settings"]["steps"],
    }
    row |= {"epsilon_spent": privacy.get("epsilon_spent"), "wall_seconds": seconds["wall_seconds"]}
    return row | {
        "train_seconds": seconds["train_seconds"],
        "peak_bytes": record["memory"].get("peak_allocated_bytes"),
    }
