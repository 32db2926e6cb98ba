"""Per-example losses of Hugging Face models, and of any model with a torch criterion.

`DPZero` needs one loss for each example. Each function here returns such a loss, (model, batch) -> float32 [B],
for batches as a collator makes them: a mapping of tensors [B, ...]. Tensors are moved to the model's device.
An example's loss is the mean over its own tokens unless `tokens="sum"` is given. It is never a mean over the
batch, because one example's value must depend on that example alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .zeroth_order.protocols import PerExampleLoss

Tokens = Literal["mean", "sum"]
Batch = Mapping[str, Any]
ALIGNED = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"}
)  # a column a token


def causal_lm(
    *, ignore_index: int = -100, tokens: Tokens = "mean", token_budget: int | None = None
) -> PerExampleLoss:
    """The next-token cross entropy of a causal language model.

    Args:
        ignore_index: the label of positions that do not count. Padding, where `attention_mask` is 0, never does.
        tokens: whether an example's loss is the mean or the sum over its tokens that count.
        token_budget: the most padded tokens of one forward pass; None takes the whole batch at once.

    Returns:
        A loss of batches with `input_ids` and `attention_mask`, int64 [B, T], and `labels` [B, T] if they are not the
        `input_ids`.
        An example without a token that counts has the loss 0.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        targets = _next_tokens(batch, ignore_index)
        logits = _logits(model, {**batch, "labels": None})
        return _token_losses(logits[:, :-1], targets, ignore_index, tokens)

    return _in_parts(loss, token_budget, tokens, ALIGNED)


def masked_lm(
    *, ignore_index: int = -100, tokens: Tokens = "mean", token_budget: int | None = None
) -> PerExampleLoss:
    """The cross entropy of a masked language model at the positions whose label counts.

    Arguments as in `causal_lm`; the batch must have `labels`, ignore_index wherever nothing was masked. Mask each
    example once, before training: a collator that draws masks for each batch makes an example's loss random.
    """
    return _in_parts(_model_labels(ignore_index, tokens, give_labels=False), token_budget, tokens, ALIGNED)


def seq2seq_lm(
    *, ignore_index: int = -100, tokens: Tokens = "mean", token_budget: int | None = None
) -> PerExampleLoss:
    """The cross entropy of an encoder-decoder model such as T5, whose decoder reads the shifted `labels`.

    Arguments as in `causal_lm`; the batch must have `labels`, int64 [B, T'].
    """
    # the labels are a sequence of their own
    aligned = ALIGNED - {"labels"}
    return _in_parts(_model_labels(ignore_index, tokens, give_labels=True), token_budget, tokens, aligned)


def sequence_classification() -> PerExampleLoss:
    """The loss of a classifier of whole sequences, images or rows: a model whose output has `logits` [B, C].

    The type of `labels` decides, as in transformers: integers [B] give the cross entropy, floats [B] (and one
    logit) the squared error, floats [B, C] the mean binary cross entropy over the C labels.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = _logits(model, {**batch, "labels": None})
        labels = _need_labels(batch).to(logits.device)
        if not labels.is_floating_point():
            return functional.cross_entropy(logits, labels.view(-1), reduction="none")
        if logits.shape[1] == 1:
            return (logits[:, 0] - labels.view(-1).float()).square()
        return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)

    return loss


def from_reduction_none(criterion: Callable[..., Tensor], *, tokens: Tokens = "mean") -> PerExampleLoss:
    """The loss of a model and a torch criterion, for batches (inputs, targets) or mappings with `labels`.

    Args:
        criterion: a module made with `reduction="none"`, such as nn.CrossEntropyLoss(reduction="none"), or a
            function that takes `reduction`, such as nn.functional.mse_loss.
        tokens: whether an example's loss is the mean or the sum of its values, if the criterion returns several.

    Returns:
        A loss of batches (inputs, targets), inputs being a tensor, or a mapping or tuple of the model's arguments.

    Raises:
        ValueError: a criterion that reduces over the batch.
    """
    values = criterion
    if isinstance(criterion, nn.Module):
        if getattr(criterion, "reduction", "none") != "none":
            raise ValueError(
                f"{type(criterion).__name__} has reduction={criterion.reduction!r}, which mixes the examples of a "
                'batch: make it with reduction="none"'
            )
    elif "reduction" in inspect.signature(criterion).parameters:
        values = partial(criterion, reduction="none")
    _check_tokens(tokens)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = _inputs_and_targets(batch)
        outputs = _call(model, inputs)
        each = values(outputs, _to(targets, outputs.device))
        if each.shape[:1] != outputs.shape[:1]:
            raise ValueError(
                f"the criterion returned shape {tuple(each.shape)} for {len(outputs)} examples: it must return values "
                'for each example, as with reduction="none"'
            )
        flat = each.float().reshape(len(each), -1)
        return flat.mean(1) if tokens == "mean" else flat.sum(1)

    return loss


# -- parts -------------------------------------------------------------------------------------------------------


def _model_labels(ignore_index: int, tokens: Tokens, give_labels: bool) -> PerExampleLoss:
    """Logits at the positions of the labels; some models need the labels as an argument, too."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        labels = _need_labels(batch)
        logits = _logits(model, batch if give_labels else {**batch, "labels": None})
        return _token_losses(logits, labels, ignore_index, tokens)

    return loss


