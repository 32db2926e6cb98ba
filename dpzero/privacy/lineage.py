"""What one run has released in this process, whichever budgets took part: those that went on from one state, ledger or transcript."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

if TYPE_CHECKING:
    from .ledger import Ledger


class Release(NamedTuple):
    """Of a batch, under a key."""

    number: int
    key_name: str

    def again(self) -> Release:
        """What stands for a further release of the batch under the same, published key, with another sum."""
        own = hashlib.sha256(self.key_name.encode()).hexdigest()
        return Release(self.number, self.key_name[:8] + own[:8])

    def of_sum(self, value: str) -> tuple[int, str, str]:
        """Equal for the same sum under the same key, again or not."""
        return self.number, self.key_name[:8], value


class Choice(NamedTuple):
    """Among candidates. `chosen` is None where it cannot be told any more: what it spent counts all the same."""

    key_name: str
    epsilon: float
    chosen: int | None


class Lineage:
    """Ledgers of one lineage share what is here, so that each says what all have spent, and so does each one's file."""

    def __init__(self, ledger: Ledger) -> None:
        self.name = secrets.token_hex(8)
        self.releases: dict[Release, str] = {}  # with a digest of the sum, where it is known
        self.choices: dict[Choice, None] = {}
        self.ledgers = WeakSet([ledger])

    def add(self, entry: Release | Choice, value: str = "") -> None:
        """On disk before the caller goes on."""
        with _lock:
            if entry in self.releases or entry in self.choices:
                return
            for ledger in list(self.ledgers):
                ledger.write(entry, value)
            self.hold(entry, value)

    def hold(self, entry: Release | Choice, value: str = "") -> None:
        """What the files have."""
        if isinstance(entry, Choice):
            self.choices[entry] = None
        else:
            self.releases[entry] = value

    def place(self, release: Release, value: str) -> Release:
        """The release itself or, where it is here with another sum, the one that stands for a further one."""
        while self.releases.get(release, value) != value:
            release = release.again()
        return release

    def absorb(self, other: Lineage) -> None:
        """The two were one all along."""
        for source, target in ((self, other), (other, self)):
            known = {release.of_sum(value) for release, value in target.releases.items() if value}
            for release, value in list(source.releases.items()):
                if release.of_sum(value) not in known:
                    known_by_name = "" in (value, target.releases.get(release, ""))
                    target.add(release if known_by_name else target.place(release, value), value)
            for choice in list(source.choices):
                target.add(choice)
        for ledger in list(other.ledgers):
            ledger.lineage = self
            self.ledgers.add(ledger)
        _known.update({name: self for name, lineage in _known.items() if lineage is other})


def join(ledger: Ledger, *names: str) -> None:
    """The ledger belongs to the lineages that these names are of: those of their states, and of the secret keys that released in them."""
    with _lock:
        for name in names:
            known = _known.setdefault(name, ledger.lineage)
            if known is not ledger.lineage:
                known.absorb(ledger.lineage)


def _renew_lock() -> None:
    """In a fork, where no other thread is left that could give the old one free."""
    global _lock
    _lock = threading.RLock()


_known: dict[str, Lineage] = {}
_lock = threading.RLock()
os.register_at_fork(after_in_child=_renew_lock)
