"""Philox4x32-10 (Salmon et al., SC 2011): a random word as a function of a key and a counter, on any torch device.

Written in int64 arithmetic because torch multiplies no unsigned 32-bit integers; a product of two 32-bit words wraps in
int64 without losing a bit of either half.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words (int64 tensors with values below 2^32) for each counter of four such words, shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def normals(words: tuple[Tensor, ...]) -> Tensor:
    """Box and Muller: four words of shape [n] -> float32 [n, 4], standard normal (up to 6.77 standard deviations)."""
    x0, x1, x2, x3 = ((word.float() + 0.5) * 2.0**-32 for word in words)
    r0, r1 = torch.sqrt(-2 * torch.log(x0)), torch.sqrt(-2 * torch.log(x2))
    a0, a1 = x1 * (2 * torch.pi), x3 * (2 * torch.pi)
    return torch.stack([r0 * a0.cos(), r0 * a0.sin(), r1 * a1.cos(), r1 * a1.sin()], dim=-1)
