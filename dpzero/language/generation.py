"""Answers that a causal model writes, and how much of them is right: greedy decoding and F1 as for SQuAD (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .tokens import Marks


@torch.no_grad()
def greedy(model: nn.Module, prompt: np.ndarray, most: int, marks: Marks) -> str:
    """What the model writes behind the prompt, int [L], token by likeliest token, until a line or the text ends or `most` are
    written."""
    whole, device = model.whole, next(model.parameters()).device
    ids = torch.from_numpy(np.asarray(prompt, np.int64))[None].to(device)
    ends = {marks.plain("\n")[:1][0] if marks.plain("\n") else -1, *_ends(whole)}
    made = whole.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=sorted(end for end in ends if end >= 0),
        pad_token_id=0,
    )
    return marks.decode(made[0, ids.shape[1] :].tolist()).strip()


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
