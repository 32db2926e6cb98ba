"""Prefix cache: the keys and values of the tokens that all texts begin with are computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .encoding import Examples

MIN_TOKENS = 64  # a shorter prefix is not worth a pass of its own


def shared_prefix(texts: Examples, kept: int = 1) -> NDArray[np.int32]:
    """The tokens that all texts begin with, [P], without the last `kept` of any text."""
    prefix = texts.ids(0)[: max(0, int(texts.lengths().min()) - kept)]
    for i in range(1, len(texts)):
        differs = np.flatnonzero(texts.ids(i)[: len(prefix)] != prefix)
        prefix = prefix[: differs[0]] if len(differs) else prefix
    return prefix


@contextmanager
def reuse(model: Any, texts: Any, kept: int = 1) -> Iterator[None]:
    """Forward passes over these texts, or any of them, skip their shared prefix.

    Hidden states of the prefix are zeros; the others equal those of complete texts, except for rounding. Does
    nothing for a model that is not causal, for cached features, and for a prefix of fewer than MIN_TOKENS.

    Args:
        model: a Classifier or TextScorer.
        texts: `Examples`, or the features of texts.
        kept: tokens at the end of each text whose hidden states are used.
    """
    causal = getattr(model, "kind", "causal") == "causal" and isinstance(texts, Examples)
    prefix = shared_prefix(texts, kept) if causal and len(texts) > 1 else np.zeros(0, np.int32)
    length = len(prefix)
    if length < MIN_TOKENS:
        yield
        return
    ids = torch.from_numpy(prefix.astype(np.int64))[None].to(next(model.parameters()).device)
    cache = model.backbone(input_ids=ids, use_cache=True).past_key_values

    def skip_prefix(_: nn.Module, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(options["input_ids"]))
        tokens = options["input_ids"][:, length:]
        return arguments, options | {"input_ids": tokens, "past_key_values": past, "use_cache": True}

    def pad_prefix(_: nn.Module, arguments: tuple, output: Any) -> Any:
        output.last_hidden_state = nn.functional.pad(output.last_hidden_state, (0, 0, length, 0))
        return output

    hooks = [
        model.backbone.register_forward_pre_hook(skip_prefix, with_kwargs=True),
        model.backbone.register_forward_hook(pad_prefix),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
