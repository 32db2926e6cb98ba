"""Data and models: tasks, rows and prompts; pretrained models, tokenized examples and losses. See README.md."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "few_shot_split":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from .data.few_shot import few_shot_split  # imports numpy, which planning does not need

    return few_shot_split
