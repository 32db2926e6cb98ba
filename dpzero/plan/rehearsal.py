"""A rehearsal: every run of a sweep cut short, so that each stage is seen to work. Its numbers are never the sweep's.

It is a sweep with limits, which cut what exceeds them and what depends on that:

steps            of a run; points of the curve, a first stage and a falling learning rate stay at the same part of it
train_examples   in all, or shared equally by the classes; the expected batch size stays the same part of the rows that are drawn
test_examples    scored examples: of test, and of dev at a point of the curve

All else is the sweep's: models, length of texts, learning rates, and epsilon, to which a private method is calibrated for
the steps and rows that it really has. Each cell holds its limits, so that no record of a rehearsal is taken for one of the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..language.data import tasks
from .settings import POSITIVE_COUNT, Entry, refuse_unknown, value_of

LIMITS = {
    "steps": Entry("int", allowed=POSITIVE_COUNT, help="rehearse: at most so many steps in a run"),
    "train_examples": Entry("int", allowed=POSITIVE_COUNT, help="rehearse: at most so many training rows"),
    "test_examples": Entry("int", allowed=POSITIVE_COUNT, help="rehearse: at most so many scored rows"),
}
OF_THE_STEPS = ("steps", "evaluate_every", "first_stage", "decay_steps")  # settings that count steps
Limits = dict[str, int]


def checked(limits: object) -> Limits:
    """The limits as numbers. Raises UsageError for another key, and for a value that is no positive number."""
    if not isinstance(limits, dict):
        raise UsageError(f"rehearsal is {limits!r}, but must hold some of {', '.join(LIMITS)}: leave it out")
    refuse_unknown(limits, LIMITS, "rehearsal")
    return {key: value_of("rehearsal", key, value, LIMITS[key]) for key, value in limits.items()}  # type: ignore[misc]


def shorten(settings: Mapping[str, Any], limits: Mapping[str, int], task: str) -> dict[str, Any]:
    """The settings of a cell within these limits. Settings that are within them already come back as they are."""
    shorter = dict(settings)
    most, steps = limits.get("steps"), settings["steps"]
    if most and steps > most:
        shorter |= {key: max(1, n * most // steps) for key in OF_THE_STEPS if (n := settings.get(key))}
    if rows := limits.get("train_examples"):
        shorter |= _fewer_rows(settings, rows, len(tasks.stanza(task).get("words", ())))
    if scored := limits.get("test_examples"):
        shorter["test_examples"] = min(scored, settings.get("test_examples") or scored)
        shorter["curve_examples"] = min(scored, settings["curve_examples"])
    return shorter


def _fewer_rows(settings: Mapping[str, Any], rows: int, classes: int) -> dict[str, int]:
    """By a smaller draw of the same kind; rows that the sweep does not draw are drawn as LM-BFF draws, if they have classes."""
    key = "shots" if classes and not settings.get("train_examples") else "train_examples"
    most = max(1, rows // classes) if key == "shots" else rows
    drawn = settings.get(key) or most
    fewer = {key: min(most, drawn)}
    fewer["batch_size"] = max(1, settings["batch_size"] * fewer[key] // drawn)
    if shown := settings.get("demonstrations"):
        fewer["demonstrations"] = min(rows, shown)
    return fewer
