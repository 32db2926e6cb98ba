"""Answers that a causal model writes, and how much of them is right: greedy decoding and F1 as for SQuAD (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .tokenizers import Marks


@torch.no_grad()
def greedy(model: nn.Module, prompts: Sequence[np.ndarray], most: int, marks: Marks) -> list[str]:
    """What the model writes behind each prompt, int [L], token by likeliest token, until a line or the text ends or `most` are
    written. Prompts of one batch: padding stands on the left."""
    whole, longest = model.whole, max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    ids, mask = (torch.from_numpy(a).to(next(model.parameters()).device) for a in (ids, mask))
    stops = sorted({*marks.plain("\n")[:1], *_ends(whole)})
    made = whole.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=stops,
        pad_token_id=0,
    )
    return [_said(row, stops, marks) for row in made[:, longest:].tolist()]


def _said(tokens: list[int], ends: Sequence[int], marks: Marks) -> str:
    """Up to the first end and with it; behind it is padding."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return marks.decode(tokens[: end + 1]).strip()


def _ends(whole: nn.Module) -> list[int]:
    end = whole.generation_config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


def f1(written: str, references: Sequence[str]) -> float:
    """The best over the references of the harmonic mean of precision and recall of words; no answer must be said as it is."""
    if references[0] in ("CANNOTANSWER", "no answer"):
        return float(normalized(written) == normalized(references[0]))
    return max(_overlap(normalized(written), normalized(reference)) for reference in references)


def normalized(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(written: list[str], reference: list[str]) -> float:
    same = sum((Counter(written) & Counter(reference)).values())
    if not same:
        return 0.0
    precision, recall = same / len(written), same / len(reference)
    return 2 * precision * recall / (precision + recall)
