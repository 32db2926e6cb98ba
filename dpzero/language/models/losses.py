"""One loss per example, and accuracy. Cross entropy in float32; any split into micro-batches gives the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from ..data.encoding import Examples
from . import prefix_cache
from .batch_invariance import Cut, Cutter, Kind, batch_shapes

COMPUTE = ("float32", "bfloat16")
Pairs = Callable[[int], AbstractContextManager]
"""In `pairs(n)` a model takes the first n of 2 n rows at one point and the others at the other (see `zeroth_order.passes`)."""


def _alone(rows: int) -> AbstractContextManager:
    return nullcontext()


class CrossEntropy:
    """(model, examples) -> losses [B], float32. Each is a function of its own example alone: padding is masked.

    Without gradients, as zeroth-order methods ask, that holds to the last bit (see `invariant`): no other example moves the difference of
    two losses, which is then divided by 2 smoothing. With gradients micro-batches are those of `parts`.
    With `compute` bfloat16 the model's matrix products are taken in it (torch's autocast); weights, norms and the loss stay float32.
    With a `share` of (r, n) losses are taken of every n-th example, and those of others are 0: they are another process's.
    """

    share = 0, 1

    def __init__(self, token_budget: int, compute: str = "float32") -> None:
        if compute not in COMPUTE:
            raise ValueError(f"compute is {compute!r}: give one of {', '.join(COMPUTE)}")
        self.token_budget, self.compute = token_budget, compute
        self.cutter = Cutter(token_budget)

    def parts(self, batch: Examples) -> Iterator[Examples]:
        """The micro-batches in which a first-order method takes its gradients."""
        for _, part in batch.parts(self.token_budget):
            yield part

    def __call__(self, model: nn.Module, batch: Examples) -> Tensor:
        result = None
        for order, filled, kind in self.cut(model, batch):
            whole = len(order) == len(batch)  # and in order (see `Cut`)
            part = batch if whole and filled is order else batch[filled]
            values = self._losses(model, part, kind[0])[: len(order)]
            if whole:
                return values
            result = values.new_zeros(len(batch)) if result is None else result
            result[torch.from_numpy(order).to(result.device)] = values
        return torch.zeros(len(batch), device=next(model.parameters()).device) if result is None else result

    def both_sides(self, model: nn.Module, batch: Examples, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Losses [B] at either point of a two-point step, in one pass through the model (see `TwoPoint`)."""
        sides = torch.zeros(2, len(batch), device=next(model.parameters()).device)
        for order, filled, kind in self.cut(model, batch, 2, pairs):
            with pairs(len(filled)):
                losses = self._losses(model, batch[np.tile(filled, 2)], kind[0]).view(2, -1)
            sides[:, torch.from_numpy(order).to(sides.device)] = losses[:, : len(order)]
        return sides[0], sides[1]

    def evaluate(self, model: nn.Module, batch: Examples) -> dict[str, float]:
        """Accuracy and mean loss over all examples, in float32."""
        return evaluate(model, batch, self.token_budget)

    def stand_in(self, size: int, length: int) -> Examples:
        """Examples of full length that say nothing of private ones."""
        return Examples.of([[1] * length] * size, [0] * size)

    def cut(self, model: nn.Module, batch: Examples, sides: int = 1, pairs: Pairs = _alone) -> Sequence[Cut]:
        """The micro-batches of this process's share (see `Cutter`), for passes that have each text `sides` times, in `pairs`."""
        first, every = self.share
        if every > 1:
            mine = np.arange(len(batch))[first::every]
            cuts = self._cut(model, batch[mine], sides, pairs)
            return [(mine[order], mine[filled], kind) for order, filled, kind in cuts]
        return self._cut(model, batch, sides, pairs)

    def _cut(self, model: nn.Module, batch: Examples, sides: int, pairs: Pairs) -> Sequence[Cut]:
        if torch.is_grad_enabled():
            return batch_shapes(batch, self.token_budget)

        def made(kinds: Sequence[Kind]) -> Tensor:
            texts = batch.stand_ins(model, [*kinds] * sides)
            with pairs(len(kinds)):
                logits = self._logits(model, texts, kinds[0][0])[0]
            return logits.view(sides, len(kinds), -1).transpose(0, 1)

        return self.cutter.cut(model, batch.kinds(model), made, sides, batch.pass_cost)

    def _losses(self, model: nn.Module, part: Examples, length: int) -> Tensor:
        return nn.functional.cross_entropy(*self._logits(model, part, length), reduction="none")

    def _logits(self, model: nn.Module, part: Examples, length: int) -> tuple[Tensor, Tensor]:
        """float32 [n, labels], and labels [n]."""
        ids, mask, labels = part.padded(next(model.parameters()).device, length)
        half = self.compute == "bfloat16"
        # without its cache, which would keep a copy of all weights
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            logits = model(ids, mask)
        return logits.float(), labels


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, token_budget: int) -> dict[str, float]:
    """Accuracy and mean loss over all examples."""
    right, total = 0, 0.0
    device = next(model.parameters()).device
    with prefix_cache.once(model, examples):
        for _, part in examples.parts(token_budget):
            ids, mask, labels = part.padded(device)
            logits = model(ids, mask)
            right += int((logits.argmax(1) == labels).sum())
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": right / len(examples), "loss": total / len(examples)}
