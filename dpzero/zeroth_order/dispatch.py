"""Chooses the kernels for a device: numba on the CPU, Triton on CUDA, else plain torch.

Fake tensors have no elements, so nothing is done for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import kernels_torch
from .kernels_torch import Key, Move

try:
    from . import kernels_numba
except ImportError:  # numba is not installed
    kernels_numba = None  # type: ignore[assignment]

PIECE = 2**19  # elements, the least that is worth waking a thread for; a multiple of every kind's tile
PIECES_PER_THREAD = 4  # handed out as threads become free
CHUNK = 2**15  # elements that plain torch takes at once: its temporaries stay below 4 MiB
Piece = tuple[int, Callable[[], None]]
"""Elements that a call changes (0: it stays in the calling thread), and the call."""


def add_pieces(
    kind: str, numbered: Iterable[tuple[int, Tensor]], key: Key, moves: Sequence[Move]
) -> list[Piece]:
    """The calls that do, in place: tensor += scale * z, for each move and scale in turn.

    Args:
        kind: "normals" or "signs".
        numbered: contiguous float32 or float64 tensors with their numbers.
        moves: each with the same number of scales.
    """
    numbered = [(j, x) for j, x in numbered if x.numel() and not isinstance(x, FakeTensor)]
    size = _piece_size(sum(x.numel() for _, x in numbered))
    pieces: list[Piece] = []
    on_cuda: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for j, x in numbered:
        if _triton(x.device) is not None:
            on_cuda.setdefault(x.device, []).append((j, x))
            continue
        flat = x.detach().view(-1)
        if _is_compiled(x):
            array, arguments = flat.numpy(), _numba_arguments(key, j, moves, x.dtype)
            kernel = kernels_numba.add_signs if kind == "signs" else kernels_numba.add_normals
            for first in range(0, len(array), size):
                part = array[first : first + size]
                pieces.append((len(part), partial(kernel, part, first, *arguments)))
        else:
            for first in range(0, len(flat), CHUNK):
                chunk = flat[first : first + CHUNK]
                pieces.append((0, partial(kernels_torch.add_, kind, chunk, first, key, j, moves)))
    for device, tensors in on_cuda.items():
        pieces.append((0, partial(_triton(device).add, kind, tensors, key, moves)))
    return pieces


def add_outer_pieces(
    factored: Iterable[tuple[Tensor, Tensor, Tensor]], scales: Sequence[Sequence[float]]
) -> list[Piece]:
    """The calls that do, in place for each triple: matrix += scales[t][s] * U_t V_t^T, for t and s in turn.

    Args:
        factored: (matrix [m, n], U^T [T, rank, m], V^T [T, rank, n]).
    """
    factored = [(x, u, v) for x, u, v in factored if not isinstance(x, FakeTensor)]
    size = _piece_size(sum(x.numel() for x, _, _ in factored))
    pieces: list[Piece] = []
    for x, u, v in factored:
        if (triton := _triton(x.device)) is not None:
            pieces.append((0, partial(triton.add_outer, x, u, v, scales)))
        elif _is_compiled(x):
            array, left, right, table = x.detach().numpy(), u.numpy(), v.numpy(), np.asarray(scales)
            table = table.astype(array.dtype)
            height = max(1, size // array.shape[1])
            for i in range(0, len(array), height):
                part, columns = array[i : i + height], np.ascontiguousarray(left[:, :, i : i + height])
                pieces.append((part.size, partial(kernels_numba.add_outer, part, columns, right, table)))
        else:
            height = max(1, CHUNK // x.shape[1])
            for i in range(0, len(x), height):
                rows = slice(i, i + height)
                pieces.append((0, partial(kernels_torch.add_outer_, x[rows], u[:, :, rows], v, scales)))
    return pieces


def run(pieces: Sequence[Piece]) -> None:
    """Makes the calls, on as many threads as torch uses: compiled kernels release the interpreter's lock.

    A thread gets a list of calls: waking it, and taking the lock again, cost as much as a small piece.
    """
    threads, total = torch.get_num_threads(), sum(elements for elements, _ in pieces)
    if threads == 1 or total < 2 * PIECE:
        for _, call in pieces:
            call()
        return
    share, begun = max(PIECE, total // (PIECES_PER_THREAD * threads)), 0
    lists: dict[int, list[Callable[[], None]]] = {}
    for elements, call in pieces:
        if elements == 0:
            call()
            continue
        lists.setdefault(begun // share, []).append(call)
        begun += elements
    list(_pool(threads).map(_call_each, lists.values()))


def add_rows_(kind: str, out: Tensor, rows: Tensor, number: int, key: Key, moves: Sequence[Move]) -> None:
    """In place: out[i] += scale * z of row rows[i], for each move and scale in turn.

    Args:
        out: [n, m], m being the row length of tensor `number`.
        rows: int64 [n].
    """
    if isinstance(out, FakeTensor) or not out.numel():
        return
    if (triton := _triton(out.device)) is not None:
        triton.move(kind, out, out, number, key, moves, rows=rows)
    elif _is_compiled(out):
        arguments = _numba_arguments(key, number, moves, out.dtype)
        kernels_numba.add_rows(out.numpy(), rows.numpy(), kind == "signs", *arguments)
    else:
        for target, row in zip(out, rows.tolist(), strict=True):
            kernels_torch.add_(kind, target, row * out.shape[1], key, number, moves)


def perturbed_copy(kind: str, tensor: Tensor, number: int, key: Key, moves: Sequence[Move]) -> Tensor:
    """tensor + scale * z, for each move and scale in turn."""
    if not isinstance(tensor, FakeTensor) and (triton := _triton(tensor.device)) is not None:
        copy = torch.empty_like(tensor, requires_grad=False)
        triton.move(kind, tensor, copy, number, key, moves)
        return copy
    copy = tensor.detach().clone()
    run(add_pieces(kind, [(number, copy)], key, moves))
    return copy


def normals(count: int, first: int, key: Key, address: kernels_torch.Address, device: torch.device) -> Tensor:
    """Elements first .. first + count - 1 of z, float32 [count]."""
    number, step, direction = address
    move, z = Move(step, direction, (1.0,)), torch.zeros(count, device=device)
    if isinstance(z, FakeTensor):
        return z
    if (triton := _triton(device)) is not None:
        triton.move("normals", z, z, number, key, [move], first=first)
    elif _is_compiled(z):
        kernels_numba.add_normals(z.numpy(), first, *_numba_arguments(key, number, [move], z.dtype))
    else:
        z += kernels_torch.gaussian(key, address, first, count, device)
    return z


def sum_of_squares(sizes: Sequence[int], key: Key, step: int, direction: int, device: torch.device) -> int:
    """Sum of the squared normals of tensors of these sizes, in units of 2^-20, which are integers."""
    if (triton := _triton(device)) is not None:
        return int(triton.sum_of_squares(sizes, key, step, direction, device))

    def squares(piece: tuple[int, int, int]) -> int:
        j, first, count = piece
        if kernels_numba is not None and device.type == "cpu":
            words = map(np.uint32, (*key, j, step, direction))
            return int(kernels_numba.sum_of_squares(first, count, *words))
        z = normals(count, first, key, (j, step, direction), device).double()
        return int((z.square_() * 2.0**20).round_().long().sum())

    pieces = [
        (j, first, min(PIECE, size - first))
        for j, size in enumerate(sizes)
        for first in range(0, size, PIECE)
    ]
    return sum(_pool(torch.get_num_threads()).map(squares, pieces))


def _triton(device: torch.device) -> Any:
    """The module `launch_triton` for a CUDA device if triton is installed, else None. Imported on first use."""
    return _triton_launch() if device.type == "cuda" else None


@cache
def _triton_launch() -> ModuleType | None:
    try:
        from . import launch_triton
    except ImportError:
        return None
    return launch_triton


def _is_compiled(tensor: Tensor) -> bool:
    return kernels_numba is not None and tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def _numba_arguments(key: Key, number: int, moves: Sequence[Move], dtype: torch.dtype) -> tuple[Any, ...]:
    real = np.float64 if dtype == torch.float64 else np.float32
    return (
        *map(np.uint32, (*key, number)),
        np.array([move.step for move in moves], np.uint32),
        np.array([move.direction for move in moves], np.uint32),
        np.array([move.scales for move in moves], real),
    )


def _piece_size(elements: int) -> int:
    """Elements of the largest piece of a pass over so many: enough pieces for all threads, and few calls."""
    return PIECE * max(1, elements // (PIECES_PER_THREAD * torch.get_num_threads() * PIECE))


def _call_each(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dpzero")
