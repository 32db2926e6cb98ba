"""What is trained: the same switch for a bert and for a llama."""

from __future__ import annotations

import pytest
import torch

from dpzero.errors import UsageError
from dpzero.language import models, tasks
from dpzero.language.tuning import LORA_RANK

HEAD = {"head.weight", "head.bias"}


def trained(name: str, tune: str) -> dict[str, torch.Size]:
    model = models.load(name, tasks.load("toy"), tune)
    return {key: p.shape for key, p in model.named_parameters() if p.requires_grad}


def every(name: str) -> set[str]:
    return {key for key, _ in models.load(name, tasks.load("toy"), "full").named_parameters()}


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_full_is_everything_and_head_the_head(name):
    assert set(trained(name, "full")) == every(name)
    assert set(trained(name, "head")) == HEAD


def test_bias_of_a_bert_is_every_bias():
    biases = {key for key in every("tiny-encoder") if key.endswith("bias")}
    assert set(trained("tiny-encoder", "bias")) == biases | HEAD and len(biases) > 10


def test_bias_of_a_llama_which_has_none_is_the_gains_of_its_norms():
    chosen = set(trained("tiny-causal", "bias")) - HEAD
    assert all("norm" in key and key.endswith("weight") for key in chosen)
    assert len(chosen) == 2 * 2 + 1  # two in each of two layers, and the last


@pytest.mark.parametrize(
    "name, targets", [("tiny-encoder", ("query", "value")), ("tiny-causal", ("q_proj", "v_proj"))]
)
def test_lora_is_a_pair_of_rank_8_beside_query_and_value(name, targets):
    adapters = {key: shape for key, shape in trained(name, "lora").items() if key not in HEAD}
    assert len(adapters) == 2 * 2 * 2  # layers, targets, factors
    assert all(
        f".{key.split('.lora_')[0].rsplit('.', 1)[1]}" in [f".{t}" for t in targets] for key in adapters
    )
    assert all(min(shape) == LORA_RANK == 8 for shape in adapters.values())


def test_another_word_is_refused():
    with pytest.raises(UsageError, match="tune is 'some': give one of full, bias, lora, head"):
        models.load("tiny-encoder", tasks.load("toy"), "some")
