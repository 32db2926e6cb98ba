"""What a model is asked on a task, and so how its examples and its loss look: a label word at one position, or continued text."""

from __future__ import annotations

from functools import partial

from ...errors import UsageError
from ..data import encoding, multiple_choice, tasks
from ..data.datasets import ALL, Draw
from ..data.multiple_choice import ContinuationLoss
from . import models, tokenizers
from .losses import CrossEntropy

Loss = CrossEntropy | ContinuationLoss


def encode(task: str, model: str, max_length: int, draw: Draw = ALL) -> dict:
    """Each split of the task as the model reads it: `Examples` or `Continuations`, from the cache where it is there.

    Raises UsageError for texts longer than the model has positions.
    """
    if max_length > (longest := models.positions(model)):
        raise UsageError(
            f"max_length is {max_length}, but {model} knows {longest} positions: give a smaller one"
        )
    if models.continues(model, tasks.load(task)):
        return multiple_choice.encode(task, model, max_length, draw)
    return encoding.encode(task, model, max_length, draw)


def loss(
    task: str, model: str, token_budget: int, compute: str = "float32", few_shapes: bool = False
) -> Loss:
    """The loss of one example each, which also knows its metric (`evaluate`) and its stand-ins (`stand_in`).

    Raises UsageError for few shapes of a loss that cannot keep to them.
    """
    asked = tasks.load(task)
    if not models.continues(model, asked):
        return CrossEntropy(token_budget, compute)
    if few_shapes:
        raise UsageError(
            f"answers of task {task} are text of many shapes, which cuda_graphs cannot take: leave it out"
        )
    made = partial(ContinuationLoss, token_budget, compute)
    generate = asked.stanza["causal"].get("generate", 0) if "causal" in asked.stanza else 0
    return made(tokenizers.marks(model), generate) if generate else made()
