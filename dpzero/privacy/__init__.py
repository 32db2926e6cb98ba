"""Privacy: sampling, clipping, noise, accounting and the ledger, shared by all private methods.

Knows no models: two rows of a table differ by the algorithm alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accounting import Setting as Setting
    from .budget import Budget as Budget
    from .clipping import check_clip as check_clip
    from .clipping import clip_scalars as clip_scalars
    from .ledger import Event as Event
    from .ledger import Ledger as Ledger
    from .randomness import RunKey as RunKey
    from .randomness import Stream as Stream
    from .stand_in_budget import StandInBudget as StandInBudget

_HOME = {  # imported on first use: accounting alone needs no torch
    "Budget": "budget",
    "Event": "ledger",
    "Ledger": "ledger",
    "RunKey": "randomness",
    "Setting": "accounting",
    "Stream": "randomness",
    "StandInBudget": "stand_in_budget",
    "check_clip": "clipping",
    "clip_scalars": "clipping",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
