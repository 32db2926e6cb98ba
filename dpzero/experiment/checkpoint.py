"""Where a killed run goes on: one folder a run, outside the declared outputs of any rule, replaced as a whole file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .record import write_whole

SECONDS = 15  # a killed run loses at most about this much


def folder(out: Path) -> Path:
    """results/SWEEP/runs/RUN.json -> results/SWEEP/checkpoints/RUN; any other FILE.json -> FILE.checkpoint beside it."""
    parts = list(out.parts)
    if "runs" in parts:
        at = len(parts) - 1 - parts[::-1].index("runs")
        return Path(*parts[:at], "checkpoints", *parts[at + 1 : -1], out.stem)
    return out.with_suffix(".checkpoint")


class Checkpoint:
    """Belongs to one cell; that of another cell (a changed setting) is thrown away.

    The ledger lies beside the state and outlives a state that was never written or cannot be read: what was released stays
    released.
    """

    def __init__(self, out: Path, cell: dict) -> None:
        self.folder = folder(out)
        text = json.dumps(cell, sort_keys=True)
        mark = self.folder / "cell.json"
        if not mark.exists() or mark.read_text() != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_whole(mark, text)
        self._file = self.folder / "state.pt"
        self._saved = time.monotonic()

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def load(self) -> dict | None:
        """The last state; None where there is none or it cannot be read."""
        try:
            return torch.load(self._file, weights_only=True)
        except (
            OSError,
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            AttributeError,
            pickle.UnpicklingError,
        ):
            return None

    def maybe_save(self, state: Callable[[], dict]) -> None:
        if time.monotonic() - self._saved >= SECONDS:
            self.save(state())

    def save(self, state: dict) -> None:
        temporary = self.folder / f"state.{os.getpid()}"
        torch.save(state, temporary)
        temporary.replace(self._file)
        self._saved = time.monotonic()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
