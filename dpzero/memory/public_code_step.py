"""A zeroth-order step as public code takes it: the baseline of the benchmark. For timing only, not private.

Four passes over the weights (plus, minus, back, update), each of which draws all directions anew from the
framework's generator, out of place. A batch is padded to its longest text, and the logits are those of the
whole vocabulary at every position.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..language.models.encoding import Examples
from ..language.models.random_models import ANSWERS, Answering


class NaiveStep:
    def __init__(
        self, model: Answering, *, learning_rate: float = 1e-9, smoothing: float = 1e-3, seed: int = 0
    ) -> None:
        self.model = model.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.learning_rate, self.smoothing, self.seed = learning_rate, smoothing, seed

    @torch.no_grad()
    def step(self, batch: Examples) -> None:
        self._perturb(1)
        plus = self._losses(batch)
        self._perturb(-2)
        minus = self._losses(batch)
        gradient = ((plus - minus) / (2 * self.smoothing)).mean().item()
        self._perturb(1)
        self._update(gradient)
        self.seed += 1

    def _perturb(self, times: int) -> None:
        for p, z in self._directions():
            p.data = p.data + times * z * self.smoothing

    def _update(self, gradient: float) -> None:
        for p, z in self._directions():
            p.data = p.data - self.learning_rate * (gradient * z)

    def _directions(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        torch.manual_seed(self.seed)
        for p in self.parameters:
            yield p, torch.normal(mean=0.0, std=1.0, size=p.shape, device=p.device, dtype=p.dtype)

    def _losses(self, batch: Examples) -> Tensor:
        ids, mask, labels = batch.padded(self.parameters[0].device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        rows = torch.arange(len(ids), device=ids.device)
        answers = logits[rows, mask.sum(1) - 1][:, list(ANSWERS)]
        return nn.functional.cross_entropy(answers.float(), labels, reduction="none")
