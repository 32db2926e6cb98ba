"""What the privacy proof rests on: streams, sampling, clipping, mechanisms, accounting, the ledger.

Knows nothing of models. Every private method of the benchmark, first order or zeroth order, stands on these modules,
so that two rows of a table differ by the algorithm alone.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {  # loaded when asked for: accounting alone needs no torch
    "Budget": "budget",
    "Event": "ledger",
    "Ledger": "ledger",
    "RunKey": "randomness",
    "Setting": "accounting",
    "Stream": "randomness",
    "Rehearsal": "rehearsal",
    "check_clip": "clipping",
    "clip_scalars": "clipping",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
