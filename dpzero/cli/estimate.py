"""The cost of a sweep, for `snakemake -n`, batch systems and `dpzero estimate`. Imports no torch.

The seconds of a run come from the best source for a device, one of HOW:

measured: runs of its model and method with its own settings (runs.csv and times.csv of any sweep)
scaled: other such runs, or a benchmark (JSON), in proportion to the tokens of a step
estimated: DPZero's step in a benchmark, in proportion to tokens and parameters; evaluation is left out
unknown: none; the run is not counted

To these comes the start of the process (imports, rows), where records say what it takes. Runs of a rehearsal serve no other sweep.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from ..errors import UsageError
from ..language.models import model_catalogue, model_folder
from ..plan import sweep
from ..plan.registry import card

HOW = ("measured", "scaled", "estimated", "unknown")
RECORD_BYTES = 6_000  # a record with a curve of a few points
TRANSCRIPT_BYTES = 12  # a step and direction
ALIKE = ("tune", "compute", "weights")  # settings without which two step times are not compared
COMPUTE = ("", "float32", "bfloat16")  # of a full step; the published one does not say
SIZES = ("batch_size", "max_length", "directions")
PASSES = {0: 2, 1: 3}  # by a method's order, in forward passes: a backward pass has the work of two
GHOST_PASSES = 4  # a backward pass without the products of the weights, and a whole one
LEAST_MINUTES, LEAST_MEGABYTES = 60, 4000
HOST_BYTES = 6  # a parameter: 4 in float32, 2 in the file
SHAPES = Path(__file__).parents[1] / "language" / "models" / "architectures.yaml"
RESULTS = Path("results")


@cache
def _shapes() -> dict[str, int]:
    return {name: shape["parameters"] for name, shape in yaml.safe_load(SHAPES.read_text("utf-8")).items()}


def _parameters(model: str) -> int | None:
    """Of a model of a published shape; of its local folder, if there is one, which may hold a stand-in."""
    shape = _shapes().get(model)
    folder = model_catalogue.local_folder(model) if shape else None
    return (_parameters_in(folder) if folder else None) or shape


_parameters_in = cache(model_folder.parameters)


# Measured times ---------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """What a time is of. `alike`: the settings of ALIKE, as text."""

    model: str
    method: str
    alike: tuple[str, ...]
    rehearsed: bool = False


def full_step(model: str, method: str, compute: str) -> Key:
    """A step on all of the published weights, as a benchmark takes it."""
    return Key(model, method, ("full", compute, "None"))


class StepTime(NamedTuple):
    """A measured step. `other_seconds`: what its run takes besides its steps; None for a benchmark."""

    device: str
    on_gpu: bool
    key: Key
    tokens: int  # that a step may hold
    seconds: float
    sizes: tuple[int, ...] | None = None  # those of SIZES; None for a benchmark
    other_seconds: float | None = None
    weights_bytes: int = 0
    start_seconds: float | None = None  # of the process, before the run's own clock; None for older records


# 64 prompts of SST-2, 17 tokens each without padding (DPZero, table 3)
PUBLISHED = StepTime(
    "an RTX 3090 (published; nothing measured here)",
    on_gpu=True,
    key=full_step("roberta-large", "dpzero", ""),  # matches no cell: serves estimates by operations only
    tokens=64 * 17,
    seconds=0.347,
)


def measured(results: Path = RESULTS) -> Iterator[StepTime]:
    """Every step time in the tables under `results`."""
    for path in sorted(results.glob("*/tables/times.csv")):
        runs = {row["run"]: row for row in _rows(path.with_name("runs.csv"))}
        told = (
            row for row in _rows(path) if row["status"] == "ok" and row["time.wall_seconds"]
        )  # no release
        yield from (_of_run(runs[times["run"]], times) for times in told)
    for path in sorted(results.glob("*/tables/*.json")):
        try:
            yield from _of_benchmark(json.loads(path.read_text("utf-8")))
        except (ValueError, LookupError, TypeError):
            continue  # another file, or one of a benchmark that was killed


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _of_run(run: dict[str, str], times: dict[str, str]) -> StepTime:
    settings = {name: run.get(f"settings.{name}") or None for name in (*ALIKE, *SIZES)}
    sizes = tuple(int(settings[name] or 1) for name in SIZES)
    rehearsed = any(value for name, value in run.items() if name.startswith("rehearsal."))
    start, step = times.get("time.start_cpu_seconds"), float(times["time.step_seconds"] or 0)
    all_steps = (
        int(run["settings.steps"] or 0) * step
    )  # at the median; what the first ones take in addition is left
    return StepTime(
        times["provenance.device"],
        "CPU" not in run.get("memory.how", ""),
        Key(run["model"], run["method"], tuple(str(settings[name]) for name in ALIKE), rehearsed),
        math.prod(sizes),
        step,
        sizes,
        max(0.0, float(times["time.wall_seconds"]) - all_steps),
        int(run["memory.weights_bytes"] or 0),
        float(start) if start else None,
    )


def _of_benchmark(benchmark: dict) -> list[StepTime]:
    """Benchmarks train the whole model, on texts shorter than the longest: the padded tokens count."""
    return [
        StepTime(
            benchmark["provenance"]["device"],
            "CPU" not in benchmark["memory"],
            full_step(benchmark["model"], row["name"], benchmark["compute_dtype"]),
            benchmark["padded_tokens"],
            row["step_seconds_median"],
            weights_bytes=row["weights_bytes"],
        )
        for row in benchmark["rows"]
        if row["status"] == "ok"
    ]


# The estimate -----------------------------------------------------------------------------------------------


class Estimator:
    """Estimates the runs of a sweep on one device.

    Args:
        times: measured on that device.
        prompts: mean tokens of a prompt, by task; another task has prompts of the full length.
        start_seconds: of a run's process, if none of the times has it.
    """

    def __init__(
        self, times: Sequence[StepTime], prompts: dict[str, float], start_seconds: float = 0.0
    ) -> None:
        self.times, self.prompts = times, prompts
        self.device, self.on_gpu = times[0].device, times[0].on_gpu
        self.start_seconds = _start(times) or start_seconds
        self.by_key: dict[Key, list[StepTime]] = {}
        for time in times:
            self.by_key.setdefault(time.key, []).append(time)
        full = {full_step(name, "dpzero", compute) for name in _shapes() for compute in COMPUTE}
        self.full_steps = [time for time in times if time.key in full]

    @classmethod
    def choose(
        cls, name: str, cells: Sequence[dict], results: Path = RESULTS, gpu: str | None = None
    ) -> Estimator:
        """The estimator for the device on which most of the cells were measured; if none was, for a GPU.

        Args:
            gpu: a part of the device's name.

        Raises:
            UsageError: nothing was measured on such a device.
        """
        devices: dict[str, list[StepTime]] = {}
        everywhere = [*measured(results), PUBLISHED]
        for time in everywhere:
            devices.setdefault(time.device, []).append(time)
        matching = [times for device, times in devices.items() if (gpu or "").lower() in device.lower()]
        if not matching:
            raise UsageError(
                f"no step time was measured for {gpu}, but for {', '.join(devices)}: run one seed of the "
                "sweep there and its tables, or python -m dpzero benchmark"
            )
        tokens, start = sweep.read(name)["tokens"], _start(everywhere)
        estimators = [cls(times, tokens, start) for times in matching]
        return max(estimators, key=lambda one: (count_measured(one.total(cells)[0]), one.on_gpu))

    def total(self, cells: Sequence[dict]) -> tuple[Counter[str], float]:
        """The number of runs by the source of their times, and the sum of their seconds."""
        runs = [self.run(cell) for cell in cells]
        return Counter(how for how, _ in runs), sum(seconds for _, seconds in runs)

    def run(self, cell: dict) -> tuple[str, float]:
        """The source, a word of HOW, and the seconds of a run with the start of its process; 0 if they are unknown."""
        how, seconds = self._without_start(cell)
        return how, 0.0 if how == "unknown" else self.start_seconds + seconds

    def _without_start(self, cell: dict) -> tuple[str, float]:
        settings = cell["settings"]
        near = next(filter(None, map(self.by_key.get, _keys(cell))), None)
        if not near:
            return self._by_operations(cell)
        sizes = tuple(int(settings.get(name, 1)) for name in SIZES)
        same = [time for time in near if time.sizes == sizes]
        padded = math.prod(sizes)
        texts = padded * self.prompts.get(cell["task"], sizes[1]) / sizes[1]  # as a benchmark counts tokens
        step = median(t.seconds * (padded if t.sizes else texts) / t.tokens for t in same or near)
        other = [time.other_seconds for time in same or near if time.other_seconds is not None] or [0.0]
        return "measured" if same else "scaled", settings["steps"] * step + median(other)

    def _by_operations(self, cell: dict) -> tuple[str, float]:
        """Scale DPZero's full fine-tuning step on the model nearest in size, of this precision if there is one."""
        size, settings = _parameters(cell["model"]) if "use" in cell else None, cell["settings"]
        if not size or not self.full_steps:
            return "unknown", 0.0
        order = card(cell["use"]).order
        # what is written takes one pass a step; nothing else of order None takes steps
        passes = 1 if order is None else PASSES[order] * settings.get("directions", 1)
        if settings.get("clipping") == "ghost":
            passes = GHOST_PASSES
        tokens = settings["batch_size"] * self.prompts.get(cell["task"], settings["max_length"])

        def distance(time: StepTime) -> tuple[float, bool]:
            return abs(math.log(_shapes()[time.key.model] / size)), time.key.alike[1] != settings["compute"]

        step = min(self.full_steps, key=distance)
        work = passes * size * tokens / (PASSES[0] * _shapes()[step.key.model] * step.tokens)
        return "estimated", settings["steps"] * work * step.seconds


