"""The model computes at x + scale z while its weights stay at x: every operation that takes a read weight gets the other in its place."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .directions import Gaussian, Move

LARGEST_COPY = 2**24  # elements of a read weight that are perturbed at once: 64 MiB


class Reads(TorchFunctionMode):
    """Gives each operation x + scale z in place of the tensors that are read."""

    def __init__(
        self,
        read: dict[int, Tensor],
        law: Gaussian,
        move: Move,
        still: Mapping[int, int] = MappingProxyType({}),
        owners: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.numbers = {id(p): j for j, p in read.items()}
        self.read, self.law, self.move, self.still, self.owners = read, law, move, still, owners

    def __enter__(self) -> Reads:
        self._thread = threading.get_ident()
        self._hooks = [module.register_forward_pre_hook(self._check_seen) for module in self.owners]
        return super().__enter__()

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _check_seen(self, module: nn.Module, _) -> None:
        """Operations of other threads, and of a trace, do not come by here: the model would compute at x."""
        if threading.get_ident() != self._thread or torch.jit.is_tracing():
            raise ValueError(
                f"a layer of type {type(module).__name__} is read in another thread or a trace, where its weights cannot be perturbed: "
                "call the model plainly, in the loss's own thread"
            )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._any_read(args) and not (kwargs and self._any_read(kwargs.values())):
            return function(*args, **kwargs)
        if function is functional.embedding:
            return self._embedding(*args, **kwargs)
        if function is functional.linear:
            return self._linear(*args, **kwargs)
        return self._other(function, args, kwargs)

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
        return self._add_rows(out, input, weight, self.move)

    def _add_rows(self, out: Tensor, input: Tensor, weight: Tensor, move: Move) -> Tensor:
        """In place: what was looked up moves, but for the row that stays."""
        number, rows, words = self.numbers[id(weight)], out.view(-1, weight.shape[1]), input.reshape(-1)
        self.law.add_rows_(rows, words, number, weight.shape, move)
        if (still := self.still.get(number)) is not None:
            torch.where((words == still)[:, None], weight[still].to(rows.dtype), rows, out=rows)
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

    def _other(self, function, args, kwargs):
        if getattr(function, "__name__", "") == "__get__" or function in _QUESTIONS:
            answer = function(*args, **kwargs)
            if not isinstance(answer, Tensor):
                return answer
        return self._moved(function, args, kwargs)

    def _moved(self, function, args, kwargs):
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


class BothSigns(Reads):
    """Of a batch of 2 n, the first n are computed at x + scale z and the others at x - scale z: one pass through the model for both.

    A law of low rank shares the product with the weights; of another, each matrix is copied at both points, its numbers drawn once.
    The model keeps examples in its first dimension wherever it reads a weight.
    """

    def __init__(self, read: dict[int, Tensor], law: Gaussian, move: Move, *where, rows: int) -> None:
        super().__init__(read, law, move, *where)
        self.rows = rows
        self.back = Move(move.step, move.direction, tuple(-scale for scale in move.scales))

    def _embedding(self, input: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:
        self._check(input, functional.embedding)
        out = functional.embedding(input, weight, *args, **kwargs)
        for half, words, move in zip(out.chunk(2), input.chunk(2), (self.move, self.back), strict=True):
            self._add_rows(half, words, weight, move)
        return out

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._check(input, functional.linear)
        number, halves = self._number(weight), list(zip(input.chunk(2), (self.move, self.back), strict=True))
        if number is not None and self.law.linear:
            out = functional.linear(input, weight)
            for half, (inputs, move) in zip(out.chunk(2), halves, strict=True):
                self.law.add_product_(half, inputs, number, weight.shape, move)
            return out if bias is None else self._moved(Tensor.add, (out, bias), {})
        if number is not None and weight.numel() > LARGEST_COPY:
            one = [Reads(self.read, self.law, move)._linear(inputs, weight, bias) for inputs, move in halves]
            return torch.cat(one)
        return self._moved(functional.linear, (input, weight, bias), {})

    def _moved(self, function, args, kwargs) -> Tensor:
        batches = [a for a in args if isinstance(a, Tensor) and not isinstance(a, nn.Parameter)]
        if function not in _BY_EXAMPLE or len(batches) != 1:
            raise ValueError(
                f"both_signs does not know {_name(function)} on a weight: perturb on_read, one sign after the other"
            )
        self._check(batches[0], function)
        weights = {id(a): self._both(a) for a in (*args, *kwargs.values()) if self._number(a) is not None}
        outs = []
        for side, half in enumerate(batches[0].chunk(2)):
            at = {key: pair[side] for key, pair in weights.items()} | {id(batches[0]): half}
            named = {key: at.get(id(value), value) for key, value in kwargs.items()}
            outs.append(function(*(at.get(id(a), a) for a in args), **named))
        return torch.cat(outs)

    def _both(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Copies at x + d and x - d, d being scale z to the rounding of x + d."""
        plus = self._value(weight)
        return plus, torch.lerp(plus, weight.detach(), 2.0)

    def _check(self, batch: Tensor, function) -> None:
        flattened = batch.dim() == 2 and len(batch) % (2 * self.rows) == 0  # to [2 n L, width]
        if batch.dim() < 2 or (not flattened and len(batch) != 2 * self.rows):
            raise ValueError(
                f"{_name(function)} reads a weight with a tensor of shape {tuple(batch.shape)}, which does not begin with the "
                f"{2 * self.rows} rows of both signs: perturb on_read, one sign after the other"
            )


def _name(function) -> str:
    return getattr(function, "__name__", str(function))


_BY_EXAMPLE = {
    functional.linear,
    functional.layer_norm,
    functional.rms_norm,
    torch.mul,
    Tensor.mul,
    torch.add,
    Tensor.add,
}
