"""Classifiers: where the head starts, what a feature is, and which answers a causal model can give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpzero.errors import UsageError
from dpzero.language import catalogues, models, tasks

TINY = ["tiny-encoder", "tiny-causal"]


@pytest.fixture(scope="module")
def toy() -> tasks.Task:
    return tasks.load("toy")


def read(name: str, text: str) -> torch.Tensor:
    return torch.tensor([models.tokenizer(name, 64)(text)])


def same(one: models.Classifier, other: models.Classifier) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_names_are_those_of_the_catalogue():
    assert catalogues.names("models") == list(models.catalogue())
    assert catalogues.names("tasks") == tasks.names()


@pytest.mark.parametrize("name", TINY)
def test_a_model_comes_in_float32_and_without_dropout(toy, name):
    model = models.load(name, toy, "full")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = read(name, "the dog")
    assert model(ids, torch.ones_like(ids)).shape == (1, 4)
    assert torch.equal(model(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("name", TINY)
def test_random_weights_follow_the_seed(toy, name):
    first, again, other = (models.load(name, toy, "full", seed) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tune", ["bias", "lora", "head"])
def test_whatever_is_trained_the_start_is_the_same(toy, name, tune):
    ids = read(name, "She asked a question about the cake.")
    logits = [models.load(name, toy, t)(ids, torch.ones_like(ids)) for t in ("full", tune)]
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


# --- encoders


def test_an_encoder_starts_as_the_nearest_label_word(toy):
    model = models.load("tiny-encoder", toy, "full")
    assert torch.equal(model.head.bias, torch.zeros(4))
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(4))
    for label, words in enumerate(toy.words):
        ids = read("tiny-encoder", words)
        logits = model(ids, torch.ones_like(ids))[0]
        assert logits.argmax() == label
        assert logits[label].item() == pytest.approx(model.feature_scale, abs=1e-4)  # cosine 1, scaled


def test_a_feature_of_an_encoder_is_the_mean_over_its_tokens_on_a_sphere(toy):
    model = models.load("tiny-encoder", toy, "full")
    ids = read("tiny-encoder", "the dog and the cat")
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    mask = torch.tensor([[1] * ids.shape[1] + [0] * 3])
    feature = model.features(padded, mask)
    hidden = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    expected = 10 * torch.nn.functional.normalize(hidden.mean(1), dim=-1)
    torch.testing.assert_close(feature, expected, atol=1e-5, rtol=0)


# --- causal models


def test_a_causal_model_starts_as_the_language_model_restricted_to_the_answers(toy):
    model = models.load("tiny-causal", toy, "full", seed=3)
    torch.manual_seed(3)
    config = dict(models.catalogue()["tiny-causal"]["config"])
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
    ids = read("tiny-causal", toy.prompted("We read a long story about the rain."))
    answers = [models.tokenizer("tiny-causal", 9)(answer)[1] for answer in toy.answers]
    with torch.no_grad():
        expected = whole(input_ids=ids).logits[:, -1, answers]
        torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected, atol=1e-6, rtol=0)


def test_a_feature_of_a_causal_model_is_that_of_its_last_token(toy):
    model = models.load("tiny-causal", toy, "full")
    ids = read("tiny-causal", "the dog and the cat")
    padded = torch.cat([ids, torch.full((1, 3), 7)], dim=1)
    mask = torch.tensor([[1] * ids.shape[1] + [0] * 3])
    torch.testing.assert_close(
        model.features(padded, mask), model.features(ids, torch.ones_like(ids)), atol=1e-6, rtol=0
    )


def test_an_answer_of_two_tokens_is_refused(toy):
    two = dataclasses.replace(toy, answers=(" wild animals", *toy.answers[1:]))
    with pytest.raises(UsageError, match="' wild animals' of task toy is 2 tokens of tiny-causal"):
        models.load("tiny-causal", two, "full")
    models.load("tiny-encoder", two, "full")  # which reads no answers


# --- tokens and digests


@pytest.mark.parametrize("name", TINY)
def test_a_tokenizer_cuts_at_the_length(name):
    text = "one two three four five"
    assert models.tokenizer(name, 3)(text) == models.tokenizer(name, 64)(text)[:3]
    ids = models.tokenizer(name, 64)(text)
    assert len(ids) == 6 and all(0 < i < 1024 for i in ids)


def test_digests_tell_models_apart_and_need_no_weights():
    assert len({models.digest(name) for name in TINY}) == 2
    assert models.digest("tiny-causal") == models.digest("tiny-causal")


def test_weights_that_are_not_there_are_named(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))
    for name, asset in (("minilm", "minilm"), ("smollm2-135m", "smollm2")):
        with pytest.raises(UsageError, match=f"`python -m dpzero assets {asset}`"):
            models.load(name, toy, "full")


@pytest.mark.network
def test_minilm_knows_the_topics_of_reuters_before_any_training(cached):
    cached("minilm"), cached("reuters")
    from dpzero.language import examples, losses

    r8 = tasks.load("r8")
    model = models.load("minilm", r8, "head")
    dev = examples.encode("r8", "minilm", 24)["dev"]
    assert losses.evaluate(model, dev, 2048)["accuracy"] > 0.5  # eight topics