def _logits(model: nn.Module, inputs: Batch) -> Tensor:
    """float32, from a model that is called with the batch's fields by name, without those that are None."""
    device = next(model.parameters()).device
    arguments = {key: _to(value, device) for key, value in inputs.items() if value is not None}
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments.setdefault(
            "use_cache", False
        )  # keys and values of a generation, as large as the activations
    output = model(**arguments)
    logits = output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output)
    return logits.float() if isinstance(logits, Tensor) else logits[0].float()


def _next_tokens(batch: Batch, ignore_index: int) -> Tensor:
    """The token that each position but the last predicts, int64 [B, T - 1]; ignore_index if it does not count."""
    labels = torch.as_tensor(batch["input_ids"] if batch.get("labels") is None else batch["labels"])
    if batch.get("attention_mask") is None:
        return labels[:, 1:]
    read = torch.as_tensor(batch["attention_mask"]) != 0
    counts = read[:, :-1] & read[:, 1:]  # the first token after leading padding is predicted from nothing
    return labels[:, 1:].masked_fill(~counts, ignore_index)


def _need_labels(batch: Batch) -> Tensor:
    if batch.get("labels") is None:
        raise ValueError(f"the batch has no labels, only {', '.join(map(str, batch))}: add `labels`")
    return torch.as_tensor(batch["labels"])


def _token_losses(logits: Tensor, labels: Tensor, ignore_index: int, tokens: Tokens) -> Tensor:
    """Losses [B] from logits [B, T, V] and labels [B, T], one example at a time to save memory."""
    labels = labels.to(logits.device)
    losses = [
        functional.cross_entropy(row, target, ignore_index=ignore_index, reduction="sum")
        for row, target in zip(logits, labels, strict=True)
    ]
    sums = torch.stack(losses) if losses else logits.new_zeros(0)
    counts = (labels != ignore_index).sum(1).clamp_min(1)
    return sums / counts if tokens == "mean" else sums


def _in_parts(
    loss: PerExampleLoss, token_budget: int | None, tokens: Tokens, aligned: frozenset[str]
) -> PerExampleLoss:
    """The loss, computed on micro-batches of at most token_budget padded tokens.

    The fields in `aligned` lose the columns that pad all rows of a micro-batch.
    """
    _check_tokens(tokens)
    if token_budget is None:
        return loss
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}: give a number of tokens of at least 1")

    def in_parts(model: nn.Module, batch: Batch) -> Tensor:
        parts = list(_micro_batches(batch, token_budget, aligned))
        losses = torch.cat([loss(model, part) for _, part in parts])
        return losses[torch.cat([rows for rows, _ in parts]).argsort().to(losses.device)]

    return in_parts


def _micro_batches(
    batch: Batch, token_budget: int, aligned: frozenset[str]
) -> Iterator[tuple[Tensor, Batch]]:
    """(rows int64 [n], their batch without trailing padding), the longest rows last."""
    fields = {key: torch.as_tensor(field) for key, field in batch.items() if field is not None}
    mask = fields.get("attention_mask", torch.ones_like(fields["input_ids"]))
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = (positions * (mask != 0)).amax(1).clamp_min(1)  # leading padding stays: it moves positions
    order, first = lengths.argsort(stable=True), 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * int(lengths[order[last]]) <= token_budget:
            last += 1
        rows, length = order[first:last], int(lengths[order[last - 1]])
        yield (
            rows,
            {
                key: field[rows][:, :length] if key in aligned and field.dim() > 1 else field[rows]
                for key, field in fields.items()
            },
        )
        first = last


def _inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}, _need_labels(batch)
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(
        f"a batch of type {type(batch).__name__} is no pair (inputs, targets): give one, or a mapping with `labels`"
    )


def _call(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, Mapping):
        return _logits(model, inputs)
    device = next(model.parameters()).device
    output = (
        model(*(_to(i, device) for i in inputs))
        if isinstance(inputs, (list, tuple))
        else model(_to(inputs, device))
    )
    return output if isinstance(output, Tensor) else output.logits


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _check_tokens(tokens: str) -> None:
    if tokens not in ("mean", "sum"):
        raise ValueError(f"tokens is {tokens!r}: give mean or sum")
