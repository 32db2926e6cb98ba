"""Exact samplers of discrete Gaussian and Laplace noise.

Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), algorithms 1 to 3.

Only integers are computed and compared. Nothing is rounded, so no low-order bit reveals the sum without
noise.
"""

from __future__ import annotations

from math import isqrt

from .randomness import Stream

BLOCK_BYTES = 512


class Bits:
    """Exactly uniform integers from the bytes of a stream at one counter."""

    def __init__(self, stream: Stream, *counter: int) -> None:
        self._stream, self._counter = stream, counter
        self._blocks = 0
        self._pool, self._size = 0, 0  # an integer of `size` unused bits

    def below(self, bound: int) -> int:
        """Uniform on {0, ..., bound - 1}, by rejection."""
        bits = (bound - 1).bit_length()
        while True:
            candidate = self._take(bits)
            if candidate < bound:
                return candidate

    def bernoulli(self, numerator: int, denominator: int) -> bool:
        """True with probability numerator / denominator."""
        return self.below(denominator) < numerator

    def bernoulli_exp(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator) (algorithm 1)."""
        while numerator > denominator:
            if not self._bernoulli_exp(1, 1):
                return False
            numerator -= denominator
        return self._bernoulli_exp(numerator, denominator)

    def _bernoulli_exp(self, numerator: int, denominator: int) -> bool:
        k = 1
        while self.bernoulli(numerator, denominator * k):
            k += 1
        return k % 2 == 1

    def _take(self, bits: int) -> int:
        while self._size < bits:
            block = self._stream.octets(BLOCK_BYTES, *self._counter, self._blocks)
            self._pool |= int.from_bytes(block, "little") << self._size
            self._size += 8 * BLOCK_BYTES
            self._blocks += 1
        taken = self._pool & ((1 << bits) - 1)
        self._pool >>= bits
        self._size -= bits
        return taken


def laplace(bits: Bits, scale: int) -> int:
    """P(x) proportional to exp(-|x| / scale) on the integers (algorithm 2); 0 for scale 0."""
    if scale == 0:
        return 0
    while True:
        remainder = bits.below(scale)
        if not bits.bernoulli_exp(remainder, scale):
            continue
        quotient = 0
        while bits.bernoulli_exp(1, 1):
            quotient += 1
        size, negative = remainder + scale * quotient, bits.below(2)
        if size or not negative:  # zero has one sign
            return -size if negative else size


def gaussian(bits: Bits, variance: int) -> int:
    """P(x) proportional to exp(-x^2 / (2 variance)) on the integers (algorithm 3); 0 for variance 0."""
    if variance == 0:
        return 0
    scale = isqrt(variance) + 1
    while True:
        candidate = laplace(bits, scale)
        excess = abs(candidate) * scale - variance
        if bits.bernoulli_exp(excess * excess, 2 * variance * scale * scale):
            return candidate
