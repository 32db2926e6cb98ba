"""What makes scores of the label words from a feature: a copy of a model's output layer at these words, or its table of embeddings.

A copy trains as the layer would where the layer is the model's alone, for no other row of it is read. Where the layer is the table of
embeddings itself (RoBERTa, OPT, small Llamas), a row that is trained is also what its word is read as, and a copy would part the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WordLayer(nn.Module):
    """What RoBERTa has between its hidden states and the scores of words, without the words: [B, H] -> [B, H]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.dense, self.layer_norm = head.dense, head.layer_norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer_norm(nn.functional.gelu(self.dense(hidden)))


class Shift(nn.Module):
    """Adds a bias, [B, K] -> [B, K]: a layer of its own, of which DP-SGD can take gradients of single examples."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, scores: Tensor) -> Tensor:
        return torch.add(scores, self.bias)


class TiedHead(nn.Module):
    """Scores of K words by the model's own output layer, [B, H] -> [B, K]: its weight, and a copy of its biases of these words.

    Every text looks the rows up for itself, as it does its own words: the passes perturb rows that are looked up and no others, and
    DP-SGD's per-sample gradients add up both uses.
    """

    def __init__(self, output: nn.Linear, words: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.Embedding(*output.weight.shape, device="meta")
        self.rows.weight = output.weight
        self.register_buffer("words", torch.tensor(words), persistent=False)
        self.shift = nn.Identity() if output.bias is None else Shift(output.bias.detach()[self.words].clone())

    def forward(self, feature: Tensor) -> Tensor:
        rows = self.rows(self.words.expand(len(feature), -1))
        return self.shift((rows @ feature[..., None])[..., 0])


def own_head(width: int, labels: int) -> nn.Linear:
    """Rows to be set, biases 0."""
    head = nn.Linear(width, labels)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def head_of(whole: nn.Module, words: Sequence[int], tied: bool) -> nn.Linear | TiedHead:
    """A language model's output layer at these tokens of one word each; where `tied`, sharing what the model shares."""
    output = whole.get_output_embeddings()
    if tied and output.weight is whole.get_input_embeddings().weight:
        return TiedHead(output, words)
    head = own_head(output.weight.shape[1], len(words))
    head.weight.copy_(output.weight[words])
    if output.bias is not None:
        head.bias.copy_(output.bias[words])
    return head
