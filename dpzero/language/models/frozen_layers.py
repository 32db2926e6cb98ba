"""The layers of a backbone, and a cache of what those below the last one give while they are frozen.

With `tune: top` the last layer and the head are trained. The hidden states that the last layer reads are then the same
at every step: they are computed once for all texts, and a step costs one layer in place of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import UsageError
from . import caches
from .batch_invariance import stand_in_ids
from .encoding import Examples

PUBLIC_ROWS = 64  # hidden states of random tokens, which stand-ins read
Precision = Callable[[torch.device], AbstractContextManager]


def layers_of(backbone: Any) -> list[Any]:
    """The layers of a model of transformers, in order. Raises UsageError for a model that has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in backbone.base_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"a model of type {backbone.config.model_type!r} has no layers that are known here: take another tune"
        )
    return layers


def can_cache(model: Any, texts: Any) -> bool:
    """Whether the last layer of this model can do without those below: a classifier that finds its feature without tokens."""
    return getattr(model, "kind", None) in ("encoder", "causal") and isinstance(texts, Examples)


@torch.no_grad()
def hidden_states(model: Any, texts: Examples, precision: Precision) -> NDArray[np.float32]:
    """What the last layer reads of each token, float32 [sum of lengths, H]: the same bits for every number of threads.

    Args:
        model: a Classifier.
        precision: context of the forward passes, as `losses.CrossEntropy.precision`.
    """
    device, seen = next(model.parameters()).device, []
    hook = layers_of(model.backbone)[-1].register_forward_pre_hook(
        lambda _, arguments, options: seen.append(arguments[0] if arguments else options["hidden_states"]),
        with_kwargs=True,
    )
    rows = np.empty((texts.token_count, model.backbone.config.hidden_size), np.float32)
    try:
        with caches.one_thread(), precision(device):
            for order, part in texts.parts(caches.TOKEN_BUDGET):
                ids, mask, _ = part.padded(device)
                model(ids, mask)
                states = seen.pop()[mask.bool()].float().cpu().numpy()
                places = [np.arange(texts.offsets[i], texts.offsets[i + 1]) for i in order]
                rows[np.concatenate(places)] = states
    finally:
        hook.remove()
    return rows


def without_frozen_layers(
    model: Any, splits: Mapping[str, Examples], states: Callable[[Examples], NDArray[np.float32]]
) -> tuple[Any, dict[str, Examples]]:
    """The last layer and the head, and examples whose tokens are places in a table of hidden states.

    Args:
        model: a Classifier, which is changed in place.
        splits: texts by the name of their split.
        states: gives what `hidden_states` does.
    """
    public = Examples.from_token_ids([stand_in_ids(model, PUBLIC_ROWS)], [0])
    tables, examples, start = [states(public)], {}, PUBLIC_ROWS
    for name, texts in splits.items():
        tables.append(states(texts))
        places = np.arange(start, start + texts.token_count, dtype=np.int32)
        examples[name] = Examples(places, texts.offsets, texts.labels)
        start += texts.token_count
    layers = layers_of(model.backbone)
    holder = next(
        m for m in model.backbone.modules() if isinstance(m, nn.ModuleList) and layers[0] in list(m)
    )
    del holder[: len(layers) - 1]
    table = HiddenStates(np.concatenate(tables), next(model.parameters()).device)
    if hasattr(model.backbone, "embeddings"):  # with positions and a norm
        model.backbone.embeddings = table
    else:
        model.backbone.set_input_embeddings(table)
    return model, examples


class HiddenStates(nn.Module):
    """In place of a backbone's embeddings: input_ids [B, L] -> the rows of the table that they name, [B, L, H].

    Those who draw random tokens, of which `num_embeddings` says how many there are, meet the public rows alone.
    """

    num_embeddings = PUBLIC_ROWS

    def __init__(self, rows: NDArray[np.float32], device: torch.device) -> None:
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", torch.from_numpy(rows).to(device), persistent=False)

    @property
    def word_embeddings(self) -> HiddenStates:
        """What a model of transformers asks its embeddings for."""
        return self

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return self.rows[input_ids]
