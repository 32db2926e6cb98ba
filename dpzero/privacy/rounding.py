"""What the others' values move by when an example leaves their batch, as methods measure it before the first release.

The clip bounds what an example adds to a sum. Where the last bits of a loss follow what else is in the batch, it moves the others, too.
"""

from __future__ import annotations

import warnings

MOVING = (
    "the last bits of an example's loss follow what else is in the batch, which moves the others by up to {:g} of the clip when one leaves, "
    "so that no release is called valid: give the method one_at_a_time=True, or a loss whose bits are each example's own, as those of "
    "dpzero.language are"
)
UNTOLD = (
    "of a batch that may be padded as a whole it cannot be told whether the last bits of an example's loss follow what else is in it, so that "
    "no release is called valid: give step indices, a list of examples, or what budget.loader hands out"
)


class OthersMove:
    """Over the clip; of all methods of one budget."""

    def __init__(self) -> None:
        self._found: list[float | None] = []

    def add(self, over_clip: float | None, warn: bool = False) -> None:
        """`over_clip`: None where it cannot be told."""
        if warn and over_clip != 0:
            warnings.warn(UNTOLD if over_clip is None else MOVING.format(over_clip), stacklevel=3)
        self._found.append(over_clip)

    @property
    def largest(self) -> float | None:
        """None where nothing was measured, or something could not be told."""
        return None if None in self._found else max(self._found, default=None)
