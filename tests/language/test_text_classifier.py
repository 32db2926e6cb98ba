"""Classifiers: where the head starts, what a feature is, and which answers a causal model can give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from dpzero.errors import UsageError
from dpzero.language.data import prompts, tasks
from dpzero.language.models import encoding, model_catalogue, text_classifier
from tests.language.byte_level import byte_level_bpe

TINY = ["tiny-encoder", "tiny-causal"]


@pytest.fixture(scope="module")
def toy() -> tasks.Task:
    return tasks.load("toy")


def read(name: str, text: str) -> torch.Tensor:
    return torch.tensor([encoding.tokenizer(name, 64)(text)])


def same(one: text_classifier.Classifier, other: text_classifier.Classifier) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", TINY)
def test_a_model_is_in_float32_and_evaluation_mode(toy, name):
    model = text_classifier.load(name, toy, "full")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = read(name, "the dog")
    assert model(ids, torch.ones_like(ids)).shape == (1, 4)
    assert torch.equal(model(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("name", TINY)
def test_random_weights_follow_the_seed(toy, name):
    first, again, other = (text_classifier.load(name, toy, "full", seed) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tune", ["bias", "lora", "head"])
def test_the_initial_model_does_not_depend_on_what_is_trained(toy, name, tune):
    ids = read(name, "She asked a question about the cake.")
    logits = [text_classifier.load(name, toy, t)(ids, torch.ones_like(ids)) for t in ("full", tune)]
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


# --- encoders


def test_an_encoder_starts_as_the_nearest_label_word(toy):
    model = text_classifier.load("tiny-encoder", toy, "full")
    assert torch.equal(model.head.bias, torch.zeros(4))
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(4))
    for label, words in enumerate(toy.words):
        ids = read("tiny-encoder", words)
        logits = model(ids, torch.ones_like(ids))[0]
        assert logits.argmax() == label
        assert logits[label].item() == pytest.approx(model.feature_scale, abs=1e-4)  # cosine 1, scaled


def test_an_encoders_feature_is_the_normalized_mean_over_tokens(toy):
    model = text_classifier.load("tiny-encoder", toy, "full")
    ids = read("tiny-encoder", "the dog and the cat")
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    mask = torch.tensor([[1] * ids.shape[1] + [0] * 3])
    feature = model.features(padded, mask)
    hidden = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    expected = 10 * torch.nn.functional.normalize(hidden.mean(1), dim=-1)
    torch.testing.assert_close(feature, expected, atol=1e-5, rtol=0)


# --- causal models


def test_a_causal_classifier_starts_as_the_output_layer_at_the_answers(toy):
    model = text_classifier.load("tiny-causal", toy, "full", seed=3)
    torch.manual_seed(3)
    config = dict(model_catalogue.CATALOGUE.built_in["tiny-causal"]["config"])
    language_model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config.pop("model_type"), **config)
    ).eval()
    ids = read("tiny-causal", prompts.fill(toy.prompt, {"text": "We read a long story about the rain."}))
    answers = [encoding.tokenizer("tiny-causal", 9)(answer)[1] for answer in toy.answers]
    with torch.no_grad():
        expected = language_model(input_ids=ids).logits[:, -1, answers]
        torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected, atol=1e-6, rtol=0)


def test_a_causal_models_feature_is_that_of_the_last_token(toy):
    model = text_classifier.load("tiny-causal", toy, "full")
    ids = read("tiny-causal", "the dog and the cat")
    padded = torch.cat([ids, torch.full((1, 3), 7)], dim=1)
    mask = torch.tensor([[1] * ids.shape[1] + [0] * 3])
    torch.testing.assert_close(
        model.features(padded, mask), model.features(ids, torch.ones_like(ids)), atol=1e-6, rtol=0
    )


def test_a_causal_model_has_no_key_value_cache(toy):
    model = text_classifier.load("tiny-causal", toy, "full")
    ids = read("tiny-causal", "the dog and the cat")
    assert model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).past_key_values is None


def test_an_answer_of_two_tokens_is_scored_as_text(toy):
    words = ["wild animals", *toy.words[1:]]
    two = dataclasses.replace(toy, stanza=toy.stanza | {"answers": words})
    assert isinstance(text_classifier.load("tiny-causal", two, "full"), text_classifier.TextScorer)
    assert isinstance(
        text_classifier.load("tiny-encoder", two, "full"), text_classifier.Classifier
    )  # which reads no answers


def test_free_answers_need_a_causal_model():
    squad = tasks.load("squad")
    assert isinstance(text_classifier.load("tiny-causal", squad, "full"), text_classifier.TextScorer)
    for name in ("tiny-encoder", "tiny-masked"):
        with pytest.raises(UsageError, match=f"task squad asks for text, which {name} does not write"):
            text_classifier.load(name, squad, "full")


# --- masked models


@pytest.fixture(scope="module")
def trec() -> tasks.Task:
    return tasks.load("trec")


def prompted(text: str, mask_at: int = 1) -> torch.Tensor:
    words = encoding.tokenizer("tiny-masked", 64)(text)
    return torch.tensor([[*words[:mask_at], 2, *words[mask_at:], 1]])


def test_a_masked_classifier_starts_as_the_output_layer_at_the_words(trec):
    model = text_classifier.load("tiny-masked", trec, "full", seed=3)
    torch.manual_seed(3)
    config = dict(model_catalogue.CATALOGUE.built_in["tiny-masked"]["config"])
    language_model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(config.pop("model_type"), **config)
    ).eval()
    ids = prompted("What is a film ?")
    words = [encoding.tokenizer("tiny-masked", 9)(word)[1] for word in trec.stanza["masked"]["words"]]
    with torch.no_grad():
        expected = language_model(input_ids=ids).logits[:, 1, words]
        torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected, atol=1e-6, rtol=0)


def test_a_masked_model_uses_its_first_mask(trec):
    model = text_classifier.load("tiny-masked", trec, "full")
    ids = prompted("What is a film ?", mask_at=4)
    ids[0, 6] = 2  # a text that holds a mask
    feature = model.features(ids, torch.ones_like(ids))
    hidden = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(feature, model.transform(hidden[:, 4]), atol=1e-6, rtol=0)


def test_a_task_without_a_template_is_refused(toy):
    with pytest.raises(UsageError, match="task toy has no template for masked models such as tiny-masked"):
        text_classifier.load("tiny-masked", toy, "full")


# --- weights from a local folder


def test_a_saved_model_is_found_by_its_name(tmp_path, monkeypatch, trec):
    """From what save_pretrained writes, with a tokenizer like the papers'."""
    from transformers import PreTrainedTokenizerFast

    saved = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(
            "roberta", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            vocab_size=600, max_position_embeddings=66,
        )
    )  # fmt: skip
    words = list(trec.stanza["masked"]["words"])
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    read = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(words), **special)
    for part in (saved, read):
        part.save_pretrained(tmp_path / "roberta-base")
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    model = text_classifier.load("roberta-base", trec, "full")
    chosen = [read.convert_tokens_to_ids("Ġ" + word) for word in words]
    assert model.head.words.tolist() == chosen
    assert torch.equal(model.head.rows.weight, saved.get_output_embeddings().weight)
    assert model.mask == read.mask_token_id == 4
    before = model_catalogue.digest("roberta-base")
    (tmp_path / "roberta-base" / "added.txt").write_text("another file")
    assert model_catalogue.digest("roberta-base") != before


