"""The machine that `doctor` examines, a section of the study, and a section that a machine cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
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

    def ask(self, *arguments: object, launcher: str = "") -> tuple[dict, str]:
        """The answer of a verb in a process of its own, and its error in one line; no answer after an error.

        Args:
            arguments: the verb and its own.
            launcher: a module with its arguments that starts the verb, such as torch's for ranks.
        """
        command = [sys.executable, "-P", "-m", *launcher.split(), *(["-m"] if launcher else []), "dpzero"]
        try:
            done = subprocess.run(
                [*command, *map(str, arguments)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=max(1.0, self.seconds_left()),
            )
        except subprocess.TimeoutExpired:
            return {}, f"{arguments[0]} was ended: no time was left"
        if done.returncode:
            return {}, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        answer: dict = json.loads(done.stdout.strip().splitlines()[-1])
        return answer, ""


@dataclass(frozen=True)
class Section:
    """A part of the study: the least seconds that it is worth beginning with, and what yields its rows."""

    least_seconds: float
    rows: Callable[[Machine], Iterator[Row]]


class Skipped(Exception):
    """A section that this machine cannot do, with the reason as a sentence."""
