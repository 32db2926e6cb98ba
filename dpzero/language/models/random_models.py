"""Random weights of published architectures with a head of two words, to measure time and memory.

No weights are needed: a laptop builds RoBERTa-base, and fake tensors build OPT-175B.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ...errors import UsageError
from .model_catalogue import ROBERTA
from .text_classifier import MaskedTransform, VocabularyHead, positions

FILE = Path(__file__).with_name("architectures.yaml")
ANSWERS = (2, 3)  # rows of the vocabulary: any two words


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """The configurations of architectures.yaml by name."""
    return yaml.safe_load(FILE.read_text("utf-8"))


class Answering(nn.Module):
    """A masked or causal language model with a head of two words at the last position of each text.

    forward(input_ids [B, L], attention_mask [B, L]) -> logits [B, 2], float32. The last position is the mask
    of a prompt that ends in it, or where a causal model predicts the next word. The head starts as the output
    layer's rows of the two words; or it is a whole output layer apart from the embeddings (untied).
    """

    def __init__(self, model: Any, untied: bool = False) -> None:
        super().__init__()
        self.model, output = model, model.get_output_embeddings()
        if untied:
            head = VocabularyHead(output, ANSWERS, tied=False)
            # as below no biases, which Opacus runs again for each example: on fake tensors torch 2.13 then corrupts memory
            head.shift = nn.Identity()
            self.head: nn.Module = head
        else:
            rows = output.weight
            self.head = nn.Linear(
                rows.shape[1], len(ANSWERS), bias=False, dtype=rows.dtype, device=rows.device
            )
            with torch.no_grad():
                self.head.weight.copy_(rows[list(ANSWERS)])
        self.freeze_vocabulary()

    def freeze_vocabulary(self) -> None:
        """Freeze what is not used: the output layer, unless it is the table of embeddings, and BERT's layer before it."""
        tied = self.model.get_input_embeddings().weight
        for parameter in self.model.get_output_embeddings().parameters():
            if parameter is not tied:
                parameter.requires_grad_(False)
        if self.model.config.model_type == "bert":
            self.model.cls.predictions.transform.requires_grad_(False)

    @property
    def transform(self) -> nn.Module:
        """RoBERTa's layer before its output layer."""
        lm_head: Any = getattr(self.model, "lm_head", None)
        return MaskedTransform(lm_head) if hasattr(lm_head, "dense") else nn.Identity()

    @property
    def backbone(self) -> Any:
        """What `text_classifier.select_trainable` chooses from; the head is always trainable."""
        return self.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        extra = positions(self.model, input_ids)
        result = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, **extra)
        hidden = result.last_hidden_state
        last = attention_mask.sum(1) - 1  # padding is on the right
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return self.head(self.transform(hidden)).float()


def build(
    name: str, dtype: torch.dtype = torch.float32, device: str = "cpu", untied: bool = False
) -> Answering:
    """Random weights in evaluation mode; every parameter that the answer depends on is trainable.

    Args:
        name: of architectures.yaml, or the path of a config.json of transformers.
        dtype: of the weights.
        device: of the weights.
        untied: whether the head is a whole output layer of its own.

    Raises:
        UsageError: an unknown name, or a file that transformers cannot make a language model of.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    config = config_of(name)
    masked = config.model_type in ROBERTA or "MaskedLM" in "".join(config.architectures or [])
    torch.manual_seed(0)
    auto_class = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device(device):
            model = auto_class.from_config(config, dtype=dtype)
    except ValueError as error:
        raise UsageError(
            f"{name} is of type {config.model_type!r}, no language model of transformers"
        ) from error
    return Answering(model, untied).eval()


def config_of(name: str) -> Any:
    """The transformers configuration, without dropout and without a cache of keys and values."""
    from transformers import AutoConfig

    if name not in catalogue() and not name.endswith(".json"):
        raise UsageError(f"no shape {name!r}: give one of {', '.join(catalogue())}, or a config.json")
    try:
        if name in catalogue():
            config = AutoConfig.for_model(**{k: v for k, v in catalogue()[name].items() if k != "parameters"})
        else:
            config = AutoConfig.from_pretrained(name, local_files_only=True)
    except Exception as error:  # its type depends on the library's version and on the file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name} cannot be read as a configuration ({reason}): give a config.json"
        ) from error
    config = config.get_text_config()
    config.use_cache = False
    for key, value in config.to_dict().items():
        if key.endswith(("dropout", "pdrop", "layerdrop")) and value:
            setattr(config, key, 0.0)
    return config