def _keys(cell: dict) -> list[Key]:
    """Of what times serve a cell, the best first: those of its sweep serve a rehearsal, too."""
    alike = tuple(str(cell["settings"].get(name)) for name in ALIKE)
    rehearsed = [True, False] if "rehearsal" in cell else [False]
    names = (cell["method"], cell.get("use"))
    return [Key(cell["model"], name, alike, one) for one in rehearsed for name in names if name]


def _start(times: Sequence[StepTime]) -> float:
    """The median of what a process takes to start; 0 if no record says it."""
    known = [time.start_seconds for time in times if time.start_seconds is not None]
    return median(known) if known else 0.0


def count_measured(counts: Counter[str]) -> int:
    return counts["measured"] + counts["scaled"]


def announcement(name: str, cells: Sequence[dict], cores: int | None) -> str:
    """The hours of these runs, in words; empty if nothing is known. `cores`: None on a cluster."""
    estimator = Estimator.choose(name, cells)
    counts, seconds = estimator.total(cells)
    place, words = estimator.device, ", ".join(f"{counts[how]} {how}" for how in HOW if counts[how])
    stated = None if any("rehearsal" in cell for cell in cells) else sweep.read(name)["core_seconds"]
    on_cores = not estimator.on_gpu
    if stated and cores and not count_measured(counts):
        seconds, place, words, on_cores = stated * len(cells), "a CPU", "as the sweep says", True
    if not seconds:
        return ""
    all_cores = ""
    if on_cores and cores:
        all_cores = f"{_hours(seconds)} core hours, "
        seconds, place = seconds / min(cores, len(cells)), f"{cores} cores of {place}"
    return f", about {all_cores}{_hours(seconds)} hours on {place} ({words})"


