"""The state from which a killed run goes on: one folder a run, outside the declared outputs of any rule."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..files import replacing, write_whole
from ..privacy.ledger_lines import count_releases
from ..zeroth_order import transcript
from . import record_file
from .record_file import is_release

SECONDS = 15  # a killed run loses at most about this much
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError)


def folder(out: Path) -> Path:
    """results/SWEEP/runs/RUN.json -> results/SWEEP/checkpoints/RUN; other FILE.json -> FILE.checkpoint."""
    parts = list(out.parts)
    if "runs" in parts:
        at = len(parts) - 1 - parts[::-1].index("runs")
        return Path(*parts[:at], "checkpoints", *parts[at + 1 : -1], out.stem)
    return out.with_suffix(".checkpoint")


@contextmanager
def locked(out: Path, log: Callable[[str], object]) -> Iterator[bool]:
    """Let one process at a time work on a run. Yields whether this one waited for another.

    Two processes that took the same steps under two secret keys would release twice what either reports.
    """
    path = folder(out).with_name(folder(out).name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        with path.open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    log("another process is at work on this run: waiting until it ends")
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                continue  # its holder has taken the file away
            try:
                yield waited
            finally:
                path.unlink(missing_ok=True)
            return


class _UnfitTranscript(ValueError):
    """A transcript that is damaged, or does not reach the state beside it."""


class Checkpoint:
    """The checkpoint of one cell and version of the code. Another's is deleted, unless it holds releases.

    The ledger and the transcript lie beside the state and outlive a state that was never written or cannot be
    read: what was released stays released.
    """

    def __init__(self, out: Path, cell: dict, code: str = "", log: Callable[[str], object] = print) -> None:
        """`code`: digest of the source that decides a run's numbers.

        Raises UsageError for a checkpoint of another cell or code that holds releases of private data: they
        count.
        """
        self.out, self.release, self.folder, self._log = out, is_release(cell), folder(out), log
        self.ledger, self.transcript = self.folder / "ledger", self.folder / "transcript"
        self.candidates, self._file = self.folder / "candidates", self.folder / "state.pt"
        text = json.dumps({"cell": cell, "code": code}, sort_keys=True)
        mark = self.folder / "cell.json"
        earlier = mark.read_text("utf-8") if mark.exists() else None
        if earlier != text:
            self._make_room(earlier, cell, code)
            write_whole(mark, text)
        self._saved = time.monotonic()

    def _make_room(self, earlier: str | None, cell: dict, code: str) -> None:
        releases = count_releases(self.ledger) if self.ledger.exists() else 0
        difference, secret = _difference(earlier, cell, code)
        if releases > 0 and secret:
            raise UsageError(
                f"{self.folder} holds {releases} releases of private data, made with {difference}: resume "
                "with the original settings, or move the folder away and account for the epsilon it has spent"
            )
        if releases > 0 or self.folder.exists():
            self._log(f"the checkpoint {self.folder} was made with {difference}: begun anew")
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self) -> dict | None:
        """The last state; None if there is none or it cannot be read."""
        try:
            return torch.load(self._file, weights_only=True)
        except UNREADABLE:
            return None

    def resume(self, make: Callable[[], Any], state: dict | None) -> Any:
        """The method that `make` builds, at the step where an earlier process left it.

        First from its state, and on with the steps that its transcript has beyond it: they ask nothing of the
        model, so none is released again. If the transcript does not reach the state (the power failed), its
        rows are taken from the base model on. If the transcript is damaged, the run starts afresh.
        """
        fault = ""
        if state is not None:
            try:
                return self._continue(make(), state)
            except _UnfitTranscript as error:
                fault = str(error)
        try:
            method = self._continue(make())
        except _UnfitTranscript as error:
            fault = fault or str(error)
            self.transcript.unlink()
            method = self._continue(make())
        if fault:
            taken = f"{method.steps_taken} steps are taken again from the transcript"
            self._log(f"{fault}. From the base model, {taken}")
        return method

    def _continue(self, method: Any, state: dict | None = None) -> Any:
        """The method at its state, and on by its transcript. Raises _UnfitTranscript if the two differ."""
        if state is not None:
            method.load_state_dict(state["method"])
        # a transcript is kept from the first step on or not at all
        if hasattr(method, "write_transcript") and (state is None or self.transcript.exists()):
            try:
                method.write_transcript(self.transcript)
            except UsageError:  # releases that the ledger lacks
                raise
            except ValueError as error:
                if self.transcript.exists():
                    raise _UnfitTranscript(error) from error
                self._log(f"no transcript: {error}")
        return method

    def check_ledger(self, released: int, state: dict | None) -> None:
        """Raise UsageError if the ledger lacks a step that was taken: epsilon would be too small."""
        of_state = (state or {}).get("method", {}).get("budget", {}).get("releases", {})
        _, rows = self._read_transcript()
        taken = max(sum(map(len, of_state.values())), len(rows))
        if released < taken:
            raise UsageError(
                f"{self.ledger} lacks {taken - released} of the {taken} releases by which the run moved, so "
                f"that epsilon cannot be told: bring the file back, or move {self.folder} away to begin anew "
                "and add what was spent"
            )

    def _read_transcript(self) -> tuple[dict, Sized]:
        """Header and rows of the transcript; both are empty if there is none, or a damaged one."""
        try:
            return transcript.read(self.transcript)[:2]
        except (OSError, ValueError):
            return {}, ()

    def describe_transcript(self, weights: Sequence[torch.Tensor] | None) -> dict | None:
        """The part `transcript` of the record; None without a transcript.

        weights: tensors that a replay must give again.
        """
        header, rows = self._read_transcript()
        if not header:
            return None
        if self.release:
            record_file.refuse_unlisted(header, record_file.ALLOWED_IN_A_TRANSCRIPT)
        return {
            "file": record_file.transcript_of(self.out).name,
            "sha256": hashlib.sha256(self.transcript.read_bytes()).hexdigest(),
            "steps": len(rows),
            "law": header["law"]["version"],
            "weights_sha256": None if weights is None else transcript.digest(weights),
        }

    def maybe_save(self, state: Callable[[], dict]) -> None:
        if time.monotonic() - self._saved >= SECONDS:
            self.save(state())

    def save(self, state: dict) -> None:
        with replacing(self._file) as file:  # given a path, torch would not say that the disk is full
            torch.save(state, file)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the folder in one move: a part, left by a killed process, could let the run release anew."""
        gone = self.folder.with_name(f".{self.folder.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        if self.folder.exists():
            self.folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _difference(earlier: str | None, cell: dict, code: str) -> tuple[str, bool]:
    """How a checkpoint's mark differs from this cell and code, and whether either is a private release."""
    try:
        old = json.loads(earlier or "")
        theirs, mine = ({**c, **c["settings"], "settings": None} for c in (old["cell"], cell))
        changed = ", ".join(key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key))
        parts = [f"another {changed}" if changed else ""]
        parts += ["another version of this code" if old["code"] != code else ""]
        return " and ".join(filter(None, parts)), is_release(cell) or is_release(old["cell"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "settings that cannot be read any more", is_release(cell)
