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

    The ledger and the transcript lie beside the state and outlive a state that was never written or cannot be read: what was
    released stays released.
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

    @property
    def transcript(self) -> Path:
        return self.folder / "transcript"

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

    def resume(self, make: Callable[[], object], state: dict | None, log: Callable[[str], object]) -> object:
        """The method that `make` makes, where an earlier process left it: at its state, and on by what its transcript has more.

        Those steps ask nothing of the model, so none is released again. The transcript rules: where it does not reach the state
        (the power failed) its rows are taken from the base model on, and where it is damaged the run starts afresh.
        """
        lost = None
        for saved, afresh in ((state, False), (None, False), (None, True)):
            if afresh:
                self.transcript.unlink(missing_ok=True)
            method = make()
            if saved is not None:
                method.load_state_dict(saved["method"])
            if not hasattr(method, "write_transcript") or (saved and not self.transcript.exists()):
                return method  # a transcript is kept from the first step on or not at all
            try:
                method.write_transcript(self.transcript)
            except ValueError as error:
                if not self.transcript.exists():
                    log(f"no transcript: {error}")
                    return method
                if afresh:
                    raise
                lost = lost or error
            else:
                break
        if lost:
            log(
                f"{lost}. From the base model, {method.steps_taken} steps are taken again from the transcript"
            )
        return method

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
