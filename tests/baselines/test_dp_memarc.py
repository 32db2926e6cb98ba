"""DP-MemArc: DP-SGD on a side network and on a reversible one, in every way, against one backward pass an example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpzero.language.models import losses, random_models, reversible_network, text_classifier
from dpzero.language.models.text_classifier import TextScorer
from tests.baselines.brute_force import check_step
from tests.baselines.test_dp_sgd_models import (  # noqa: F401 (a fixture)
    FAMILIES,
    batch,
    continuations,
    every_way,
    language_model,
)

NETWORKS = {
    "side": {},
    "side, pooled": {"compression": "pool"},
    "reversible": {},
    "reversible, each layer stored": {"span": 1},
}


def with_network(model: nn.Module, network: str) -> nn.Module:
    torch.manual_seed(1)
    text_classifier.select_trainable(model, network.split(",")[0], reduction=4, **NETWORKS[network])
    for p in model.parameters():
        if p.requires_grad and not p.any():
            nn.init.normal_(p, std=0.1)
    return model


@every_way
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_exact(family, network, clipping, batch):  # noqa: F811
    for clip, token_budget in ((0.1, 2048), (20.0, 16)):
        model = with_network(random_models.Answering(language_model(family, True)), network)
        bitten = check_step(model, losses.CrossEntropy(token_budget), batch, clip, clipping)
        assert bitten == 7 or clip > 0.1


@pytest.mark.parametrize("network", ["side", "reversible"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_an_example_of_several_candidates_is_clipped_as_one(family, network):
    model = language_model(family, True)
    model.config.use_cache = False
    model = with_network(TextScorer(model), network)
    loss = losses.ContinuationLoss(2048)
    assert check_step(model, loss, continuations([2, 1, 3]), 0.1, "hooks") > 0


@every_way
def test_clipped_gradients_of_a_reversible_network_are_those_of_plain_backpropagation(
    clipping,
    batch,  # noqa: F811
    monkeypatch,
):
    """The loop over examples has an ordinary graph here; the step under test computes its activations back."""
    apply = reversible_network._Step.apply

    def plain_for_one(own, layer, now, hidden, partner, *parameters):
        if len(hidden) == 1:
            return own.couple(layer, now.dtype, hidden, partner)
        return apply(own, layer, now, hidden, partner, *parameters)

    monkeypatch.setattr(reversible_network._Step, "apply", plain_for_one)
    model = with_network(random_models.Answering(language_model("roberta", True)), "reversible")
    assert check_step(model, losses.CrossEntropy(2048), batch, 0.1, clipping) == 7
