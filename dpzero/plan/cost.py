"""How long the runs of a sweep take: from what one took, or from tokens and parameters at the speed of a step on a GPU. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from . import sweep
from .registry import card

PASSES = {
    0: 2,
    1: 3,
}  # by a method's order, in forward passes: two, or one and a backward pass of twice its work
GHOST_PASSES = 4  # a backward pass without the products of the weights, and a whole one
LEAST_MINUTES, LEAST_MEGABYTES = 60, 4000
HOST_BYTES = 6  # a parameter: 4 in float32, 2 in the file
SHAPES = Path(__file__).parents[1] / "language" / "models" / "architectures.yaml"
BENCHMARKS = Path("results/benchmark/tables")  # where `python -m dpzero benchmark` leaves what it measured


class Speed(NamedTuple):
    """What a two-point step makes of a GPU, at 2 operations a parameter and token of each pass."""

    operations_per_second: float
    of: str


# 64 prompts of SST-2, 17 tokens each, twice through RoBERTa-large in 0.347 s (DPZero, table 3). Padding is in it, as prompts are
# counted without
PUBLISHED = Speed(64 * 17 * 2 * 2 * 355e6 / 0.347, "a published step on an RTX 3090; nothing measured here")


def estimate(name: str, cells: Sequence[dict], cores: int | None) -> str:
    """What so many runs of a sweep take, to stand behind their number; empty where nothing is known of it. No `cores`: on a cluster."""
    seconds = sweep.core_seconds(name)
    if seconds and cells and cores:
        return f", about {max(1, round(len(cells) * seconds / min(cores, len(cells)) / 60))} minutes on {cores} CPU cores"
    pace = speed(cells)
    hours = gpu_hours(name, cells, pace)
    if not hours:
        return ""
    return (
        f", about {hours:,.{0 if hours >= 10 else 1}f} GPU hours of training (an estimate from tokens and parameters, at the speed of "
        f"{pace.of}; evaluation left out)"
    )


def speed(cells: Sequence[dict], folder: Path = BENCHMARKS) -> Speed:
    """Of DPZero's step in the benchmark on a GPU, else the published one.

    That benchmark whose model is nearest in size to the largest of these; of several, one with its precision, then the nearest batch.
    """
    found = [measured for path in sorted(folder.glob("*.json")) if (measured := _measured(path))]
    if not found or not cells:
        return PUBLISHED
    sizes = _parameters()
    cell = max(cells, key=lambda cell: sizes.get(cell["model"], 1))
    size, settings = sizes.get(cell["model"], 1), cell["settings"]

    def distance(bench: dict) -> tuple:
        apart = math.log(sizes[bench["model"]] / size), math.log(bench["batch_size"] / settings["batch_size"])
        return abs(apart[0]), bench["compute_dtype"] != settings["compute"], abs(apart[1])

    return min(found, key=lambda pair: distance(pair[0]))[1]


def _measured(path: Path) -> tuple[dict, Speed] | None:
    """A benchmark and its speed; None for another file, a CPU's or one that has no DPZero."""
    try:
        bench = json.loads(path.read_text("utf-8"))
        parameters, device = _parameters()[bench["model"]], bench["provenance"]["device"]
        rates = [row["tokens_per_second"] for row in bench["rows"] if row["name"] == "dpzero"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not rates or "CUDA" not in bench["memory"]:
        return None
    of = f"DPZero's step on {device} in the benchmark {path.stem}"
    return bench, Speed(2 * parameters * rates[0], of)  # tokens of both passes are counted


def gpu_hours(name: str, cells: Sequence[dict], pace: Speed = PUBLISHED) -> float:
    """Hours of training, one run after another; 0 where the sweep does not say how long its prompts are or a model has no known size."""
    tokens, sizes = sweep.tokens(name), _parameters()
    if not all(cell["task"] in tokens and cell["model"] in sizes for cell in cells):
        return 0.0
    operations = (_operations(cell, tokens[cell["task"]], sizes[cell["model"]]) for cell in cells)
    return sum(operations) / pace.operations_per_second / 3600


def minutes(tokens: dict[str, float], cell: dict, pace: Speed = PUBLISHED) -> int:
    """What to ask a batch system for: twice the estimate, as evaluation is not in it and cards differ, and at least an hour.

    tokens: of a prompt, by task, as `sweep.tokens` has them. Where the sweep does not say, each is as long as may be.
    """
    length = tokens.get(cell["task"], cell["settings"].get("max_length", 0))
    size = _parameters().get(cell["model"])
    if not size or "use" not in cell:
        return LEAST_MINUTES
    estimated = _operations(cell, length, size) / pace.operations_per_second / 60
    return max(LEAST_MINUTES, math.ceil(2 * estimated))


def host_megabytes(cell: dict) -> int:
    """Host memory to ask for: that of Python and torch, the weights in float32 and, as they are read, the file's."""
    size = _parameters().get(cell["model"], 0) if "use" in cell else 0  # other kinds load no weights
    return LEAST_MEGABYTES + HOST_BYTES * size // 10**6


def _operations(cell: dict, tokens: float, parameters: int) -> float:
    settings, order = cell["settings"], card(cell["use"]).order
    passes = PASSES.get(order, 0) * settings.get("directions", 1)
    if settings.get("clipping") == "ghost":
        passes = GHOST_PASSES
    return 2 * parameters * tokens * settings["batch_size"] * settings["steps"] * passes


@cache
def _parameters() -> dict[str, int]:
    return {name: shape["parameters"] for name, shape in yaml.safe_load(SHAPES.read_text("utf-8")).items()}
