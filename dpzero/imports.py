"""Imports of large libraries, which take most of a short run's time beside training."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """Without the garbage collector, which looks at each new module again and again: a sixth of the time.

    Also a decorator. Imports leave hardly anything to collect.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
