"""The directions compiled for the CPU by numba: the bits of `kernels_torch`, without temporaries.

Every operation is one of IEEE 754 (no fused multiply-add, no library's logarithm), so no compiler or machine
changes the bits. Elements lie in tiles of 64: 16 Philox counters, and a row of 16 elements for each of a
counter's four words.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, disable-error-code="call-arg, call-overload"

from __future__ import annotations

import numpy as np
from numba import float32, int32, njit, types, uint32, uint64
from numba.extending import intrinsic
from torch import Tensor

from . import kernels_torch as k
from .kernels_torch import Key, Table

_M0, _M1, _W0, _W1 = uint64(k.M0), uint64(k.M1), uint32(k.W0), uint32(k.W1)
_ONE, _TWO, _HALFWORD, _MANTISSA = uint32(1), uint32(2), uint64(32), int32(23)
_SQRT_HALF, _HALF = int32(k.SQRT_HALF), np.float32(0.5)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (np.float32(c) for c in k.LOG)
_LN2_HIGH, _LN2_LOW = np.float32(k.LN2_HIGH), np.float32(k.LN2_LOW)
_S0, _S1, _S2 = (np.float32(c) for c in k.SINE)
_C0, _C1, _C2 = (np.float32(c) for c in k.COSINE)
_UNIT, _ANGLE = np.float32(2.0**-31), np.float32(k.ANGLE)


def add_(kind: str, out: Tensor, first: int, key: Key, number: int, moves: Table) -> None:
    """See `kernels_torch.add_`."""
    _add(out.numpy(), first, kind == "signs", *map(np.uint32, (*key, number)), moves)


def add_rows_(kind: str, out: Tensor, rows: Tensor, key: Key, number: int, moves: Table) -> None:
    """See `kernels_torch.add_rows_`."""
    _add_rows(out.numpy(), rows.numpy(), kind == "signs", *map(np.uint32, (*key, number)), moves)


def add_outer_(rows: Tensor, u: Tensor, v: Tensor, scales: Table) -> None:
    """See `kernels_torch.add_outer_`."""
    _add_outer(rows.numpy(), u.contiguous().numpy(), v.numpy(), scales)


@intrinsic
def _wide_vectors(context):
    """Asks LLVM for the widest vectors of the machine: by default it takes half of AVX-512, at half the speed."""

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def compiled(function):
    """Compiles the function and caches it on disk, if numba finds a folder that can be written."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


@njit(inline="always")
def _philox(c0, c1, c2, c3, key0, key1):
    for _ in range(10):
        p0, p1 = uint64(c0) * _M0, uint64(c2) * _M1
        c0, c1, c2, c3 = (
            uint32(p1 >> _HALFWORD) ^ c1 ^ key0,
            uint32(p1),
            uint32(p0 >> _HALFWORD) ^ c3 ^ key1,
            uint32(p0),
        )
        key0, key1 = uint32(key0 + _W0), uint32(key1 + _W1)
    return c0, c1, c2, c3


@njit(inline="always")
def _pair(x0, x1):
    """Two normals of two words: see `kernels_torch.normals`."""
    u = np.float32((float32(int32(x0 >> _ONE)) + _HALF) * _UNIT)
    bits = u.view(np.int32)
    exponent = (bits - _SQRT_HALF) >> _MANTISSA
    x = np.int32(bits - (exponent << _MANTISSA)).view(np.float32) - float32(1)
    square, e = x * x, float32(exponent)
    p = (((((((_L0 * x + _L1) * x + _L2) * x + _L3) * x + _L4) * x + _L5) * x + _L6) * x + _L7) * x + _L8
    p = p * x * square + e * _LN2_LOW
    p = p - square * _HALF
    radius = np.sqrt(-((x + p) + e * _LN2_HIGH))
    angle = (float32(int32(x1) >> int32(2)) + _HALF) * _ANGLE
    square = angle * angle
    sine = ((_S0 * square + _S1) * square + _S2) * square * angle + angle
    cosine = ((_C0 * square + _C1) * square + _C2) * square * square - square * _HALF + float32(1)
    sign0 = float32(int32(1) - int32(2) * int32(x1 & _ONE))
    sign1 = float32(int32(1) - int32(x1 & _TWO))
    return radius * (cosine - sine) * sign0, radius * (cosine + sine) * sign1


