"""Perturbs weights on read: an operation that takes a weight gets x + scale z, and the weight stays at x."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .directions import Gaussian
from .kernels_torch import Move

LARGEST_COPY = 2**24  # elements of a weight that are copied at once: 64 MiB
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
}


class PerturbOnRead(TorchFunctionMode):
    """Context manager: each operation gets x + scale z, at `move`, in place of x. Arguments: see `Perturbation`."""

    move: Move

    def __init__(
        self,
        weights: Mapping[int, Tensor],
        law: Gaussian,
        fixed_rows: Mapping[int, int],
        holders: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.numbers = {id(p): j for j, p in weights.items()}
        self.law, self.fixed_rows, self.holders = law, fixed_rows, holders

    def __enter__(self) -> PerturbOnRead:
        self._thread = threading.get_ident()
        self._hooks = [module.register_forward_pre_hook(self._check_seen) for module in self.holders]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _check_seen(self, module: nn.Module, _: object) -> None:
        """Operations of other threads, and of a trace, do not pass through here: they would compute at x."""
        if threading.get_ident() != self._thread or torch._C._get_tracing_state() is not None:
            raise ValueError(
                f"a layer of type {type(module).__name__} is read in another thread or a trace, where its weights "
                "cannot be perturbed: call the model directly, in the thread of the loss"
            )

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._any_weight(args) and not (kwargs and self._any_weight(kwargs.values())):
            return function(*args, **kwargs)
        if function is functional.embedding:
            return self._embedding(*args, **kwargs)
        if function is functional.linear:
            return self._linear(*args, **kwargs)
        if getattr(function, "__name__", "") == "__get__" or function in _METADATA:
            answer = function(*args, **kwargs)
            if not isinstance(answer, Tensor):
                return answer
        perturbed = dict(zip(kwargs, self._perturbed_all(kwargs.values()), strict=True))
        return function(*self._perturbed_all(args), **perturbed)

    def _any_weight(self, values: Iterable[Any]) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self.numbers:
                    return True
            elif isinstance(value, (list, tuple)) and self._any_weight(value):
                return True
        return False

    def _embedding(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The rows that were looked up move, without a pass over the table."""
        out = functional.embedding(input, weight, *args, **kwargs)
        number = self.numbers.get(id(weight))
        if number is None:
            return out
        rows, words = out.view(-1, weight.shape[1]), input.reshape(-1)
        self.law.add_rows_(rows, words, number, weight.shape, self.move)
        if (fixed := self.fixed_rows.get(number)) is not None:
            torch.where((words == fixed)[:, None], weight[fixed].to(rows.dtype), rows, out=rows)
        return out

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        number, bias = self.numbers.get(id(weight)), self._perturbed(bias)
        if number is not None and weight.dim() == 2 and self.law.linear:
            out = functional.linear(input, weight, bias)
            self.law.add_product_(out, input, number, weight.shape, self.move)
            return out
        if number is None or weight.dim() < 2 or weight.numel() <= LARGEST_COPY:
            return functional.linear(input, self._perturbed(weight), bias)
        out, count = functional.linear(input, weight, bias), LARGEST_COPY // weight.shape[1]
        for first in range(0, len(weight), count):
            rows = torch.arange(first, min(first + count, len(weight)), device=weight.device)
            z = weight.new_zeros(len(rows), weight.shape[1])
            self.law.add_rows_(z, rows, number, weight.shape, self.move)
            out[..., first : first + count] += functional.linear(input, z.to(input.dtype))
        return out

    def _perturbed_all(self, values: Iterable[Any]) -> list[Any]:
        return [
            type(value)(self._perturbed_all(value))
            if type(value) in (list, tuple)
            else self._perturbed(value)
            for value in values
        ]

    def _perturbed(self, value: Any) -> Any:
        """A copy of a weight at x + scale z; anything else as it is."""
        number = self.numbers.get(id(value))
        return value if number is None else self.law.perturbed_copy(value, number, self.move)
