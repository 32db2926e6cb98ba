"""Where the weights are: at x, or at x + scale z for the forward passes, and back with the update on the way.

A tensor is perturbed in one of two ways. It is *written*, in place, and restored together with the update; or it is *read*: it stays
at x, and every operation of the model that takes it gets x + scale z instead. Reading suits a table of embeddings, of which a batch
needs a few rows; and directions of low rank, which a linear layer then applies to its input, where a pass over the weights is
dearer than one over the activations (on a GPU, few tokens). Read, a weight never drifts by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .directions import Gaussian, Move

PERTURB = ("in_place", "on_read")
LARGEST_COPY = 2**24  # elements of a read weight that are perturbed at once: 64 MiB


class Passes:
    """Perturbs and updates the trained tensors.

    Args:
        parameters: all trained tensors, in the order that numbers them.
        law: of the directions.
        read: numbers of the tensors that are perturbed where they are read. See `read_numbers`.
    """

    def __init__(self, parameters: Sequence[Tensor], law: Gaussian, read: Sequence[int]) -> None:
        self.law = law.fit(parameters)
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
            with _Reads(self.read, self.law, Move(step, direction, (scale,))) if self.read else nullcontext():
                yield
        except BaseException:
            self.restore()
            raise

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
        for name, tensors in (("written", self.written), ("read", self.read)):
            for _, moves in groupby(_joined(self._moves[name]), key=lambda move: len(move.scales)):
                self.law.move_(tensors.items(), list(moves))
            self._moves[name] = []

    def _plan(self, name: str, step: int, direction: int, scale: float, always: bool = False) -> None:
        if scale or always:
            self._moves[name].append(Move(step, direction, (scale,)))


def _joined(moves: Sequence[Move]) -> Iterator[Move]:
    """Moves one after the other along the same direction, whose numbers are drawn once."""
    for (step, direction), several in groupby(moves, key=lambda move: (move.step, move.direction)):
        yield Move(step, direction, tuple(scale for move in several for scale in move.scales))


def read_numbers(model: nn.Module, parameters: Sequence[Tensor], perturb: str) -> list[int]:
    """Which tensors to read: in_place the tables of embeddings, on_read all."""
    if perturb not in PERTURB:
        raise ValueError(f"perturb is {perturb!r}: give one of {', '.join(PERTURB)}")
    if compiled := _first_compiled(model):
        if perturb == "on_read":
            raise ValueError(f"{compiled}, whose reads of weights cannot be seen: perturb in_place")
        return []
    if perturb == "on_read":
        return list(range(len(parameters)))
    read = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [j for j, p in enumerate(parameters) if id(p) in read and p.dim() == 2]


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


class _Reads(TorchFunctionMode):
    """Gives each operation x + scale z in place of the tensors that are read."""

    def __init__(self, read: dict[int, Tensor], law: Gaussian, move: Move) -> None:
        super().__init__()
        self.numbers = {id(p): j for j, p in read.items()}
        self.law, self.move = law, move

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._any_read(args) and not (kwargs and self._any_read(kwargs.values())):
            return function(*args, **kwargs)
        if function is functional.embedding:
            return self._embedding(*args, **kwargs)
        if function is functional.linear:
            return self._linear(*args, **kwargs)
        return self._copied(function, args, kwargs)

    def _any_read(self, values) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self.numbers:
                    return True
            elif isinstance(value, (list, tuple)) and self._any_read(value):
                return True
        return False

    def _number(self, value) -> int | None:
        return self.numbers.get(id(value))

    def _embedding(self, input: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:
        out = functional.embedding(input, weight, *args, **kwargs)
        if self._number(weight) is None:
            return out
        rows = out.view(-1, weight.shape[1])
        self.law.add_rows_(rows, input.reshape(-1), self.numbers[id(weight)], weight.shape, self.move)
        return out

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        number, bias = self._number(weight), self._value(bias)
        if number is None or weight.dim() < 2:
            return functional.linear(input, self._value(weight), bias)
        if self.law.linear:
            out = functional.linear(input, weight, bias)
            self.law.add_product_(out, input, number, weight.shape, self.move)
            return out
        if weight.numel() <= LARGEST_COPY:
            return functional.linear(input, self._value(weight), bias)
        out, count = functional.linear(input, weight, bias), LARGEST_COPY // weight.shape[1]
        for first in range(0, len(weight), count):
            rows = torch.arange(first, min(first + count, len(weight)), device=weight.device)
            z = weight.new_zeros(len(rows), weight.shape[1])
            self.law.add_rows_(z, rows, number, weight.shape, self.move)
            out[..., first : first + count] += functional.linear(input, z.to(input.dtype))
        return out

    def _copied(self, function, args, kwargs):
        if getattr(function, "__name__", "") == "__get__" or function in _QUESTIONS:
            answer = function(*args, **kwargs)
            if not isinstance(answer, Tensor):
                return answer
        return function(*self._values(args), **dict(zip(kwargs, self._values(kwargs.values()), strict=True)))

    def _values(self, values) -> list:
        return [
            type(value)(self._values(value)) if type(value) in (list, tuple) else self._value(value)
            for value in values
        ]

    def _value(self, value):
        number = self._number(value)
        return value if number is None else self.law.moved(value, number, self.move)


_QUESTIONS = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
}
