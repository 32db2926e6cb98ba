"""The machine that `doctor` examines, a section of the study, and a section that a machine cannot do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Machine:
    """The device at hand, the time that is left, and where results go.

    Attributes:
        device: as torch names it: cpu, cuda:0.
        minutes: for the whole study.
        out: folder of the results.
        figures: folder of the figures.
        packed: folder that `pack` made, on a machine without package index.
        log: gets lines about progress.
    """

    device: str
    minutes: float
    out: Path
    figures: Path
    packed: Path | None
    log: Callable[[str], object]
    started: float = field(default_factory=time.monotonic)

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Section:
    """A part of the study: the least seconds that it is worth beginning with, and what yields its rows."""

    least_seconds: float
    rows: Callable[[Machine], Iterator[Row]]


class Skipped(Exception):
    """A section that this machine cannot do, with the reason as a sentence."""
