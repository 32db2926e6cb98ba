"""Models of published shapes with random weights, that answer a prompt with one of two words: for timing and for memory.

No weights are needed, so a laptop builds RoBERTa-base and fake tensors build OPT-175B.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from ...errors import UsageError

FILE = Path(__file__).with_name("architectures.yaml")
ANSWERS = (2, 3)  # rows of the vocabulary: any two words
MASKED = (
    "roberta",
    "xlm-roberta",
    "camembert",
)  # encoders, whose configurations would make a causal model, too


@cache
def catalogue() -> dict[str, dict]:
    return yaml.safe_load(FILE.read_text("utf-8"))


class Answering(nn.Module):
    """A masked or causal language model that is read at one position of each text, by a head of two words.

    forward(input_ids [B, L], attention_mask [B, L]) -> logits [B, 2], float32. The position is the text's last one: the mask of a
    prompt that ends in it, or where a causal model says what comes next. The head starts as the rows of the two words.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        rows = model.get_output_embeddings().weight
        self.head = nn.Linear(rows.shape[1], len(ANSWERS), bias=False, dtype=rows.dtype, device=rows.device)
        with torch.no_grad():
            self.head.weight.copy_(rows[list(ANSWERS)])
        self.freeze_vocabulary()

    def freeze_vocabulary(self) -> None:
        """What is the vocabulary's output alone, which is not asked, is not trained."""
        tied = self.model.get_input_embeddings().weight
        for parameter in self.model.get_output_embeddings().parameters():
            if parameter is not tied:
                parameter.requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """What `tuning.select` chooses from; the head is always trained."""
        return self.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1  # padding is on the right
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), last]
        if hasattr(getattr(self.model, "lm_head", None), "dense"):  # RoBERTa has a layer before its words
            inner = self.model.lm_head
            hidden = inner.layer_norm(nn.functional.gelu(inner.dense(hidden)))
        return self.head(hidden).float()


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Answering:
    """Random weights in evaluation mode; all that the answer depends on is trained.

    Args:
        name: of architectures.yaml, or the path of a config.json of transformers.

    Raises:
        UsageError: a name that is not in architectures.yaml, a file that transformers cannot make a language model of.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    config = config_of(name)
    masked = config.model_type in MASKED or "MaskedLM" in "".join(config.architectures or [])
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(
                config, dtype=dtype
            )
    except ValueError as error:
        raise UsageError(
            f"{name} is of type {config.model_type!r}, no language model of transformers"
        ) from error
    return Answering(model).eval()


def config_of(name: str):
    """The configuration of transformers, without dropout and without a cache of keys, which one pass over whole texts has no use for."""
    from transformers import AutoConfig

    stanza = dict(catalogue()[name] if name in catalogue() else _read(name))
    stanza.pop("parameters", None)
    kind = stanza.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **stanza).get_text_config()
    except (ValueError, TypeError, LookupError) as error:
        raise UsageError(
            f"{name} has model_type {kind!r}, which transformers does not know: give another config.json"
        ) from error
    config.use_cache = False
    for key, value in config.to_dict().items():
        if key.endswith(("dropout", "pdrop", "layerdrop")) and value:
            setattr(config, key, 0.0)
    return config


def positions(config) -> int:
    """Longest text, in tokens. RoBERTa's first position is the one after its padding token's."""
    offset = config.pad_token_id + 1 if config.model_type in MASKED else 0
    return getattr(config, "max_position_embeddings", 2**31) - offset


def _read(name: str) -> dict:
    if not name.endswith(".json"):
        raise UsageError(f"no shape {name!r}: give one of {', '.join(catalogue())}, or a config.json")
    try:
        found = json.loads(Path(name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read as a configuration ({error}): give a config.json") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name} holds no configuration: give a config.json of transformers")
    return found
