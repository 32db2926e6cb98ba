"""Randomness that can be read at any position: SHAKE-256 of (key, purpose, counter).

Sampling and noise each have a stream of their own, separated by purpose. Number i of step t is a function of the key and
the counter alone, so a step can be recomputed without the steps before it and a resumed run neither repeats nor skips a
draw. SHAKE-256 keyed with 32 secret bytes is a pseudo-random function: who does not know the key cannot tell the noise
from true noise, whatever seeds and records are public. (Directions are public and have a faster generator of their own,
in `dpzero.zeroth_order.directions`.)
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field

import numpy as np

NOISE_KEYS = ("published", "secret")
DISTINCT = 16  # bytes of a secret key that differ: of 32 random ones fewer do with probability below 1e-10


@dataclass(frozen=True)
class RunKey:
    """The 32 bytes that sampling and noise of one run are drawn from.

    `published` derives them from the seed, so that a benchmark on public data replays bit for bit: such a run is no
    private release. `secret` draws them from the operating system and writes them nowhere.
    """

    noise_key: str
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", os.getpid())
        if self.noise_key not in NOISE_KEYS:
            raise ValueError(f"noise_key is {self.noise_key!r}: give one of {', '.join(NOISE_KEYS)}")
        if self.noise_key == "secret" and (not isinstance(self.key, bytes) or len(set(self.key)) < DISTINCT):
            raise ValueError(
                "this secret key can be guessed: draw one from the operating system with RunKey.secret()"
            )

    @classmethod
    def published(cls, seed: int) -> RunKey:
        return cls("published", hashlib.sha256(f"dpzero published run key, seed {seed}".encode()).digest())

    @classmethod
    def secret(cls) -> RunKey:
        return cls("secret", secrets.token_bytes(32))

    @classmethod
    def for_run(cls, noise_key: str, seed: int) -> RunKey:
        return cls.secret() if noise_key == "secret" else cls(noise_key, cls.published(seed).key)

    @property
    def name(self) -> str:
        """Tells keys apart in a ledger without revealing them."""
        return hashlib.sha256(b"dpzero run key name" + self.key).hexdigest()[:16]

    @property
    def valid_release(self) -> bool:
        return self.noise_key == "secret"

    def stream(self, purpose: str) -> Stream:
        return Stream(self.key, purpose)


class Stream:
    """Uniform and normal numbers, float64, addressed by a counter of any number of integers."""

    def __init__(self, key: bytes, purpose: str) -> None:
        self._prefix = hashlib.shake_256(len(key).to_bytes(8, "little") + key + purpose.encode() + b"\0")

    def octets(self, count: int, *counter: int) -> bytes:
        """`count` independent bytes."""
        shake = self._prefix.copy()
        shake.update(b"".join(int(c).to_bytes(8, "little") for c in counter))
        return shake.digest(count)

    def words(self, count: int, *counter: int) -> np.ndarray:
        """`count` independent 64-bit words, uint64."""
        return np.frombuffer(self.octets(8 * count, *counter), dtype="<u8")

    def uniforms(self, count: int, *counter: int) -> np.ndarray:
        """Uniform on the open interval (0, 1), 53 bits each, float64."""
        u = ((self.words(count, *counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(u, 1 - 2.0**-53)  # the last one would round to 1, whose Laplace number is infinite

    def normals(self, count: int, *counter: int) -> np.ndarray:
        """Standard normal, float64, by Box and Muller. Reaches 8.6 standard deviations."""
        half = (count + 1) // 2
        u = self.uniforms(2 * half, *counter)
        radius, angle = np.sqrt(-2.0 * np.log(u[:half])), 2.0 * np.pi * u[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def laplaces(self, count: int, *counter: int) -> np.ndarray:
        """Laplace with scale 1, float64, by inversion."""
        u = self.uniforms(count, *counter) - 0.5
        return -np.sign(u) * np.log1p(-2.0 * np.abs(u))
