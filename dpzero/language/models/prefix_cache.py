"""In-context learning asks every question behind the same demonstrations: their keys and values are made once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ..data.encoding import Examples

LEAST = 64  # tokens: a shorter beginning is not worth a pass of its own


def shared(texts: Examples, asked: int = 1) -> np.ndarray:
    """The tokens with which all texts begin, int32 [P]; none of the last `asked` of any, at which the model is read."""
    beginning = texts.ids(0)[: max(0, int(texts.lengths().min()) - asked)]
    for i in range(1, len(texts)):
        differs = np.flatnonzero(texts.ids(i)[: len(beginning)] != beginning)
        beginning = beginning[: differs[0]] if len(differs) else beginning
    return beginning


@contextmanager
def once(model: nn.Module, texts: Examples, asked: int = 1) -> Iterator[None]:
    """Within, a causal model's backbone reads these texts, or any of them, from where their `shared` beginning ends.

    Hidden states of the beginning, which nobody asks for, are zeros there; the others are those of whole texts, but for rounding.
    """
    causal = getattr(model, "kind", "causal") == "causal" and isinstance(texts, Examples)
    beginning = shared(texts, asked) if causal and len(texts) > 1 else ()
    if len(beginning) < LEAST:
        yield
        return
    ids = torch.from_numpy(beginning.astype(np.int64))[None].to(next(model.parameters()).device)
    kept = model.backbone(input_ids=ids, use_cache=True).past_key_values
    length = len(beginning)

    def rest(_: nn.Module, arguments: tuple, given: dict) -> tuple[tuple, dict]:
        past = copy.deepcopy(kept)
        past.batch_repeat_interleave(len(given["input_ids"]))
        tokens = given["input_ids"][:, length:]
        return arguments, given | {"input_ids": tokens, "past_key_values": past, "use_cache": True}

    def whole(_: nn.Module, arguments: tuple, made):
        made.last_hidden_state = nn.functional.pad(made.last_hidden_state, (0, 0, length, 0))
        return made

    before = model.backbone.register_forward_pre_hook(rest, with_kwargs=True)
    after = model.backbone.register_forward_hook(whole)
    try:
        yield
    finally:
        before.remove()
        after.remove()
