"""Counter-based randomness: SHAKE-256 of (key, purpose, counter).

Sampling and noise have streams of their own, separated by purpose. Number i of step t is a function of the
key and the counter alone: a step can be recomputed without the earlier ones, and a resumed run neither
repeats nor skips a draw. SHAKE-256 keyed with 32 secret bytes is a pseudo-random function: without the key
its output cannot be told from true noise, even given all seeds and records. (Directions are public and use
`dpzero.zeroth_order.directions`.)
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NOISE_KEYS = ("published", "secret")
MIN_DISTINCT = 16  # different bytes of a secret key: 32 random ones have fewer with probability below 1e-10
_claimed: set[str] = set()  # names of the secret keys of this process's budgets


@dataclass(frozen=True)
class RunKey:
    """The 32 bytes from which sampling and noise of one run are drawn.

    `published` derives them from the seed, so that a benchmark on public data replays bit for bit; such a run
    is no private release. `secret` draws them from the operating system and writes them nowhere.
    """

    noise_key: str
    key: bytes = field(repr=False)
    process: int = field(init=False, default_factory=os.getpid, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.noise_key not in NOISE_KEYS:
            raise ValueError(f"noise_key is {self.noise_key!r}: give one of {', '.join(NOISE_KEYS)}")
        if self.valid_release and (not isinstance(self.key, bytes) or len(set(self.key)) < MIN_DISTINCT):
            raise ValueError(
                "this secret key can be guessed: draw one from the operating system with RunKey.secret()"
            )

    @classmethod
    def published(cls, seed: int) -> RunKey:
        """The public key of this seed."""
        return cls("published", hashlib.sha256(f"dpzero published run key, seed {seed}".encode()).digest())

    @classmethod
    def secret(cls) -> RunKey:
        """A key from the operating system."""
        return cls("secret", secrets.token_bytes(32))

    @classmethod
    def for_run(cls, noise_key: str, seed: int) -> RunKey:
        """A key of this kind; a secret one does not depend on the seed."""
        return cls.secret() if noise_key == "secret" else cls(noise_key, cls.published(seed).key)

    @property
    def name(self) -> str:
        """Identifies the key in a ledger without revealing it."""
        return hashlib.sha256(b"dpzero run key name" + self.key).hexdigest()[:16]

    @property
    def valid_release(self) -> bool:
        """Whether noise under this key is secret."""
        return self.noise_key == "secret"

    def stream(self, purpose: str) -> Stream:
        """The random numbers for one purpose."""
        return Stream(self.key, purpose)

    def claim(self) -> None:
        """Reserve a secret key for one budget: two budgets would add the same noise to two sums.

        Raises:
            ValueError: another budget has it, or it was drawn in another process.
        """
        if not self.valid_release:
            return
        if self.name in _claimed:
            raise ValueError(
                "another budget uses this secret key, whose noise would be used again: draw a new one"
            )
        if self.process != os.getpid():
            raise ValueError(
                f"this secret key was drawn in process {self.process}, and another budget there or in a fork "
                "would add the same noise: draw one here with RunKey.secret()"
            )
        _claimed.add(self.name)


class Stream:
    """Random numbers addressed by a counter of any number of integers."""

    def __init__(self, key: bytes, purpose: str) -> None:
        self._prefix = hashlib.shake_256(len(key).to_bytes(8, "little") + key + purpose.encode() + b"\0")

    def octets(self, count: int, *counter: int) -> bytes:
        """`count` independent bytes."""
        shake = self._prefix.copy()
        shake.update(b"".join(int(c).to_bytes(8, "little") for c in counter))
        return shake.digest(count)

    def words(self, count: int, *counter: int) -> NDArray[np.uint64]:
        """`count` independent 64-bit words."""
        return np.frombuffer(self.octets(8 * count, *counter), dtype="<u8")

    def uniforms(self, count: int, *counter: int) -> NDArray[np.float64]:
        """Uniform on the open interval (0, 1), 53 bits each."""
        u = ((self.words(count, *counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(u, 1 - 2.0**-53)  # the largest would round to 1, whose Laplace number is infinite

    def normals(self, count: int, *counter: int) -> NDArray[np.float64]:
        """Standard normal, by Box and Muller. Reaches 8.6 standard deviations."""
        half = (count + 1) // 2
        u = self.uniforms(2 * half, *counter)
        radius, angle = np.sqrt(-2.0 * np.log(u[:half])), 2.0 * np.pi * u[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def laplaces(self, count: int, *counter: int) -> NDArray[np.float64]:
        """Laplace with scale 1, by inversion."""
        u = self.uniforms(count, *counter) - 0.5
        return -np.sign(u) * np.log1p(-2.0 * np.abs(u))
