"""Perturbation of the trainable weights, in place or on read, and their update.

A tensor is perturbed in one of two ways. *In place*: it is written to x + scale z, and restored together with
the update. *On read*: it stays at x, and every operation of the model that takes it gets x + scale z instead,
so it never drifts by rounding. Embedding tables are always perturbed on read, because a batch needs only a
few of their rows. So may be all weights (`perturb: on_read`). With low-rank directions a linear layer then
applies them to its input, which is cheaper than a pass over the weights if the batch has few tokens (on a
GPU).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import dispatch
from .directions import Gaussian
from .kernels_torch import Move

PERTURB = ("in_place", "on_read")
NO_ROWS: Mapping[int, int] = MappingProxyType({})
LARGEST_COPY = 2**24  # elements of a weight that are copied at once: 64 MiB
_METADATA = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride}
_METADATA |= {Tensor.is_contiguous, Tensor.is_floating_point}


@dataclass(frozen=True)
class _Group:
    """Some of the tensors, by their numbers, with their planned moves (in_place) and updates (on_read)."""

    in_place: Mapping[int, Tensor]
    on_read: Mapping[int, Tensor]
    moves: list[Move] = field(default_factory=list)
    updates: list[Move] = field(default_factory=list)


def points(directions: int, smoothing: float, one_sided: bool) -> Iterator[tuple[int, int, float]]:
    """The points of a step in order: the direction, which of its two points, and the scale of the direction there."""
    if one_sided:
        yield 0, 1, 0.0
    for k in range(directions):
        yield k, 0, smoothing
        if not one_sided:
            yield k, 1, -smoothing


class Perturbation:
    """Perturbs and updates the trained tensors. Moves are planned, then applied together in one pass.

    Args:
        parameters: all trained tensors, in the order that numbers them.
        law: of the directions.
        on_read: numbers of the tensors that are perturbed on read.
        fixed_rows: number of a tensor -> its row that is neither perturbed nor moved (padding).
        holders: the modules that hold the tensors of `on_read`.
        groups: numbers of the tensors of each group, which has a multiplier of its own in an update; one group
            of all tensors by default.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        law: Gaussian,
        on_read: Sequence[int],
        fixed_rows: Mapping[int, int] = NO_ROWS,
        holders: Sequence[nn.Module] = (),
        groups: Sequence[Sequence[int]] = (),
    ) -> None:
        self.law, self.fixed_rows = law.fit(parameters), fixed_rows
        self.on_read = {j: parameters[j] for j in on_read}
        self.in_place = {j: p for j, p in enumerate(parameters) if j not in self.on_read}
        self.reads = PerturbOnRead(self.on_read, self.law, fixed_rows, holders)
        self.position = (0, 0, 0.0)  # step, direction and scale at which the tensors of `in_place` are
        self._groups = [
            _Group(
                {j: self.in_place[j] for j in numbers if j in self.in_place},
                {j: self.on_read[j] for j in numbers if j in self.on_read},
            )
            for numbers in groups or [range(len(parameters))]
        ]

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        parameters: Sequence[Tensor],
        law: Gaussian,
        perturb: str,
        groups: Sequence[Sequence[int]] = (),
    ) -> Perturbation:
        """Of a model's trained parameters. Raises ValueError for a `perturb` that cannot be done."""
        on_read = numbers_on_read(model, parameters, perturb)
        read = {id(parameters[j]) for j in on_read}
        holders = [m for m in model.modules() if any(id(p) in read for p in m.parameters(recurse=False))]
        return cls(parameters, law, on_read, padding_rows(model, parameters), holders, groups)

    @contextmanager
    def perturbed(self, step: int, direction: int, scale: float) -> Iterator[None]:
        """Context manager: the model computes at x + scale z. After a failure weights return to x, to rounding."""
        self.plan_point(step, direction, scale)
        self.apply()
        self.reads.move = Move(step, direction, (scale,))
        try:
            with self.reads if self.on_read else nullcontext():
                yield
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Moves the weights back to x, up to rounding."""
        step, direction, _ = self.position
        self.plan_point(step, direction, 0.0)
        self.apply()

    def plan_point(self, step: int, direction: int, scale: float) -> None:
        """Plans the move to x + scale z from wherever the weights are."""
        last_step, last_direction, last_scale = self.position
        if (step, direction) != (last_step, last_direction):
            if last_scale:
                self._plan(Move(last_step, last_direction, (-last_scale,)))
            last_scale = 0.0
        if scale != last_scale:
            self._plan(Move(step, direction, (scale - last_scale,)))
        self.position = (step, direction, scale)

    def _plan(self, move: Move) -> None:
        for group in self._groups:
            group.moves.append(move)

    def plan_update(
        self, step: int, coefficients: Sequence[float], multipliers: Sequence[float] = (1.0,)
    ) -> None:
        """Plans the move to x + sum over k of multiplier * coefficients[k] z_k from wherever the weights are.

        Args:
            multipliers: one for each group.
        """
        last_step, last_direction, last_scale = self.position
        if last_step != step or last_direction >= len(coefficients):
            self.plan_point(step, 0, 0.0)
            last_direction, last_scale = 0, 0.0
        for group, multiplier in zip(self._groups, multipliers, strict=True):
            for k, coefficient in enumerate(coefficients):
                back = last_scale if k == last_direction else 0.0
                group.moves.append(Move(step, k, (multiplier * coefficient - back,)))
                group.updates.append(Move(step, k, (multiplier * coefficient,)))
        self.position = (step, 0, 0.0)

    def _tensor(self, number: int) -> Tensor:
        return self.on_read[number] if number in self.on_read else self.in_place[number]

    @property
    def update_planned(self) -> bool:
        return any(group.updates for group in self._groups)

    def apply(self) -> None:
        """Makes the planned moves, many in one pass over the weights."""
        tables = [(self._tensor(j), row) for j, row in self.fixed_rows.items()]
        rows = [(tensor, row, tensor[row].clone()) for tensor, row in tables]
        for group in self._groups:
            for tensors, moves in ((group.in_place, group.moves), (group.on_read, group.updates)):
                if tensors:
                    for _, alike in groupby(_joined(moves), key=lambda move: len(move.scales)):
                        dispatch.run(self.law.pieces(tensors.items(), list(alike)))
                moves.clear()
        for tensor, row, values in rows:
            tensor[row] = values


def _joined(moves: Sequence[Move]) -> Iterator[Move]:
    """Joins consecutive moves along one direction, so that its numbers are drawn once."""
    for (step, direction), group in groupby(moves, key=lambda move: (move.step, move.direction)):
        yield Move(step, direction, tuple(scale for move in group for scale in move.scales))


def numbers_on_read(model: nn.Module, parameters: Sequence[Tensor], perturb: str) -> list[int]:
    """Numbers of the tensors perturbed on read: with `in_place` embedding tables, with `on_read` all."""
    if perturb not in PERTURB:
        raise ValueError(f"perturb is {perturb!r}: give one of {', '.join(PERTURB)}")
    if compiled := _first_compiled(model):
        if perturb == "on_read":
            raise ValueError(f"{compiled}, whose reads of weights cannot be seen: perturb in_place")
        return []
    if perturb == "on_read":
        return list(range(len(parameters)))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [j for j, p in enumerate(parameters) if id(p) in tables and p.dim() == 2]


def padding_rows(model: nn.Module, parameters: Sequence[Tensor]) -> dict[int, int]:
    """Number of a tensor -> its row that stays, as under autograd: the padding_idx of all its modules."""
    rows: dict[int, set[int | None]] = {}
    for module in model.modules():
        row = module.padding_idx if isinstance(module, nn.Embedding) else None
        for p in module.parameters(recurse=False):
            rows.setdefault(id(p), set()).add(row)
    fixed = {j: rows.get(id(p), {None}) for j, p in enumerate(parameters)}
    return {j: row for j, each in fixed.items() if len(each) == 1 for row in each if row is not None}


def _first_compiled(model: nn.Module) -> str:
    """Which layer torch runs without asking Python for each operation, in words; empty if none."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return f"layer {name or 'model'} is TorchScript"
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None):
            return f"layer {name or 'model'} is compiled"
        if isinstance(module, nn.DataParallel):
            return f"layer {name or 'model'} is DataParallel"
    return ""


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
