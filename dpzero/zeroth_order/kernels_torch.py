"""The directions in plain torch, for any device: the reference that the compiled kernels equal to the bit.

Element i of tensor j in direction k of step t comes from Philox4x32-10 with the seed's key and the counter
(b, j, t, k). Normals lie in tiles of 64 elements: element 64 T + 16 w + l is number w of counter b = 16 T +
l. Signs lie in tiles of 2048: element 2048 T + 64 s + 16 w + l is bit s of word w of counter b = 16 T + l.
Written in int64 because torch multiplies no unsigned 32-bit integers; a product of two 32-bit words wraps in
int64 without losing a bit of either half. Philox4x32-10: Salmon et al. (SC 2011). The polynomials, for the
logarithm near 1 and for sine and cosine up to pi / 4, are those of the Cephes library in single precision
(Moshier 1989), to 1 unit in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85

SQRT_HALF = 0x3F3504F3  # bits of the float32 nearest to sqrt(1/2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
ANGLE = math.pi * 2.0**-31  # of a signed 30-bit number, up to pi / 4

MASK = 0xFFFFFFFF
Key = tuple[int, int]
Words = tuple[Tensor, Tensor, Tensor, Tensor]
Table = NDArray[np.float64]
Address = tuple[int, int, int]
"""Number of the tensor, step, direction."""


@dataclass(frozen=True)
class Move:
    """x += scale * z for each scale in turn, where z is direction number `direction` of step `step`."""

    step: int
    direction: int
    scales: tuple[float, ...]


def table(moves: Sequence[Move]) -> Table:
    """Moves with the same number of scales as kernels take them: rows (step, direction, *scales)."""
    return np.array([(move.step, move.direction, *move.scales) for move in moves], np.float64)


def philox(key: Key, counter: Words) -> Words:
    """Four words (int64 tensors with values below 2^32) for each counter of four such words, shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def normals(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller: two words (int64 below 2^32) -> two standard normals, float32, at most 6.7 in absolute value.

    The radius over sqrt(2) comes from 31 bits of the first word; of the second, two bits are signs and thirty
    an angle of an eighth of the circle to either side of the diagonal.
    """
    x = (x0 >> 1).float().add(0.5).mul(2.0**-31)
    bits = x.view(torch.int32)
    exponent = (bits - SQRT_HALF) >> 23
    x = (bits - (exponent << 23)).view(torch.float32) - 1
    square, e = x * x, exponent.float()
    p = torch.full_like(x, LOG[0])
    for coefficient in LOG[1:]:
        p = p * x + coefficient
    p = p * x * square + e * LN2_LOW
    p = p - square * 0.5
    square_radius = -((x + p) + e * LN2_HIGH)
    # rounded exactly; torch's float32 root is not, on every machine
    radius = torch.sqrt(square_radius.double()).float()
    angle = ((_signed(x1) >> 2).float() + 0.5) * ANGLE
    square = angle * angle
    sine = ((square * SINE[0] + SINE[1]) * square + SINE[2]) * square * angle + angle
    cosine = (square * COSINE[0] + COSINE[1]) * square + COSINE[2]
    cosine = cosine * square * square - square * 0.5 + 1
    sign0, sign1 = (1 - 2 * (x1 & 1)).float(), (1 - (x1 & 2)).float()
    return radius * (cosine - sine) * sign0, radius * (cosine + sine) * sign1


def _signed(word: Tensor) -> Tensor:
    return word - ((word & 0x80000000) << 1)


def _words(key: Key, address: Address, first: int, last: int, device: torch.device) -> Words:
    """The four words of the counters of tiles first .. last - 1, each [tiles, 16]."""
    counter = torch.arange(16 * first, 16 * last, device=device).view(-1, 16)
    tensor, step, direction = (torch.full_like(counter, n) for n in address)
    return philox(key, (counter, tensor, step, direction))


def gaussian(key: Key, address: Address, first: int, count: int, device: torch.device) -> Tensor:
    """Elements first .. first + count - 1, float32 [count]."""
    begin, end = first // 64, (first + count + 63) // 64
    x0, x1, x2, x3 = _words(key, address, begin, end, device)
    z = torch.stack([*normals(x0, x1), *normals(x2, x3)], dim=1)  # [tiles, 4, 16]
    return z.flatten()[first - 64 * begin :][:count]


def signs(key: Key, address: Address, first: int, count: int, device: torch.device) -> Tensor:
    """Elements first .. first + count - 1, each 1 or -1, float32 [count]."""
    begin, end = first // 2048, (first + count + 2047) // 2048
    words = torch.stack(_words(key, address, begin, end, device), dim=1)[:, None]  # [tiles, 1, 4, 16]
    bits = (words >> torch.arange(32, device=device).view(32, 1, 1)) & 1  # [tiles, 32, 4, 16]
    return (1 - 2 * bits).float().flatten()[first - 2048 * begin :][:count]


def add_(kind: str, out: Tensor, first: int, key: Key, number: int, moves: Table) -> None:
    """In place: out += scale * z, for each row (step, direction, *scales) of moves and each scale in turn.

    Args:
        out: [n], elements first .. first + n - 1 of tensor `number`.
    """
    for step, direction, *scales in moves.tolist():
        address = number, int(step), int(direction)
        draw = signs if kind == "signs" else gaussian
        z = draw(key, address, first, len(out), out.device).to(out.dtype)
        for scale in scales:
            out.add_(z * scale)


def add_rows_(kind: str, out: Tensor, rows: Tensor, key: Key, number: int, moves: Table) -> None:
    """In place: out[i] += scale * z of row rows[i] of tensor `number`, whose rows are as long as those of `out`."""
    for target, row in zip(out, rows.tolist(), strict=True):
        add_(kind, target, row * out.shape[1], key, number, moves)


def add_outer_(rows: Tensor, u: Tensor, v: Tensor, scales: Table) -> None:
    """In place: rows [m, n] += scales[t][s] * U_t V_t^T, for t and s in turn.

    Args:
        u: U^T, [T, rank, m], of these rows.
        v: V^T, [T, rank, n].
    """
    for left, right, scales_of_move in zip(u, v, scales.tolist(), strict=True):
        z = left[0][:, None] * right[0]
        for a, b in zip(left[1:], right[1:], strict=True):
            z = z + a[:, None] * b
        for scale in scales_of_move:
            rows.add_(z.to(rows.dtype) * scale)
