"""The ledger of every release that happened. The epsilon of a record is computed from it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ..errors import UsageError
from .accounting import Setting
from .ledger_lines import (
    BLOCK,
    END,
    FINDING,
    RESERVED,
    SELECTIVE,
    Choice,
    Entry,
    Finding,
    Release,
    append_line,
    block,
    complete_line,
    damaged,
    line_of,
    parse_line,
    pending_releases,
    reservation,
)


@dataclass(frozen=True)
class Event:
    """What all releases of a run share. `sampling` names the sampler that runs; noise_scale is over the clip."""

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
    group_size: int = 1
    first_share: float = 0.0  # of two sums a release, see `row_releases`; 0: one sum

    def setting(self) -> Setting:
        """The setting that the event was made from."""
        return Setting(**{field.name: getattr(self, field.name) for field in fields(Setting)})


LATER = {"group_size": 1, "first_share": 0.0}  # fields that older ledgers do not name


class Lineage:
    """All entries of a run, shared by the ledgers of this process that continue it."""

    def __init__(self, ledger: Ledger) -> None:
        self.name = secrets.token_hex(8)
        self.releases: dict[Release, str] = {}  # -> a digest of the sum, if known
        self.choices: dict[Choice, None] = {}
        self.findings: dict[Finding, None] = {}
        self.ledgers: WeakSet[Ledger] = WeakSet([ledger])

    def add(self, entry: Entry, digest: str = "") -> None:
        """Write an entry to the files of all ledgers before the caller continues."""
        with _lock:
            if entry in self.releases or entry in self.choices or entry in self.findings:
                return
            for ledger in list(self.ledgers):
                ledger.write(entry, digest)
            self.hold(entry, digest)

    def hold(self, entry: Entry, digest: str) -> None:
        """Keep an entry that the files already have."""
        if isinstance(entry, Choice):
            self.choices[entry] = None
        elif isinstance(entry, Finding):
            self.findings[entry] = None
        else:
            self.releases[entry] = digest

    def place(self, release: Release, digest: str) -> Release:
        """The release itself or, if it is known with another sum, the entry for a further one."""
        while self.releases.get(release, digest) != digest:
            release = release.further()
        return release

    def merge(self, other: Lineage) -> None:
        """Combine two lineages that turned out to be one."""
        for source, target in ((self, other), (other, self)):
            known = {release.with_sum(digest) for release, digest in target.releases.items() if digest}
            for release, digest in list(source.releases.items()):
                if release.with_sum(digest) not in known:
                    without_sum = "" in (digest, target.releases.get(release, ""))
                    target.add(release if without_sum else target.place(release, digest), digest)
            for choice in list(source.choices):
                target.add(choice)
            for finding in list(source.findings):
                target.add(finding)
        for ledger in list(other.ledgers):
            ledger.lineage = self
            self.ledgers.add(ledger)
        _lineages.update({name: self for name, lineage in _lineages.items() if lineage is other})


class Ledger:
    """Append-only list of releases. Its file has the event, then a line per release (batch, key name).

    A release is written before it is used, and what a process wrote outlives it: a killed process has never
    released more than its ledger says. A machine that loses power loses what was not yet on disk. So under a
    secret key a line that is on disk reserves the next releases (first batch, number of batches, key name, boot
    of the machine), and if the machine was started anew before the ledger was closed, all of them count. Under
    a published key lost releases can be made again, bit for bit, and nothing is reserved.

    The same batch with the same sum under the same published key is the same release bit for bit, and counts once
    (its line has a digest of the sum). With another sum, or under a new key (a resumed run with a secret
    key), it is a further release. A private selection has a line of its own (choice, key name, epsilon, what
    was chosen), and so has what was found out about the releases under a secret key, and that a method is selective.

    The file is locked as long as its ledger is open, so two processes never spend from one. Ledgers of one
    process that continue the same releases share a `Lineage`.

    Raises:
        ValueError: the file is in use, damaged, or of another setting.
    """

    def __init__(self, event: Event, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self.lineage = Lineage(self)
        self._file: FileIO | None = None
        self._reserved, self._process = frozenset[Release](), os.getpid()
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
            self._file.seek(0)
            self._read(path, self._file, self._file.read())
        except BlockingIOError:
            self.close()
            raise ValueError(
                f"ledger {path} is in use by another budget, whose releases count too: wait until it ends, "
                "or close it"
            ) from None
        except ValueError:
            self.close()
            raise
        self._join_keys(*self.by_key())

    def _read(self, path: Path, file: FileIO, content: bytes) -> None:
        if not content:
            append_line(file, json.dumps(asdict(self.event)))
            return
        if content.endswith(b"\0"):  # bytes that a machine without power did not write
            content = content.rstrip(b"\0")
            file.truncate(len(content))
        first, *rest = content.decode("utf-8", "replace").split("\n")
        torn = rest.pop() if rest else ""
        entries = [parse_line(path, line) for line in rest if not line.startswith(RESERVED)]
        try:
            event = Event(**json.loads(first))  # an older file does not name LATER
        except (TypeError, ValueError):
            raise damaged(path) from None
        if event != self.event:
            raise ValueError(
                f"ledger {path} belongs to another setting: remove its folder to start the run anew"
            )
        if b"\n" not in content:
            append_line(file, "")
        if torn and any(torn.startswith(word) or word.startswith(torn) for word in (RESERVED, FINDING)):
            file.truncate(content.rindex(b"\n") + 1)  # nothing was released yet after it
        elif torn:  # its release may have been used
            line = complete_line(path, torn, len(rest))
            if not line.startswith(torn):
                file.truncate(content.rindex(b"\n") + 1)
                torn = ""
            append_line(file, line[len(torn) :])
            entries.append(parse_line(path, line))
        for entry in entries:
            self.lineage.hold(*entry)
        self._end_reservations(file, *pending_releases(path, rest))

    def _end_reservations(self, file: FileIO, reserved: frozenset[Release], restarted: bool) -> None:
        """Count what an earlier process reserved and may have released, if its lines may be lost."""
        lost = sorted(reserved - self.lineage.releases.keys()) if restarted else []
        for release in lost:
            self.lineage.hold(release, "")
        if reserved:
            append_line(file, "\n".join([*map(line_of, lost), END]))

    def write(self, entry: Entry, digest: str) -> None:
        """Append an entry to the file, if there is one.

        Under a published key no release is valid, and of the findings that one alone counts which says what epsilon is of.
        """
        idle = isinstance(entry, Finding) and self.event.noise_key == "published" and entry.word != SELECTIVE
        if self._file is None or idle:
            return
        if isinstance(entry, Release) and self.event.noise_key == "secret" and entry not in self._reserved:
            count = max(1, min(BLOCK, self.event.steps - len(self)))
            append_line(self._file, reservation(entry, count))
            self._reserved = block(*entry, count)
        append_line(self._file, line_of(entry, digest), on_disk=not isinstance(entry, Release))

    def sync(self) -> None:
        """Wait until the file is on disk, so that no state that is saved after this is ahead of it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Unlock the file; nothing can be recorded after that."""
        if self._file is not None:
            if self._process == os.getpid():  # a fork shares the file
                with suppress(OSError):  # what stays reserved counts
                    if self._reserved:
                        append_line(self._file, END, on_disk=False)
                    self.sync()
            self._file.close()
            self._file = None

    # -- entries ---------------------------------------------------------------------------------------------

    def record(self, number: int, key_name: str, digest: str = "") -> None:
        """Record a release in the file before the caller continues, with a digest of the sum for a published key."""
        if (number, key_name) not in self.lineage.releases:
            self._add(Release(number, key_name), digest)

    def record_choice(self, key_name: str, epsilon: float, chosen: int | None) -> Choice:
        """Record a private selection, on disk before the caller continues."""
        choice = Choice(key_name, epsilon, chosen)
        self._add(choice)
        return choice

    def record_finding(self, key_name: str, word: str) -> bool:
        """Record what was found out about the releases under a key, on disk. Returns whether it is new."""
        finding = Finding(key_name, word)
        new = finding not in self.lineage.findings
        if new:
            self._check_open()
            self.lineage.add(finding)
        return new

    def _add(self, entry: Release | Choice, digest: str = "") -> None:
        self._check_open()
        self._join_keys(entry.key_name)
        self.lineage.add(entry, digest)

    def _check_open(self) -> None:
        if self.path and self._file is None:
            raise ValueError(f"ledger {self.path} is closed: make a new budget to continue")

    def _join(self, *names: str) -> None:
        """Merge the lineage with those of these names (of states or of secret keys)."""
        with _lock:
            for name in names:
                known = _lineages.setdefault(name, self.lineage)
                if known is not self.lineage:
                    known.merge(self.lineage)

    def _join_keys(self, *names: str) -> None:
        """A secret key belongs to one run, a published one to any number."""
        if self.event.noise_key == "secret":
            self._join(*names)

    @property
    def choices(self) -> list[Choice]:
        """The private selections."""
        return list(self.lineage.choices)

    @property
    def findings(self) -> list[Finding]:
        """What was found out about the releases."""
        return list(self.lineage.findings)

    def by_key(self) -> dict[str, list[int]]:
        """Key name -> numbers of the batches that were released under it."""
        numbers: dict[str, list[int]] = {}
        for number, name in self:
            numbers.setdefault(name, []).append(number)
        return numbers

    def __contains__(self, release: tuple[int, str]) -> bool:
        return release in self.lineage.releases

    def __len__(self) -> int:
        return len(self.lineage.releases)

    def __iter__(self) -> Iterator[Release]:
        return iter(sorted(self.lineage.releases))

    # -- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Event and entries, and the lineage's name if the names of secret keys do not identify it."""
        state: dict[str, Any] = {"event": asdict(self.event), "releases": self.by_key()}
        if self.event.noise_key == "published":
            state["lineage"] = self.lineage.name
            self._join(self.lineage.name)
        if len(self) and self.findings:
            state["findings"] = [list(finding) for finding in self.findings]
        return state | ({"choices": [list(choice) for choice in self.choices]} if self.choices else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the entries of a state, and those that other budgets of this process added to it.

        Raises:
            ValueError: the state has another setting, or this ledger has releases but lacks some of the
                state's.
        """
        for key, value in asdict(self.event).items():
            saved_value = state["event"].get(key, LATER.get(key))
            if saved_value != value:
                raise ValueError(
                    f"the state was saved with {key} {saved_value!r} and this budget has "
                    f"{value!r}: make it with the same settings"
                )
        saved = {Release(number, name) for name, numbers in state["releases"].items() for number in numbers}
        if len(self) and not saved <= self.lineage.releases.keys():
            raise ValueError(
                f"the state has {len(saved - self.lineage.releases.keys())} releases that this budget's ledger "
                "lacks: load it into a budget that has released nothing, or give the ledger that the state was "
                "saved with"
            )
        self._join(*filter(None, [state.get("lineage")]))
        for release in sorted(saved):
            self.record(*release)
        for choice in state.get("choices", ()):
            self.record_choice(*choice)
        for finding in state.get("findings", ()):
            self.record_finding(*finding)

    def knows_what_followed(self, state: Mapping[str, Any]) -> bool:
        """Whether a state has no releases, or releases of this process, which counts those after the state, too."""
        return not state["releases"] or any(name in _lineages for name in state["releases"])

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
        if count:
            self._join_keys(key_name)
        known = {number for number, _ in self} if key_name in self.by_key() else set()
        for number in range(count):
            if not known or (number not in known and len(self) < count):
                self.record(number, key_name)


def _renew_lock() -> None:
    """In a fork no other thread is left to release the lock."""
    global _lock
    _lock = threading.RLock()


_lineages: dict[str, Lineage] = {}
_lock = threading.RLock()
os.register_at_fork(after_in_child=_renew_lock)