def _hours(seconds: float) -> str:
    hours = max(0.1, seconds / 3600)
    return f"{hours:,.{0 if hours >= 10 else 1}f}"


def estimate(name: str, cells: Sequence[dict], results: Path, gpu: str | None, price: float) -> dict:
    """Hours of a sweep's runs on one device, one after another, money at `price` an hour, and bytes.

    Raises:
        UsageError: nothing is known of any run on such a device.
    """
    estimator = Estimator.choose(name, cells, results, gpu)
    counts, seconds = estimator.total(cells)
    if counts["unknown"] == len(cells):
        raise UsageError(f"no step time was measured for sweep {name}: run one seed of it and its tables")
    hours, models = round(seconds / 3600, 2), {cell["model"] for cell in cells}
    weights = [time.weights_bytes for time in estimator.times if time.key.model in models]
    releases = sum(cell["settings"]["steps"] * cell["settings"].get("directions", 1) for cell in cells)
    return {
        "device": estimator.device,
        "hours": hours,
        "cells": {how: counts[how] for how in HOW},
        "results_bytes": RECORD_BYTES * len(cells) + TRANSCRIPT_BYTES * releases,
        "checkpoint_bytes_a_running_cell": max(weights, default=0),  # at most: fewer may be trainable
        "money": round(hours * price, 2),
        "price_an_hour": price,
    }


def minutes(estimator: Estimator, cell: dict) -> int:
    """Minutes to ask a batch system for: twice the estimate, and at least an hour."""
    return max(LEAST_MINUTES, math.ceil(2 * estimator.run(cell)[1] / 60))


def host_megabytes(cell: dict) -> int:
    """Host memory to ask for: Python and torch, the weights in float32 and, as they are read, the file's."""
    size = _parameters(cell["model"]) or 0 if "use" in cell else 0  # studies load no weights
    return LEAST_MEGABYTES + HOST_BYTES * size // 10**6
