"""The directions on CUDA, in Triton: the bits of `kernels_torch`, without temporaries.

Every operation is one of IEEE 754: no fused multiply-add (`launch_triton.OPTIONS`), the exact square root, no
other library function. A program takes 2048 elements: 32 tiles of normals or one tile of signs, as in
`kernels_torch`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from . import kernels_torch as k

_M0, _M1, _W0, _W1 = (tl.constexpr(c) for c in (k.M0, k.M1, k.W0, k.W1))
_SQRT_HALF = tl.constexpr(k.SQRT_HALF)
_UNIT, _ANGLE = tl.constexpr(2.0**-31), tl.constexpr(k.ANGLE)
_LN2_HIGH, _LN2_LOW = tl.constexpr(k.LN2_HIGH), tl.constexpr(k.LN2_LOW)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (tl.constexpr(c) for c in k.LOG)
_S0, _S1, _S2 = (tl.constexpr(c) for c in k.SINE)
_C0, _C1, _C2 = (tl.constexpr(c) for c in k.COSINE)


@triton.jit
def _philox(counter, number, step, direction, key0, key1):
    """All uint32. One 64-bit product is one instruction; its halves on their own would be two."""
    c0, c1, c2, c3 = counter, number, step, direction
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = p0.to(tl.uint32)
        key0 = key0 + _W0
        key1 = key1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _pair(x0, x1):
    """Two normals of two words: see `kernels_torch.normals`. Flipping the sign bit is the product with -1."""
    u = ((x0 >> 1).to(tl.int32).to(tl.float32) + 0.5) * _UNIT
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF) >> 23
    x = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    square = x * x
    e = exponent.to(tl.float32)
    p = (((((((x * _L0 + _L1) * x + _L2) * x + _L3) * x + _L4) * x + _L5) * x + _L6) * x + _L7) * x + _L8
    p = p * x * square + e * _LN2_LOW
    p = p - square * 0.5
    radius = tl.sqrt_rn(((x + p) + e * _LN2_HIGH) * -1.0)
    angle = ((x1.to(tl.int32, bitcast=True) >> 2).to(tl.float32) + 0.5) * _ANGLE
    square = angle * angle
    sine = ((square * _S0 + _S1) * square + _S2) * square * angle + angle
    cosine = ((square * _C0 + _C1) * square + _C2) * square * square - square * 0.5 + 1.0
    z0 = (radius * (cosine - sine)).to(tl.uint32, bitcast=True) ^ (x1 << 31)
    z1 = (radius * (cosine + sine)).to(tl.uint32, bitcast=True) ^ ((x1 & 2) << 30)
    return z0.to(tl.float32, bitcast=True), z1.to(tl.float32, bitcast=True)


@triton.jit
def _uint32(number):
    return number.to(tl.int64).to(tl.uint32)


@triton.jit
def _move_normals(
    out, first, count, block, key0, key1, number, moves,
    MOVES: tl.constexpr, SCALES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """out[i] += scales * z[first + i], for those of the `count` elements that lie in TILES tiles."""
    tile = first // 64 + block * TILES
    lane = tl.arange(0, 16 * TILES)
    counter = (tile * 16).to(tl.uint32) + lane.to(tl.uint32)
    i0 = tile * 64 - first + ((lane // 16) * 64 + lane % 16)
    i1 = i0 + 16
    i2 = i0 + 32
    i3 = i0 + 48
    m0 = (i0 >= 0) & (i0 < count)
    m1 = (i1 >= 0) & (i1 < count)
    m2 = (i2 >= 0) & (i2 < count)
    m3 = (i3 >= 0) & (i3 < count)
    w0 = tl.load(out + i0, mask=m0, other=0.0)
    w1 = tl.load(out + i1, mask=m1, other=0.0)
    w2 = tl.load(out + i2, mask=m2, other=0.0)
    w3 = tl.load(out + i3, mask=m3, other=0.0)
    for m in range(MOVES):
        move = moves + m * (2 + SCALES)
        step, direction = _uint32(tl.load(move)), _uint32(tl.load(move + 1))
        x0, x1, x2, x3 = _philox(counter, number, step, direction, key0, key1)
        z0, z1 = _pair(x0, x1)
        z2, z3 = _pair(x2, x3)
        for s in range(SCALES):
            scale = tl.load(move + 2 + s).to(w0.dtype)
            w0 = w0 + scale * z0.to(w0.dtype)
            w1 = w1 + scale * z1.to(w1.dtype)
            w2 = w2 + scale * z2.to(w2.dtype)
            w3 = w3 + scale * z3.to(w3.dtype)
    tl.store(out + i0, w0, mask=m0)
    tl.store(out + i1, w1, mask=m1)
    tl.store(out + i2, w2, mask=m2)
    tl.store(out + i3, w3, mask=m3)


@triton.jit
def _move_signs(
    out, first, count, block, key0, key1, number, moves, MOVES: tl.constexpr, SCALES: tl.constexpr
):  # fmt: skip
    """As `_move_normals`, for the 2048 elements of a tile of signs."""
    tile = first // 2048 + block
    column = tl.arange(0, 64)
    bit = tl.arange(0, 32)[:, None]
    counter = (tile * 16).to(tl.uint32) + (column % 16).to(tl.uint32)
    i = tile * 2048 - first + (bit * 64 + column[None, :])
    inside = (i >= 0) & (i < count)
    w = tl.load(out + i, mask=inside, other=0.0)
    for m in range(MOVES):
        move = moves + m * (2 + SCALES)
        step, direction = _uint32(tl.load(move)), _uint32(tl.load(move + 1))
        x0, x1, x2, x3 = _philox(counter, number, step, direction, key0, key1)
        word = tl.where(column < 32, tl.where(column < 16, x0, x1), tl.where(column < 48, x2, x3))
        negative = ((word[None, :] >> bit.to(tl.uint32)) & 1) != 0
        for s in range(SCALES):
            scale = tl.load(move + 2 + s).to(w.dtype)
            w = w + tl.where(negative, scale * -1.0, scale)
    tl.store(out + i, w, mask=inside)


@triton.jit
def _entry(entries, blocks):
    """Address, elements and number of this program's tensor, and its block within the tensor."""
    program = tl.program_id(0)
    entry = entries + tl.load(blocks + program).to(tl.int64) * 4
    return tl.load(entry), tl.load(entry + 1), _uint32(tl.load(entry + 2)), program - tl.load(entry + 3)


