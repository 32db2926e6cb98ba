"""Whether a loss mixes the examples of a batch: asked once, before the first release."""

from __future__ import annotations

from collections.abc import Callable, Sized

import torch
from torch import Tensor

from . import batches

MOST = 8  # examples
GROSS = 0.05  # a change of a loss, over 1 + |loss|, that no rounding makes
RATIO, ROUNDING = (
    0.05,
    1e-4,
)  # a change over the spread of the losses, and over 1 + |loss|, that together no rounding makes in float32


@torch.no_grad()
def probe(loss: Callable[[Sized], Tensor], batch: Sized, count: int) -> bool:
    """Compares the losses of a few examples with those of the same examples in other company: fewer, and others.

    Returns whether it could: not of one example, nor of a batch of which it cannot be told how to take parts.

    Args:
        batch: public or stand-in examples where they can be had; all that is told of it is whether it passed.
        count: its number of examples.

    Raises:
        ValueError: a loss that depends on what else is in the batch (in-batch negatives, normalisation or attention over the batch, a
            mean in place of each one's loss).
    """
    size = min(count, MOST)
    half = size // 2
    companies = {
        "": [*range(size)],
        "fewer": [*range(half)],
        "other": [*range(half), *[half] * (size - half)],
    }
    found = {}
    for company, rows in companies.items():
        part = batches.take(batch, rows, count)
        if part is None or half == 0:
            return False
        losses = loss(part)
        if losses.shape != (len(rows),) or losses.is_complex():  # the step says what is wrong
            return False
        found[company] = losses.double().cpu()
    whole = found.pop("")
    spread, whole = float((whole - whole.mean()).abs().max()), whole[:half]
    for company, losses in found.items():
        moved = (losses[:half] - whole).abs().masked_fill(_same(losses[:half], whole), 0.0)
        change = moved / (1 + whole.abs())
        if (~(change <= GROSS) | ((change > ROUNDING) & (moved > RATIO * spread))).any():
            raise ValueError(
                f"an example's loss is another with {company} examples beside it, so that clipping would not bound what one example adds: "
                "look for a layer or a mean over the batch (batch_first, in-batch negatives, batch norm by hand)"
            )
    return True


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
