"""Whether a loss mixes the examples of a batch: asked once, before the first release."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized

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
    take: Callable[[Sequence[int]], object] | None = None,
) -> bool:
    """Compares the losses of a few examples of the batch with those of the same examples in other company: fewer, and others.

    Returns whether it could: not of one example, nor of a batch of which it cannot be told how to take parts.

    Args:
        batch: public or stand-in examples where they can be had; all that is told of it is whether it passed.
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
    ]
    parts = [("", batch, count), *((company, take(rows), len(rows)) for company, rows in companies)]
    if half == 0 or any(part is None for _, part, _ in parts):
        return False
    found = []
    for company, part, rows in parts:
        losses = loss(part)
        if losses.shape != (rows,) or losses.is_complex():  # the step says what is wrong
            return False
        found.append((company, losses.double().cpu()))
    whole = found.pop(0)[1][:size]
    spread, whole = float((whole - whole.mean()).abs().max()), whole[:half]
    for company, losses in found:
        moved = (losses[:half] - whole).abs().masked_fill(_same(losses[:half], whole), 0.0)
        change = moved / (1 + whole.abs())
        if (~(change <= GROSS) | ((change > ROUNDING) & (moved > RATIO * spread))).any():
            raise ValueError(
                f"an example's loss is another with {company} examples beside it, so that clipping would not bound what one example adds: "
                "look for a layer or a mean over the batch (batch_first, in-batch negatives, batch norm by hand), or for padding that is not masked"
            )
    return True


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
