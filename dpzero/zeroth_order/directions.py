"""Random directions that are never stored: element i of tensor j is a function of (seed, step, direction, j, i).

Directions are public. They share no generator, key or counter with the noise of `dpzero.privacy`. The bits do
not depend on the order or the chunks in which elements are visited, nor on the kernels: numba, Triton and
plain torch agree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import dispatch
from .kernels_torch import Key, Move

LAWS = ("gaussian", "sphere", "rademacher", "low_rank")


class Gaussian:
    """z ~ N(0, I), as in the experiments of DPZero and MeZO.

    `linear`: whether a linear layer can apply z to its input (`add_product_`), so that no matrix is written.
    """

    law = "gaussian-philox4x32-10-boxmuller-v2"  # in transcripts: other numbers need another name
    kind = "normals"
    linear = False

    def __init__(self, seed: int) -> None:
        self.key = derive_key(seed)

    def fit(self, tensors: Sequence[Tensor]) -> Gaussian:
        """Sets the tensors that a direction spans, all of them: the sphere needs their sizes."""
        return self

    def add_(self, tensors: Sequence[Tensor], step: int, scale: float, direction: int = 0) -> None:
        """In place: tensors += scale * z. No temporary is as large as a large tensor."""
        move = Move(step, direction, (scale,))
        dispatch.run(self.fit(tensors).pieces(enumerate(tensors), [move]))

    def pieces(self, numbered: Iterable[tuple[int, Tensor]], moves: Sequence[Move]) -> list[dispatch.Piece]:
        """The calls (for `dispatch.run`) that make many moves in place, in one pass over the weights.

        Args:
            numbered: pairs (j, tensor), contiguous, float32 or float64.
            moves: each with the same number of scales.
        """
        return dispatch.add_pieces(self.kind, numbered, self.key, self.normalized(moves))

    def add_rows_(self, out: Tensor, rows: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        """In place: out [n, m] += scale * z of rows [n] (int64) of tensor `number`, a matrix of this shape."""
        dispatch.add_rows_(self.kind, out, rows, number, self.key, self.normalized([move]))

    def perturbed_copy(self, tensor: Tensor, number: int, move: Move) -> Tensor:
        """A copy at tensor + scale * z."""
        copy = tensor.detach().clone()
        dispatch.run(self.pieces([(number, copy)], [move]))
        return copy

    def add_product_(self, out: Tensor, input: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        """In place: out [..., rows] += scale * input [..., columns] z^T, for a matrix of this shape."""
        raise NotImplementedError(f"a linear layer cannot apply directions of law {self.law} to its input")

    def normalized(self, moves: Sequence[Move]) -> Sequence[Move]:
        """The moves in units of the kernels' numbers."""
        return moves


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
        """sqrt(d) over the norm of the Gaussian direction. Draws its numbers once more, reads no weight."""
        if self.fake:
            return 1.0
        if (step, direction) not in self._factors:
            squares = dispatch.sum_of_squares(self.sizes, self.key, step, direction, self.device)
            if len(self._factors) > 1000:
                self._factors.clear()
            # if all numbers round to zero, take the least norm that does not
            self._factors[step, direction] = math.sqrt(sum(self.sizes) / (max(squares, 1) * 2.0**-20))
        return self._factors[step, direction]

    def normalized(self, moves: Sequence[Move]) -> Sequence[Move]:
        factors = [self.factor(move.step, move.direction) for move in moves]
        scales = [tuple(scale * f for scale in m.scales) for m, f in zip(moves, factors, strict=True)]
        return [replace(move, scales=scaled) for move, scaled in zip(moves, scales, strict=True)]


class Rademacher(Gaussian):
    """z of independent signs: one bit a parameter."""

    law = "rademacher-philox4x32-10-v1"
    kind = "signs"


class LowRank(Gaussian):
    """z = U V^T / sqrt(rank) for a matrix, U and V normal, and normal for a vector.

    Tensors of more dimensions are matrices [first, rest]. Perturbed on read, a linear layer adds scale (x V)
    U^T to its output, and no matrix is written.
    """

    linear = True

    def __init__(self, seed: int, rank: int = 1) -> None:
        super().__init__(seed)
        if rank < 1:
            raise ValueError(f"rank is {rank}: it must be at least 1")
        self.rank = rank
        self.law = f"low-rank-{rank}-philox4x32-10-boxmuller-v1"
        self.keys = derive_key(seed, ", left factor"), derive_key(seed, ", right factor")
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._cached: tuple[int, int] | None = None  # the step and direction in the cache

    def pieces(self, numbered: Iterable[tuple[int, Tensor]], moves: Sequence[Move]) -> list[dispatch.Piece]:
        numbered = list(numbered)
        vectors = [(j, t) for j, t in numbered if t.dim() < 2]
        matrices = []
        for j, tensor in numbered:
            if tensor.dim() >= 2 and tensor.numel():
                factors = [self.factors(j, tensor.shape, m.step, m.direction, tensor.device) for m in moves]
                u, v = (torch.stack(side) for side in zip(*factors, strict=True))
                matrices.append((tensor.view(tensor.shape[0], -1), u, v))
        scales = [tuple(s / math.sqrt(self.rank) for s in m.scales) for m in moves]
        outer = dispatch.add_outer_pieces(matrices, scales)
        return dispatch.add_pieces(self.kind, vectors, self.key, moves) + outer

    def factors(
        self, number: int, shape: Sequence[int], step: int, direction: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(U^T [rank, rows], V^T [rank, columns]), float32, of a tensor. Cached for the last step and direction."""
        if self._cached != (step, direction):
            self._cached, self._cache = (step, direction), {}
        if number not in self._cache:
            address = number, step, direction
            u, v = (
                dispatch.normals(self.rank * size, 0, key, address, device).view(self.rank, size)
                for size, key in zip((shape[0], math.prod(shape[1:])), self.keys, strict=True)
            )
            self._cache[number] = u, v
        return self._cache[number]

    def add_rows_(self, out: Tensor, rows: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        u, v = self.factors(number, shape, move.step, move.direction, out.device)
        for scale in move.scales:
            out.addmm_(u[:, rows].t().to(out.dtype), v.to(out.dtype), alpha=scale / math.sqrt(self.rank))

    def add_product_(self, out: Tensor, input: Tensor, number: int, shape: Sequence[int], move: Move) -> None:
        u, v = (f.to(out.dtype) for f in self.factors(number, shape, move.step, move.direction, out.device))
        inner = input.reshape(-1, shape[1]).to(out.dtype) @ v.t()
        for scale in move.scales:
            out.view(-1, shape[0]).addmm_(inner, u, alpha=scale / math.sqrt(self.rank))


def derive_key(seed: int, purpose: str = "") -> Key:
    """The Philox key of a seed: two 32-bit words."""
    digest = hashlib.sha256(f"dpzero direction seed {seed}{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def make_law(name: str, seed: int, rank: int = 1) -> Gaussian:
    """The directions of a law by its name in `LAWS`. Raises ValueError for another name."""
    if name == "low_rank":
        return LowRank(seed, rank)
    laws = {"gaussian": Gaussian, "sphere": Sphere, "rademacher": Rademacher}
    if name not in laws:
        raise ValueError(f"direction_law is {name!r}: give one of {', '.join(LAWS)}")
    return laws[name](seed)
