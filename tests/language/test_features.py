"""Cached features: the head gives the same losses on them as the complete model on the texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpzero.language.data import tasks
from dpzero.language.models import caches, encoding, losses, text_classifier

MODELS = ["tiny-encoder", "tiny-causal"]
HEAD = {"tune": "head", "compute": "float32"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))


def load(name: str, tune: str = "head") -> tuple[text_classifier.Classifier, encoding.Examples]:
    model = text_classifier.load(name, tasks.load("toy"), tune, seed=3)
    return model, encoding.encode(tasks.load("toy"), name, 24)["train"]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_accuracy_equal_those_of_the_complete_model(name):
    (model, texts), loss = load(name), losses.CrossEntropy(token_budget=200)
    features = caches.read_features(name, lambda: model, texts, 3, "cpu")
    batch = np.array([5, 3, 200, 3, 77])
    head = text_classifier.HeadAlone(model.head)
    for enabled in (True, False):  # a head has a product of its own without gradients
        with torch.set_grad_enabled(enabled):
            assert torch.allclose(loss(head, features[batch]), loss(model, texts[batch]), atol=1e-5)
    assert loss(head, features[batch[:0]]).shape == (0,)
    on_features, on_texts = loss.evaluate(head, features), loss.evaluate(model, texts)
    assert on_features["accuracy"] == on_texts["accuracy"]
    assert on_features["loss"] == pytest.approx(on_texts["loss"], abs=1e-5)


def test_micro_batches_change_no_loss():
    model, texts = load("tiny-encoder")
    features = caches.read_features("tiny-encoder", lambda: model, texts, 3, "cpu")
    head = text_classifier.HeadAlone(model.head)
    few, many = (losses.CrossEntropy(budget)(head, features[np.arange(50)]) for budget in (1000, 7))
    assert torch.allclose(few, many, atol=1e-6)


def test_features_are_cached_for_their_texts(monkeypatch):
    model, texts = load("tiny-encoder")
    first = caches.read_features("tiny-encoder", lambda: model, texts, 3, "cpu")

    def asked(*_):
        raise AssertionError("the body was asked again")

    monkeypatch.setattr(model, "features", asked)
    again = caches.read_features("tiny-encoder", lambda: model, texts, 3, "cpu")
    assert np.array_equal(first.values, again.values) and np.array_equal(first.labels, again.labels)
    with pytest.raises(AssertionError, match="asked again"):
        caches.read_features("tiny-encoder", lambda: model, texts[np.arange(9)], 3, "cpu")


def test_the_number_of_threads_changes_no_bit():
    model, texts = load("tiny-causal")
    before = torch.get_num_threads()
    try:
        arrays = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            arrays.append(caches.features(model, texts))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*arrays)


@pytest.mark.parametrize(
    "settings, whether",
    [
        (HEAD, True),
        (HEAD | {"tune": "bias"}, False),
        (HEAD | {"tune": "full"}, False),
        (HEAD | {"compute": "bfloat16"}, False),
        (HEAD | {"dropout": True}, False),
    ],
)
def test_features_are_used_if_only_the_head_is_trained(settings, whether):
    _, texts = load("tiny-encoder")
    assert caches.trains_on_features(texts, settings) is whether
