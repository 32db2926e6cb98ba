"""DP-MemArc's side network: what it trains, where it starts, and that no gradient passes the frozen model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import text_classifier
from dpzero.language.models.side_network import TEMPERATURE
from tests.language.networks import (
    IDS,
    MASK,
    check_it_generates_what_it_scores,
    check_texts_do_not_affect_each_other,
    every_model,
    started,
)

LAYERS, WIDTH = 2, 32  # of the tiny models


def load(name: str, task: str, tune: str = "side", **network: object) -> nn.Module:
    return text_classifier.load(name, tasks.load(task), tune, seed=4, **network)


@every_model
@torch.no_grad()
def test_training_starts_from_the_pretrained_model(name, task):
    assert torch.equal(load(name, task)(IDS, MASK), load(name, task, "head")(IDS, MASK))
    assert not torch.allclose(
        started(load(name, task), "side")(IDS, MASK), load(name, task)(IDS, MASK), atol=1e-4
    )


@every_model
@pytest.mark.parametrize("compression", ["linear", "pool"])
def test_the_branch_alone_is_trained_and_an_encoders_head(name, task, compression):
    model = load(name, task, reduction=4, compression=compression)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    head = {"head.weight", "head.bias"} if name == "tiny-encoder" else set()
    assert trained == {key for key, _ in model.named_parameters() if ".side." in key} | head
    rungs = model.backbone.base_model.side.rungs
    assert len(rungs) == LAYERS + 1  # the embeddings' and one a layer
    assert all(rung.block.up.weight.shape == (WIDTH // 4, WIDTH // 4) for rung in rungs)
    assert any("compress" in key for key in trained) == (compression == "linear")


@every_model
def test_no_gradient_passes_the_frozen_model(name, task):
    """No hidden state of it requires a gradient, so its activations are not stored, and every parameter of the branch has one."""
    model, seen = started(load(name, task, reduction=2), "side"), []
    for module in model.backbone.base_model.modules():
        if not any(p.requires_grad for p in module.parameters()) and not isinstance(module, nn.ModuleList):
            module.register_forward_hook(lambda *call: seen.append(call[2]))
    model(IDS, MASK).sum().backward()
    tensors = [out for out in seen if isinstance(out, torch.Tensor)]
    assert len(tensors) > 10 and not any(out.requires_grad for out in tensors)
    for key, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, key
    assert all(p.grad.any() for key, p in model.named_parameters() if ".side." in key)


@every_model
def test_a_step_stores_activations_of_the_branch_alone(name, task):
    """With pooled activations none of the model's width but those that the output reads."""

    def stored(**network: object) -> list[torch.Size]:
        sizes: list[torch.Size] = []
        model = load(name, task, reduction=4, **network)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() > 1 and tensor.shape[:-1].numel() == IDS.numel():
                sizes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(IDS, MASK)
        return sizes

    def wide(sizes: list[torch.Size]) -> int:
        return sum(size[-1] >= WIDTH for size in sizes)

    assert wide(stored()) - wide(stored(compression="pool")) == LAYERS + 1
    assert wide(stored(compression="pool")) <= 2


@torch.no_grad()
def test_a_gate_mixes_the_branch_with_the_compressed_layer():
    side = started(load("tiny-encoder", "toy", reduction=4), "side").backbone.side
    branch, hidden = torch.randn(2, 6, WIDTH // 4), torch.randn(2, 6, WIDTH)
    rung = side.rungs[1]
    for raw, gate in ((0.0, 0.5), (TEMPERATURE, torch.tensor(1.0).sigmoid()), (-9.0, 0.0)):
        rung.gate.weight.fill_(raw)
        mixed = gate * branch + (1 - gate) * rung.compress(hidden)
        torch.testing.assert_close(rung(branch, hidden), mixed + rung.block(mixed))


@every_model
def test_texts_do_not_affect_each_other(name, task):
    model = started(load(name, task), "side")
    check_texts_do_not_affect_each_other(model)


def test_a_model_with_a_side_network_generates_what_it_scores():
    model = started(load("tiny-causal", "squad"), "side")
    check_it_generates_what_it_scores(model)


def test_an_unknown_compression_is_refused():
    with pytest.raises(UsageError, match="compression is 'max': give one of linear, pool"):
        load("tiny-encoder", "toy", compression="max")
