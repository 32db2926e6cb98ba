"""Prefix tuning (Li & Liang, 2021, arXiv 2101.00190): in every layer, a few keys and values that each text attends to as well.

They start as the keys and values of random tokens, as in MeZO ("real activations", Malladi et al., 2023), and stand before the text
without moving its positions. They are put where transformers computes attention, so that any architecture has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "prefix"  # of this way of attention, to transformers
TOKENS = 5  # as in MeZO

_seen: dict[nn.Module, tuple[Tensor, Tensor]] | None = (
    None  # keys and values of each layer, while they are watched
)


class Prefix(nn.Embedding):
    """Row t holds key and value t of one layer, all heads: a table of embeddings, so that Opacus and the passes know it."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        """`key` and `value`: [1, heads, T, D]."""
        self.heads = key.shape[1]
        rows = torch.cat([part[0].transpose(0, 1).flatten(1) for part in (key, value)], 1)
        super().__init__(*rows.shape, _weight=rows.clone())

    def of(self, batch: int) -> tuple[Tensor, Tensor]:
        """Key and value for each text, [B, heads, T, D]."""
        numbers = torch.arange(self.num_embeddings, device=self.weight.device).repeat(batch, 1)
        parts = self(numbers).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1]


def attach(backbone: nn.Module, seed: int = 0) -> None:
    """Give each layer's attention its prefix; nothing else is changed. The start is a function of the seed and the weights."""
    backbone.set_attn_implementation(NAME)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(backbone.config.vocab_size, (1, TOKENS), generator=draw)
    device = next(backbone.parameters()).device
    was_training = backbone.training
    with _watched() as seen, torch.no_grad():
        backbone.eval()(input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device))
    backbone.train(was_training)
    for layer, (key, value) in seen.items():
        layer.prefix = Prefix(key, value)


@contextmanager
def _watched() -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    global _seen
    _seen = {}
    try:
        yield _seen
    finally:
        _seen = None


def _attention(module, query, key, value, attention_mask, **more):
    if _seen is not None:
        _seen[module] = (key, value)
    if hasattr(module, "prefix"):
        before = module.prefix.of(len(key))
        key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (module.prefix.num_embeddings, 0))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more | {"is_causal": False})


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)  # which always makes one where the future is hidden
