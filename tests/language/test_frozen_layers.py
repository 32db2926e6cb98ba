"""The cache of what frozen layers give: the last layer and the head answer as the complete model does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpzero.language.data import tasks
from dpzero.language.models import encoding, frozen_layers, losses, text_classifier
from dpzero.language.models.batch_invariance import stand_in_ids

MODELS = ["tiny-encoder", "tiny-causal"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))


def load(name: str) -> tuple[text_classifier.Classifier, dict[str, encoding.Examples]]:
    model = text_classifier.load(name, tasks.load("toy"), "top", seed=3)
    return model, encoding.encode(tasks.load("toy"), name, 24)


def cached(name: str, compute: str = "float32"):
    """(complete model, its texts, last layer and head, examples for these)."""
    (whole, texts), (mine, _) = load(name), load(name)
    precision = losses.CrossEntropy(200, compute).precision
    states = lambda some: frozen_layers.hidden_states(whole, some, precision)  # noqa: E731
    return whole, texts, *frozen_layers.without_frozen_layers(mine, texts, states)


@pytest.mark.parametrize("compute, error", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_those_of_the_complete_model(name, compute, error):
    whole, texts, top, examples = cached(name, compute)
    loss, batch = losses.CrossEntropy(200, compute), np.array([5, 3, 100, 3, 77])
    gradients = []
    for model, rows in ((whole, texts["train"]), (top, examples["train"])):
        trained = [p for p in model.parameters() if p.requires_grad]
        value = loss(model, rows[batch])
        gradients.append([value.detach(), *torch.autograd.grad(value.sum(), trained)])
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=error)
    assert loss.evaluate(top, examples["test"])["loss"] == pytest.approx(
        loss.evaluate(whole, texts["test"])["loss"], abs=error
    )


@pytest.mark.parametrize("name", MODELS)
def test_what_is_trained_is_the_last_layer_and_the_head(name):
    whole, _, top, _ = cached(name)
    trained = {key for key, p in whole.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all(".1." in key for key in trained - {"head.weight", "head.bias"})  # of two layers
    shapes = [[p.shape for p in model.parameters() if p.requires_grad] for model in (whole, top)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in top.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_random_tokens_name_no_hidden_state_of_a_text(name):
    _, _, top, examples = cached(name)
    assert stand_in_ids(top, 500).max() < frozen_layers.PUBLIC_ROWS
    assert min(rows.tokens.min() for rows in examples.values()) == frozen_layers.PUBLIC_ROWS


def test_a_model_that_looks_for_its_mask_and_scored_texts_are_read_whole():
    model, texts = load("tiny-encoder")
    assert frozen_layers.can_cache(model, texts["train"]) and not frozen_layers.can_cache(model, "scored")
    model.kind = "masked"
    assert not frozen_layers.can_cache(model, texts["train"])
