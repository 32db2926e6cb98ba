"""Classification heads: a copy of a model's output layer at the label words, or its tied table of embeddings.

A copy trains exactly as an untied output layer would, because no other row of that layer is used. In models
with tied embeddings (RoBERTa, OPT, small Llamas) a trained row is also the word's input embedding; a copy
would separate the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MaskedTransform(nn.Module):
    """RoBERTa's layer between hidden states and its output layer: [B, H] -> [B, H]."""

    def __init__(self, lm_head: Any) -> None:
        super().__init__()
        self.dense, self.layer_norm = lm_head.dense, lm_head.layer_norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer_norm(nn.functional.gelu(self.dense(hidden)))


class Shift(nn.Module):
    """Adds a bias, [B, K] -> [B, K]: a layer for which DP-SGD can take per-sample gradients."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, scores: Tensor) -> Tensor:
        return torch.add(scores, self.bias)


class TiedHead(nn.Module):
    """Scores of K words, [B, H] -> [B, K], by the model's own embeddings and a copy of its output biases.

    Each text looks the rows up separately, as it does for its input: perturbations touch only rows that are
    looked up, and per-sample gradients of DP-SGD add both uses of a row.
    """

    words: Tensor

    def __init__(self, output: nn.Linear, words: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.Embedding(output.weight.shape[0], output.weight.shape[1], device="meta")
        self.rows.weight = output.weight
        self.register_buffer("words", torch.tensor(words), persistent=False)
        self.shift = nn.Identity() if output.bias is None else Shift(output.bias.detach()[self.words].clone())

    def forward(self, feature: Tensor) -> Tensor:
        rows = self.rows(self.words.expand(len(feature), -1))
        return self.shift((rows @ feature[..., None])[..., 0])


def new_head(width: int, labels: int) -> nn.Linear:
    """[B, width] -> [B, labels], with zero biases; the caller sets the rows."""
    head = nn.Linear(width, labels)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def label_head(language_model: Any, words: Sequence[int], tied: bool) -> nn.Linear | TiedHead:
    """A language model's output layer for K label words of one token each, [B, H] -> [B, K].

    Args:
        language_model: from transformers, with its output layer.
        words: token ids, in the order of the labels.
        tied: keep the output layer tied to the input embeddings if the model ties them.
    """
    output = language_model.get_output_embeddings()
    if tied and output.weight is language_model.get_input_embeddings().weight:
        return TiedHead(output, words)
    head = new_head(output.weight.shape[1], len(words))
    head.weight.copy_(output.weight[words])
    if output.bias is not None:
        head.bias.copy_(output.bias[words])
    return head
