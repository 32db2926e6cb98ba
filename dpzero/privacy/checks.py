"""What an argument must be, said in one sentence where it is not."""

from __future__ import annotations

import operator
from numbers import Real


def whole(name: str, value: object, least: int = 1) -> int:
    """An integer of any integer type; True and 3.0 are none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} is {value!r}: it must be an integer")
    if number < least:
        raise ValueError(f"{name} is {number}: it must be at least {least}")
    return number


def number(name: str, value: object) -> float:
    """A float of any real type; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: it must be a number")
    return float(value)
