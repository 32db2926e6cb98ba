"""Answers that a causal model writes: greedy decoding, and F1 as for SQuAD (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .encoding import TokenizerInfo
from .text_classifier import TextScorer


@torch.no_grad()
def greedy(
    model: TextScorer, prompts: Sequence[NDArray], max_new_tokens: int, info: TokenizerInfo
) -> list[str]:
    """What the model writes after each prompt, int [L], by greedy decoding.

    A text ends with its line, with the model's end of text, or after max_new_tokens. Prompts of a batch are
    padded on the left.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    device = next(model.parameters()).device
    end_of_text = model.language_model.generation_config.eos_token_id
    if not isinstance(end_of_text, list):
        end_of_text = [] if end_of_text is None else [end_of_text]
    stops = sorted({*info.encode("\n")[:1], *end_of_text})
    written = model.language_model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=0,
    )
    texts = []
    for tokens in written[:, longest:].tolist():
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        texts.append(info.decode(tokens[: end + 1]).strip())  # after the first stop is padding
    return texts


def f1(written: str, references: Sequence[str]) -> float:
    """The best F1 of words over the references; "no answer" must be written exactly."""
    if references[0] in ("CANNOTANSWER", "no answer"):
        return float(normalized(written) == normalized(references[0]))
    return max(_overlap(normalized(written), normalized(reference)) for reference in references)


def normalized(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(written: list[str], reference: list[str]) -> float:
    same = sum((Counter(written) & Counter(reference)).values())
    return 2 * same / (len(written) + len(reference)) if same else 0.0
