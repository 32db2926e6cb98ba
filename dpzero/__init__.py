"""dpzero: the reproducibility benchmark for private fine-tuning of language models without backpropagation."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "DPZero",
    "DPZeroTrainer",
    "calibrate_noise",
    "losses",
    "replay",
    "spent_epsilon",
    "suggest",
]

_HOMES = {
    "DPZero": "dpzero.algorithm",
    "DPZeroTrainer": "dpzero.trainer",
    "Budget": "dpzero.privacy.budget",
    "calibrate_noise": "dpzero.privacy.accounting",
    "replay": "dpzero.zeroth_order.transcript",
    "spent_epsilon": "dpzero.privacy.accounting",
    "suggest": "dpzero.suggestion",
}


def __getattr__(name: str) -> object:
    """Loaded on first use: planning a sweep imports this package and must not pay for torch."""
    if name == "losses":
        return importlib.import_module("dpzero.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpzero' has no attribute {name!r}")
