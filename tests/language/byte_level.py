"""A small tokenizer like the papers': byte-level BPE with RoBERTa's special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_level_bpe(words: list[str]) -> Tokenizer:
    """Each word is one token with a space before it and one without."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = []
    for word in words:
        pairs = [(word[: end - 1], word[end - 1]) for end in range(2, len(word) + 1)] + [("Ġ", word)]
        for pair in pairs:
            vocabulary.setdefault("".join(pair), len(vocabulary))
            merges += [] if pair in merges else [pair]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
