"""How long the runs of a sweep take: from what one took, or from tokens and parameters. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from . import sweep
from .methods import card

# What a published step makes of a GPU: 64 prompts of SST-2, 17 tokens each, twice through RoBERTa-large in 0.347 s on an RTX 3090
# (DPZero, table 3), at 2 operations a parameter and token. Padding is in it, as prompts are counted without.
OPERATIONS_PER_SECOND = 64 * 17 * 2 * 2 * 355e6 / 0.347
PASSES = {
    0: 2,
    1: 3,
}  # by a method's order, in forward passes: two, or one and a backward pass of twice its work
GHOST_PASSES = 5  # a second backward pass
SHAPES = Path(__file__).parents[1] / "language" / "shapes.yaml"


def estimate(name: str, cells: Sequence[dict], cores: int | None) -> str:
    """What so many runs of a sweep take, to stand behind their number; empty where nothing is known of it. No `cores`: on a cluster."""
    seconds = sweep.core_seconds(name)
    if seconds and cells and cores:
        return f", about {max(1, round(len(cells) * seconds / min(cores, len(cells)) / 60))} minutes on {cores} CPU cores"
    hours = gpu_hours(name, cells)
    if not hours:
        return ""
    return (
        f", about {hours:,.{0 if hours >= 10 else 1}f} GPU hours of training (an estimate from tokens and parameters, at the speed of a "
        "published step on an RTX 3090; nothing measured, evaluation left out)"
    )


def gpu_hours(name: str, cells: Sequence[dict]) -> float:
    """Hours of training, one run after another; 0 where the sweep does not say how long its prompts are or a model has no known size."""
    tokens, sizes = sweep.tokens(name), _parameters()
    if not all(cell["task"] in tokens and cell["model"] in sizes for cell in cells):
        return 0.0
    return sum(_seconds(cell, tokens[cell["task"]], sizes[cell["model"]]) for cell in cells) / 3600


def _seconds(cell: dict, tokens: float, parameters: int) -> float:
    settings, order = cell["settings"], card(cell["use"]).order
    passes = PASSES.get(order, 0) * settings.get("directions", 1)
    if settings.get("clipping") == "ghost":
        passes = GHOST_PASSES
    operations = 2 * parameters * tokens * settings["batch_size"] * settings["steps"] * passes
    return operations / OPERATIONS_PER_SECOND


@cache
def _parameters() -> dict[str, int]:
    return {name: shape["parameters"] for name, shape in yaml.safe_load(SHAPES.read_text()).items()}
