"""DP-MemArc's reversible network: its inverse, its gradients, and what it does not store."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import random_models, reversible_network, text_classifier
from dpzero.language.models.frozen_layers import layers_of
from dpzero.memory import trackers
from tests.language.networks import (
    IDS,
    MASK,
    check_it_generates_what_it_scores,
    check_texts_do_not_affect_each_other,
    every_model,
    started,
)

DEEP = {
    "model_type": "roberta",
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
}


def load(name: str, task: str, **network: object) -> nn.Module:
    return started(text_classifier.load(name, tasks.load(task), "reversible", seed=4, **network), "adapter")


@pytest.fixture
def deep(monkeypatch):
    """A model of twelve layers, which the default span computes back from the last streams alone."""
    catalogue = {**random_models.catalogue(), "deep": DEEP}
    monkeypatch.setattr(random_models, "catalogue", lambda: catalogue)

    def build(tune: str = "reversible", **network: object) -> nn.Module:
        model = random_models.build("deep")
        text_classifier.select_trainable(model, tune, **network)
        model.freeze_vocabulary()
        return started(model, "adapter")

    return build


def gradients(model: nn.Module, ids=IDS, mask=MASK) -> list[torch.Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(model(ids, mask).square().sum(), trained)


@pytest.fixture
def plain(monkeypatch):
    """Ordinary backpropagation through the same two streams, which stores them and all activations."""

    def use() -> None:
        def apply(own, layer, now, hidden, partner, *parameters):
            return own.couple(layer, now.dtype, hidden, partner)

        monkeypatch.setattr(reversible_network._Step, "apply", apply)

    return use


def check_gradients(model: nn.Module, plain) -> None:
    mine = gradients(model)
    plain()
    for gradient, expected in zip(mine, gradients(model), strict=True):
        assert expected.any()
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@every_model
def test_gradients_are_those_of_plain_backpropagation(name, task, plain):
    check_gradients(load(name, task), plain)


@pytest.mark.parametrize("settings", [{}, {"span": 5}, {"coupling": 1.0}, {"coupling": 0.1, "span": 2}])
def test_so_they_are_in_a_deep_model(deep, settings, plain):
    check_gradients(deep(**settings), plain)


def test_so_they_are_in_bfloat16_products(deep, plain):
    """The activations are computed again in the precision of the forward pass, which has ended by then."""
    model = deep(span=1)

    def under_autocast(ids, mask):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return nn.Module.__call__(model, ids, mask).float()

    trained = [p for p in model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(under_autocast(IDS, MASK).square().sum(), trained)
    plain()
    theirs = torch.autograd.grad(under_autocast(IDS, MASK).square().sum(), trained)
    for gradient, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_a_layers_inputs_are_computed_back_to_the_precision_of_float32(deep, monkeypatch):
    model, forward, restored = deep(), {}, {}
    couple = reversible_network.ReversibleLayer.couple

    def noted(self, layer, dtype, hidden, partner):
        forward[self] = hidden.detach(), partner.detach()
        return couple(self, layer, dtype, hidden, partner)

    backward = reversible_network._Step.backward

    def watched(ctx, *incoming):
        result = backward(ctx, *incoming)
        if ctx.now.restored is not None:
            restored[ctx.own] = ctx.now.restored
        return result

    monkeypatch.setattr(reversible_network.ReversibleLayer, "couple", noted)
    monkeypatch.setattr(reversible_network._Step, "backward", staticmethod(watched))
    gradients(model)
    layers = layers_of(model.model)
    assert len(restored) == len(layers) - 1 and layers[0] not in restored
    for layer, streams in restored.items():
        for mine, true in zip(streams, forward[layer], strict=True):
            torch.testing.assert_close(mine.float(), true.float(), rtol=2e-7, atol=2e-7)


def test_memory_of_activations_does_not_grow_with_depth(deep, monkeypatch):
    """Of layers within a span; plain LoRA's grows with each layer."""

    def activations(tune: str, layers: int) -> int:
        monkeypatch.setitem(random_models.catalogue()["deep"], "num_hidden_layers", layers)
        model, ids = deep(tune), torch.full((8, 100), 5)
        tracker = trackers.LiveStorage()
        tracker.add_model(model)
        start = tracker.live
        with tracker:
            gradients(model, ids, torch.ones_like(ids))
        own = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
        return tracker.peak - start - own

    stored = 8 * 100 * 32 * 4  # one hidden state
    assert activations("reversible", 12) - activations("reversible", 4) < stored
    assert activations("lora", 12) - activations("lora", 4) > 8 * 5 * stored


@every_model
@torch.no_grad()
def test_the_adapters_start_at_zero_and_the_streams_are_as_the_equations_say(name, task):
    model = text_classifier.load(name, tasks.load(task), "reversible", seed=4, coupling=0.25)
    layers, seen = layers_of(model.backbone), []
    for layer in layers:
        layer.register_forward_hook(lambda *call: seen.append((call[1], call[2])))
    model(IDS, MASK)
    [first, *_], h1 = seen[0]
    [second, *_], h2 = seen[1]
    assert torch.equal(second, h1) and h1.dtype == torch.float64 and h2.dtype == first.dtype
    own = super(reversible_network.ReversibleLayer, layers[0]).forward
    arguments = {}
    layers[0].register_forward_pre_hook(lambda _, args, named: arguments.update(args=args[1:], named=named), with_kwargs=True)  # fmt: skip
    model(IDS, MASK)
    through = own(first, *arguments["args"], **arguments["named"])
    torch.testing.assert_close(h1, 0.25 * first.double() + through.double())


@every_model
def test_texts_do_not_affect_each_other(name, task):
    model = load(name, task)
    check_texts_do_not_affect_each_other(model)


def test_a_reversible_model_generates_what_it_scores():
    model = load("tiny-causal", "squad")
    check_it_generates_what_it_scores(model)


def test_dropout_is_refused_because_a_second_pass_draws_other_masks():
    with pytest.raises(ValueError, match="would draw other dropout masks: leave dropout out"):
        load("tiny-encoder", "toy").train()(IDS, MASK)


def test_an_inverse_that_divides_by_zero_is_refused():
    with pytest.raises(UsageError, match=r"coupling is 0\.0, by which the inverse divides"):
        load("tiny-encoder", "toy", coupling=0.0)
