"""Random directions that are never stored: element i of tensor j at step t is a function of (seed, t, j, i) alone,
and of its number where a step has several.

Directions are public. They share no generator, key or counter with the noise of `dpzero.privacy`. The bits are the same in any order,
chunking or sharding of the traversal, compiled on the CPU, in plain torch (`reference`), and in Triton, of which that was seen in its
interpreter and in the code that it makes, not yet on a GPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import dispatch
from .kernels_torch import Key

LAWS = ("gaussian", "sphere", "rademacher", "low_rank")


@dataclass(frozen=True)
class Move:
    """x += scale * z for each scale in turn, z being direction number `direction` of step `step`."""

    step: int
    direction: int
    scales: tuple[float, ...]


def key_of(seed: int, purpose: str = "") -> Key:
    digest = hashlib.sha256(f"dpzero direction seed {seed}{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


class Gaussian:
    """z ~ N(0, I), as in the experiments of DPZero and MeZO."""

    law = "gaussian-philox4x32-10-boxmuller-v2"
    kind = "normals"
    linear = False  # whether a linear layer can apply it to its input

    def __init__(self, seed: int) -> None:
        self.key = key_of(seed)

    def fit(self, tensors: Sequence[Tensor]) -> Gaussian:
        """To the tensors, all of them, that directions are of. Only laws whose elements hang together need it."""
        return self

    def add_(self, tensors: Sequence[Tensor], step: int, scale: float, direction: int = 0) -> None:
        """In place: tensors += scale * z. Makes no temporary as large as a big tensor."""
        self.fit(tensors).move_(enumerate(tensors), [Move(step, direction, (scale,))])

    def move_(self, numbered, moves: Sequence[Move]) -> None:
        """In place, many moves in one pass over the weights.

        Args:
            numbered: pairs (j, tensor), the tensors contiguous, float32 or float64.
            moves: all with the same number of scales.
        """
        dispatch.add_(self.kind, numbered, self.key, *self._terms(moves))

    def add_rows_(self, out: Tensor, rows: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        """In place: out [n, m] += scale * z of rows [n] (int64) of tensor `number`, a matrix of this shape."""
        dispatch.add_rows_(self.kind, out, rows, number, self.key, *self._terms([move]))

    def moved(self, tensor: Tensor, number: int, move: Move) -> Tensor:
        """A copy at tensor + scale * z."""
        return dispatch.moved(self.kind, tensor, number, self.key, *self._terms([move]))

    def _terms(self, moves: Sequence[Move]) -> tuple[list[int], list[int], list[tuple[float, ...]]]:
        return [m.step for m in moves], [m.direction for m in moves], [self._scales(m) for m in moves]

    def _scales(self, move: Move) -> tuple[float, ...]:
        return move.scales


class Sphere(Gaussian):
    """z uniform on the sphere of radius sqrt(d), as in DPZero's theory: the Gaussian direction over its norm."""

    law = "sphere-philox4x32-10-boxmuller-v1"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sizes: list[int] = []
        self._factors: dict[tuple[int, int], float] = {}

    def fit(self, tensors: Sequence[Tensor]) -> Sphere:
        sizes = [t.numel() for t in tensors]
        if sizes != self.sizes:
            self.sizes, self._factors = sizes, {}
        self.device, self.fake = tensors[0].device, isinstance(tensors[0], FakeTensor)
        return self

    def factor(self, step: int, direction: int) -> float:
        """sqrt(d) over the norm: one more pass of numbers, of none over the weights."""
        if self.fake:
            return 1.0
        if (step, direction) not in self._factors:
            squares = dispatch.sum_of_squares(self.sizes, self.key, step, direction, self.device)
            if len(self._factors) > 1000:
                self._factors.clear()
            # of a few numbers that all round to zero the norm is taken as the least that does not
            self._factors[step, direction] = math.sqrt(sum(self.sizes) / (max(squares, 1) * 2.0**-20))
        return self._factors[step, direction]

    def _scales(self, move: Move) -> tuple[float, ...]:
        factor = self.factor(move.step, move.direction)
        return tuple(scale * factor for scale in move.scales)


class Rademacher(Gaussian):
    """z of independent signs: a bit a parameter."""

    law = "rademacher-philox4x32-10-v1"
    kind = "signs"


class LowRank(Gaussian):
    """z = U V^T / sqrt(rank) for a matrix, U and V normal (tensors of more dimensions as matrices of shape [first, rest]); normal
    for a vector. Read, a linear layer applies it to its input, y += scale (x V) U^T, and no matrix is written.
    """

    linear = True

    def __init__(self, seed: int, rank: int = 1) -> None:
        super().__init__(seed)
        if rank < 1:
            raise ValueError(f"rank is {rank}: it must be at least 1")
        self.rank = rank
        self.law = f"low-rank-{rank}-philox4x32-10-boxmuller-v1"
        self.keys = key_of(seed, ", left factor"), key_of(seed, ", right factor")
        self._kept: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._of: tuple[int, int] | None = None

    def move_(self, numbered, moves: Sequence[Move]) -> None:
        numbered = list(numbered)
        super().move_([(j, t) for j, t in numbered if t.dim() < 2], moves)
        scales = [tuple(s / math.sqrt(self.rank) for s in m.scales) for m in moves]
        factored = []
        for j, tensor in numbered:
            if tensor.dim() >= 2 and tensor.numel():
                pairs = [self.factors(j, tensor.shape, m.step, m.direction, tensor.device) for m in moves]
                u, v = (torch.stack(side) for side in zip(*pairs, strict=True))
                factored.append((tensor.view(tensor.shape[0], -1), u, v))
        dispatch.add_outer_(factored, scales)

    def moved(self, tensor: Tensor, number: int, move: Move) -> Tensor:
        copy = tensor.detach().clone()
        self.move_([(number, copy)], [move])
        return copy

    def factors(
        self, number: int, shape: Sequence[int], step: int, direction: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(U^T [rank, rows], V^T [rank, columns]), float32, of a tensor. Those of the last step are kept."""
        if self._of != (step, direction):
            self._of, self._kept = (step, direction), {}
        address = (number, step, direction)
        if address not in self._kept:
            sizes = shape[0], math.prod(shape[1:])
            self._kept[address] = tuple(
                dispatch.normals(self.rank * size, number, key, step, direction, device).view(self.rank, size)
                for size, key in zip(sizes, self.keys, strict=True)
            )
        return self._kept[address]

    def add_rows_(self, out: Tensor, rows: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        u, v = self.factors(number, shape, move.step, move.direction, out.device)
        for scale in move.scales:
            out.addmm_(u[:, rows].t().to(out.dtype), v.to(out.dtype), alpha=scale / math.sqrt(self.rank))

    def add_product_(self, out: Tensor, input: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        """In place: out [..., rows] += scale * input [..., columns] z^T, of a tensor that is a matrix of this shape."""
        u, v = (f.to(out.dtype) for f in self.factors(number, shape, move.step, move.direction, out.device))
        inner = input.reshape(-1, shape[1]).to(out.dtype) @ v.t()
        for scale in move.scales:
            out.view(-1, shape[0]).addmm_(inner, u, alpha=scale / math.sqrt(self.rank))


def law_of(name: str, seed: int, rank: int = 1) -> Gaussian:
    """Raises ValueError for a name that is not among LAWS."""
    if name == "low_rank":
        return LowRank(seed, rank)
    kinds = {"gaussian": Gaussian, "sphere": Sphere, "rademacher": Rademacher}
    if name not in kinds:
        raise ValueError(f"directions are {name!r}: give one of {', '.join(LAWS)}")
    return kinds[name](seed)
