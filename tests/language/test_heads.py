"""Heads: training all parameters keeps tied embeddings tied, or trains an output layer beside them; else the head is a copy."""

from __future__ import annotations

import pytest
import torch

from baselines.fine_tuning import FineTuning
from baselines.mezo import MeZO
from dpzero.language.data import tasks
from dpzero.language.models import encoding, text_classifier
from dpzero.language.models.losses import CrossEntropy
from dpzero.language.models.text_classifier import VocabularyHead
from dpzero.memory import trackers
from dpzero.zeroth_order.directions import LAWS, Move
from dpzero.zeroth_order.transcript import digest

MASK = 2


@pytest.fixture(scope="module")
def batch() -> encoding.Examples:
    """Each text has a mask; some hold label words, one twice."""
    words = encoding.answer_tokens("tiny-masked", tasks.load("trec"))
    texts = [[1, MASK, 40, 1], [1, words[2], 50, words[2], MASK, 1], [1, MASK, words[0], 1], [1, 60, MASK]]
    return encoding.Examples.from_token_ids(texts, [0, 2, 4, 5])


def make(tune: str = "full", **head: object) -> text_classifier.Classifier:
    return text_classifier.load("tiny-masked", tasks.load("trec"), tune, **head)


def table(model: text_classifier.Classifier) -> torch.Tensor:
    return model.backbone.get_input_embeddings().weight


def test_full_tuning_ties_the_head_to_the_embeddings():
    model = make()
    assert isinstance(model.head, VocabularyHead) and model.head.rows.weight is table(model)
    assert model.head.shift.bias.shape == (6,)
    assert len(list(model.parameters())) == len({p.data_ptr() for p in model.parameters()})


@pytest.mark.parametrize("tune", ["head", "bias", "lora", "prefix"])
def test_partial_tuning_copies_the_head(tune, batch):
    model = make(tune)
    assert isinstance(model.head, torch.nn.Linear) and not table(model).requires_grad
    start = table(model).clone()
    texts = batch.padded(torch.device("cpu"))[:2]
    if tune != "prefix":  # which is read before the text
        torch.testing.assert_close(model(*texts), make()(*texts), atol=1e-6, rtol=0)
    FineTuning(model, CrossEntropy(2048), 4, learning_rate=0.1).step(batch)
    assert torch.equal(table(model), start)


@torch.no_grad()
def test_untied_the_output_layer_is_a_matrix_of_its_own_with_the_same_start(batch):
    """As in the published code on RoBERTa: the whole decoder is trained, and the model begins as the tied one."""
    tied, untied = make(), make(tie_embeddings=False)
    rows = untied.head.rows.weight
    assert rows is not table(untied) and torch.equal(rows, table(untied)) and rows.requires_grad
    texts = batch.padded(torch.device("cpu"))[:2]
    assert torch.equal(tied(*texts), untied(*texts))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (tied, untied)]
    assert counts[1] - counts[0] == rows.numel() == 1024 * 32
    names = [[name for name, _ in model.named_parameters()] for model in (tied, untied)]
    assert [name for name in names[1] if name not in names[0]] == ["head.rows.weight"]
    assert len({digest(list(model.parameters())) for model in (tied, untied)}) == 2


def test_a_step_moves_an_untied_word_as_output_alone(batch):
    model, word = make(tie_embeddings=False), encoding.answer_tokens("tiny-masked", tasks.load("trec"))[0]
    start = table(model).detach()[word].clone()
    FineTuning(model, CrossEntropy(2048), 1, learning_rate=0.1, optimizer="sgd").step(batch[[0]])
    assert torch.equal(table(model)[word], start)  # the text does not hold it
    assert not torch.equal(model.head.rows.weight[word], start)


def test_lora_trains_the_head_of_a_masked_model_if_asked(batch):
    """MeZO's code freezes what begins with `roberta` and is no adapter: dense, layer norm, decoder and bias are left."""
    model = make("lora", lora_head="trained")
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    layer = {f"transform.{part}.{kind}" for part in ("dense", "layer_norm") for kind in ("weight", "bias")}
    assert trained == layer | {"head.rows.weight", "head.shift.bias"}
    assert model.head.rows.weight.shape == table(model).shape and not table(model).requires_grad
    start = table(model).clone()
    FineTuning(model, CrossEntropy(2048), 4, learning_rate=0.1).step(batch)
    assert torch.equal(table(model), start) and not torch.equal(model.head.rows.weight, start)


def test_an_untied_model_has_its_own_head():
    model = text_classifier.load("tiny-causal", tasks.load("toy"), "full")
    assert isinstance(model.head, torch.nn.Linear)


def test_a_step_moves_a_tied_word_as_input_and_as_output(batch):
    """A text without the word moves the word's row through the scores; the same row is its input embedding."""
    model, word = make(), encoding.answer_tokens("tiny-masked", tasks.load("trec"))[0]
    start = table(model).detach()[word].clone()
    FineTuning(model, CrossEntropy(2048), 1, learning_rate=0.1, optimizer="sgd").step(batch[[0]])
    assert not torch.equal(table(model).detach()[word], start)
    assert torch.equal(model.head.rows.weight[word], table(model)[word])


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("perturb", ["in_place", "on_read"])
def test_a_row_has_one_perturbation_as_input_and_as_output_if_it_is_tied_else_two(perturb, law, tied, batch):
    model, loss = make(tie_embeddings=tied), CrossEntropy(64)
    me = MeZO(model, loss, 4, learning_rate=1e-3, smoothing=1e-2, seed=3, perturb=perturb, direction_law=law)
    expected = []
    for scale in (1e-2, -1e-2):
        other = make(tie_embeddings=tied)
        for j, p in enumerate(other.parameters()):
            p.copy_(me.law.perturbed_copy(p, j, Move(0, 0, (scale,))))
        expected.append(loss(other, batch).double())
    for actual, wanted in zip(me._losses_at_points(batch, len(batch))[:, 0], expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-6, rtol=0)
    assert not torch.allclose(*expected, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("perturb", ["in_place", "on_read"])
def test_a_zeroth_order_step_needs_the_memory_of_inference(perturb, tied):
    """Inference with a table as much as with a copied head, to 1 %, and another 128 KiB untied: no table is copied or perturbed whole."""
    long = encoding.Examples.from_token_ids([[1, MASK] + [9] * 60] * 64, [0] * 64)
    loss = CrossEntropy(2**20)

    def inference(model: text_classifier.Classifier) -> int:
        with torch.no_grad():
            return trackers.peak_bytes(model, lambda: loss(model, long))

    model = make(tie_embeddings=tied)
    floor = inference(model)
    assert floor <= 1.01 * inference(make("head")) + (0 if tied else table(model).nbytes)

    def two_steps() -> None:
        me = MeZO(model, loss, 64, learning_rate=1e-3, smoothing=1e-2, seed=0, perturb=perturb)
        me.step(long)
        me.step(long)

    assert trackers.peak_bytes(model, two_steps) <= 1.01 * floor
