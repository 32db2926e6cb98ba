"""What a sweep costs, for `snakemake -n`, the batch system and `dpzero estimate`. Imports no torch.

Measured times come first: runs (runs.csv and times.csv among the tables of any sweep) and benchmarks (their
JSON). A cell takes the runs of its model and method with its own settings. Failing that, it takes other such
runs, or a benchmark, in proportion to the tokens that a step may hold (batch size, longest text, directions).
What was never measured is estimated from tokens and parameters at the speed of a two-point step on a GPU, and
always called an estimate.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from ..errors import UsageError
from ..plan import sweep
from ..plan.registry import card

RECORD_BYTES = 6_000  # a record with a curve of a few points
TRANSCRIPT_BYTES = 12  # a step and direction
ALIKE = ("tune", "compute")  # settings without which two step times are not compared
SIZES = ("batch_size", "max_length", "directions")
PASSES = {0: 2, 1: 3}  # by a method's order, in forward passes: a backward pass has the work of two
GHOST_PASSES = 4  # a backward pass without the products of the weights, and a whole one
LEAST_MINUTES, LEAST_MEGABYTES = 60, 4000
HOST_BYTES = 6  # a parameter: 4 in float32, 2 in the file
SHAPES = Path(__file__).parents[1] / "language" / "models" / "architectures.yaml"
BENCHMARKS = Path("results/benchmark/tables")  # of `python -m dpzero benchmark`


@cache
def _parameters() -> dict[str, int]:
    return {name: shape["parameters"] for name, shape in yaml.safe_load(SHAPES.read_text("utf-8")).items()}


def _benchmarks(folder: Path, pattern: str = "*.json") -> Iterator[tuple[str, dict]]:
    """(file name, benchmark) of JSON files; a benchmark that was killed may have left half a file."""
    for path in sorted(folder.glob(pattern)):
        try:
            bench = json.loads(path.read_text("utf-8"))
            complete = {"model", "compute_dtype", "provenance"} <= bench.keys() and bench["rows"][0]["name"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        if complete:
            yield path.stem, bench


# By tokens and parameters -----------------------------------------------------------------------------------


class Speed(NamedTuple):
    """What a two-point step makes of a GPU, at 2 operations a parameter and token of each forward pass."""

    operations_per_second: float
    source: str


# 64 prompts of SST-2, 17 tokens each, twice through RoBERTa-large in 0.347 s (DPZero, table 3). Prompts are
# counted without padding
PUBLISHED = Speed(64 * 17 * 2 * 2 * 355e6 / 0.347, "a published step on an RTX 3090; nothing measured here")


def announcement(name: str, cells: Sequence[dict], cores: int | None) -> str:
    """What these runs of a sweep take, in words; empty if nothing is known. `cores`: None on a cluster."""
    seconds = sweep.core_seconds(name)
    if seconds and cells and cores:
        minutes_in_all = max(1, round(len(cells) * seconds / min(cores, len(cells)) / 60))
        return f", about {minutes_in_all} minutes on {cores} CPU cores"
    pace = speed(cells)
    hours = gpu_hours(name, cells, pace)
    if not hours:
        return ""
    return (
        f", about {hours:,.{0 if hours >= 10 else 1}f} GPU hours of training (an estimate from tokens and "
        f"parameters, at the speed of {pace.source}; evaluation left out)"
    )


def speed(cells: Sequence[dict], folder: Path = BENCHMARKS) -> Speed:
    """The speed of DPZero's step in a benchmark on a GPU, else the published one.

    Takes the benchmark whose model is nearest in size to the largest of the cells; of several, one with its
    precision, then the nearest batch.
    """
    sizes = _parameters()
    cell = max(cells, key=lambda cell: sizes.get(cell["model"], 1), default=None)
    best, nearest = PUBLISHED, None
    for name, bench in _benchmarks(folder):
        rates = [row["tokens_per_second"] for row in bench["rows"] if row["name"] == "dpzero"]
        if cell is None or not rates or bench["model"] not in sizes or "CUDA" not in bench["memory"]:
            continue
        size, settings = sizes[bench["model"]], cell["settings"]
        distance = (
            abs(math.log(size / sizes.get(cell["model"], 1))),
            bench["compute_dtype"] != settings["compute"],
            abs(math.log(bench["batch_size"] / settings["batch_size"])),
        )
        if nearest is None or distance < nearest:
            source = f"DPZero's step on {bench['provenance']['device']} in the benchmark {name}"
            best, nearest = Speed(2 * size * rates[0], source), distance  # tokens of both passes are counted
    return best


def gpu_hours(name: str, cells: Sequence[dict], pace: Speed = PUBLISHED) -> float:
    """Hours of training, one run after another; 0 if the length of prompts or a model's size is not known."""
    tokens, sizes = sweep.tokens(name), _parameters()
    if not all(cell["task"] in tokens and cell["model"] in sizes for cell in cells):
        return 0.0
    operations = (_operations(cell, tokens[cell["task"]], sizes[cell["model"]]) for cell in cells)
    return sum(operations) / pace.operations_per_second / 3600


def minutes(tokens: dict[str, float], cell: dict, pace: Speed = PUBLISHED) -> int:
    """Minutes to ask a batch system for: twice the estimate, without evaluation, and at least an hour.

    tokens: mean tokens of a prompt, by task (see `sweep.tokens`); a task that is not there has prompts of the
        full length.
    """
    length = tokens.get(cell["task"], cell["settings"].get("max_length", 0))
    size = _parameters().get(cell["model"])
    if not size or "use" not in cell:
        return LEAST_MINUTES
    estimated = _operations(cell, length, size) / pace.operations_per_second / 60
    return max(LEAST_MINUTES, math.ceil(2 * estimated))


