"""Measures how one example that leaves a batch changes the finite differences of the others.

Clipping bounds what an example contributes to a sum, and assumes that the other terms stay the same. A loss
whose last bits depend on the batch breaks this assumption, and a two-point step divides these bits by 2
smoothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import batches
from .directions import Gaussian
from .protocols import PerExampleLoss


@torch.no_grad()
def others_move(
    loss: PerExampleLoss,
    model: nn.Module,
    batch: Any,
    *,
    clip: float,
    smoothing: float,
    leaving: Iterable[int] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The largest change of the other examples' clipped differences when one leaves, over the clip.

    Args:
        batch: two examples or more: what an index array picks from, a mapping of such arrays, or a list.
        leaving: the examples that leave, one at a time; all by default.
        seed: of a Gaussian direction, along which the weights are perturbed; they are restored to the bit.

    Returns:
        `others_move_over_clip`, the sum of absolute changes, by which the sensitivity may exceed the clip,
        and `others_move_together_over_clip`, the absolute value of the sum of changes. Each is the largest
        over the examples that leave, and 0 if losses are batch-invariant.
    """
    keeps, subsets = _subsets(batch, leaving)
    before, *afters = (
        d.clamp(-clip, clip) for d in finite_differences(loss, model, subsets, smoothing, seed)
    )
    changes = [after - before[keep] for after, keep in zip(afters, keeps, strict=True)]
    return {
        "others_move_over_clip": max(float(c.abs().sum()) for c in changes) / clip,
        "others_move_together_over_clip": max(abs(float(c.sum())) for c in changes) / clip,
    }


@torch.no_grad()
def losses_move(
    loss: PerExampleLoss,
    model: nn.Module,
    batch: Any,
    *,
    clip: float,
    smoothing: float,
    leaving: Iterable[int],
) -> float:
    """`others_move_over_clip`, estimated from losses at the current weights, without a copy of them.

    It is exact if at each of the two points the losses change as much as here.
    """
    keeps, subsets = _subsets(batch, leaving)
    before, *afters = (loss(model, subset).double().cpu() for subset in subsets)
    changes = [(after - before[keep]).abs() / smoothing for after, keep in zip(afters, keeps, strict=True)]
    return max(float(change.clamp_max(2 * clip).sum()) for change in changes) / clip


def _subsets(batch: Any, leaving: Iterable[int] | None) -> tuple[list[Tensor], list[Any]]:
    """For each example that leaves, the positions of the others; the batch, and the batches without one."""
    count = max(batches.sizes(batch))
    keeps = [np.delete(np.arange(count), i) for i in (range(count) if leaving is None else leaving)]
    subsets = [batches.take(batch, keep, count) for keep in keeps]
    return [torch.from_numpy(keep) for keep in keeps], [batch, *subsets]


def finite_differences(
    loss: PerExampleLoss, model: nn.Module, several: Sequence[Any], smoothing: float, seed: int
) -> list[Tensor]:
    """(f(x + smoothing z) - f(x - smoothing z)) / (2 smoothing) of each batch's examples, float64, for one z."""
    trained = [p for p in model.parameters() if p.requires_grad]
    start, law, sides = [p.detach().clone() for p in trained], Gaussian(seed), []
    for sign in (1, -1):
        try:
            law.add_(trained, 0, sign * smoothing)
            sides.append([loss(model, batch).double().cpu() for batch in several])
        finally:
            for p, x in zip(trained, start, strict=True):
                p.copy_(x)
    return [(plus - minus) / (2 * smoothing) for plus, minus in zip(*sides, strict=True)]
