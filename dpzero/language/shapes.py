"""Models of published shapes with random weights, that answer a prompt with one of two words: for timing and for memory.

No weights are needed, so a laptop builds RoBERTa-base and fake tensors build OPT-175B.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from ..errors import UsageError

FILE = Path(__file__).with_name("shapes.yaml")
ANSWERS = (2, 3)  # rows of the vocabulary: any two words


@cache
def catalogue() -> dict[str, dict]:
    return yaml.safe_load(FILE.read_text())


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
        if "bias" in dict(model.get_output_embeddings().named_parameters()):
            model.get_output_embeddings().bias.requires_grad_(False)  # of the vocabulary, which is not asked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1  # padding is on the right
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), last]
        if hasattr(self.model.lm_head, "dense"):  # RoBERTa has a layer before its words
            inner = self.model.lm_head
            hidden = inner.layer_norm(nn.functional.gelu(inner.dense(hidden)))
        return self.head(hidden).float()


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Answering:
    """Random weights in evaluation mode; all of them are trained. Raises UsageError for a name that is not in shapes.yaml."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    if name not in catalogue():
        raise UsageError(f"no shape {name!r}: give one of {', '.join(catalogue())}")
    config = dict(catalogue()[name])
    kind = AutoModelForMaskedLM if config["model_type"] == "roberta" else AutoModelForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        model = kind.from_config(AutoConfig.for_model(config.pop("model_type"), **config), dtype=dtype)
    return Answering(model).eval()
