"""One loss per example, and accuracy. Cross entropy in float32; any split into micro-batches gives the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from . import beginnings
from .examples import Examples

COMPUTE = ("float32", "bfloat16")
LENGTHS = 32  # tokens: padded lengths of few shapes are multiples


class CrossEntropy:
    """(model, examples) -> losses [B], float32. Each is a function of its own example alone: padding is masked.

    With `compute` bfloat16 the model's matrix products are taken in it (torch's autocast); weights, norms and the loss stay float32.
    With `few_shapes` micro-batches are padded on to shapes that recur, by examples that nobody reads: for CUDA graphs.
    With a `share` of (r, n) losses are taken of every n-th micro-batch from number r on, and those of other examples are 0: they are
    another process's. The micro-batches are the same for any n, and so are the bits of a loss.
    """

    share = 0, 1

    def __init__(self, token_budget: int, compute: str = "float32", few_shapes: bool = False) -> None:
        if compute not in COMPUTE:
            raise ValueError(f"compute is {compute!r}: give one of {', '.join(COMPUTE)}")
        self.token_budget, self.compute, self.few_shapes = token_budget, compute, few_shapes

    def parts(self, batch: Examples) -> Iterator[Examples]:
        """The micro-batches in which a first-order method takes its gradients."""
        for _, part in batch.parts(self.token_budget):
            yield part

    def __call__(self, model: nn.Module, batch: Examples) -> Tensor:
        if not len(batch):
            return torch.zeros(0, device=next(model.parameters()).device)
        parts = shared(self.share, batch.parts(self.token_budget, LENGTHS if self.few_shapes else 1))
        losses = [(order, self._losses(model, part)) for order, part in parts]
        if len(losses) == 1 and len(losses[0][0]) == len(batch):
            order, values = losses[0]
            return values[torch.from_numpy(order.argsort()).to(values.device)]
        result = torch.zeros(len(batch), device=next(model.parameters()).device)
        for order, values in losses:
            result[torch.from_numpy(order.copy()).to(result.device)] = values
        return result

    def both_sides(
        self, model: nn.Module, batch: Examples, pairs: Callable[[int], AbstractContextManager]
    ) -> tuple[Tensor, Tensor]:
        """Losses [B] at either point of a two-point step, in one pass through the model (see `TwoPoint`)."""
        sides = torch.zeros(2, len(batch), device=next(model.parameters()).device)
        for order, part in shared(self.share, batch.parts(self.token_budget // 2)):
            with pairs(len(part)):
                losses = self._losses(model, part[np.tile(np.arange(len(part)), 2)])
            sides[:, torch.from_numpy(order.copy()).to(sides.device)] = losses.view(2, -1)
        return sides[0], sides[1]

    def evaluate(self, model: nn.Module, batch: Examples) -> dict[str, float]:
        """Accuracy and mean loss over all examples, in float32."""
        return evaluate(model, batch, self.token_budget)

    def stand_in(self, size: int, length: int) -> Examples:
        """Examples of full length that say nothing of private ones."""
        return Examples.of([[1] * length] * size, [0] * size)

    def _losses(self, model: nn.Module, part: Examples) -> Tensor:
        shape = self._shape(part) if self.few_shapes else None
        ids, mask, labels = part.padded(next(model.parameters()).device, shape)
        half = self.compute == "bfloat16"
        # without its cache, which would keep a copy of all weights
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            logits = model(ids, mask)[: len(part)]
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def _shape(self, part: Examples) -> tuple[int, int]:
        """The next power of two of rows, or as many as the token budget takes; the next multiple of LENGTHS of tokens."""
        length = -(-int(part.lengths().max()) // LENGTHS) * LENGTHS
        rows = min(1 << (len(part) - 1).bit_length(), max(1, self.token_budget // length))
        return rows, length


def shared(share: tuple[int, int], parts: Iterator) -> Iterator:
    first, every = share
    return islice(parts, first, None, every)


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, token_budget: int) -> dict[str, float]:
    """Accuracy and mean loss over all examples."""
    right, total = 0, 0.0
    device = next(model.parameters()).device
    with beginnings.once(model, examples):
        for _, part in examples.parts(token_budget):
            ids, mask, labels = part.padded(device)
            logits = model(ids, mask)
            right += int((logits.argmax(1) == labels).sum())
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": right / len(examples), "loss": total / len(examples)}
