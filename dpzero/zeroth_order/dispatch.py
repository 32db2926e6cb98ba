"""Which implementation of the directions a tensor takes: compiled on the CPU, Triton on CUDA, plain torch where neither is there.

Fake tensors have no elements: for them a pass is nothing, which is what the compiled ones allocate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import kernels_torch
from .kernels_torch import Key

try:
    from . import kernels_numba
except ImportError:  # numba is not there
    kernels_numba = None

PIECE = 2**19  # elements, the fewest that a thread is woken for; whole tiles of either kind
SHARES = 4  # of a pass for each thread, handed out as threads are free
CHUNK = 2**15  # elements that plain torch takes at once: the temporaries stay below 4 MiB
_KINDS = {"normals": 0, "signs": 1}
Scales = Sequence[Sequence[float]]
Piece = tuple[int, Callable[[], None]]  # how many elements it moves, and the call that moves them


def add_(
    kind: str,
    numbered: Iterable[tuple[int, Tensor]],
    key: Key,
    steps: list[int],
    directions: list[int],
    scales: Scales,
) -> None:
    """In place, for each pair (j, tensor): tensor += scales[m][s] * z of (steps[m], directions[m]), for each m and s in turn."""
    numbered = list(numbered)
    most = _most(sum(tensor.numel() for _, tensor in numbered))
    pieces: list[Piece] = []
    on_cuda: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for j, tensor in numbered:
        if isinstance(tensor, FakeTensor) or not tensor.numel():
            continue
        if _triton(tensor.device) is not None:
            on_cuda.setdefault(tensor.device, []).append((j, tensor))
            continue
        flat = tensor.detach().view(-1)
        if not _is_compiled(flat):
            _plain(kind, flat, key, j, steps, directions, scales)
            continue
        array, arguments = flat.numpy(), _arguments(key, j, steps, directions, scales, flat.dtype)
        work = kernels_numba.add_signs if kind == "signs" else kernels_numba.add_normals
        for first in range(0, len(array), most):
            piece = array[first : first + most]
            pieces.append((len(piece), partial(work, piece, first, *arguments)))
    _run(pieces)
    for device, tensors in on_cuda.items():
        _triton(device).add(kind, tensors, key, _triton(device).table(steps, directions, scales, device))


def add_rows_(
    kind: str,
    out: Tensor,
    rows: Tensor,
    number: int,
    key: Key,
    steps: list[int],
    directions: list[int],
    scales: Scales,
    table: Tensor | None = None,
) -> None:
    """In place: out[i] += scales * z of row rows[i] of tensor `number`, whose rows are as long as those of `out` [n, m].

    `table`: the same moves on the device, for CUDA (see `triton_launch.table`).
    """
    if isinstance(out, FakeTensor) or not out.numel():
        return
    if _is_compiled(out):
        arguments = _arguments(key, number, steps, directions, scales, out.dtype)
        kernels_numba.add_rows(out.numpy(), rows.numpy(), _KINDS[kind], *arguments)
        return
    if (triton := _triton(out.device)) is not None:
        if table is None:
            table = triton.table(steps, directions, scales, out.device)
        triton.add_rows(kind, out, rows, number, key, table)
        return
    make = kernels_torch.signs if kind == "signs" else kernels_torch.gaussian
    for target, row in zip(out, rows.tolist(), strict=True):
        for step, direction, several in zip(steps, directions, scales, strict=True):
            z = make(key, (number, step, direction), row * out.shape[1], out.shape[1], out.device)
            for scale in several:
                target.add_(z.to(out.dtype) * scale)


def moved(
    kind: str,
    tensor: Tensor,
    number: int,
    key: Key,
    steps: list[int],
    directions: list[int],
    scales: Scales,
    table: Tensor | None = None,
) -> Tensor:
    """A copy at tensor + scales * z. `table` as in `add_rows_`."""
    if not isinstance(tensor, FakeTensor) and (triton := _triton(tensor.device)) is not None:
        if table is None:
            table = triton.table(steps, directions, scales, tensor.device)
        return triton.perturbed_copy(kind, tensor, number, key, table)
    copy = tensor.detach().clone()
    add_(kind, [(number, copy)], key, steps, directions, scales)
    return copy


def add_outer_(factored: Sequence[tuple[Tensor, Tensor, Tensor]], scales: Scales) -> None:
    """In place, for each (matrix [m, n], U^T [T, rank, m], V^T [T, rank, n]): matrix += scales[t][s] * U_t V_t^T, for t and s in turn."""
    most = _most(sum(matrix.numel() for matrix, _, _ in factored))
    pieces: list[Piece] = []
    for matrix, u, v in factored:
        if isinstance(matrix, FakeTensor):
            continue
        if (triton := _triton(matrix.device)) is not None:
            table = torch.tensor(scales, dtype=torch.float64).to(matrix.device, non_blocking=True)
            triton.add_outer(matrix, u, v, table)
        elif _is_compiled(matrix):
            array, left, right = matrix.detach().numpy(), u.numpy(), v.numpy()
            table, rows = np.asarray(scales, array.dtype), max(1, most // array.shape[1])
            for i in range(0, len(array), rows):
                part = array[i : i + rows], np.ascontiguousarray(left[:, :, i : i + rows])
                pieces.append((part[0].size, partial(kernels_numba.add_outer, *part, right, table)))
        else:
            _plain_outer(matrix, u, v, scales)
    _run(pieces)


def normals(
    count: int, number: int, key: Key, step: int, direction: int, device: torch.device, first: int = 0
) -> Tensor:
    """Elements first .. first + count - 1 of z, float32."""
    z = torch.zeros(count, device=device)
    if not isinstance(z, FakeTensor) and (triton := _triton(device)) is not None:
        moves = triton.table([step], [direction], [(1.0,)], device)
        triton.add_elements("normals", z, number, key, moves, first)
    elif _is_compiled(z):
        kernels_numba.add_normals(
            z.numpy(), first, *_arguments(key, number, [step], [direction], [(1.0,)], z.dtype)
        )
    elif not isinstance(z, FakeTensor):
        z += kernels_torch.gaussian(key, (number, step, direction), first, count, device)
    return z


def sum_of_squares(sizes: Sequence[int], key: Key, step: int, direction: int, device: torch.device) -> int:
    """Of the normals of tensors of these sizes, in units of 2^-20, each rounded: an integer, whatever the order."""
    if (triton := _triton(device)) is not None:
        return triton.sum_of_squares(sizes, key, step, direction, device)
    pieces = [
        (j, first, min(PIECE, size - first))
        for j, size in enumerate(sizes)
        for first in range(0, size, PIECE)
    ]

    def squares(piece: tuple[int, int, int]) -> int:
        j, first, count = piece
        if kernels_numba is not None and device.type == "cpu":
            return kernels_numba.sum_of_squares(first, count, *map(np.uint32, (*key, j, step, direction)))
        z = normals(count, j, key, step, direction, device, first).double()
        return int((z.square_() * 2.0**20).round_().long().sum())

    return sum(_pool(torch.get_num_threads()).map(squares, pieces))


def _triton(device: torch.device) -> ModuleType | None:
    """Its launches, for a device that takes them. Imported when the first such tensor comes: most machines have none."""
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


def _arguments(key: Key, number: int, steps, directions, scales: Scales, dtype: torch.dtype) -> tuple:
    kind = np.float64 if dtype == torch.float64 else np.float32
    return (
        np.uint32(key[0]),
        np.uint32(key[1]),
        np.uint32(number),
        np.asarray(steps, np.uint32),
        np.asarray(directions, np.uint32),
        np.asarray(scales, kind),
    )


def _plain(
    kind: str, flat: Tensor, key: Key, number: int, steps: list[int], directions: list[int], scales: Scales
) -> None:
    make = kernels_torch.signs if kind == "signs" else kernels_torch.gaussian
    for first in range(0, flat.numel(), CHUNK):
        target = flat[first : first + CHUNK]
        for step, direction, several in zip(steps, directions, scales, strict=True):
            z = make(key, (number, step, direction), first, target.numel(), flat.device).to(flat.dtype)
            for scale in several:
                target.add_(z * scale)


def _plain_outer(matrix: Tensor, u: Tensor, v: Tensor, scales: Scales) -> None:
    rows = max(1, CHUNK // matrix.shape[1])
    for i in range(0, len(matrix), rows):
        target = matrix[i : i + rows]
        for left, right, several in zip(u, v, scales, strict=True):
            z = left[0, i : i + rows, None] * right[0]
            for a, b in zip(left[1:], right[1:], strict=True):
                z = z + a[i : i + rows, None] * b
            for scale in several:
                target.add_(z.to(matrix.dtype) * scale)


def _most(elements: int) -> int:
    """Elements of the largest piece of a pass over so many: enough pieces for all threads, and no more calls than that takes."""
    return PIECE * max(1, elements // (SHARES * torch.get_num_threads() * PIECE))


def _run(pieces: list[Piece]) -> None:
    """The compiled functions let go of the interpreter's lock: as many threads as torch has share them.

    Pieces go out in lists of many elements: to wake a thread, and to take the lock again, costs as much as a small piece.
    """
    threads, total = torch.get_num_threads(), sum(elements for elements, _ in pieces)
    if threads == 1 or total < 2 * PIECE:
        return _each([call for _, call in pieces])
    share, begun = max(PIECE, total // (SHARES * threads)), 0
    lists: dict[int, list[Callable[[], None]]] = {}
    for elements, call in pieces:
        lists.setdefault(begun // share, []).append(call)
        begun += elements
    list(_pool(threads).map(_each, lists.values()))


def _each(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dpzero")
