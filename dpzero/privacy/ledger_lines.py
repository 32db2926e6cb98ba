"""The lines of a ledger's file: entries, reservations, and what a torn line counts as.

A release is `NUMBER KEY_NAME [DIGEST]`. A private selection is `choice KEY_NAME EPSILON CHOSEN`, a finding `finding
KEY_NAME WORD`. `reserved FIRST COUNT KEY_NAME BOOT` stands before the releases that it covers, `reserved none` ends it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from functools import cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

CHOICE = "choice"
UNKNOWN = "?"  # a choice that can no longer be read
FINDING = "finding"
# Findings; others are numbers, see `record_influence`
FOREIGN, UNMEASURED, SELECTIVE = "foreign", "unmeasured", "selective"
LINE = re.compile(
    rf"(\d+) ([0-9a-f]{{16}})(?: ([0-9a-f]{{16}}))?|{CHOICE} ([0-9a-f]{{16}}) ([0-9.e+-]+) (-?\d+|\{UNKNOWN})"
    rf"|{FINDING} ([0-9a-f]{{16}}) ([0-9a-z.+-]+)"
)
RESERVED = "reserved"
END = f"{RESERVED} none"
RESERVATION = re.compile(rf"{RESERVED} (\d+) (\d+) ([0-9a-f]{{16}}) (\S+)|{END}")
BLOCK = 32  # releases that one line reserves
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Release(NamedTuple):
    """The release of a batch under a key."""

    number: int
    key_name: str

    def further(self) -> Release:
        """The entry for a further release of the same batch under the same published key, with another sum."""
        suffix = hashlib.sha256(self.key_name.encode()).hexdigest()
        return Release(self.number, self.key_name[:8] + suffix[:8])

    def with_sum(self, digest: str) -> tuple[int, str, str]:
        """Equal for releases of the same sum under the same key, further ones included."""
        return self.number, self.key_name[:8], digest


class Choice(NamedTuple):
    """A private selection. `chosen` is None if it can no longer be read; its epsilon still counts."""

    key_name: str
    epsilon: float
    chosen: int | None


class Finding(NamedTuple):
    """What was found out about the releases under a key, in a word."""

    key_name: str
    word: str


Entry = Release | Choice | Finding


def line_of(entry: Entry, digest: str = "") -> str:
    """The line of an entry; `digest`: of a release's sum, if it is known."""
    kind = {Choice: [CHOICE], Finding: [FINDING]}.get(type(entry), [])
    words = [*kind, *entry, *filter(None, [digest])]
    return " ".join(UNKNOWN if word is None else str(word) for word in words)


def reservation(first: Release, count: int) -> str:
    """The line that reserves `count` releases from this one on."""
    return f"{RESERVED} {first.number} {count} {first.key_name} {boot()}"


def append_line(file: FileIO, line: str, on_disk: bool = True) -> None:
    """Writes a line. Another process sees it from then on; with `on_disk` a machine without power keeps it, too."""
    end, left = file.seek(0, os.SEEK_END), f"{line}\n".encode()
    try:
        while left:
            left = left[file.write(left) :]
        if on_disk:
            os.fsync(file.fileno())
    except OSError:
        file.truncate(end)  # nobody may use what was not written
        raise


def block(first: int, key_name: str, count: int) -> frozenset[Release]:
    """The releases that a reservation covers."""
    return frozenset(Release(number, key_name) for number in range(first, first + count))


def pending_releases(path: Path, lines: list[str]) -> tuple[frozenset[Release], bool]:
    """The releases of reservations that no process ended, and whether the machine was restarted since one."""
    pending, restarted = frozenset[Release](), False
    for line in lines:
        if not line.startswith(RESERVED):
            continue
        if (reserved := RESERVATION.fullmatch(line)) is None:
            raise damaged(path)
        first, count, key_name, then = reserved.groups()
        pending = pending | block(int(first), key_name, int(count)) if first else frozenset[Release]()
        restarted = bool(first) and (restarted or then != boot())
    return pending, restarted


def count_releases(path: Path) -> int:
    """The number of releases in a file, which may be damaged."""
    return sum(line[:1].isdigit() for line in path.read_bytes().splitlines())


@cache
def boot() -> str:
    """A name of the time since this machine was started; another one for each process if it has none."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return secrets.token_hex(8)


def damaged(path: Path) -> ValueError:
    return ValueError(
        f"ledger {path} is damaged, so epsilon is unknown: restore the file, or move its folder away to start "
        "a new run"
    )


def parse_line(path: Path, text: str) -> tuple[Entry, str]:
    """A line -> its entry and the digest of the sum, if any. Raises ValueError if it cannot be read."""
    line = LINE.fullmatch(text)
    if line is None:
        raise damaged(path)
    number, name, digest, chooser, epsilon, chosen, finder, word = line.groups()
    if finder:
        return Finding(finder, word), ""
    if chooser:
        return Choice(chooser, float(epsilon), None if chosen == UNKNOWN else int(chosen)), ""
    return Release(int(number), name), digest or ""


def complete_line(path: Path, torn: str, number: int) -> str:
    """A whole line that counts whatever the torn one was. Raises ValueError if its epsilon cannot be read.

    A release whose key name is cut gets this number and a new key name, which may count once too often. For
    a choice, epsilon must be whole; what was chosen may be cut.
    """
    if torn.startswith(CHOICE) or CHOICE.startswith(torn):
        choice = re.match(rf"{CHOICE} [0-9a-f]{{16}} [0-9.e+-]+ ", torn)
        if choice is None:
            raise damaged(path)
        return choice[0] + UNKNOWN
    release = re.match(r"\d+ [0-9a-f]{16}(?= [0-9a-f]*$|$)", torn)
    return release[0] if release else f"{number} {hashlib.sha256(torn.encode()).hexdigest()[:16]}"
