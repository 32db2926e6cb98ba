"""Launches the directions' Triton kernels: many tensors and many moves in one launch, which is one pass over the weights.

Moves come as a small float64 tensor on the device, a row a move: step, direction, then the scales (`table`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import kernels_triton
from .kernels_torch import Key

BLOCK = 2048  # elements that a program takes
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
_TILES = {"normals": 64, "signs": 2048}
_SLOTS = 1024  # that the sum of squares is spread over, so that programs do not wait for each other
_PLANS = 8  # lists of tensors whose division into blocks is kept on the device


def table(
    steps: Sequence[int], directions: Sequence[int], scales: Sequence[Sequence[float]], device: torch.device
) -> Tensor:
    """Moves as the kernels read them: float64 [moves, 2 + scales of each]. A scale is rounded to the weights' type on the device."""
    rows = np.column_stack([steps, directions, np.asarray(scales, np.float64)]).astype(np.float64)
    return torch.from_numpy(rows).to(device, non_blocking=True)  # without waiting for the forward pass before


def add(kind: str, numbered: Sequence[tuple[int, Tensor]], key: Key, moves: Tensor) -> None:
    """In place, for each pair (j, tensor): tensor += scale * z, for each move and each of its scales in turn.

    Args:
        kind: "normals" or "signs".
        numbered: contiguous float32 or float64 tensors, on the device of `moves`.
        moves: see `table`.
    """
    groups: dict[tuple[bool, bool], list[tuple[int, int, int]]] = {}
    for j, tensor in numbered:
        if not tensor.is_contiguous():
            raise ValueError(f"tensor {j} of shape {tuple(tensor.shape)} is not contiguous: make it so")
        address, count = tensor.data_ptr(), tensor.numel()
        whole = address % 16 == 0 and count % 16 == 0
        groups.setdefault((tensor.dtype == torch.float64, whole), []).append((address, count, j))
    for (double, whole), tensors in groups.items():
        entries, blocks = _plan(tuple(tensors), moves.device)
        _launch(
            kernels_triton.add, len(blocks), moves, entries, blocks, *_signed(*key), moves, **_sizes(moves),
            SIGNS=kind == "signs", DOUBLE=double, WHOLE=whole, TILES=BLOCK // 64,
        )  # fmt: skip


def add_rows(kind: str, out: Tensor, rows: Tensor, number: int, key: Key, moves: Tensor) -> None:
    """In place: out[i] += scale * z of row rows[i] of tensor `number`, whose rows are as long as those of `out` [n, m]."""
    length, tile = out.shape[1], _TILES[kind]
    tiles = length // tile
    if length % tile:
        tiles = (length + tile - 2) // tile + 1  # wherever in a tile a row begins
    _move(kind, out, out, rows, len(out), length, 0, tiles, number, key, moves)


def perturbed_copy(
    kind: str, tensor: Tensor, number: int, key: Key, moves: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """tensor + scale * z, computed in the type of the tensor, rounded to `dtype` (float32, bfloat16, ...; that of the tensor)."""
    out = torch.empty_like(tensor, dtype=dtype, requires_grad=False)
    tiles = -(-tensor.numel() // _TILES[kind])
    _move(kind, tensor.detach(), out, None, 1, tensor.numel(), 0, tiles, number, key, moves)
    return out


def add_elements(kind: str, out: Tensor, number: int, key: Key, moves: Tensor, first: int = 0) -> None:
    """In place: out += scale * z, out [n] contiguous being elements first .. first + n - 1 of tensor `number`."""
    tile = _TILES[kind]
    tiles = -(-(first + out.numel()) // tile) - first // tile
    _move(kind, out, out, None, 1, out.numel(), first, tiles, number, key, moves)


def add_outer(matrix: Tensor, u: Tensor, v: Tensor, scales: Tensor) -> None:
    """In place: matrix [m, n] += scales[t][s] * U_t V_t^T, for U^T [T, rank, m] and V^T [T, rank, n], contiguous, and float64 [T, S]."""
    height, width = matrix.shape
    columns = 128
    rows = BLOCK // columns
    blocks = -(-width // columns)
    _launch(
        kernels_triton.outer, -(-height // rows) * blocks, matrix, matrix.detach(), u, v, scales, height, width, blocks,
        MOVES=len(u), RANK=u.shape[1], SCALES=scales.shape[1], ROWS=rows, COLUMNS=columns,
    )  # fmt: skip


def sum_of_squares(sizes: Sequence[int], key: Key, step: int, direction: int, device: torch.device) -> int:
    """Of the normals of tensors of these sizes, in units of 2^-20, each rounded: an integer, whatever the order."""
    entries, blocks = _plan(tuple((0, size, j) for j, size in enumerate(sizes)), device)
    sums = torch.zeros(_SLOTS, dtype=torch.int64, device=device)
    moves = table([step], [direction], [(1.0,)], device)
    _launch(
        kernels_triton.sum_of_squares, len(blocks), sums, entries, blocks, *_signed(*key), moves, sums,
        SLOTS=_SLOTS, TILES=BLOCK // 64,
    )  # fmt: skip
    return int(sums.sum())


def _move(kind, source, out, rows, height, length, first, tiles, number, key, moves) -> None:
    together = 1 if kind == "signs" else min(BLOCK // 64, 2 ** math.ceil(math.log2(max(tiles, 1))))
    blocks = -(-tiles // together)
    _launch(
        kernels_triton.rows, height * blocks, out, source, out, moves if rows is None else rows, length, first, blocks,
        *_signed(*key, number), moves, **_sizes(moves), ROWS=rows is not None, SIGNS=kind == "signs", TILES=together,
    )  # fmt: skip


def _sizes(moves: Tensor) -> dict[str, int]:
    return {"MOVES": len(moves), "SCALES": moves.shape[1] - 2}


def _signed(*words: int) -> tuple[int, ...]:
    """32-bit words as the signed numbers of the same bits: the kernel is compiled once for all."""
    return tuple(word - ((word & 0x80000000) << 1) for word in words)


_plans: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()


def _plan(tensors: tuple[tuple[int, int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """For tensors (address, elements, number): int64 [tensors, 4] for `_entry`, and the tensor that each block is of, int32.

    Four bytes for 2048 elements. What is kept says nothing of a tensor but where it lies, so it is true of any that lies there.
    """
    name = (device, tensors)
    if name not in _plans:
        counts = np.array([count for _, count, _ in tensors], np.int64)
        blocks = -(-counts // BLOCK)
        entries = np.column_stack([np.array(tensors, np.int64), np.cumsum(blocks) - blocks])
        of = np.repeat(np.arange(len(tensors), dtype=np.int32), blocks)
        _plans[name] = torch.from_numpy(entries).to(device), torch.from_numpy(of).to(device)
        if len(_plans) > _PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(name)
    return _plans[name]


def _launch(kernel, programs: int, on: Tensor, *arguments, **constants) -> None:
    if programs:
        with torch.cuda.device_of(on):
            kernel[(programs,)](*arguments, **constants, **OPTIONS)
