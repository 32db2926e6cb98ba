"""Runs that are stopped between two steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import pytest

from dpzero.run.setup import Setup


def before_each_step(patch: pytest.MonkeyPatch, act: Callable[[Setup, int], object]) -> None:
    """act(setup, step) happens once the batch of each step is drawn, before the step is taken."""
    whole = Setup.batches

    def batches(self: Setup, *arguments) -> Iterator[tuple[int, Sized]]:
        for step, batch in whole(self, *arguments):
            act(self, step)
            yield step, batch

    patch.setattr(Setup, "batches", batches)


def interrupt_at(patch: pytest.MonkeyPatch, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """The next run dies before this step, as of a signal."""

    def act(setup: Setup, step: int) -> None:
        if step == at:
            raise error

    before_each_step(patch, act)


def summary(out: Path) -> dict:
    """What of a record must depend neither on an interruption nor on the number of ranks."""
    record = json.loads(out.read_text())
    curve = [(point["step"], point.get("dev_accuracy")) for point in record["curve"]]
    described = {k: v for k, v in record["transcript"].items() if k != "file"}
    return {
        "metrics": record["metrics"],
        "privacy": record["privacy"],
        "curve": curve,
        "transcript": described,
    }
