"""Ordinary fine-tuning with AdamW or SGD on the same Poisson batches, not private."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpzero.privacy import RunKey
from dpzero.zeroth_order.model_requirements import check_normalisation, trainable
from dpzero.zeroth_order.protocols import PartitionedLoss

OPTIMIZERS: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
# The same update with another speed and peak memory; by default torch takes foreach on CUDA and the loop elsewhere
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class FineTuning:
    """Uses the gradient of the batch's losses as it is: nothing is clipped, no noise is added."""

    title = "Fine-tuning"
    private = False
    order = 1
    forwards_per_example = 3  # one, and a backward pass

    def __init__(
        self,
        model: nn.Module,
        loss: PartitionedLoss,
        batch_size: float,
        *,
        learning_rate: float,
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        weight_decay: float = 0.0,
        decay_steps: int = 0,
        implementation: Literal["default", "loop", "foreach", "fused"] = "default",
        dropout: bool = False,
        seed: int = 0,
    ) -> None:
        """`decay_steps`: the learning rate falls to 0 in so many steps, by as much in each; 0: it does not fall.

        `dropout`: the model drops out at its own rates. `seed` is that of its masks.
        """
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}: give one of {', '.join(OPTIMIZERS)}")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation is {implementation!r}: give one of {', '.join(IMPLEMENTATIONS)}"
            )
        if decay_steps < 0:
            raise ValueError(f"decay_steps is {decay_steps}: give the number of steps, or 0")
        self.model, self.loss, self.batch_size = model, loss, batch_size
        self.learning_rate, self.decay_steps = learning_rate, decay_steps
        self.parameters = trainable(model.parameters())
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[optimizer](
            self.parameters, lr=learning_rate, weight_decay=weight_decay, **IMPLEMENTATIONS[implementation]
        )
        self.dropout, self.masks = dropout, RunKey.published(seed).stream("dropout")
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch: Any) -> None:
        total = self.gradients(batch)
        if self.decay_steps:
            left = max(0.0, 1 - self.steps_taken / self.decay_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * left
        self.training_loss = float(total) / len(batch) if len(batch) else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_taken += 1

    def gradients(self, batch: Any) -> Tensor | float:
        """Leaves each parameter's gradient in `grad`. Returns the sum of the losses."""
        total: Tensor | float = 0.0
        with self.drop_out(batch):
            for part in self.loss.parts(batch):
                losses = self.loss(self.model, part)
                (losses.sum() / self.batch_size).backward()  # type: ignore[no-untyped-call]
                total += losses.detach().sum()
        return total

    @contextmanager
    def drop_out(self, batch: Any) -> Iterator[None]:
        """Context manager: the model drops out, by masks that follow from the seed and the step, if the method has dropout.

        So a resumed run draws the same. Torch's generators return to where they were.

        Raises:
            ValueError: the model drew no mask for a batch that is not empty, or normalises over the batch.
        """
        if not self.dropout:
            yield
            return
        devices = sorted({p.device.index for p in self.model.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(self.masks.words(1, self.steps_taken)[0]))
            start = _random_states(devices)
            self.model.train()
            try:
                check_normalisation(self.model.named_modules())
                yield
            finally:
                self.model.eval()
            if len(batch) and all(map(torch.equal, start, _random_states(devices))):
                raise ValueError("dropout is true, but no rate of this model is above 0: leave it out")

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.steps_taken = state["steps_taken"]


def _random_states(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
