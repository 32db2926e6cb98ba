"""What a method and a loss are, for type checkers and readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any, Protocol

from torch import Tensor, nn


class PerExampleLoss(Protocol):
    """(model, batch of B examples) -> losses [B], float32 or better, each of its own example alone."""

    def __call__(self, model: nn.Module, batch: Any, /) -> Tensor: ...


class PartitionedLoss(PerExampleLoss, Protocol):
    """A loss that a first-order method takes in micro-batches."""

    def parts(self, batch: Any, /) -> Iterable[Any]:
        """The micro-batches of a batch."""
        ...


class Method(Protocol):
    """A training method: one file of baselines/, or `dpzero.algorithm`.

    Its constructor is `(model, loss, budget, *, learning_rate, ..., seed=0)`, with `batch_size` in place of
    `budget` if the method is not private. The keyword-only arguments are the settings that a sweep may give.

    Attributes:
        title: its name in tables.
        private: whether it adds noise; it then takes a budget.
        order: 0 (forward passes), 1 (gradients) or None (trains nothing; if it is private, its `demonstrations` stand before
            the prompts that are scored).
        forwards_per_example: forward passes of a step for each example of its batch; a backward pass counts two.
        steps_taken: the steps so far, those on empty batches too.
        public_data: True if it reads public examples, which are assigned to its `public` before the first step. It then
            has `public_forwards`, the forward passes of public examples in a step, and the settings `public_examples`,
            `public_task` and `public_batch_size`.
        further_metrics: if a method has it, a function without arguments: numbers for the metrics of a record, which
            no more than releases and settings decide.
        training_loss: mean loss of the last batch, without noise; None if the noise key is secret or there is
            none.
    """

    title: str
    private: bool
    order: int | None
    steps_taken: int
    training_loss: float | None

    @property
    def forwards_per_example(self) -> int: ...

    def step(self, batch: Sized, /) -> object:
        """Takes one step, on an empty batch too."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here, to the bit. It does not change with later steps."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Returns to a state."""
        ...
