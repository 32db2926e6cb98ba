"""One loss per example, and accuracy. Cross entropy in float32; any split into micro-batches gives the same values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .examples import Examples


class CrossEntropy:
    """(model, examples) -> losses [B], float32. Each is a function of its own example alone: padding is masked."""

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget

    def parts(self, batch: Examples) -> Iterator[Examples]:
        """The micro-batches in which a first-order method takes its gradients."""
        for _, part in batch.parts(self.token_budget):
            yield part

    def __call__(self, model: nn.Module, batch: Examples) -> Tensor:
        if not len(batch):
            return torch.zeros(0, device=next(model.parameters()).device)
        losses = [(order, self._losses(model, part)) for order, part in batch.parts(self.token_budget)]
        if len(losses) == 1:
            order, values = losses[0]
            return values[torch.from_numpy(order.argsort()).to(values.device)]
        result = torch.empty(len(batch), device=losses[0][1].device)
        for order, values in losses:
            result[torch.from_numpy(order.copy()).to(result.device)] = values
        return result

    @staticmethod
    def _losses(model: nn.Module, part: Examples) -> Tensor:
        ids, mask, labels = part.padded(next(model.parameters()).device)
        return nn.functional.cross_entropy(model(ids, mask), labels, reduction="none")


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, token_budget: int) -> dict[str, float]:
    """Accuracy and mean loss over all examples."""
    right, total = 0, 0.0
    device = next(model.parameters()).device
    for _, part in examples.parts(token_budget):
        ids, mask, labels = part.padded(device)
        logits = model(ids, mask)
        right += int((logits.argmax(1) == labels).sum())
        total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": right / len(examples), "loss": total / len(examples)}
