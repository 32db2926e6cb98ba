"""Evaluates a loss on a batch and checks that it returns one real number an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import collated_batches
from .protocols import PerExampleLoss


def per_example_losses(loss: PerExampleLoss, model: nn.Module, batch: Any, count: int) -> Tensor:
    """The losses of `count` examples, float64 [count] on the CPU.

    Raises:
        ValueError: a loss of another shape, or not a real number in float32 or better.
    """
    if not count:
        return torch.zeros(0, dtype=torch.float64)
    losses = loss(model, batch)
    if losses.shape != (count,):
        raise ValueError(
            f"the loss returned shape {tuple(losses.shape)} for {count} examples: it must return one value per example"
        )
    if losses.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the loss returned {losses.dtype}, in which the difference of two losses drowns: compute it in float32"
        )
    if not losses.is_floating_point():
        raise ValueError(f"the loss returned {losses.dtype}: it must return real numbers, float32 or better")
    return losses.double().cpu()


def single_examples(batch: Any, count: int, take: collated_batches.Take | None) -> Iterator[Any]:
    """Each of the `count` examples as a batch of its own. `take` as in `collated_batches.picker`."""
    pick = collated_batches.picker(batch, count, take)
    for row in range(count):
        example = pick([row])
        if example is None:
            raise ValueError(
                f"cannot take one example out of a batch of type {type(batch).__name__}: give step indices, a list of "
                "examples, or what budget.loader hands out"
            )
        yield example
