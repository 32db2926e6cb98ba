"""Prefix tuning (Li & Liang, 2021, arXiv 2101.00190): a few trainable keys and values in every layer.

They start as the keys and values of random tokens, as in MeZO ("real activations", Malladi et al., 2023), and
come before the text without shifting its positions. They are inserted where transformers computes attention,
so that every architecture supports them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "prefix"  # of this attention, in transformers
TOKENS = 5  # as in MeZO

# keys and values of each layer, while recording
_recorded: dict[nn.Module, tuple[Tensor, Tensor]] | None = None


class Prefix(nn.Embedding):
    """Row t holds key and value t of one layer, all heads.

    A table of embeddings, which Opacus and the perturbations support.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        """`key` and `value`: [1, heads, T, D]."""
        self.heads = key.shape[1]
        rows = torch.cat([part[0].transpose(0, 1).flatten(1) for part in (key, value)], 1)
        super().__init__(rows.shape[0], rows.shape[1], _weight=rows.clone())

    def keys_and_values(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Key and value for each text, [B, heads, T, D]."""
        numbers = torch.arange(self.num_embeddings, device=self.weight.device).repeat(batch_size, 1)
        parts = self(numbers).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1]


def attach(backbone: Any, seed: int = 0) -> None:
    """Give each attention layer its prefix.

    The start is a function of the seed and the weights; nothing else changes.
    """
    global _recorded
    backbone.set_attn_implementation(NAME)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(backbone.config.vocab_size, (1, TOKENS), generator=generator)
    ids = ids.to(next(backbone.parameters()).device)
    was_training, _recorded = backbone.training, {}
    try:
        with torch.no_grad():
            backbone.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
        for layer, (key, value) in _recorded.items():
            layer.prefix = Prefix(key, value)
    finally:
        _recorded = None
        backbone.train(was_training)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    if _recorded is not None:
        _recorded[module] = (key, value)
    if hasattr(module, "prefix"):
        prefix = module.prefix.keys_and_values(len(key))
        key, value = (torch.cat(pair, 2) for pair in zip(prefix, (key, value), strict=True))
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (module.prefix.num_embeddings, 0))
    options["is_causal"] = False
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)  # always makes a mask, also for causal attention
