"""The directions in plain torch, for any device: the reference that the compiled kernels equal to the bit.

Element i of tensor j in direction k of step t comes from Philox4x32-10 with the seed's key and the counter
(b, j, t, k). Normals lie in tiles of 64 elements: element 64 T + 16 w + l is number w of counter b = 16 T +
l. Signs lie in tiles of 2048: element 2048 T + 64 s + 16 w + l is bit s of word w of counter b = 16 T + l.
Written in int64 because torch multiplies no unsigned 32-bit integers; a product of two 32-bit words wraps in
int64 without losing a bit of either half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import philox_constants as k

MASK = 0xFFFFFFFF
Key = tuple[int, int]
Words = tuple[Tensor, Tensor, Tensor, Tensor]
Address = tuple[int, int, int]
"""Number of the tensor, step, direction."""


@dataclass(frozen=True)
class Move:
    """x += scale * z for each scale in turn, where z is direction number `direction` of step `step`."""

    step: int
    direction: int
    scales: tuple[float, ...]


def philox(key: Key, counter: Words) -> Words:
    """Four words (int64 tensors with values below 2^32) for each counter of four such words, shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * k.M0, c2 * k.M1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + k.W0) & MASK, (k1 + k.W1) & MASK
    return c0, c1, c2, c3


def normals(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller: two words (int64 below 2^32) -> two standard normals, float32, at most 6.7 in absolute value.

    The radius over sqrt(2) comes from 31 bits of the first word; of the second, two bits are signs and thirty
    an angle of an eighth of the circle to either side of the diagonal.
    """
    x = (x0 >> 1).float().add(0.5).mul(2.0**-31)
    bits = x.view(torch.int32)
    exponent = (bits - k.SQRT_HALF) >> 23
    x = (bits - (exponent << 23)).view(torch.float32) - 1
    square, e = x * x, exponent.float()
    p = torch.full_like(x, k.LOG[0])
    for coefficient in k.LOG[1:]:
        p = p * x + coefficient
    p = p * x * square + e * k.LN2_LOW
    p = p - square * 0.5
    square_radius = -((x + p) + e * k.LN2_HIGH)
    radius = torch.sqrt(
        square_radius.double()
    ).float()  # rounded exactly; torch's float32 root is not, on every machine
    angle = ((_signed(x1) >> 2).float() + 0.5) * k.ANGLE
    square = angle * angle
    sine = ((square * k.SINE[0] + k.SINE[1]) * square + k.SINE[2]) * square * angle + angle
    cosine = (square * k.COSINE[0] + k.COSINE[1]) * square + k.COSINE[2]
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


KINDS: dict[str, Callable[[Key, Address, int, int, torch.device], Tensor]] = {
    "normals": gaussian,
    "signs": signs,
}


def add_(kind: str, out: Tensor, first: int, key: Key, number: int, moves: Sequence[Move]) -> None:
    """In place: out += scale * z, for each move and scale in turn.

    Args:
        out: [n], elements first .. first + n - 1 of tensor `number`.
    """
    for move in moves:
        address = number, move.step, move.direction
        z = KINDS[kind](key, address, first, len(out), out.device).to(out.dtype)
        for scale in move.scales:
            out.add_(z * scale)


def add_outer_(rows: Tensor, u: Tensor, v: Tensor, scales: Sequence[Sequence[float]]) -> None:
    """In place: rows [m, n] += scales[t][s] * U_t V_t^T, for t and s in turn.

    Args:
        u: U^T, [T, rank, m], of these rows.
        v: V^T, [T, rank, n].
    """
    for left, right, scales_of_move in zip(u, v, scales, strict=True):
        z = left[0][:, None] * right[0]
        for a, b in zip(left[1:], right[1:], strict=True):
            z = z + a[:, None] * b
        for scale in scales_of_move:
            rows.add_(z.to(rows.dtype) * scale)
