"""The variants of methods that are compared in memory and step time (method_variants.yaml). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..errors import UsageError, unknown


@dataclass(frozen=True)
class Variant:
    """One line of a comparison. `method` is a method's file, or `public`: the step that public code takes.

    Args:
        tune: the trainable parameters, see `text_classifier.select_trainable`.
        network: settings of a side or reversible network.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        implementation: of torch's optimizer: foreach, which CUDA takes by default, or fused.
    """

    title: str
    method: str
    settings: dict = field(default_factory=dict)
    tune: str = "full"
    network: dict = field(default_factory=dict)
    checkpointing: bool = False
    implementation: str = "foreach"


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
VARIANTS = {name: Variant(**row) for name, row in _TABLE["variants"].items()}


def variant(name: str) -> Variant:
    """The variant of a name, in which hyphens count as underscores. Raises UsageError for an unknown one."""
    return VARIANTS[canonical(name)]


def canonical(name: str) -> str:
    key = str(name).replace("-", "_")
    if key not in VARIANTS:
        raise UsageError(unknown("method", name, VARIANTS))
    return key
