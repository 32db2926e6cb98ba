"""What a cell reads: its draw of rows, and digests of local rows and weights, by which a cell of others is another cell. Imports no torch."""

from __future__ import annotations

import math

from ..errors import UsageError
from ..language.data import tasks
from ..language.data.datasets import ALL, Draw
from ..language.models import weights
from .registry import Card

UNSAID = (
    "shots",
    "train_examples",
    "demonstrations",
    "data",
    "weights",
)  # a cell names them where they are not the default


def settle(method: str, card: Card, task: str, settings: dict) -> None:
    """Name the rows in a cell's settings. A release does not: who knows all rows but one could try the last until the digest fits."""
    if settings["shots"] and settings["train_examples"]:
        raise UsageError(f"method {method}: shots and train_examples both say which rows to draw: give one")
    if settings["demonstrations"] and card.order is not None:
        raise UsageError(
            f"method {method}: demonstrations are private examples that stand in every prompt, for a method that trains nothing: leave "
            "them out"
        )
    release = settings.get("noise_key") == "secret"
    settings["data"] = "" if release else settings["data"] or tasks.local_digest(task) or ""
    for key in UNSAID:
        if not settings[key]:
            settings.pop(key)


def most_rows(task: str, settings: dict) -> float:
    """At most so many training rows, as far as the draw alone says: a larger batch there is one of all rows."""
    labels = len(tasks.stanza(task).get("words", {})) or math.inf
    limits = (
        settings["shots"] * labels if settings["shots"] else math.inf,
        settings["train_examples"] or math.inf,
    )
    return min(limits)


def draw_of(cell: dict) -> Draw:
    """Which rows a cell trains on."""
    found = {key: cell["settings"].get(key, 0) for key in ("shots", "train_examples", "demonstrations")}
    return Draw(**found, seed=cell["seed"]) if any(found.values()) else ALL


def check(cell: dict) -> None:
    """Raises UsageError where the model's weights or the task's rows are not those that the cell was made for."""
    planned, found = cell["settings"].get("weights"), weights.local_digest(cell["model"])
    _compare(f"weights of model {cell['model']}", planned, found, "model_dir")
    if cell["settings"].get("noise_key") != "secret":
        planned, found = cell["settings"].get("data"), tasks.local_digest(cell["task"])
        _compare(f"rows of task {cell['task']}", planned, found, "data_dir")


def _compare(what: str, planned: str | None, found: str | None, place: str) -> None:
    if planned != found:
        raise UsageError(
            f"the {what} are {found or 'not local'} where the cell was made for {planned or 'those of the hub'}: give the {place} that it "
            "was made with"
        )


def with_weights(model: str, settings: dict) -> dict:
    """With the digest of the model's local folder, where it has one. Weights are public: a release names them, too."""
    digest = settings.get("weights") or weights.local_digest(model)
    return dict(sorted({**settings, "weights": digest}.items())) if digest else settings
