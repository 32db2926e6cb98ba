"""`dpzero.losses`: each value is that of the example alone, as the model itself computes it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from dpzero import Budget, DPZero, losses

WORDS, EXAMPLES, LENGTH = 97, 5, 9
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
VIT = SIZES | {"image_size": 8, "patch_size": 4}
CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": SIZES | {"num_key_value_heads": 2},
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
    },
    "roberta": SIZES | {"max_position_embeddings": 40},
    "t5": T5,
    "vit": VIT,
}
CAUSAL = ("gpt2", "llama", "opt")


@cache
def model(family: str, head: type) -> nn.Module:
    torch.manual_seed(0)
    sizes = CONFIGS[family] | ({} if family == "vit" else {"vocab_size": WORDS, "pad_token_id": 1})
    return head.from_config(CONFIG_MAPPING[family](**sizes, num_labels=3)).eval()


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    """Five texts of 3 to 9 tokens, padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, WORDS, (EXAMPLES, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([[9], [4], [3], [7], [5]])).long()
    mask = mask.flip(1) if side == "left" else mask
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


def with_labels(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels at every third token."""
    chosen = (fields["attention_mask"] == 1) & (torch.arange(LENGTH) % 3 != 2)
    return fields | {"labels": fields["input_ids"].where(chosen, -100)}


def alone(fields: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One example without padding."""
    used = fields["attention_mask"][row].bool()
    return {key: field[row][used][None] for key, field in fields.items()}


@torch.no_grad()
def assert_equal_to_single_examples(loss, network, fields, counts=None):
    expected = []
    for row in range(EXAMPLES):
        one = alone(fields, row)
        one = one if "labels" in one else one | {"labels": one["input_ids"]}
        expected.append(float(network(**one).loss))
    expected = torch.tensor(expected)
    expected = expected if counts is None else expected * counts
    torch.testing.assert_close(loss(network, fields), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("token_budget", [None, 1, 14, 10_000])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_loss_is_the_models_own_for_each_text_alone(family, token_budget):
    network = model(family, AutoModelForCausalLM)
    loss = losses.causal_lm(token_budget=token_budget)
    assert_equal_to_single_examples(loss, network, batch())
    assert_equal_to_single_examples(loss, network, with_labels(batch()))


def test_the_sum_over_tokens_weighs_a_text_by_its_length():
    network, fields = model("llama", AutoModelForCausalLM), batch()
    counts = fields["attention_mask"].sum(1) - 1
    assert_equal_to_single_examples(losses.causal_lm(tokens="sum"), network, fields, counts)


def test_left_padding_that_the_model_masks_changes_no_loss():
    network = model("llama", AutoModelForCausalLM)  # rotary positions are relative
    expected = losses.causal_lm()(network, batch())
    fields = batch()
    order = fields["attention_mask"].argsort(dim=1, stable=True)
    left = {key: field.gather(1, order) for key, field in fields.items()}
    for token_budget in (None, 14):
        actual = losses.causal_lm(token_budget=token_budget)(network, left)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("token_budget", [None, 14])
def test_a_masked_loss_is_the_models_own_for_each_text_alone(token_budget):
    loss = losses.masked_lm(token_budget=token_budget)
    assert_equal_to_single_examples(loss, model("roberta", AutoModelForMaskedLM), with_labels(batch()))


@pytest.mark.parametrize("token_budget", [None, 14])
@torch.no_grad()
def test_a_loss_of_an_encoder_and_decoder_reads_labels_of_their_own_length(token_budget):
    network, fields = model("t5", AutoModelForSeq2SeqLM), batch()
    for width in (4, LENGTH):  # as many as the input has columns, too
        labels = torch.randint(2, WORDS, (EXAMPLES, width), generator=torch.Generator().manual_seed(2))
        labels[1, 2:] = -100
        own = [network(**alone(fields, i), labels=labels[i : i + 1]).loss for i in range(EXAMPLES)]
        actual = losses.seq2seq_lm(token_budget=token_budget)(network, fields | {"labels": labels})
        torch.testing.assert_close(actual, torch.stack(own), rtol=1e-5, atol=1e-5)


LABELS = {
    "classes": (3, torch.tensor([0, 2, 1, 1, 0])),
    "a number": (1, torch.tensor([0.5, -1, 2, 0, 1])),
    "several labels": (3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
}


@pytest.mark.parametrize("kind", LABELS)
@torch.no_grad()
def test_a_classifiers_loss_is_its_own_for_each_text_alone(kind):
    count, labels = LABELS[kind]
    torch.manual_seed(0)
    config = CONFIG_MAPPING["roberta"](
        **CONFIGS["roberta"], vocab_size=WORDS, pad_token_id=1, num_labels=count
    )
    network, fields = AutoModelForSequenceClassification.from_config(config).eval(), batch()
    own = [network(**alone(fields, i), labels=labels[i : i + 1]).loss for i in range(EXAMPLES)]
    actual = losses.sequence_classification()(network, fields | {"labels": labels})
    torch.testing.assert_close(actual, torch.stack(own), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_images_are_classified_by_the_same_loss():
    network = model("vit", AutoModelForImageClassification)
    images = torch.randn(EXAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    own = [network(images[i : i + 1], labels=labels[i : i + 1]).loss for i in range(EXAMPLES)]
    actual = losses.sequence_classification()(network, {"pixel_values": images, "labels": labels})
    torch.testing.assert_close(actual, torch.stack(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(reduction="none"), functional.cross_entropy])
@torch.no_grad()
def test_a_torch_criterion_gives_a_loss_for_each_example(criterion):
    network, inputs = nn.Linear(4, 3), torch.randn(EXAMPLES, 4)
    targets = torch.tensor([0, 2, 1, 1, 0])
    expected = functional.cross_entropy(network(inputs), targets, reduction="none")
    torch.testing.assert_close(losses.from_reduction_none(criterion)(network, (inputs, targets)), expected)


@torch.no_grad()
def test_values_of_one_example_are_averaged_or_summed():
    network, inputs, targets = nn.Linear(4, 3), torch.randn(EXAMPLES, 4), torch.randn(EXAMPLES, 3)
    squares = (network(inputs) - targets).square()
    for tokens, expected in (("mean", squares.mean(1)), ("sum", squares.sum(1))):
        loss = losses.from_reduction_none(functional.mse_loss, tokens=tokens)
        torch.testing.assert_close(loss(network, (inputs, targets)), expected)


def test_a_text_without_a_token_that_counts_has_the_loss_0():
    fields = with_labels(batch())
    fields["labels"][2] = -100
    assert losses.causal_lm()(model("gpt2", AutoModelForCausalLM), fields)[2] == 0


REFUSED = {
    "a criterion that averages over the batch": (
        lambda: losses.from_reduction_none(nn.CrossEntropyLoss()),
        "reduction='mean', which mixes the examples of a batch: make it with reduction=\"none\"",
    ),
    "a function that averages over the batch": (
        lambda: losses.from_reduction_none(lambda x, y: (x - y).square().mean())(
            nn.Linear(2, 1), (torch.zeros(3, 2), 0)
        ),
        "returned shape .* for 3 examples",
    ),
    "a batch without labels": (
        lambda: losses.masked_lm()(nn.Linear(2, 1), {"input_ids": torch.zeros(2, 2)}),
        "the batch has no labels, only input_ids: add `labels`",
    ),
    "a batch that is no pair": (
        lambda: losses.from_reduction_none(functional.mse_loss)(nn.Linear(2, 1), torch.zeros(3, 2)),
        "a batch of type Tensor is no pair",
    ),
    "neither mean nor sum": (
        lambda: losses.causal_lm(tokens="median"),
        "tokens is 'median': give mean or sum",
    ),
    "no tokens at all": (lambda: losses.causal_lm(token_budget=0), "token_budget is 0: give a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_give_one_loss_for_each_example_is_refused(case):
    attempt, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize("token_budget", [None, 20])
def test_dpzero_trains_on_a_data_set_of_texts(token_budget):
    torch.manual_seed(0)
    network = model("gpt2", AutoModelForCausalLM)
    before = [p.clone() for p in network.parameters()]
    fields = batch()
    rows = [{key: field[i] for key, field in fields.items()} for i in range(EXAMPLES)]
    budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=EXAMPLES, batch_size=2, steps=4)
    loss = losses.causal_lm(token_budget=token_budget)
    optimizer = DPZero(network, loss, budget, learning_rate=1e-3, clip=10)
    for texts in budget.loader(rows):
        optimizer.step(texts)
    assert budget.epsilon_spent() <= 2
    assert any(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    for p, old in zip(network.parameters(), before, strict=True):
        p.data.copy_(old)
