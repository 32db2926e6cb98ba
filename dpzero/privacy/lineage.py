"""Lineages: all releases of a run, whichever budgets of this process made them.

Budgets that load the same state, ledger or transcript continue the same run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from typing import NamedTuple, Protocol
from weakref import WeakSet


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


class Member(Protocol):
    """A ledger."""

    lineage: Lineage

    def write(self, entry: Release | Choice, digest: str) -> None: ...
    def __hash__(self) -> int: ...


class Lineage:
    """The entries that its ledgers share. Each ledger's file holds them all."""

    def __init__(self, ledger: Member) -> None:
        self.name = secrets.token_hex(8)
        self.releases: dict[Release, str] = {}  # -> a digest of the sum, if known
        self.choices: dict[Choice, None] = {}
        self.ledgers: WeakSet[Member] = WeakSet([ledger])

    def add(self, entry: Release | Choice, digest: str = "") -> None:
        """Write an entry to the files of all ledgers before the caller continues."""
        with _lock:
            if entry in self.releases or entry in self.choices:
                return
            for ledger in list(self.ledgers):
                ledger.write(entry, digest)
            self.hold(entry, digest)

    def hold(self, entry: Release | Choice, digest: str = "") -> None:
        """Keep an entry that the files already have."""
        if isinstance(entry, Choice):
            self.choices[entry] = None
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
        for ledger in list(other.ledgers):
            ledger.lineage = self
            self.ledgers.add(ledger)
        _lineages.update({name: self for name, lineage in _lineages.items() if lineage is other})


def join(ledger: Member, *names: str) -> None:
    """Merge the ledger's lineage with those of these names (of states or of secret keys)."""
    with _lock:
        for name in names:
            known = _lineages.setdefault(name, ledger.lineage)
            if known is not ledger.lineage:
                known.merge(ledger.lineage)


def _renew_lock() -> None:
    """In a fork no other thread is left to release the lock."""
    global _lock
    _lock = threading.RLock()


_lineages: dict[str, Lineage] = {}
_lock = threading.RLock()
os.register_at_fork(after_in_child=_renew_lock)
