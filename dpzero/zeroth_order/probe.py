"""Whether a loss mixes the examples of a batch, and whether rounding does: asked once, before the first release."""

from __future__ import annotations

from collections.abc import Callable, Sized

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import batches

MOST = 8  # examples
# Changes of a loss, over 1 + |loss|
ROUNDING = 2e-5  # that float32 does not make: some ten times the largest that was seen (of SmolLM2)
GROSS = 0.05  # that no type makes, and where the type is coarser than float32
RATIO = 0.05  # that of the spread of the losses, if it is more than the type's own unit
TF32 = 2.0**-10  # unit of its products


@torch.no_grad()
def probe(
    loss: Callable[[Sized], Tensor],
    batch: Sized,
    count: int,
    take: batches.Take | None = None,
) -> Tensor | None:
    """Compares the losses of a few examples of the batch with those of the same examples in other company: fewer, and others.

    Returns how far the company moved each example's loss at most, float64 [count]; None where that could not be asked: of one example,
    or of a batch of which it cannot be told how to take parts.

    Args:
        batch: public or stand-in examples where they can be had.
        count: its number of examples.
        take: makes a batch of the examples at some of its positions, where the batch alone cannot: it was padded by a collator.

    Raises:
        ValueError: a loss that depends on what else is in the batch (in-batch negatives, normalisation or attention over the batch, a
            mean in place of each one's loss, padding that is not masked).
    """
    size = min(count, MOST)
    half = size // 2
    take = batches.picker(batch, count, take)
    companies = [
        ("fewer", [*range(size)]),
        ("fewer", [*range(half)]),
        ("other", [*range(half), *[half] * (size - half)]),
        ("fewer", [*range(count - 1)]),
    ]
    parts = [("", batch, range(count)), *((company, take(rows), rows) for company, rows in companies)]
    if half == 0 or any(part is None for _, part, _ in parts):
        return None
    found, precision = [], Precision()
    for company, part, rows in parts:
        with precision:
            losses = loss(part)
        if losses.shape != (len(rows),) or losses.is_complex():  # the step says what is wrong
            return None
        found.append((company, losses.double().cpu(), rows))
    _, whole, _ = found.pop(0)
    spread = float((whole - whole.mean()).abs().max())
    furthest = torch.zeros_like(whole)
    for company, losses, rows in found:
        same = sum(place == row for place, row in enumerate(rows))  # they come first
        moved = (losses[:same] - whole[:same]).abs()
        moved = moved.masked_fill(_same(losses[:same], whole[:same]), 0.0).nan_to_num(torch.inf)
        change = moved / (1 + whole[:same].abs())
        if precision.coarse:
            mixed = ~(change <= GROSS) | ((change > precision.unit) & (moved > RATIO * spread))
        else:
            mixed = ~(change <= ROUNDING)
        if mixed.any():
            raise ValueError(
                f"an example's loss is another with {company} examples beside it, so that clipping would not bound what one example adds: "
                "look for a layer or a mean over the batch (batch_first, in-batch negatives, batch norm by hand), or for padding that is not masked"
            )
        furthest[:same] = torch.maximum(furthest[:same], moved)
    return furthest


class Precision(TorchDispatchMode):
    """Inside, the unit of the coarsest floating type that is computed in is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = TF32 if _products_are_coarse() else torch.finfo(torch.float32).eps

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        made = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                convolved = tensor.is_cuda and "convolution" in operation.__name__  # in TF32, unless one asks
                self.unit = max(self.unit, torch.finfo(tensor.dtype).eps, TF32 * convolved)
        return made

    @property
    def coarse(self) -> bool:
        return self.unit > torch.finfo(torch.float32).eps


def _products_are_coarse() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set by parts
        return True


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
