"""Where the weights are: at x, or at x + scale z for the forward passes, and back with the update on the way.

A tensor is perturbed in one of two ways. It is *written*, in place, and restored together with the update; or it is *read*: it stays
at x, and every operation of the model that takes it gets x + scale z instead. Reading suits a table of embeddings, of which a batch
needs a few rows; and directions of low rank, which a linear layer then applies to its input, where a pass over the weights is
dearer than one over the activations (on a GPU, few tokens). Read, a weight never drifts by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .directions import Gaussian, Move
from .perturb_on_read import Reads

PERTURB = ("in_place", "on_read")


class Passes:
    """Perturbs and updates the trained tensors.

    Args:
        parameters: all trained tensors, in the order that numbers them.
        law: of the directions.
        read: numbers of the tensors that are perturbed where they are read. See `read_numbers`.
        still: tensor -> its row that neither is perturbed nor moves. See `padding_rows`.
        owners: the modules that hold what is read.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        law: Gaussian,
        read: Sequence[int],
        still: Mapping[int, int] = MappingProxyType({}),
        owners: Sequence[nn.Module] = (),
    ) -> None:
        self.law, self.still, self.owners = law.fit(parameters), still, owners
        self.read = {j: parameters[j] for j in read}
        self.written = {j: p for j, p in enumerate(parameters) if j not in self.read}
        self.at = (0, 0, 0.0)  # step, direction, scale of what is written
        self._moves: dict[str, list[Move]] = {"written": [], "read": []}

    @contextmanager
    def perturbed(self, step: int, direction: int, scale: float) -> Iterator[None]:
        """Inside, the model computes at x + scale z. What is written is back at x, to rounding, if the model fails."""
        self.visit(step, direction, scale)
        self.flush()
        try:
            with self._reads(step, direction, scale) if self.read else nullcontext():
                yield
        except BaseException:
            self.restore()
            raise

    def _reads(self, step: int, direction: int, scale: float) -> Reads:
        return Reads(self.read, self.law, Move(step, direction, (scale,)), self.still, self.owners)

    def restore(self) -> None:
        """What is written goes back to x, to rounding."""
        step, direction, _ = self.at
        self.visit(step, direction, 0.0)
        self.flush()

    def visit(self, step: int, direction: int, scale: float) -> None:
        """Plans the move of what is written to x + scale z."""
        last_step, last_direction, last_scale = self.at
        if (step, direction) == (last_step, last_direction):
            self._plan("written", step, direction, scale - last_scale)
        else:
            self._plan("written", last_step, last_direction, -last_scale)
            self._plan("written", step, direction, scale)
        self.at = (step, direction, scale)

    def update(self, step: int, coefficients: Sequence[float]) -> None:
        """Plans x + sum over k of coefficients[k] z_k, from wherever the weights are: restored on the way."""
        last_step, last_direction, last_scale = self.at
        if last_step != step or last_direction >= len(coefficients):
            self.visit(step, 0, 0.0)
            last_direction, last_scale = 0, 0.0
        for k, coefficient in enumerate(coefficients):
            self._plan(
                "written",
                step,
                k,
                coefficient - last_scale if k == last_direction else coefficient,
                always=True,
            )
            self._plan("read", step, k, coefficient, always=True)
        self.at = (step, 0, 0.0)

    def flush(self) -> None:
        """Does what is planned, many moves in one pass over the weights."""
        kept = [
            (p, row, p[row].clone())
            for j, row in self.still.items()
            for p in [{**self.written, **self.read}[j]]
        ]
        for name, tensors in (("written", self.written), ("read", self.read)):
            for _, moves in groupby(_joined(self._moves[name]), key=lambda move: len(move.scales)):
                self.law.move_(tensors.items(), list(moves))
            self._moves[name] = []
        for p, row, values in kept:
            p[row] = values

    def _plan(self, name: str, step: int, direction: int, scale: float, always: bool = False) -> None:
        if scale or always:
            self._moves[name].append(Move(step, direction, (scale,)))


def _joined(moves: Sequence[Move]) -> Iterator[Move]:
    """Moves one after the other along the same direction, whose numbers are drawn once."""
    for (step, direction), several in groupby(moves, key=lambda move: (move.step, move.direction)):
        yield Move(step, direction, tuple(scale for move in several for scale in move.scales))


def read_numbers(model: nn.Module, parameters: Sequence[Tensor], perturb: str) -> list[int]:
    """Which tensors to read: in_place the tables of embeddings, else all."""
    if perturb not in PERTURB:
        raise ValueError(f"perturb is {perturb!r}: give one of {', '.join(PERTURB)}")
    if compiled := _first_compiled(model):
        if perturb != "in_place":
            raise ValueError(f"{compiled}, whose reads of weights cannot be seen: perturb in_place")
        return []
    if perturb != "in_place":
        return list(range(len(parameters)))
    read = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [j for j, p in enumerate(parameters) if id(p) in read and p.dim() == 2]


def padding_rows(model: nn.Module, parameters: Sequence[Tensor]) -> dict[int, int]:
    """Tensor -> the row that stays, as it does under autograd: the padding_idx of every module that holds the tensor."""
    rows: dict[int, set[int | None]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            row = module.padding_idx if isinstance(module, nn.Embedding) else None
            rows.setdefault(id(p), set()).add(row)
    found = {j: rows.get(id(p), {None}) for j, p in enumerate(parameters)}
    return {j: row for j, several in found.items() if len(several) == 1 for row in several if row is not None}


def owners(model: nn.Module, tensors: Sequence[Tensor]) -> list[nn.Module]:
    """The modules that hold one of these."""
    wanted = {id(t) for t in tensors}
    return [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]


def _first_compiled(model: nn.Module) -> str:
    """Which part of the model torch runs without asking Python for each operation, or for all of it; empty if none."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return f"layer {name or 'model'} is TorchScript"
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None):
            return f"layer {name or 'model'} is compiled"
        if isinstance(module, nn.DataParallel):
            return f"layer {name or 'model'} is DataParallel"
    return ""