@njit(inline="always")
def _normal_tile(z, tile, key0, key1, tensor, step, direction):
    first = uint32(tile * 16)
    for lane in range(16):
        x0, x1, x2, x3 = _philox(uint32(first + uint32(lane)), tensor, step, direction, key0, key1)
        z[lane], z[16 + lane] = _pair(x0, x1)
        z[32 + lane], z[48 + lane] = _pair(x2, x3)


@njit(inline="always")
def _sign_tile(z, x, tile, key0, key1, tensor, step, direction):
    first = uint32(tile * 16)
    for lane in range(16):
        x[lane], x[16 + lane], x[32 + lane], x[48 + lane] = _philox(
            uint32(first + uint32(lane)), tensor, step, direction, key0, key1
        )
    for bit in range(32):
        for i in range(64):
            z[64 * bit + i] = float32(int32(1) - int32(2) * int32((x[i] >> uint32(bit)) & _ONE))


@compiled
def _add(w, first, signs, key0, key1, tensor, moves):
    """w[i] += scale * z[first + i], for each row (step, direction, *scales) of moves and each scale in turn."""
    _wide_vectors()
    if not signs and moves.size == 3 and first % 64 == 0:  # the common case, without a detour through memory
        whole = w.shape[0] // 64
        _add_tiles(w, whole, first // 64, moves[0], key0, key1, tensor)
        w, first = w[64 * whole :], first + 64 * whole
    size = 2048 if signs else 64
    z, x = np.empty(size, np.float32), np.empty(64, np.uint32)
    for tile in range(first // size, (first + w.shape[0] + size - 1) // size):
        begin, end = max(tile * size, first), min(tile * size + size, first + w.shape[0])
        part, part_of_z = w[begin - first : end - first], z[begin - tile * size :]
        for m in range(moves.shape[0]):
            step, direction = uint32(moves[m, 0]), uint32(moves[m, 1])
            if signs:
                _sign_tile(z, x, tile, key0, key1, tensor, step, direction)
            else:
                _normal_tile(z, tile, key0, key1, tensor, step, direction)
            for s in range(2, moves.shape[1]):
                scale = w.dtype.type(moves[m, s])
                for i in range(part.shape[0]):
                    part[i] += scale * part_of_z[i]


@njit(inline="always")
def _add_tiles(w, count, first_tile, move, key0, key1, tensor):
    step, direction, scale = uint32(move[0]), uint32(move[1]), w.dtype.type(move[2])
    for tile in range(count):
        base, first = tile * 64, uint32((first_tile + tile) * 16)
        for lane in range(16):
            x0, x1, x2, x3 = _philox(uint32(first + uint32(lane)), tensor, step, direction, key0, key1)
            z0, z1 = _pair(x0, x1)
            z2, z3 = _pair(x2, x3)
            w[base + lane] += scale * z0
            w[base + 16 + lane] += scale * z1
            w[base + 32 + lane] += scale * z2
            w[base + 48 + lane] += scale * z3


@compiled
def _add_outer(w, u, v, scales):
    """w[i, j] += scales[m, s] * sum over c of u[m, c, i] v[m, c, j], for each m and each s in turn."""
    _wide_vectors()
    z = np.empty(w.shape[1], np.float32)
    for i in range(w.shape[0]):
        row = w[i]
        for m in range(u.shape[0]):
            first = u[m, 0, i]
            for j in range(row.shape[0]):
                z[j] = first * v[m, 0, j]
            for c in range(1, u.shape[1]):
                factor = u[m, c, i]
                for j in range(row.shape[0]):
                    z[j] += factor * v[m, c, j]
            for s in range(scales.shape[1]):
                scale = w.dtype.type(scales[m, s])
                for j in range(row.shape[0]):
                    row[j] += scale * z[j]


@compiled
def _add_rows(out, rows, signs, key0, key1, tensor, moves):
    """out[i] += scale * z of row rows[i], for a tensor whose rows are as long as those of `out`."""
    for i in range(rows.shape[0]):
        _add(out[i], rows[i] * out.shape[1], signs, key0, key1, tensor, moves)
