"""What the tests of DP-MemArc's two networks share: small models, two texts, and what any network must leave as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

MODELS = [("tiny-encoder", "toy"), ("tiny-causal", "toy"), ("tiny-masked", "trec")]
every_model = pytest.mark.parametrize("name, task", MODELS)
IDS = torch.tensor([[1, 2, 30, 40, 50, 60], [1, 2, 70, 0, 0, 0]])
MASK = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])


def started(model: nn.Module, part: str) -> nn.Module:
    """Layers under a module of the name `part` that start at 0 are moved, so that all of it counts."""
    torch.manual_seed(5)
    for name, p in model.named_parameters():
        if f".{part}." in name and not p.any():
            nn.init.normal_(p, std=0.1)
    return model


@torch.no_grad()
def check_texts_do_not_affect_each_other(model: nn.Module) -> None:
    torch.testing.assert_close(model(IDS, MASK)[1:], model(IDS[1:, :3], MASK[1:, :3]), atol=3e-6, rtol=0)


@torch.no_grad()
def check_it_generates_what_it_scores(model: Any) -> None:
    """`model` scores text: each greedy token is the likeliest by the scores after the tokens before it."""
    ids = torch.tensor([[1, 20, 30, 40]])
    written = model.language_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, pad_token_id=0
    )
    for end in range(4, written.shape[1]):
        before = written[:, :end]
        scores = model(before, torch.ones_like(before), torch.tensor([[end - 1]]))
        assert scores[0, 0].argmax() == written[0, end]
