"""Seconds of a run over all its processes: steps, some compared with two plain forward passes, and all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LOG_SECONDS = 10  # between progress lines


class Clock:
    """`train_seconds` of all `steps`; `pairs` of (a step, two forward passes on its batch) in seconds."""

    def __init__(self, device: str) -> None:
        self.device, self.started = device, time.perf_counter()
        self.train_seconds, self.steps = 0.0, 0
        self.pairs: list[tuple[float, float]] = []
        self.last_step_seconds, self._logged = 0.0, self.started

    def wall_seconds(self) -> float:
        return time.perf_counter() - self.started

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, until the device is done with it. Its seconds count as training."""
        start = time.perf_counter()
        yield
        self.last_step_seconds = self._since(start)
        self.train_seconds += self.last_step_seconds
        self.steps += 1

    @contextmanager
    def two_forwards(self) -> Iterator[None]:
        """Time two forward passes on the batch of the last step, and keep the pair."""
        start = time.perf_counter()
        yield
        self.pairs.append((self.last_step_seconds, self._since(start)))

    def _since(self, start: float) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def is_time_to_log(self) -> bool:
        """Whether the last progress line is LOG_SECONDS old; if so, one is written now."""
        now = time.perf_counter()
        if now - self._logged <= LOG_SECONDS:
            return False
        self._logged = now
        return True

    def state_dict(self) -> dict:
        counted = {"train_seconds": self.train_seconds, "steps": self.steps, "pairs": self.pairs}
        return counted | {"wall_seconds": self.wall_seconds()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from an earlier process."""
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
