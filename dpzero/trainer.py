"""The Trainer of transformers with DPZero's step: the budget's batches, no backward pass, nothing private in the logs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from .algorithm import DPZero
from .privacy import Budget
from .zeroth_order.protocols import PerExampleLoss

# What a Trainer would log of private batches: their losses, sizes and times
WITHHELD = ("loss", "grad_norm", "total_flos", "num_input_tokens_seen")


class DPZeroTrainer(Trainer):
    """Fine-tunes with DPZero where a Trainer would backpropagate: evaluation, checkpoints and callbacks stay.

    The budget draws the batches and sets the number of steps; `args` gives learning rate, scheduler, seed of the
    directions, logging, evaluation and checkpoints. Logs have the epsilon that was spent and neither loss,
    size nor duration of a batch. `train(resume_from_checkpoint=...)` goes on after a checkpoint; give the budget
    a ledger file, or epsilon omits what was released after it. Whatever is evaluated must be public.

    Args:
        model: trained in place, in evaluation mode (without dropout).
        args: `max_steps`, batch sizes of training and the optimizer in it are not used.
        budget: of dataset_size examples; the unit must be the example.
        loss: one value an example, such as `dpzero.losses.causal_lm()`.
        clip: see `DPZero`.
        train_dataset: the private rows.
        settings: smoothing, one_at_a_time and others of `DPZero`.
        others: eval_dataset, data_collator, callbacks and others of `Trainer`.

    Raises:
        ValueError: arguments that split or scale a batch, several processes or GPUs, or as `DPZero`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        budget: Budget,
        loss: PerExampleLoss,
        clip: float,
        train_dataset: Dataset[Any],
        settings: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        args = _without_accumulation(args)
        args.max_steps, args.ignore_data_skip = Budget.require(budget).setting.steps, True
        super().__init__(model, args, train_dataset=train_dataset, **others)
        chosen = {"learning_rate": args.learning_rate, "seed": args.seed} | dict(settings or {})
        self.dpzero = _StepOfTrainer(self.model.eval(), loss, budget, clip=clip, **chosen)
        self.optimizer = self.dpzero

    def get_train_dataloader(self) -> Any:
        """The batches that the budget has left."""
        rows, collate = self.train_dataset, self.data_collator
        if hasattr(rows, "column_names"):
            rows = self._remove_unused_columns(rows, description="training")
        workers = self.args.dataloader_num_workers
        return self.dpzero.budget.loader(rows, collate_fn=collate, num_workers=workers)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Hands the batch to the optimizer, whose step the Trainer calls next. Returns 0 in place of a loss."""
        self.model.eval()
        self.dpzero.batch = inputs
        return torch.zeros((), device=self.args.device)

    def train(self, *arguments: Any, **named: Any) -> TrainOutput:
        output = super().train(*arguments, **named)
        return TrainOutput(output.global_step, math.nan, _public(output.metrics))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs what is public, with the epsilon that was spent."""
        super().log({**_public(logs), "epsilon": self.dpzero.budget.epsilon_spent()})

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the number would tell the size of the private batch."""
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Counts none, as `floating_point_ops`."""

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """There are no gradients."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """There are no gradients."""


class _StepOfTrainer(DPZero):
    """DPZero whose step takes the batch that the Trainer has put there: accelerate calls `step` with a closure."""

    batch: Any = None

    def step(self, closure: Any = None) -> float | list[float]:  # type: ignore[override]
        batch, self.batch = self.batch, None
        return super().step(batch)


def _public(logs: Mapping[str, float]) -> dict[str, float]:
    """Without what depends on private batches but by the weights."""
    return {key: value for key, value in logs.items() if key not in WITHHELD and not key.startswith("train_")}


def _without_accumulation(args: TrainingArguments) -> TrainingArguments:
    """A copy of the arguments. Raises ValueError for those under which a step is not the accounted one."""
    refused = {
        "gradient_accumulation_steps": args.gradient_accumulation_steps != 1,
        "auto_find_batch_size": args.auto_find_batch_size,
        "fp16": args.fp16,
        "deepspeed": args.deepspeed,
        "fsdp": args.fsdp,
    }
    if names := [name for name, given in refused.items() if given]:
        raise ValueError(f"{names[0]} changes the step, which takes one whole batch: leave it out of `args`")
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            f"{args.world_size} processes with {args.n_gpu} GPUs each: use one process and one GPU"
        )
    return copy.copy(args)
