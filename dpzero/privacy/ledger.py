"""Every release that happened. The epsilon that a record reports is computed from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CHOICE = "choice"
LINE = re.compile(rf"(\d+ [0-9a-f]{{16}}|{CHOICE} [0-9.e+-]+ \d+)\n")


@dataclass(frozen=True)
class Event:
    """One noisy sum: how its batch was drawn and how much noise it got (noise_scale in units of the clip bound)."""

    mechanism: str
    sampling: str
    adjacency: str
    dataset_size: int
    batch_size: int
    noise_scale: float
    directions: int = 1


class Ledger:
    """Append-only: line one is the event that all releases of a run share, each further line one release (step, key name).

    A release is written before it is used, so a killed process has never released more than its ledger says. A step that is
    run again under the same key is the same release, bit for bit, and counts once; under a new key (a resumed run with a
    secret key) it is a further release. A choice among candidates has a line of its
    own (choice, epsilon, what was chosen), and there is one at the most: asked again it is what was chosen.
    """

    def __init__(self, event: Event, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self._releases: set[tuple[int, str]] = set()
        self.choice: tuple[float, int] | None = None  # its epsilon, what was chosen
        self._file = None
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole:
            found = _event(whole[0])
            if found is None or not all(map(LINE.fullmatch, whole[1:])):
                raise ValueError(
                    f"ledger {path} is damaged, so that epsilon cannot be told: bring the file back, or move its folder away to begin anew"
                )
            if found != asdict(self.event):
                raise ValueError(
                    f"ledger {path} is of another setting: remove its folder to start the run anew"
                )
            for words in map(str.split, whole[1:]):
                if words[0] == CHOICE:
                    self.choice = float(words[1]), int(words[2])
                else:
                    self._releases.add((int(words[0]), words[1]))
        self._file = path.open("a")
        if len(whole) < len(lines):  # the last line of a killed process: it never got to use that release
            self._file.truncate(sum(map(len, whole)))
        if not whole:
            self._append(json.dumps(asdict(self.event)))

    def _append(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def record(self, step: int, key_name: str) -> None:
        """Note the release of one step, on disk before the caller goes on."""
        if (step, key_name) not in self._releases:
            self._append(f"{step} {key_name}")
            self._releases.add((step, key_name))

    def record_choice(self, epsilon: float, chosen: int) -> None:
        """Note the choice, on disk before the caller goes on."""
        self._append(f"{CHOICE} {epsilon!r} {chosen}")
        self.choice = epsilon, chosen

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, release: tuple[int, str]) -> bool:
        return release in self._releases

    def __len__(self) -> int:
        return len(self._releases)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(sorted(self._releases))


def _event(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
