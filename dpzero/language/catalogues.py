"""The names that tasks.yaml and models.yaml define, without loading anything they name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml


@cache
def names(catalogue: str) -> list[str]:
    """`catalogue`: "tasks" or "models"."""
    return list(yaml.safe_load(Path(__file__).with_name(f"{catalogue}.yaml").read_text()))
