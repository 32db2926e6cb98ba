"""What a sweep costs before it is run: device hours, disk and money, from step times that were measured. Imports no torch.

Measured are runs (runs.csv and times.csv among the tables of any sweep) and benchmarks (their JSON). A cell takes the runs of its
model and method with its own settings; failing that, such runs or a benchmark with their step time in proportion to the tokens
that a step may hold (batch size, longest text, directions); failing that, it is counted as unmeasured and not guessed.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..errors import UsageError

RECORD_BYTES = 6_000  # a record with a curve of a few points
TRANSCRIPT_BYTES = 12  # a step and direction
ALIKE = ("tune", "compute")  # settings without which two step times are not compared
SIZES = ("batch_size", "max_length", "directions")


@dataclass(frozen=True)
class Measured:
    """One measured step time: what it was taken on, and the seconds of a run that are not steps (None: not known)."""

    model: str
    method: str
    device: str
    alike: tuple[str, ...]
    sizes: tuple[int, ...]
    step_seconds: float
    other_seconds: float | None
    weights_bytes: int


def estimate(cells: Iterable[dict], results: Path, gpu: str | None, price: float) -> dict:
    """Hours on one device, money at `price` an hour, bytes. `gpu`: a part of the device's name; without it, the one with most cells.

    Raises UsageError where nothing was measured for any cell on such a device.
    """
    cells, found = list(cells), measured(results)
    known = sorted({one.device for one in found})
    devices = [device for device in known if (gpu or "").lower() in device.lower()]
    plans = {device: _plan(cells, [one for one in found if one.device == device]) for device in devices}
    device = max(plans, key=lambda name: len(cells) - plans[name]["cells"]["unmeasured"], default=None)
    if device is None or plans[device]["cells"]["unmeasured"] == len(cells):
        where = f"{gpu} ({', '.join(known) or 'nothing'} was)" if gpu and not devices else "these cells"
        raise UsageError(
            f"no step time was measured for {where}: run one seed of the sweep there and its tables, or python -m dpzero benchmark"
        )
    plan = plans[device]
    return {"device": device, **plan, "money": round(plan["hours"] * price, 2), "price_an_hour": price}


def measured(results: Path) -> list[Measured]:
    """Every step time in the tables under `results`."""
    found = []
    for times in sorted(results.glob("*/tables/times.csv")):
        runs = {row["run"]: row for row in _rows(times.with_name("runs.csv"))}
        found += [_of_run(runs[row["run"]], row) for row in _rows(times) if row["status"] == "ok"]
    for path in sorted(results.glob("*/tables/*.json")):
        made = json.loads(path.read_text("utf-8"))
        if isinstance(made, dict) and "two_forward_seconds_median" in str(made.get("rows"))[:2000]:
            found += [_of_benchmark(made, row) for row in made["rows"] if row["status"] == "ok"]
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _of_run(run: dict[str, str], times: dict[str, str]) -> Measured:
    settings = {name: run.get(f"settings.{name}") or None for name in (*ALIKE, *SIZES)}
    wall, train = float(times["time.wall_seconds"]), float(times["time.train_seconds"])
    return Measured(
        run["model"],
        run["method"],
        times["provenance.device"],
        tuple(str(settings[name]) for name in ALIKE),
        tuple(int(settings[name] or 1) for name in SIZES),
        float(times["time.step_seconds"] or 0),
        wall - train,
        int(run["memory.weights_bytes"] or 0),
    )


def _of_benchmark(made: dict, row: dict) -> Measured:
    """Benchmarks train the whole model. Their texts are shorter than the longest: the padded tokens count."""
    return Measured(
        made["model"],
        row["name"],
        made["provenance"]["device"],
        ("full", made["compute_dtype"]),
        (1, made["padded_tokens"], 1),
        row["step_seconds_median"],
        None,
        row["weights_bytes"],
    )


def _plan(cells: list[dict], found: list[Measured]) -> dict:
    """Sums over the cells that something was measured for."""
    seconds, disk, weights, how = 0.0, 0, 0, Counter(measured=0, scaled=0, unmeasured=0)
    by_kind: dict[tuple, list[Measured]] = {}
    for one in found:
        by_kind.setdefault((one.model, one.method, *one.alike), []).append(one)
    for cell in cells:
        settings = cell["settings"]
        alike = tuple(str(settings.get(name)) for name in ALIKE)
        sizes = tuple(int(settings.get(name, 1)) for name in SIZES)
        names = dict.fromkeys((cell["method"], cell["use"]))
        kinds = (by_kind.get((cell["model"], name, *alike)) for name in names)
        near = next(filter(None, kinds), [])
        same = [one for one in near if one.sizes == sizes and one.other_seconds is not None]
        how["measured" if same else "scaled" if near else "unmeasured"] += 1
        if near:
            seconds += _seconds(settings["steps"], sizes, same or near)
            weights = max(weights, *(one.weights_bytes for one in near))
        disk += RECORD_BYTES + TRANSCRIPT_BYTES * settings["steps"] * settings.get("directions", 1)
    return {
        "hours": round(seconds / 3600, 2),
        "cells": dict(how),
        "results_bytes": disk,
        "checkpoint_bytes_a_running_cell": weights,  # at most: what is trained may be less
    }


def _seconds(steps: int, sizes: tuple[int, ...], near: list[Measured]) -> float:
    """Of one run: the median step in proportion to its tokens, and the median of what is not steps."""
    step = median(one.step_seconds * _product(sizes) / _product(one.sizes) for one in near)
    other = [one.other_seconds for one in near if one.other_seconds is not None]
    return steps * step + (median(other) if other else 0.0)


def _product(sizes: tuple[int, ...]) -> int:
    batch, length, directions = sizes
    return batch * length * directions
