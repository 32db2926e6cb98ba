"""A language model as a classifier: a backbone, one feature per text, and a head with one row per label.

The head starts where no private example is needed: an encoder's rows are the embeddings of the label words, a causal
model's the output embeddings of the answer tokens. The model is therefore a zero-shot classifier before any training.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from ..errors import UsageError
from . import assets
from .tasks import Task

FILE = Path(__file__).with_name("models.yaml")


@cache
def catalogue() -> dict[str, dict]:
    return yaml.safe_load(FILE.read_text())


@dataclass(frozen=True)
class HashTokenizer:
    """For models without weights: a word is its checksum modulo the vocabulary."""

    vocabulary: int

    def __call__(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % (self.vocabulary - 3) for word in text.lower().split()]


def tokenizer(name: str, max_length: int):
    """text -> token ids, at most max_length of them, special tokens included."""
    stanza = catalogue()[name]
    if "asset" not in stanza:
        words = HashTokenizer(stanza["config"]["vocab_size"])
        return lambda text: [1, *words(text)][:max_length]
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(assets.folder(stanza["asset"]))
    return lambda text: real(text, truncation=True, max_length=max_length)["input_ids"]


def digest(name: str) -> str:
    """SHA-256 of what the weights are made of."""
    stanza = catalogue()[name]
    if "asset" in stanza:
        return assets.digest(stanza["asset"])
    return hashlib.sha256(repr(sorted(stanza["config"].items())).encode()).hexdigest()


class Classifier(nn.Module):
    """forward(input_ids [B, L], attention_mask [B, L]) -> logits [B, labels], float32."""

    def __init__(self, backbone: nn.Module, labels: int, kind: str, feature_scale: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.kind, self.feature_scale = backbone, kind, feature_scale
        self.head = nn.Linear(backbone.config.hidden_size, labels)
        nn.init.zeros_(self.head.bias)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        extra = {}
        if self.backbone.config.model_type == "bert":
            # one row of positions for each text: broadcast rows would give Opacus one gradient for the whole batch
            extra["position_ids"] = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(
                input_ids
            )
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        if self.kind == "causal":
            last = attention_mask.sum(1) - 1  # padding is on the right
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        mask = attention_mask[..., None].to(hidden)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1) * self.feature_scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(input_ids, attention_mask)).float()


def load(name: str, task: Task, tune: str, seed: int = 0, device: str = "cpu") -> Classifier:
    """The classifier for a task, in float32 and evaluation mode, with `requires_grad` set by `tune`.

    Raises UsageError for an asset that is not in the cache and for an answer that is not one token of a causal model.
    """
    from . import tuning

    stanza = catalogue()[name]
    torch.manual_seed(seed)  # random weights of a tiny model and of LoRA; nothing private is drawn from it
    backbone, output_rows = _backbone(name, stanza, task)
    model = Classifier(backbone, len(task.labels), stanza["kind"], stanza.get("feature_scale", 1.0))
    tuning.select(model, tune)
    model.eval()
    with torch.no_grad():
        if stanza["kind"] == "causal":
            model.head.weight.copy_(output_rows)
        else:
            model.head.weight.copy_(_embed(model, [tokenizer(name, 64)(word) for word in task.words]))
    return model.to(device)


def _backbone(name: str, stanza: dict, task: Task) -> tuple[nn.Module, Tensor | None]:
    """The transformer without its head, and for a causal model the output embeddings of the answer tokens."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    causal = stanza["kind"] == "causal"
    extra = {} if causal else {"add_pooling_layer": False}
    maker = AutoModelForCausalLM if causal else AutoModel
    if "asset" in stanza:
        model = maker.from_pretrained(assets.folder(stanza["asset"]), dtype=torch.float32, **extra)
    else:
        config = dict(stanza["config"])
        model = maker.from_config(AutoConfig.for_model(config.pop("model_type"), **config), **extra)
    if not causal:
        return model, None
    return model.model, model.get_output_embeddings().weight.detach()[_answer_tokens(name, task)].clone()


def _answer_tokens(name: str, task: Task) -> list[int]:
    """The one token that each answer adds to the prompt."""
    encode = tokenizer(name, 1000)
    prompt = encode("Answer:")
    tokens = []
    for answer in task.answers:
        ids = encode("Answer:" + answer)
        if len(ids) != len(prompt) + 1:
            raise UsageError(
                f"the answer {answer!r} of task {task.name} is {len(ids) - len(prompt)} tokens of {name}: choose a one-token word"
            )
        tokens.append(ids[-1])
    return tokens


def _embed(model: Classifier, sequences: list[list[int]]) -> Tensor:
    """Unit-norm features of token sequences: the label words, which are public.

    In float64 on the CPU, then rounded: the same bits whatever the machine and its threads, so that a transcript fits its base.
    """
    model.double()
    rows = []
    for ids in map(torch.tensor, sequences):
        rows.append(model.features(ids[None], torch.ones_like(ids)[None])[0] / model.feature_scale)
    model.float()
    return torch.stack(rows).float()