@triton.jit(do_not_specialize=["key0", "key1"])
def add(
    entries, blocks, key0, key1, moves, MOVES: tl.constexpr, SCALES: tl.constexpr,
    SIGNS: tl.constexpr, DOUBLE: tl.constexpr, WHOLE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A list of tensors in place. WHOLE: addresses are multiples of 16 bytes, sizes multiples of 16 elements."""
    address, count, number, block = _entry(entries, blocks)
    if DOUBLE:
        weights = address.to(tl.pointer_type(tl.float64))
    else:
        weights = address.to(tl.pointer_type(tl.float32))
    if WHOLE:
        weights = tl.multiple_of(weights, 16)
        count = count // 16 * 16  # tells the compiler
    key0 = key0.to(tl.uint32)
    key1 = key1.to(tl.uint32)
    if SIGNS:
        _move_signs(weights, 0, count, block, key0, key1, number, moves, MOVES, SCALES)
    else:
        _move_normals(weights, 0, count, block, key0, key1, number, moves, MOVES, SCALES, TILES)


@triton.jit(do_not_specialize=["key0", "key1", "number"])
def rows(
    out, rows, length, first, blocks, key0, key1, number, moves,
    MOVES: tl.constexpr, SCALES: tl.constexpr, ROWS: tl.constexpr, SIGNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One tensor, or rows of one: row i of `out` is row rows[i] of the tensor. Each row takes `blocks` programs."""
    program = tl.program_id(0)
    row, block = (program // blocks).to(tl.int64), (program % blocks).to(tl.int64)
    begin = first
    if ROWS:
        begin = tl.load(rows + row) * length
    key0 = key0.to(tl.uint32)
    key1 = key1.to(tl.uint32)
    number = number.to(tl.uint32)
    out += row * length
    if SIGNS:
        _move_signs(out, begin, length, block, key0, key1, number, moves, MOVES, SCALES)
    else:
        _move_normals(out, begin, length, block, key0, key1, number, moves, MOVES, SCALES, TILES)


@triton.jit
def outer(
    matrix, u, v, scales, height, width, blocks,
    MOVES: tl.constexpr, RANK: tl.constexpr, SCALES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i = (program // blocks) * ROWS + tl.arange(0, ROWS)
    j = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    there = (i < height)[:, None] & (j < width)[None, :]
    place = matrix + (i.to(tl.int64) * width)[:, None] + j[None, :]
    w = tl.load(place, mask=there, other=0.0)
    for m in range(MOVES):
        left = u + m * RANK * height + i
        right = v + m * RANK * width + j
        a = tl.load(left, mask=i < height, other=0.0)
        z = a[:, None] * tl.load(right, mask=j < width, other=0.0)[None, :]
        for _ in range(1, RANK):
            left += height
            right += width
            a = tl.load(left, mask=i < height, other=0.0)
            z = z + a[:, None] * tl.load(right, mask=j < width, other=0.0)[None, :]
        for s in range(SCALES):
            w = w + tl.load(scales + m * SCALES + s).to(w.dtype) * z.to(w.dtype)
    tl.store(place, w, mask=there)
