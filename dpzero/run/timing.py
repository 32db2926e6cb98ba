"""Seconds of a run, over all the processes that it took: its steps, some of them beside two plain forward passes, and the whole."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


class Clock:
    """`pairs` holds (a step, two forward passes on its batch) of the steps that were compared."""

    def __init__(self, device: str) -> None:
        self.device, self.started = device, time.perf_counter()
        self.train_seconds, self.steps = 0.0, 0
        self.pairs: list[tuple[float, float]] = []

    def wall_seconds(self) -> float:
        return time.perf_counter() - self.started

    def seconds(self, work: Callable[[], object]) -> float:
        """Of this work, until the device is done with it."""
        start = time.perf_counter()
        work()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def step(self, take: Callable[[], object]) -> float:
        """The seconds of a step, which count as training."""
        seconds = self.seconds(take)
        self.train_seconds += seconds
        self.steps += 1
        return seconds

    def state_dict(self) -> dict:
        counted = {"train_seconds": self.train_seconds, "steps": self.steps, "pairs": self.pairs}
        return counted | {"wall_seconds": self.wall_seconds()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where an earlier process stood."""
        self.train_seconds, self.steps = state["train_seconds"], state["steps"]
        self.pairs = [tuple(pair) for pair in state["pairs"]]
        self.started -= state["wall_seconds"]

    def record(self) -> dict:
        """The part `time` of a record; medians of the pairs."""
        step, two = ([pair[k] for pair in self.pairs] for k in (0, 1))
        return {
            "wall_seconds": self.wall_seconds(),
            "train_seconds": self.train_seconds,
            "steps_per_second": self.steps / self.train_seconds if self.train_seconds > 0 else None,
            "step_seconds": statistics.median(step) if step else None,
            "two_forward_seconds": statistics.median(two) if two else None,
        }
