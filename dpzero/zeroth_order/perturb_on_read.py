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
