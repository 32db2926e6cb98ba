"""Chooses the kernels for a device: numba on the CPU, Triton on CUDA, else plain torch.

Fake tensors have no elements, so nothing is done for them.
"""

from __future__ import annotations

from collections import defaultdict
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
from .kernels_torch import Key, Move, table

try:
    from . import kernels_numba
except ImportError:  # numba is not installed
    kernels_numba = None  # type: ignore[assignment]

PIECE = 2**19  # elements, the least that is worth waking a thread for; a multiple of every kind's tile
PIECES_PER_THREAD = 4  # handed out as threads become free
CHUNK = 2**15  # elements that plain torch takes at once: its temporaries stay below 4 MiB
CUDA_CHUNK = 2**22  # the same on CUDA, where small pieces cost launches
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
    size, rows = _piece_size(sum(x.numel() for _, x in numbered)), table(moves)
    pieces: list[Piece] = []
    on_cuda: dict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for j, x in numbered:
        if triton_kernels(x.device) is not None:
            on_cuda[x.device].append((j, x))
            continue
        kernels, length, share = _kernels(x, size)
        flat = x.detach().view(-1)
        for i, part in enumerate(torch.split(flat, length) if len(flat) > length else [flat]):
            call = partial(kernels.add_, kind, part, i * length, key, j, rows)
            pieces.append((len(part) * share, call))
    return pieces + [(0, partial(triton_kernels(d).add, kind, xs, key, rows)) for d, xs in on_cuda.items()]


def add_outer_pieces(
    factored: Iterable[tuple[Tensor, Tensor, Tensor]], scales: Sequence[Sequence[float]]
) -> list[Piece]:
    """The calls that do, in place for each triple: matrix += scales[t][s] * U_t V_t^T, for t and s in turn.

    Args:
        factored: (matrix [m, n], U^T [T, rank, m], V^T [T, rank, n]).
    """
    factored = [(x, u, v) for x, u, v in factored if not isinstance(x, FakeTensor)]
    size, numbers = _piece_size(sum(x.numel() for x, _, _ in factored)), np.array(scales, np.float64)
    pieces: list[Piece] = []
    for x, u, v in factored:
        if (triton := triton_kernels(x.device)) is not None:
            pieces.append((0, partial(triton.add_outer, x, u, v, numbers)))
            continue
        kernels, length, share = _kernels(x, size)
        height = max(1, length // x.shape[1])
        for part, left in zip(torch.split(x.detach(), height), torch.split(u, height, 2), strict=True):
            pieces.append((part.numel() * share, partial(kernels.add_outer_, part, left, v, numbers)))
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
    if (triton := triton_kernels(out.device)) is not None:
        triton.move(kind, out, number, key, table(moves), rows=rows)
    else:
        _kernels(out)[0].add_rows_(kind, out, rows, key, number, table(moves))


def normals(count: int, first: int, key: Key, address: kernels_torch.Address, device: torch.device) -> Tensor:
    """Elements first .. first + count - 1 of z, float32 [count]."""
    number, step, direction = address
    moves, z = table([Move(step, direction, (1.0,))]), torch.zeros(count, device=device)
    if isinstance(z, FakeTensor):
        return z
    if (triton := triton_kernels(device)) is not None:
        triton.move("normals", z, number, key, moves, first=first)
    else:
        _kernels(z)[0].add_("normals", z, first, key, number, moves)
    return z


def sum_of_squares(sizes: Sequence[int], key: Key, step: int, direction: int, device: torch.device) -> int:
    """Sum of the squared normals of tensors of these sizes, each rounded to a multiple of 2^-20, in that unit.

    The summands are integers, whose float64 sum over a piece is exact, so that the order does not matter.
    """

    def squares(piece: tuple[int, int, int]) -> Tensor:
        j, first, count = piece
        z = normals(count, first, key, (j, step, direction), device).double()
        return z.square_().mul_(2.0**20).round_().sum()

    length = CHUNK if device.type == "cpu" else CUDA_CHUNK
    pieces = [(j, i, min(length, size - i)) for j, size in enumerate(sizes) for i in range(0, size, length)]
    return sum(map(int, _pool(torch.get_num_threads()).map(squares, pieces)))


@cache
def triton_kernels(device: torch.device) -> Any:
    """The module `launch_triton` for a CUDA device if triton is installed, else None. Imported on first use."""
    if device.type == "cuda":
        try:
            from . import launch_triton
        except ImportError:
            return None
        return launch_triton
    return None


def _kernels(tensor: Tensor, size: int = CHUNK) -> tuple[ModuleType, int, bool]:
    """The kernels of a tensor, elements of a call, and whether other threads may make it."""
    if kernels_numba is not None and tensor.device.type == "cpu":
        return kernels_numba, size, True
    return kernels_torch, CHUNK, False


def _piece_size(elements: int) -> int:
    """Elements of the largest piece of a pass over so many: enough pieces for all threads, and few calls."""
    return PIECE * max(1, elements // (PIECES_PER_THREAD * torch.get_num_threads() * PIECE))


def _call_each(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dpzero")
