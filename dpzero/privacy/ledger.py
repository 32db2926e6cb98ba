"""Every release that happened. The epsilon that a record reports is computed from it."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from ..errors import UsageError
from .accounting import Setting

CHOICE = "choice"
LINE = re.compile(rf"(\d+ [0-9a-f]{{16}}|{CHOICE} [0-9.e+-]+ \d+)\n")


@dataclass(frozen=True)
class Event:
    """What all releases of a run share: how batches are drawn and how much noise a sum gets (noise_scale in units of the clip)."""

    mechanism: str
    sampling: str
    adjacency: str
    dataset_size: int
    batch_size: int
    noise_scale: float
    directions: int
    steps: int
    delta: float
    unit: str = "example"
    noise_arithmetic: str = "float"
    noise_key: str = "published"

    @classmethod
    def of(cls, setting: Setting, sampler: str, noise_scale: float, **how: str) -> Event:
        return cls(**(asdict(setting) | how | {"noise_scale": noise_scale, "sampling": sampler}))

    def setting(self) -> Setting:
        return Setting(**{field.name: getattr(self, field.name) for field in fields(Setting)})

    def as_dict(self) -> dict:
        return asdict(self)


class Ledger:
    """Append-only: line one is the event that all releases of a run share, each further line one release (batch, key name).

    A release is written before it is used, so a killed process has never released more than its ledger says. A batch that is
    released again under the same published key is the same release, bit for bit, and counts once; under a new key (a resumed run
    with a secret key) it is a further release. A choice among candidates has a line of its own (choice, epsilon, what was chosen),
    and there is one at the most: asked again it is what was chosen.

    The file is locked while its ledger lives: two processes never spend from one.
    """

    def __init__(self, event: Event, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self._releases: set[tuple[int, str]] = set()
        self.choice: tuple[float, int] | None = None  # its epsilon, what was chosen
        self._file: TextIO | None = None
        if path is not None:
            self._open(path)

    @staticmethod
    def event_of(path: Path) -> Event:
        """Of a ledger's first line. Raises ValueError for a file that is no ledger."""
        try:
            return Event(**json.loads(path.read_text("utf-8").split("\n", 1)[0]))
        except (OSError, ValueError, TypeError):
            raise ValueError(
                f"{path} is no ledger of this version: give the file that Budget.calibrated(..., ledger=...) wrote"
            ) from None

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"ledger {path} is in use by another budget, whose releases count, too: wait until it ends, or close it"
            ) from None
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        try:
            if whole:
                self._read(path, whole)
        except ValueError:
            self.close()
            raise
        if len(whole) < len(lines):  # the last line of a killed process: it never got to use that release
            self._file.truncate(sum(len(line.encode()) for line in whole))
        if not whole:
            self._append(json.dumps(self.event.as_dict()))

    def _read(self, path: Path, lines: list[str]) -> None:
        first = _json(lines[0])
        if first is None or not all(map(LINE.fullmatch, lines[1:])):
            raise ValueError(
                f"ledger {path} is damaged, so that epsilon cannot be told: bring the file back, or move its folder away to begin anew"
            )
        if first != self.event.as_dict():
            raise ValueError(f"ledger {path} is of another setting: remove its folder to start the run anew")
        for words in map(str.split, lines[1:]):
            if words[0] == CHOICE:
                self.choice = float(words[1]), int(words[2])
            else:
                self._releases.add((int(words[0]), words[1]))

    def _append(self, line: str) -> None:
        if self.path is None:
            return
        if self._file is None:
            raise ValueError(f"ledger {self.path} is closed: make a new budget to go on")
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def record(self, number: int, key_name: str) -> None:
        """Note the release of one batch, on disk before the caller goes on."""
        if (number, key_name) not in self._releases:
            self._append(f"{number} {key_name}")
            self._releases.add((number, key_name))

    def record_choice(self, epsilon: float, chosen: int) -> None:
        """Note the choice, on disk before the caller goes on."""
        self._append(f"{CHOICE} {epsilon!r} {chosen}")
        self.choice = epsilon, chosen

    def load(self, event: Mapping, releases: Mapping[str, list[int]], choice: list | None) -> None:
        """Take over the releases of a state; the ledger may have more of its own, but not only other ones.

        Raises ValueError for a state of another setting, or of a run that this ledger is not of.
        """
        mine = self.event.as_dict()
        if differing := [key for key in mine if event.get(key) != mine[key]]:
            key = differing[0]
            raise ValueError(
                f"the state was saved with {key} {event.get(key)!r} and this budget has {mine[key]!r}: make it with the same settings"
            )
        theirs = {(number, name) for name, numbers in releases.items() for number in numbers}
        if self._releases and not theirs <= self._releases:
            raise ValueError(
                f"the state has {len(theirs - self._releases)} releases that this budget's ledger lacks: load it into a budget that has "
                "released nothing, or give the ledger that the state was saved with"
            )
        for number, name in sorted(theirs):
            self.record(number, name)
        if choice and self.choice is None:
            self.record_choice(*choice)

    def adopt(self, count: int, key_name: str) -> None:
        """The first `count` batches were released in a run that began under this key; a ledger that is kept in a file has them already.

        Raises UsageError where such a file lacks some.
        """
        missing = count - len(self._releases)
        if self.path and missing > 0:
            raise UsageError(
                f"ledger {self.path} lacks {missing} of the {count} releases of the transcript, so that epsilon cannot be told: bring the "
                "file back, or begin anew and add what was spent"
            )
        known = any(name == key_name for _, name in self._releases)
        numbers = {number for number, _ in self._releases} if known else set()
        for number in range(count):
            if number not in numbers:
                self.record(number, key_name)

    def by_key(self) -> dict[str, list[int]]:
        """Key name -> the numbers of the batches that were released under it."""
        found: dict[str, list[int]] = {}
        for number, name in self:
            found.setdefault(name, []).append(number)
        return found

    def numbers_of(self, key_name: str) -> list[int]:
        return [number for number, name in self._releases if name == key_name]

    def close(self) -> None:
        """Frees the file; nothing can be recorded after that."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, release: tuple[int, str]) -> bool:
        return release in self._releases

    def __len__(self) -> int:
        return len(self._releases)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(sorted(self._releases))


def _json(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
