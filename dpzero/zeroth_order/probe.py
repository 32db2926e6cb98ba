"""Whether a loss mixes the examples of a batch, and whether rounding does: asked once, before the first release."""

from __future__ import annotations

from collections.abc import Callable, Sized

import torch
from torch import Tensor

from . import batches

MOST = 8  # examples
GROSS = 0.05  # a change of a loss, over 1 + |loss|, that no rounding makes
RATIO = 0.05  # a change over the spread of the losses that, with the next, no rounding makes in float32
ROUNDING = 1e-4  # over 1 + |loss|


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
    take = take or (lambda rows: batches.take(batch, rows, count))
    companies = [
        ("fewer", [*range(size)]),
        ("fewer", [*range(half)]),
        ("other", [*range(half), *[half] * (size - half)]),
        ("fewer", [*range(count - 1)]),
    ]
    parts = [("", batch, range(count)), *((company, take(rows), rows) for company, rows in companies)]
    if half == 0 or any(part is None for _, part, _ in parts):
        return None
    found = []
    for company, part, rows in parts:
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
        if (~(change <= GROSS) | ((change > ROUNDING) & (moved > RATIO * spread))).any():
            raise ValueError(
                f"an example's loss is another with {company} examples beside it, so that clipping would not bound what one example adds: "
                "look for a layer or a mean over the batch (batch_first, in-batch negatives, batch norm by hand), or for padding that is not masked"
            )
        furthest[:same] = torch.maximum(furthest[:same], moved)
    return furthest


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
