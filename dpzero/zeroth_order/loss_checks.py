"""Checks of a loss: one real number an example, and, before the first release, of that example alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .batches import Take
from .protocols import PerExampleLoss

MAX_COMPARED = 8  # examples that are compared
# Changes of a loss, over 1 + |loss|
ROUNDING = 2e-5  # beyond what float32 makes: some ten times the largest that was seen (SmolLM2)
GROSS = 0.05  # beyond what any type makes: the limit if the type is coarser than float32
RATIO = 0.05  # then also the limit over the spread of the losses, if the change exceeds the type's unit
TF32 = 2.0**-10  # unit of TF32 products


LOSSES = (
    "dpzero.losses has functions for models of Hugging Face and, by from_reduction_none, for any criterion"
)


def check_loss_arguments(loss: object) -> None:
    """Raises TypeError for what cannot be called as loss(model, batch), such as a criterion of torch."""
    name = getattr(loss, "__name__", None) or type(loss).__name__
    if not callable(loss):
        raise TypeError(
            f"loss is of type {name}: give a function (model, batch) -> one loss for each example"
        )
    try:
        arguments = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:  # of a built-in function, which is tried as it is
        return
    if isinstance(loss, nn.modules.loss._Loss) or "reduction" in arguments.parameters:
        raise TypeError(
            f"loss is {name}, a criterion of outputs and targets, but a loss of (model, batch) is needed: give "
            f"dpzero.losses.from_reduction_none({_without_reduction(loss, name)}), for batches (inputs, targets)"
        )
    try:
        arguments.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"loss {name} cannot be called as loss(model, batch) ({error}): give a function (model, batch) -> one loss "
            f"for each example; {LOSSES}"
        ) from None


@contextmanager
def explained() -> Iterator[None]:
    """Adds to an error of a loss how it was called."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        error.add_note(f"(raised in loss(model, batch), which returns one value for each example; {LOSSES})")
        raise


def _without_reduction(loss: object, name: str) -> str:
    return f'nn.{name}(reduction="none")' if isinstance(loss, nn.Module) else name


def per_example_losses(loss: PerExampleLoss, model: nn.Module, batch: Any, count: int) -> Tensor:
    """The losses of `count` examples, float64 [count] on the CPU.

    Raises:
        ValueError: a loss of another shape, or not a real number in float32 or better.
    """
    losses = loss(model, batch)
    if not isinstance(losses, Tensor):
        raise ValueError(
            f"the loss returned a {type(losses).__name__}: it must return a tensor of one value per example; {LOSSES}"
        )
    if losses.shape != (count,):
        raise ValueError(
            f"the loss returned shape {tuple(losses.shape)} for {count} examples: it must return one value per example; "
            f"{LOSSES}"
        )
    if losses.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the loss returned {losses.dtype}, in which the difference of two losses drowns: compute it in float32"
        )
    if not losses.is_floating_point():
        raise ValueError(f"the loss returned {losses.dtype}: it must return real numbers, float32 or better")
    return losses.double().cpu()


@torch.no_grad()
def check_independence(loss: Callable[[Any], Tensor], batch: Any, count: int, pick: Take) -> Tensor | None:
    """Compares losses of a few examples with those of the same examples among fewer or others, and in other places.

    Args:
        loss: batch -> losses [B].
        batch: public or stand-in examples if possible.
        count: its number of examples.
        pick: makes a batch of some of the examples.

    Returns:
        How far the other examples moved each loss at most, float64 [count]. None if it cannot be measured:
        fewer than two examples, or a batch of an unknown structure.

    Raises:
        ValueError: a loss that depends on the other examples (in-batch negatives, normalisation or attention
            over the batch, a mean in place of each example's loss, padding that is not masked).
    """
    size = min(count, MAX_COMPARED)
    half = size // 2
    selections = [
        ("fewer", [*range(size)]),
        ("fewer", [*range(half)]),
        ("other", [*range(half), *[half] * (size - half)]),
        ("fewer", [*range(count - 1)]),
        ("fewer", [*range(1, count)]),  # each in the place of the one before it
    ]
    parts = [("", batch, [*range(count)]), *((which, pick(rows), rows) for which, rows in selections)]
    if half == 0 or any(part is None for _, part, _ in parts):
        return None
    results, precision = [], Precision()
    for which, part, rows in parts:
        with precision:
            losses = loss(part)
        if not isinstance(losses, Tensor) or losses.shape != (len(rows),) or losses.is_complex():
            return None  # the step says what is wrong
        results.append((which, losses.double().cpu(), rows))
    _, reference, _ = results.pop(0)
    spread = float((reference - reference.mean()).abs().max())
    furthest = torch.zeros_like(reference)
    for which, losses, rows in results:
        expected = reference[rows]
        moved = (losses - expected).abs().masked_fill(_same(losses, expected), 0.0).nan_to_num(torch.inf)
        change = moved / (1 + expected.abs())
        if precision.coarse:
            mixed = ~(change <= GROSS) | ((change > precision.unit) & (moved > RATIO * spread))
        else:
            mixed = ~(change <= ROUNDING)
        if mixed.any():
            raise ValueError(
                f"an example's loss changes with {which} examples in the batch, so that clipping would not bound what one "
                "example adds: look for a layer or a mean over the batch (batch_first, in-batch negatives, batch norm by "
                "hand), for padding that is not masked, for numbers that belong to places in the batch, or for a collate_fn "
                "that sorts the examples"
            )
        np.maximum.at(furthest.numpy(), rows, moved.numpy())
    return furthest


class Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that finds the unit roundoff of the coarsest floating type in use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit = TF32 if products_are_coarse() else torch.finfo(torch.float32).eps

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes a second, to exclude the method below from it."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                convolved = tensor.is_cuda and "convolution" in operation.__name__  # in TF32 by default
                self.unit = max(self.unit, torch.finfo(tensor.dtype).eps, TF32 * convolved)
        return result

    @property
    def coarse(self) -> bool:
        return self.unit > torch.finfo(torch.float32).eps


def products_are_coarse() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set for each backend on its own
        return True


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
