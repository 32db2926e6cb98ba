"""Pretrained models, their tokenizers and heads, tokenized examples, and per-example losses."""
