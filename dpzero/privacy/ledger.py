"""Every release that happened. The epsilon that a record reports is computed from it."""

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

from ..errors import UsageError
from .accounting import Setting
from .lineage import Choice, Lineage, Release, join

CHOICE = "choice"
UNKNOWN = "?"  # what was chosen
LINE = re.compile(
    rf"(\d+) ([0-9a-f]{{16}})(?: ([0-9a-f]{{16}}))?|{CHOICE} ([0-9a-f]{{16}}) ([0-9.e+-]+) (-?\d+|\{UNKNOWN})"
)

TORN = re.compile(r"(\d+)(?: ([0-9a-f]{0,16})(?: [0-9a-f]*)?)?")  # a release, cut anywhere


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
    def from_setting(cls, setting: Setting, sampler: str, noise_scale: float, **how: str) -> Event:
        return cls(**(asdict(setting) | how | {"noise_scale": noise_scale, "sampling": sampler}))

    def setting(self) -> Setting:
        return Setting(**{field.name: getattr(self, field.name) for field in fields(Setting)})

    def as_dict(self) -> dict:
        return asdict(self)


class Ledger:
    """Append-only: line one is the event that all releases of a run share, each further line one release (batch, key name).

    A release is written before it is used, so a killed process has never released more than its ledger says. A batch that is
    released again under the same published key with the same sum (of which its line has a digest) is the same release, bit for bit,
    and counts once; with another sum, or under a new key (a resumed run with a secret key), it is a further release. A choice among
    candidates has a line of its own (choice, key name, epsilon, what was chosen).

    The file is locked while its ledger lives: two processes never spend from one. Ledgers that go on from the same releases in one
    process are of one `Lineage`.
    """

    def __init__(self, event: Event, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self.lineage = Lineage(self)
        self._file: FileIO | None = None
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
        self._file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ValueError(
                f"ledger {path} is in use by another budget, whose releases count, too: wait until it ends, or close it"
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
        found = [LINE.fullmatch(line) for line in lines]
        if _json(first) is None or None in found:
            raise ValueError(_damaged(path))
        if _json(first) != self.event.as_dict():
            raise ValueError(f"ledger {path} is of another setting: remove its folder to start the run anew")
        for line in found:
            self.lineage.hold(*_entry(line))
        if b"\n" not in content:
            self._append("")
        if torn:
            self._complete(path, torn, content.rindex(b"\n") + 1)

    def _complete(self, path: Path, torn: str, whole: int) -> None:
        """A last line without its end may be of a release that was used: it is made a line that counts, behind the `whole` bytes."""
        line = _completed(torn, self.lineage.releases.keys())
        if line is None:
            raise ValueError(_damaged(path))
        if not line.startswith(torn):
            self._file.truncate(whole)
            torn = ""
        self._append(line[len(torn) :])
        self.lineage.hold(*_entry(LINE.fullmatch(line)))

    def _append(self, line: str) -> None:
        end, left = self._file.seek(0, os.SEEK_END), f"{line}\n".encode()
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)  # nobody gets to use what is not on disk
            raise

    def write(self, entry: Release | Choice, value: str) -> None:
        """A line of the file, where there is one."""
        if self._file is not None:
            words = [CHOICE, *entry] if isinstance(entry, Choice) else [*entry, *filter(None, [value])]
            self._append(" ".join(UNKNOWN if word is None else str(word) for word in words))

    def record(self, number: int, key_name: str, value: str = "") -> None:
        """Note the release of one batch, on disk before the caller goes on. `value`: under a published key a digest of the sum."""
        if (number, key_name) not in self.lineage.releases:
            self._add(Release(number, key_name), value)

    def record_choice(self, key_name: str, epsilon: float, chosen: int | None) -> Choice:
        """Note the choice, on disk before the caller goes on."""
        choice = Choice(key_name, epsilon, chosen)
        self._add(choice)
        return choice

    def _add(self, entry: Release | Choice, value: str = "") -> None:
        if self.path and self._file is None:
            raise ValueError(f"ledger {self.path} is closed: make a new budget to go on")
        self._join([entry.key_name])
        self.lineage.add(entry, value)

    def place(self, number: int, key_name: str, value: str) -> Release:
        """The release that this is: one of the ledger, or a further one, which may have another key name (see `Release.again`)."""
        return self.lineage.place(Release(number, key_name), value)

    def _join(self, key_names: Iterable[str]) -> None:
        """A secret key is of one run alone, a published one is of any number."""
        if self.event.noise_key == "secret":
            join(self, *key_names)

    @property
    def choices(self) -> list[Choice]:
        return list(self.lineage.choices)

    def state_dict(self) -> dict:
        """Of a published key the state has the lineage's name, too; of secret ones their names tell it."""
        told = {"event": self.event.as_dict(), "releases": self.by_key()}
        if self.event.noise_key == "published":
            told["lineage"] = self.lineage.name
            join(self, self.lineage.name)
        return told | ({"choices": [list(choice) for choice in self.choices]} if self.choices else {})

    def load_state_dict(self, state: Mapping) -> None:
        """Take over the releases of a state, and what else was released in this process by those who went on from it; the ledger may have
        more of its own, but not only other ones.

        Raises ValueError for a state of another setting, or of a run that this ledger is not of.
        """
        mine, event = self.event.as_dict(), state["event"]
        if differing := [key for key in mine if event.get(key) != mine[key]]:
            key = differing[0]
            raise ValueError(
                f"the state was saved with {key} {event.get(key)!r} and this budget has {mine[key]!r}: make it with the same settings"
            )
        theirs = {Release(number, name) for name, numbers in state["releases"].items() for number in numbers}
        if len(self) and not theirs <= self.lineage.releases.keys():
            lacking = len(theirs - self.lineage.releases.keys())
            raise ValueError(
                f"the state has {lacking} releases that this budget's ledger lacks: load it into a budget that has "
                "released nothing, or give the ledger that the state was saved with"
            )
        join(self, *filter(None, [state.get("lineage")]))
        for release in sorted(theirs):
            self.record(*release)
        for key_name, epsilon, chosen in state.get("choices", ()):
            self.record_choice(key_name, epsilon, chosen)

    def record_transcript(self, count: int, key_name: str) -> None:
        """The first `count` batches were released in a run that began under this key; a ledger that is kept in a file has them already.

        Raises UsageError where such a file lacks some.
        """
        missing = count - len(self)
        if self.path and missing > 0:
            raise UsageError(
                f"ledger {self.path} lacks {missing} of the {count} releases of the transcript, so that epsilon cannot be told: bring the "
                "file back, or begin anew and add what was spent"
            )
        if not count:
            return
        self._join([key_name])
        known = any(name == key_name for _, name in self)
        numbers = {number for number, _ in self} if known else set()
        for number in range(count):
            if number not in numbers and not (known and len(self) >= count):
                self.record(number, key_name)

    def by_key(self) -> dict[str, list[int]]:
        """Key name -> the numbers of the batches that were released under it."""
        found: dict[str, list[int]] = {}
        for number, name in self:
            found.setdefault(name, []).append(number)
        return found

    def numbers_of(self, key_name: str) -> list[int]:
        return [number for number, name in self.lineage.releases if name == key_name]

    def close(self) -> None:
        """Frees the file; nothing can be recorded after that."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, release: tuple[int, str]) -> bool:
        return release in self.lineage.releases

    def __len__(self) -> int:
        return len(self.lineage.releases)

    def __iter__(self) -> Iterator[Release]:
        return iter(sorted(self.lineage.releases))


def _json(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _damaged(path: Path) -> str:
    return f"ledger {path} is damaged, so that epsilon cannot be told: bring the file back, or move its folder away to begin anew"


def _entry(line: re.Match) -> tuple[Release | Choice, str]:
    number, name, value, chooser, epsilon, chosen = line.groups()
    if chooser:
        return Choice(chooser, float(epsilon), None if chosen == UNKNOWN else int(chosen)), ""
    return Release(int(number), name), value or ""


def _completed(torn: str, releases: Collection[tuple[int, str]]) -> str | None:
    """The whole line that counts what a torn one may have been; None where that cannot be told.

    Of a release the batch and key as far as they can be read, else a name of its own: it may count once too often. Of a choice epsilon
    must be whole; what was chosen may be cut.
    """
    if torn.startswith(CHOICE) or CHOICE.startswith(torn):
        told = re.match(rf"{CHOICE} [0-9a-f]{{16}} [0-9.e+-]+ ", torn)
        return told and told[0] + UNKNOWN
    read = TORN.fullmatch(torn)
    number, name = read.groups() if read else (str(len(releases)), None)
    if name is None or len(name) < 16:
        meant = [
            known for known in {known for _, known in releases} if name is not None and known.startswith(name)
        ]
        own = hashlib.sha256(f"{torn} {len(releases)}".encode()).hexdigest()
        sure = len(meant) == 1 and (int(number), meant[0]) not in releases
        name = meant[0] if sure else ((name or "") + own)[:16]
    return f"{number} {name}"
