"""Launches the Triton kernels: one launch, and one pass over the weights, for many tensors and moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import kernels_triton
from .kernels_torch import Key, Table

BLOCK = 2048  # elements of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
_TILES = {"normals": 64, "signs": 2048}


def add(kind: str, numbered: Sequence[tuple[int, Tensor]], key: Key, moves: Table) -> None:
    """In place, for each pair (j, tensor): tensor += scale * z, for each row (step, direction, *scales) of moves and each scale in turn.

    Args:
        kind: "normals" or "signs".
        numbered: contiguous float32 or float64 tensors on one device, with their numbers.
    """
    groups: dict[tuple[bool, bool], list[tuple[int, int, int]]] = {}
    for j, tensor in numbered:
        if not tensor.is_contiguous():
            raise ValueError(f"tensor {j} of shape {tuple(tensor.shape)} is not contiguous: make it so")
        address, count = tensor.data_ptr(), tensor.numel()
        whole = address % 16 == 0 and count % 16 == 0
        groups.setdefault((tensor.dtype == torch.float64, whole), []).append((address, count, j))
    device = numbered[0][1].device
    rows = _on_device(moves, device)
    for (double, whole), tensors in groups.items():
        entries, blocks = _plan(tuple(tensors), device)
        _launch(
            kernels_triton.add, len(blocks), rows, entries, blocks, *_signed(*key), rows, **_sizes(moves),
            SIGNS=kind == "signs", DOUBLE=double, WHOLE=whole, TILES=BLOCK // 64,
        )  # fmt: skip


def move(
    kind: str, out: Tensor, number: int, key: Key, moves: Table, *, rows: Tensor | None = None, first: int = 0
) -> None:
    """In place: out += scale * z, for each row (step, direction, *scales) of moves and each scale in turn.

    Args:
        out: contiguous. All of tensor `number`, or a part of it:
        rows: int64 [n], which of its rows the rows of `out` [n, m] are.
        first: its element that the first of `out` is.
    """
    tile = _TILES[kind]
    if rows is None:
        height, length = 1, out.numel()
        tiles = -(-(first + length) // tile) - first // tile
    else:
        height, length = out.shape
        # a row may begin anywhere in a tile
        tiles = length // tile if length % tile == 0 else (length + tile - 2) // tile + 1
    together = 1 if kind == "signs" else min(BLOCK // 64, 2 ** math.ceil(math.log2(max(tiles, 1))))
    blocks, numbers = -(-tiles // together), _on_device(moves, out.device)
    _launch(
        kernels_triton.rows, height * blocks, out, out, numbers if rows is None else rows, length,
        first, blocks, *_signed(*key, number), numbers, **_sizes(moves), ROWS=rows is not None,
        SIGNS=kind == "signs", TILES=together,
    )  # fmt: skip


def add_outer(matrix: Tensor, u: Tensor, v: Tensor, scales: Table) -> None:
    """In place: matrix [m, n] += scales[t][s] * U_t V_t^T, for t and s in turn.

    Args:
        u: U^T, contiguous [T, rank, m].
        v: V^T, contiguous [T, rank, n].
    """
    height, width = matrix.shape
    columns = 128
    rows = BLOCK // columns
    blocks = -(-width // columns)
    numbers = _on_device(scales, matrix.device)
    _launch(
        kernels_triton.outer, -(-height // rows) * blocks, matrix, matrix.detach(), u, v, numbers, height, width,
        blocks, MOVES=len(u), RANK=u.shape[1], SCALES=numbers.shape[1], ROWS=rows, COLUMNS=columns,
    )  # fmt: skip


def _on_device(numbers: Table, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device, non_blocking=True)  # does not wait for the forward pass


def _sizes(moves: Table) -> dict[str, int]:
    return {"MOVES": len(moves), "SCALES": moves.shape[1] - 2}


def _signed(*words: int) -> tuple[int, ...]:
    """32-bit words as signed numbers with the same bits, so that the kernel is compiled once for all of them."""
    return tuple(word - ((word & 0x80000000) << 1) for word in words)


@lru_cache(maxsize=8)
def _plan(tensors: tuple[tuple[int, int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Divides tensors into blocks, four bytes for 2048 elements, and keeps the last divisions on the device.

    A division depends on addresses and sizes alone, so it holds for any tensors that lie there.

    Args:
        tensors: (address, elements, number) of each.

    Returns:
        int64 [tensors, 4], which `kernels_triton._entry` reads, and int32 [blocks], each block's tensor.
    """
    counts = np.array([count for _, count, _ in tensors], np.int64)
    blocks = -(-counts // BLOCK)
    entries = np.column_stack([np.array(tensors, np.int64), np.cumsum(blocks) - blocks])
    tensor_of_block = np.repeat(np.arange(len(tensors), dtype=np.int32), blocks)
    return torch.from_numpy(entries).to(device), torch.from_numpy(tensor_of_block).to(device)


def _launch(kernel: Any, programs: int, on: Tensor, *arguments: object, **constants: object) -> None:
    if programs:
        with torch.cuda.device_of(on):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **constants, **OPTIONS)
