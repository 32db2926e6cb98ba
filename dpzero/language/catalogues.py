"""The names that the catalogues (tasks.yaml, models.yaml, assets.yaml) define, without loading anything they name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from dpzero.errors import UsageError


@cache
def names(catalogue: str) -> list[str]:
    """`catalogue`: "tasks" or "models"."""
    return list(yaml.safe_load(Path(__file__).with_name(f"{catalogue}.yaml").read_text()))


def entry(kind: str, name: str, catalogue: Mapping[str, dict]) -> dict:
    """What the catalogue of this kind says of a name. UsageError, with the nearest name, for one that it does not have."""
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(catalogue)}"
        raise UsageError(f"unknown {kind} '{name}': {hint}")
    return catalogue[name]