def test_a_folder_that_lacks_the_model_is_named(tmp_path, monkeypatch, trec):
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=f"model opt-125m is not in {tmp_path}/opt-125m"):
        text_classifier.load("opt-125m", trec, "full")


# --- tokens and digests


@pytest.mark.parametrize("name", TINY)
def test_a_tokenizer_cuts_at_the_length(name):
    text = "one two three four five"
    assert encoding.tokenizer(name, 3)(text) == encoding.tokenizer(name, 64)(text)[:3]
    ids = encoding.tokenizer(name, 64)(text)
    assert len(ids) == 6 and all(0 < i < 1024 for i in ids)


def test_digests_differ_by_model_and_need_no_weights():
    assert len({model_catalogue.digest(name) for name in TINY}) == 2
    assert model_catalogue.digest("tiny-causal") == model_catalogue.digest("tiny-causal")


def test_missing_weights_are_named(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))
    for name, asset in (("minilm", "minilm"), ("smollm2-135m", "smollm2")):
        with pytest.raises(UsageError, match=f"`python -m dpzero assets {asset}`"):
            text_classifier.load(name, toy, "full")


@pytest.mark.network
@pytest.mark.slow
def test_minilm_knows_the_topics_of_reuters_before_any_training(cached):
    cached("minilm"), cached("reuters")
    from dpzero.language.models import encoding, losses

    r8 = tasks.load("r8")
    model = text_classifier.load("minilm", r8, "head")
    dev = encoding.encode(tasks.load("r8"), "minilm", 24)["dev"]
    assert losses.CrossEntropy(2048).evaluate(model, dev)["accuracy"] > 0.5  # eight topics
