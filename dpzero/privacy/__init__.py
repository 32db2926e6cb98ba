"""What the privacy proof rests on: streams, sampling, clipping, mechanisms, accounting, the ledger.

Knows nothing of models. Every private method of the benchmark, first order or zeroth order, stands on these modules,
so that two rows of a table differ by the algorithm alone.
"""

from __future__ import annotations

from .accounting import Setting
from .budget import Budget
from .clipping import clip_scalars
from .ledger import Event, Ledger
from .streams import RunKey, Stream

__all__ = ["Budget", "Event", "Ledger", "RunKey", "Setting", "Stream", "clip_scalars"]
