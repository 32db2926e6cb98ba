"""Experiments that train no language model, and measurements of single claims (see README.md)."""
