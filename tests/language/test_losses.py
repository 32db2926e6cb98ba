"""One loss per example, for every batch and every cut into micro-batches."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dpzero.language.data import tasks
from dpzero.language.models import encoding, text_classifier
from dpzero.language.models.encoding import Examples
from dpzero.language.models.losses import CrossEntropy

ROUNDING = 3e-6  # float32: logits reach 10, and a longer row sums in another order


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))


@pytest.fixture(params=["tiny-encoder", "tiny-causal"])
def model(request) -> text_classifier.Classifier:
    return text_classifier.load(request.param, tasks.load("toy"), "full")


@pytest.fixture
def batch() -> Examples:
    """Lengths from 1 to 40, mixed."""
    generator = np.random.default_rng(0)
    lengths = generator.permutation([1, 2, 3, 5, 8, 13, 21, 34, 40, 40, 7, 7])
    return Examples.from_token_ids(
        [generator.integers(1, 1000, n) for n in lengths], generator.integers(0, 4, 12)
    )


def test_the_loss_is_the_cross_entropy_of_each_example_alone(model, batch):
    together = CrossEntropy(10_000)(model, batch)
    assert together.shape == (12,) and together.dtype == torch.float32
    for i in range(12):
        ids = torch.from_numpy(batch.ids(i).astype(np.int64))[None]
        alone = cross_entropy(model(ids, torch.ones_like(ids)), torch.tensor([batch.labels[i]]))
        assert together[i].item() == pytest.approx(alone.item(), abs=ROUNDING)


@pytest.mark.parametrize("budget", [1, 13, 40, 64, 100, 250])
def test_any_cut_into_micro_batches_gives_the_same_losses(model, batch, budget):
    assert len(list(CrossEntropy(budget).parts(batch))) > 1
    torch.testing.assert_close(
        CrossEntropy(budget)(model, batch), CrossEntropy(10_000)(model, batch), atol=ROUNDING, rtol=0
    )


@pytest.mark.parametrize("budget", [13, 64, 250, 10_000])
@torch.no_grad()
def test_without_gradients_shapes_are_few_and_losses_the_same(model, batch, budget):
    """Lengths are powers of two or halfway to one, rows powers of two."""
    shapes = []
    with model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape))):
        losses = CrossEntropy(budget)(model, batch)
    with torch.enable_grad():
        torch.testing.assert_close(losses, CrossEntropy(10_000)(model, batch).detach(), atol=ROUNDING, rtol=0)
    for rows, length in shapes:
        assert length in (8, 16, 24, 32, 48) and rows & (rows - 1) == 0
        assert rows == 1 or rows * length <= budget
    assert budget > 13 or {rows for rows, _ in shapes} == {1}


def test_one_example_changes_no_loss_but_its_own(model, batch):
    before = CrossEntropy(100)(model, batch)
    sequences = [batch.ids(i) for i in range(12)]
    sequences[4] = np.arange(1, 60)
    after = CrossEntropy(100)(model, Examples.from_token_ids(sequences, batch.labels))
    kept = np.arange(12) != 4
    torch.testing.assert_close(after[kept], before[kept], atol=ROUNDING, rtol=0)
    assert after[4] != before[4]


def test_gradients_do_not_depend_on_the_cut(model, batch):
    def gradient(budget: int) -> torch.Tensor:
        model.zero_grad()
        CrossEntropy(budget)(model, batch).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient(10_000)
    torch.testing.assert_close(gradient(50), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


def test_an_empty_batch_has_no_losses(model, batch):
    assert CrossEntropy(64)(model, batch[np.zeros(0, np.int64)]).shape == (0,)


def test_accuracy_and_loss_are_means_over_the_examples(model, batch):
    with torch.no_grad():
        values = CrossEntropy(10_000)(model, batch)
        ids, mask, labels = batch.padded(torch.device("cpu"))
        right = (model(ids, mask).argmax(1) == labels).float()
    for budget in (1, 64, 10_000):
        scores = CrossEntropy(budget).evaluate(model, batch)
        assert scores["accuracy"] == pytest.approx(right.mean().item())
        bits = np.unpackbits(np.frombuffer(base64.b64decode(scores["correct"]), np.uint8), count=len(batch))
        assert bits.tolist() == right.int().tolist()  # in the order of the examples, not of their lengths
        assert scores["loss"] == pytest.approx(values.mean().item(), abs=ROUNDING)


def test_a_zero_head_has_the_loss_of_a_guess(model):
    with torch.no_grad():
        model.head.weight.zero_()
    dev = encoding.encode(tasks.load("toy"), "tiny-encoder", 24)["dev"]
    assert CrossEntropy(512).evaluate(model, dev)["loss"] == pytest.approx(math.log(4), abs=1e-6)
