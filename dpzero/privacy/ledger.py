"""The ledger of every release that happened. The epsilon of a record is computed from it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .accounting import Setting
from .lineage import Choice, Lineage, Release, join

CHOICE = "choice"
UNKNOWN = "?"  # a choice that can no longer be read
LINE = re.compile(
    rf"(\d+) ([0-9a-f]{{16}})(?: ([0-9a-f]{{16}}))?|{CHOICE} ([0-9a-f]{{16}}) ([0-9.e+-]+) (-?\d+|\{UNKNOWN})"
)
TORN_RELEASE = re.compile(r"(\d+)(?: ([0-9a-f]{0,16})(?: [0-9a-f]*)?)?")  # cut anywhere


@dataclass(frozen=True)
class Event:
    """What all releases of a run share: sampling and noise (noise_scale over the clip)."""

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
    def from_setting(cls, setting: Setting, sampling: str, noise_scale: float, **options: str) -> Event:
        """Make the event of a setting; `sampling` is the name of the sampler that runs."""
        return cls(**(asdict(setting) | options | {"noise_scale": noise_scale, "sampling": sampling}))

    def setting(self) -> Setting:
        """The setting that the event was made from."""
        return Setting(**{field.name: getattr(self, field.name) for field in fields(Setting)})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ledger:
    """Append-only list of releases. Its file has the event, then a line per release (batch, key name).

    A release is written before it is used: a killed process has never released more than its ledger says. The
    same batch with the same sum under the same published key is the same release bit for bit, and counts once
    (its line has a digest of the sum). With another sum, or under a new key (a resumed run with a secret
    key), it is a further release. A private selection has a line of its own (choice, key name, epsilon, what
    was chosen).

    The file is locked as long as its ledger is open, so two processes never spend from one. Ledgers of one
    process that continue the same releases share a `Lineage`.

    Raises:
        ValueError: the file is in use, damaged, or of another setting.
    """

    def __init__(self, event: Event, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self.lineage = Lineage(self)
        self._file: FileIO | None = None
        if path is not None:
            self._open(path)

    @staticmethod
    def read_event(path: Path) -> Event:
        """Read a ledger's first line. Raises ValueError if the file is no ledger."""
        try:
            return Event(**json.loads(path.read_text("utf-8").split("\n", 1)[0]))
        except (OSError, ValueError, TypeError):
            raise ValueError(
                f"{path} is not a ledger of this version: give the file that Budget.calibrated(..., ledger=...) "
                "wrote"
            ) from None

    # -- the file --------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ValueError(
                f"ledger {path} is in use by another budget, whose releases count too: wait until it ends, "
                "or close it"
            ) from None
        self._file.seek(0)
        try:
            self._read(path, self._file.read())
        except ValueError:
            self.close()
            raise
        self._join(name for _, name in self)

    def _read(self, path: Path, content: bytes) -> None:
        if not content:
            self._append(json.dumps(self.event.as_dict()))
            return
        first, *lines = content.decode("utf-8", "replace").split("\n")
        torn = lines.pop() if lines else ""
        entries = [_parse(path, line) for line in lines]
        try:
            event = json.loads(first)
        except ValueError:
            raise _damaged(path) from None
        if event != self.event.as_dict():
            raise ValueError(
                f"ledger {path} belongs to another setting: remove its folder to start the run anew"
            )
        for entry in entries:
            self.lineage.hold(*entry)
        if b"\n" not in content:
            self._append("")
        if torn:
            self._complete(path, torn, content.rindex(b"\n") + 1)

    def _complete(self, path: Path, torn: str, start: int) -> None:
        """Complete the torn last line, which starts at this byte: its release may have been used."""
        line = _completed(torn, self.lineage.releases.keys())
        if line is None:
            raise _damaged(path)
        if not line.startswith(torn):
            self._open_file.truncate(start)
            torn = ""
        self._append(line[len(torn) :])
        self.lineage.hold(*_parse(path, line))

    @property
    def _open_file(self) -> FileIO:
        assert self._file is not None
        return self._file

    def _append(self, line: str) -> None:
        file = self._open_file
        end, left = file.seek(0, os.SEEK_END), f"{line}\n".encode()
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # nobody may use what is not on disk
            raise

    def write(self, entry: Release | Choice, digest: str) -> None:
        """Append an entry to the file, if there is one."""
        if self._file is not None:
            words = [CHOICE, *entry] if isinstance(entry, Choice) else [*entry, *filter(None, [digest])]
            self._append(" ".join(UNKNOWN if word is None else str(word) for word in words))

    def close(self) -> None:
        """Unlock the file; nothing can be recorded after that."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # -- entries ---------------------------------------------------------------------------------------------

    def record(self, number: int, key_name: str, digest: str = "") -> None:
        """Record a release on disk before the caller continues, with a digest of the sum for a published key."""
        if (number, key_name) not in self.lineage.releases:
            self._add(Release(number, key_name), digest)

    def record_choice(self, key_name: str, epsilon: float, chosen: int | None) -> Choice:
        """Record a private selection, on disk before the caller continues."""
        choice = Choice(key_name, epsilon, chosen)
        self._add(choice)
        return choice

    def _add(self, entry: Release | Choice, digest: str = "") -> None:
        if self.path and self._file is None:
            raise ValueError(f"ledger {self.path} is closed: make a new budget to continue")
        self._join([entry.key_name])
        self.lineage.add(entry, digest)

    def place(self, number: int, key_name: str, digest: str) -> Release:
        """The entry for this release: a known one, or a further one (see `Release.further`)."""
        return self.lineage.place(Release(number, key_name), digest)

    def _join(self, key_names: Iterable[str]) -> None:
        """A secret key belongs to one run, a published one to any number."""
        if self.event.noise_key == "secret":
            join(self, *key_names)

    @property
    def choices(self) -> list[Choice]:
        """The private selections."""
        return list(self.lineage.choices)

    def by_key(self) -> dict[str, list[int]]:
        """Key name -> numbers of the batches that were released under it."""
        numbers: dict[str, list[int]] = {}
        for number, name in self:
            numbers.setdefault(name, []).append(number)
        return numbers

    def numbers_of(self, key_name: str) -> list[int]:
        """Numbers of the batches that were released under this key."""
        return [number for number, name in self.lineage.releases if name == key_name]

    def __contains__(self, release: tuple[int, str]) -> bool:
        return release in self.lineage.releases

    def __len__(self) -> int:
        return len(self.lineage.releases)

    def __iter__(self) -> Iterator[Release]:
        return iter(sorted(self.lineage.releases))

    # -- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Event and entries, and the lineage's name if the names of secret keys do not identify it."""
        state: dict[str, Any] = {"event": self.event.as_dict(), "releases": self.by_key()}
        if self.event.noise_key == "published":
            state["lineage"] = self.lineage.name
            join(self, self.lineage.name)
        return state | ({"choices": [list(choice) for choice in self.choices]} if self.choices else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the entries of a state, and those that other budgets of this process added to it.

        Raises:
            ValueError: the state has another setting, or this ledger has releases but lacks some of the
                state's.
        """
        event = self.event.as_dict()
        for key, value in event.items():
            if state["event"].get(key) != value:
                raise ValueError(
                    f"the state was saved with {key} {state['event'].get(key)!r} and this budget has "
                    f"{value!r}: make it with the same settings"
                )
        saved = {Release(number, name) for name, numbers in state["releases"].items() for number in numbers}
        if len(self) and not saved <= self.lineage.releases.keys():
            lacking = len(saved - self.lineage.releases.keys())
            raise ValueError(
                f"the state has {lacking} releases that this budget's ledger lacks: load it into a budget "
                "that has released nothing, or give the ledger that the state was saved with"
            )
        join(self, *filter(None, [state.get("lineage")]))
        for release in sorted(saved):
            self.record(*release)
        for key_name, epsilon, chosen in state.get("choices", ()):
            self.record_choice(key_name, epsilon, chosen)

    def record_transcript(self, count: int, key_name: str) -> None:
        """Count the first `count` batches as releases of a run that began under this key.

        Raises:
            UsageError: a ledger file lacks some of them.
        """
        missing = count - len(self)
        if self.path and missing > 0:
            raise UsageError(
                f"ledger {self.path} lacks {missing} of the {count} releases of the transcript, so epsilon is "
                "unknown: restore the file, or start a new run and add what this one spent"
            )
        if not count:
            return
        self._join([key_name])
        key_is_known = any(name == key_name for _, name in self)
        numbers = {number for number, _ in self} if key_is_known else set()
        for number in range(count):
            if number not in numbers and not (key_is_known and len(self) >= count):
                self.record(number, key_name)


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"ledger {path} is damaged, so epsilon is unknown: restore the file, or move its folder away to start "
        "a new run"
    )


def _parse(path: Path, text: str) -> tuple[Release | Choice, str]:
    """A line -> its entry and the digest of the sum, if any. Raises ValueError if it cannot be read."""
    line = LINE.fullmatch(text)
    if line is None:
        raise _damaged(path)
    number, name, digest, chooser, epsilon, chosen = line.groups()
    if chooser:
        return Choice(chooser, float(epsilon), None if chosen == UNKNOWN else int(chosen)), ""
    return Release(int(number), name), digest or ""


def _completed(torn: str, releases: Collection[tuple[int, str]]) -> str | None:
    """A whole line that counts whatever the torn one was; None if its epsilon cannot be read.

    For a release, keep the batch and key as far as they can be read, or use a new key name, which may count
    once too often. For a choice, epsilon must be whole; what was chosen may be cut.
    """
    if torn.startswith(CHOICE) or CHOICE.startswith(torn):
        choice = re.match(rf"{CHOICE} [0-9a-f]{{16}} [0-9.e+-]+ ", torn)
        return choice and choice[0] + UNKNOWN
    match = TORN_RELEASE.fullmatch(torn)
    number, name = match.groups() if match else (str(len(releases)), None)
    if name is None or len(name) < 16:
        known = {key for _, key in releases}
        candidates = [key for key in known if name is not None and key.startswith(name)]
        unused = hashlib.sha256(f"{torn} {len(releases)}".encode()).hexdigest()
        unique = len(candidates) == 1 and (int(number), candidates[0]) not in releases
        name = candidates[0] if unique else ((name or "") + unused)[:16]
    return f"{number} {name}"
