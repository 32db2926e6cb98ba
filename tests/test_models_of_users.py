"""Models that people bring: each trains ten steps with `dpzero.losses`, resumes to the bit, is replayed and says its epsilon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from dpzero import Budget, DPZero, losses, replay
from dpzero.privacy import RunKey
from dpzero.zeroth_order.model_requirements import trainable
from tests.test_losses import CONFIGS, WORDS

EXAMPLES, LENGTH, STEPS = 24, 9, 10


class ConvolutionalNet(nn.Module):
    """As in Opacus' tutorials on images: convolutions, GroupNorm, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(4, 8), nn.Linear(16 * 2 * 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.first(images))), 2)
        return self.head(functional.max_pool2d(functional.relu(self.second(x)), 2).flatten(1))


class Recurrent(nn.Module):
    """As in Opacus' tutorial on names: embedded characters, an LSTM, its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(WORDS, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.table(words))[1][0][-1])


class Attentive(nn.Module):
    """A transformer encoder of torch, the mean over positions, a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.table, self.encoder = nn.Embedding(WORDS, 16), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.table(words)).mean(1))


def hub(family: str, head: type, **sizes: Any) -> nn.Module:
    text = {} if family == "vit" else {"vocab_size": WORDS, "pad_token_id": 1}
    return head.from_config(CONFIG_MAPPING[family](**CONFIGS[family], **text, **sizes))


def with_lora(dtype: torch.dtype) -> nn.Module:
    """Adapters in float32 on a frozen base in `dtype`; the second factor is not 0, as after some training."""
    base = hub("llama", AutoModelForCausalLM).to(dtype)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_dropout=0.0, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config, autocast_adapter_dtype=True)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return adapted


# Rows, as a data set holds them ------------------------------------------------------------------------------------------


def words() -> torch.Tensor:
    return torch.randint(3, WORDS, (EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))


def texts(labels: bool = False) -> list[dict[str, torch.Tensor]]:
    """Padded texts of 3 to 9 tokens; with labels at every third token."""
    rows = []
    for i, ids in enumerate(words()):
        mask = (torch.arange(LENGTH) < 3 + i % 7).long()
        row = {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask}
        chosen = (mask == 1) & (torch.arange(LENGTH) % 3 == 0)
        rows.append(row | ({"labels": ids.where(chosen, -100)} if labels else {}))
    return rows


def pairs(inputs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, torch.tensor(i % 3)) for i, x in enumerate(inputs)]


def images(side: int) -> torch.Tensor:
    return torch.randn(EXAMPLES, 3, side, side, generator=torch.Generator().manual_seed(2))


def named(side: int) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": x, "labels": y} for x, y in pairs(images(side))]


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    loss: Any
    rows: Callable[[], list]


CRITERION, CAUSAL = losses.from_reduction_none(functional.cross_entropy), losses.causal_lm()
CASES = {
    "a CNN with GroupNorm": Case(ConvolutionalNet, CRITERION, lambda: pairs(images(8))),
    "an LSTM": Case(Recurrent, CRITERION, lambda: pairs(words())),
    "a transformer classifier": Case(Attentive, CRITERION, lambda: pairs(words())),
    "GPT-2": Case(lambda: hub("gpt2", AutoModelForCausalLM), CAUSAL, texts),
    "Llama": Case(lambda: hub("llama", AutoModelForCausalLM), CAUSAL, texts),
    "OPT": Case(lambda: hub("opt", AutoModelForCausalLM), CAUSAL, texts),
    "RoBERTa with a tied head": Case(
        lambda: hub("roberta", AutoModelForMaskedLM), losses.masked_lm(), lambda: texts(labels=True)
    ),
    "T5": Case(lambda: hub("t5", AutoModelForSeq2SeqLM), losses.seq2seq_lm(), lambda: texts(labels=True)),
    "ViT": Case(
        lambda: hub("vit", AutoModelForImageClassification, num_labels=3),
        losses.sequence_classification(),
        lambda: named(8),
    ),
    "Llama with LoRA": Case(lambda: with_lora(torch.float32), CAUSAL, texts),
    "Llama in bfloat16 with LoRA": Case(lambda: with_lora(torch.bfloat16), CAUSAL, texts),
}


def make(case: Case) -> tuple[DPZero, Any]:
    """The optimizer of a new model, always the same, and the loader of its budget."""
    torch.manual_seed(0)
    model = case.model().eval()
    budget = Budget.calibrated(
        epsilon=2,
        delta=1e-3,
        dataset_size=EXAMPLES,
        batch_size=6,
        steps=STEPS,
        key=RunKey.published(0),
    )
    return DPZero(model, case.loss, budget, learning_rate=1e-3, clip=10.0), budget.loader(case.rows())


def train(optimizer: DPZero, loader: Any, steps: int = STEPS) -> None:
    for batch in loader:
        optimizer.step(batch)
        if optimizer.steps_taken == steps:
            break


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", CASES)
def test_it_trains_ten_steps_resumes_to_the_bit_is_replayed_and_says_its_epsilon(name, tmp_path):
    optimizer, loader = make(CASES[name])
    base, frozen = weights(optimizer.model), [not p.requires_grad for p in optimizer.model.parameters()]
    optimizer.write_transcript(tmp_path / "transcript")
    train(optimizer, loader)
    end = weights(optimizer.model)
    assert 1.9 < optimizer.budget.epsilon_spent() <= 2.0
    assert [torch.equal(a, b) for a, b in zip(base, end, strict=True)] == frozen

    optimizer, loader = make(CASES[name])
    train(optimizer, loader, 5)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    optimizer, loader = make(CASES[name])
    optimizer.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    train(optimizer, loader)
    assert optimizer.steps_taken == len(optimizer.budget.ledger) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(optimizer.model), end, strict=True))

    rebuilt = make(CASES[name])[0].model
    assert replay(trainable(rebuilt.parameters()), tmp_path / "transcript") == STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(rebuilt), end, strict=True))


def dispatched(network: nn.Module, second_layer: str, folder: Path) -> nn.Module:
    """Llama with the hooks of accelerate, as `device_map` gives it."""
    places = dict.fromkeys(
        ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
    )
    places["model.layers.1"] = second_layer
    return dispatch_model(network, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def test_a_model_with_a_device_map_takes_the_same_steps(tmp_path):
    """Over several devices: tests/language/test_device_map.py."""
    plain, loader = make(CASES["Llama"])
    train(plain, loader, 3)
    torch.manual_seed(0)
    network = dispatched(CASES["Llama"].model().eval(), "cpu", tmp_path)
    given = make(CASES["Llama"])[0].budget
    optimizer = DPZero(network, CAUSAL, given, learning_rate=1e-3, clip=10.0)
    train(optimizer, given.loader(texts()), 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(network), weights(plain.model), strict=True))


def test_weights_that_accelerate_offloads_are_refused(tmp_path):
    """They would be read from elsewhere at each pass, and never move."""
    network = dispatched(CASES["Llama"].model().eval(), "disk", tmp_path)
    with pytest.raises(
        ValueError, match=r"has no numbers \(offloaded by accelerate\?\).*: keep it on a device"
    ):
        DPZero(network, CAUSAL, make(CASES["Llama"])[0].budget, learning_rate=1e-3, clip=10.0)


def test_a_head_that_is_tied_to_the_table_stays_tied():
    optimizer, loader = make(CASES["RoBERTa with a tied head"])
    train(optimizer, loader, 2)
    model = optimizer.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
