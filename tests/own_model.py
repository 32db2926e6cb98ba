"""A small encoder of one's own, as save_pretrained writes it, and rows for it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "film",
    "play",
    "was",
    "very",
    "dull",
    "great",
    "number",
    "and",
    "a",
]
VOCABULARY = [*WORDS, *map(str, range(60))]


def write_rows(file: Path, count: int = 120) -> None:
    """CSV with columns text and label: films that are dull (0) or great (1)."""
    lines = (
        f"the film was very {('dull', 'great')[i % 2]} and {i % 60} was the play {i},{i % 2}"
        for i in range(count)
    )
    file.write_text("\n".join(["text,label", *lines]) + "\n", "utf-8")


def write_model(folder: Path) -> None:
    """BERT with one layer and random weights, and its tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(folder)
