"""What one example that leaves a batch moves in the others' finite differences: nothing, if the bits of a loss are its example's own.

A private method bounds what an example does to the sum by the clip. That the other terms stay the same is an assumption about rounding:
a loss whose last bits depend on the batch breaks it, and a two-point step divides them by 2 smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import batches
from .directions import Gaussian


@torch.no_grad()
def others_move(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    batch: Sized,
    *,
    clip: float,
    smoothing: float,
    leaving: Iterable[int] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The largest change of the other examples' clipped differences when one leaves, over the clip: 0 if losses are batch-invariant.

    Args:
        batch: examples that an index array picks from, a mapping of such arrays, or a list. At least two.
        leaving: the examples that leave, one at a time; all of them if left out.
        seed: of a Gaussian direction, in which the weights are perturbed; they are put back to the bit.

    Returns:
        `others_move_over_clip`, the sum of absolute changes, by which the sensitivity may exceed the clip; and
        `others_move_together_over_clip`, the absolute value of the sum of changes. Each the largest over who leaves.
    """
    count = max(batches.sizes(batch))
    leaving = range(count) if leaving is None else list(leaving)
    keeps = [np.delete(np.arange(count), i) for i in leaving]
    several = [batch, *(batches.take(batch, keep, count) for keep in keeps)]
    whole, *rest = finite_differences(loss, model, several, smoothing, seed)
    changes = [
        after.clamp(-clip, clip) - whole[torch.from_numpy(keep)].clamp(-clip, clip)
        for after, keep in zip(rest, keeps, strict=True)
    ]
    return {
        "others_move_over_clip": max(float(c.abs().sum()) for c in changes) / clip,
        "others_move_together_over_clip": max(abs(float(c.sum())) for c in changes) / clip,
    }


@torch.no_grad()
def losses_move(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    batch: Sized,
    *,
    clip: float,
    smoothing: float,
    leaving: Iterable[int],
) -> float:
    """The same, told from losses at the weights as they are, which no copy of them is taken for: what the others' clipped differences
    would move over the clip if at each of the two points their losses moved as far as here."""
    count, moved = max(batches.sizes(batch)), 0.0
    whole = loss(model, batch).double().cpu()
    for i in leaving:
        keep = np.delete(np.arange(count), i)
        change = (
            loss(model, batches.take(batch, keep, count)).double().cpu() - whole[torch.from_numpy(keep)]
        ).abs()
        moved = max(moved, float((change / smoothing).clamp_max(2 * clip).sum()) / clip)
    return moved


def finite_differences(
    loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, several: list, smoothing: float, seed: int
) -> list[Tensor]:
    """Of each batch its examples' (f(x + smoothing z) - f(x - smoothing z)) / (2 smoothing), float64, all at the same two points."""
    trained = [p for p in model.parameters() if p.requires_grad]
    start, law, sides = [p.detach().clone() for p in trained], Gaussian(seed), []
    try:
        for sign in (1, -1):
            for p, x in zip(trained, start, strict=True):
                p.copy_(x)
            law.add_(trained, 0, sign * smoothing)
            sides.append([loss(model, batch).double().cpu() for batch in several])
    finally:
        for p, x in zip(trained, start, strict=True):
            p.copy_(x)
    return [(plus - minus) / (2 * smoothing) for plus, minus in zip(*sides, strict=True)]
