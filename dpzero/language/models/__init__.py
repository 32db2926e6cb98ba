"""Pretrained models and their heads, tokenized examples, and per-example losses."""