def host_megabytes(cell: dict) -> int:
    """Host memory to ask for: Python and torch, the weights in float32 and, as they are read, the file's."""
    size = _parameters().get(cell["model"], 0) if "use" in cell else 0  # studies load no weights
    return LEAST_MEGABYTES + HOST_BYTES * size // 10**6


def _operations(cell: dict, tokens: float, parameters: int) -> float:
    settings, order = cell["settings"], card(cell["use"]).order
    passes = 0 if order is None else PASSES[order] * settings.get("directions", 1)
    if settings.get("clipping") == "ghost":
        passes = GHOST_PASSES
    return 2 * parameters * tokens * settings["batch_size"] * settings["steps"] * passes


# By measured times ------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """One measured step time. `other_seconds`: of a run beside its steps; None if not known."""

    device: str
    key: tuple[str, ...]  # model, method and the settings of ALIKE
    work: int  # tokens that a step may hold
    sizes: tuple[int, ...] | None  # those of SIZES; None for a benchmark
    step_seconds: float
    other_seconds: float | None
    weights_bytes: int


def estimate(cells: Iterable[dict], results: Path, gpu: str | None, price: float) -> dict:
    """Hours on one device, money at `price` an hour, bytes.

    Args:
        gpu: a part of the device's name; by default the device on which most of the cells were measured.

    Raises:
        UsageError: nothing was measured for any cell on such a device.
    """
    cells, measurements = list(cells), measured(results)
    known = sorted({one.device for one in measurements})
    devices = [device for device in known if (gpu or "").lower() in device.lower()]
    plans = {
        device: _plan(cells, [one for one in measurements if one.device == device]) for device in devices
    }
    device = min(plans, key=lambda name: plans[name]["cells"]["unmeasured"], default=None)
    if device is None or plans[device]["cells"]["unmeasured"] == len(cells):
        where = f"{gpu} ({', '.join(known) or 'nothing'} was)" if gpu and not devices else "these cells"
        raise UsageError(
            f"no step time was measured for {where}: run one seed of the sweep there and its tables, or "
            "python -m dpzero benchmark"
        )
    plan = plans[device]
    return {"device": device, **plan, "money": round(plan["hours"] * price, 2), "price_an_hour": price}


def measured(results: Path) -> list[Measured]:
    """Every step time in the tables under `results`."""
    found = []
    for path in sorted(results.glob("*/tables/times.csv")):
        runs = {row["run"]: row for row in _rows(path.with_name("runs.csv"))}
        found += [_of_run(runs[times["run"]], times) for times in _rows(path) if times["status"] == "ok"]
    for _, bench in _benchmarks(results, "*/tables/*.json"):
        # benchmarks train the whole model on texts that are shorter than the longest: the padded tokens count
        device, kind = bench["provenance"]["device"], ("full", bench["compute_dtype"])
        for row in bench["rows"]:
            if row["status"] == "ok" and "two_forward_seconds_median" in row:
                key, work = (bench["model"], row["name"], *kind), bench["padded_tokens"]
                seconds, weights = row["step_seconds_median"], row["weights_bytes"]
                found.append(Measured(device, key, work, None, seconds, None, weights))
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _of_run(run: dict[str, str], times: dict[str, str]) -> Measured:
    settings = {name: run.get(f"settings.{name}") or None for name in (*ALIKE, *SIZES)}
    sizes = tuple(int(settings[name] or 1) for name in SIZES)
    other = float(times["time.wall_seconds"]) - float(times["time.train_seconds"])
    return Measured(
        times["provenance.device"],
        (run["model"], run["method"], *(str(settings[name]) for name in ALIKE)),
        math.prod(sizes),
        sizes,
        float(times["time.step_seconds"] or 0),
        other,
        int(run["memory.weights_bytes"] or 0),
    )


def _plan(cells: list[dict], measurements: list[Measured]) -> dict:
    """Sums over the cells for which something was measured."""
    seconds, disk, weights, how = 0.0, 0, 0, Counter(measured=0, scaled=0, unmeasured=0)
    by_key: dict[tuple, list[Measured]] = {}
    for one in measurements:
        by_key.setdefault(one.key, []).append(one)
    for cell in cells:
        settings = cell["settings"]
        alike = tuple(str(settings.get(name)) for name in ALIKE)
        sizes = tuple(int(settings.get(name, 1)) for name in SIZES)
        keys = ((cell["model"], name, *alike) for name in dict.fromkeys((cell["method"], cell["use"])))
        near = next((by_key[key] for key in keys if key in by_key), [])
        same = [one for one in near if one.sizes == sizes]
        how["measured" if same else "scaled" if near else "unmeasured"] += 1
        if near:
            step = median(one.step_seconds * math.prod(sizes) / one.work for one in same or near)
            other = [one.other_seconds for one in same or near if one.other_seconds is not None]
            seconds += settings["steps"] * step + (median(other) if other else 0.0)
            weights = max(weights, *(one.weights_bytes for one in near))
        disk += RECORD_BYTES + TRANSCRIPT_BYTES * settings["steps"] * settings.get("directions", 1)
    return {
        "hours": round(seconds / 3600, 2),
        "cells": dict(how),
        "results_bytes": disk,
        "checkpoint_bytes_a_running_cell": weights,  # at most: fewer may be trainable
    }
