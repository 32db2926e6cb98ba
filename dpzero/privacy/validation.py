"""Checks of numbers and of settings: only settings with a proven accounting are offered."""

from __future__ import annotations

from numbers import Integral, Real

MIN_DELTA = 1e-30  # tested down to here against an independent accountant
PROVEN = (  # (sampling, adjacency) for both mechanisms
    ("poisson", "add_remove"),
    ("random_allocation", "add_remove"),
    ("without_replacement", "replace_one"),
    ("full_batch", "add_remove"),
    ("full_batch", "replace_one"),
)
OFFERED = (
    "gaussian or laplace with poisson sampling and add_remove, with random_allocation and add_remove, with "
    "without_replacement and replace_one, and with full_batch and either adjacency; gaussian with poisson "
    "sampling and replace_one; delta 0 with laplace; several directions with gaussian"
)
SHUFFLING = ". To shuffle, use random_allocation: each example is in exactly one batch of each pass, which is accounted for"


def integer(name: str, value: object) -> int:
    """Convert any integer type; True and 3.0 are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}: it must be an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")
    return int(value)


def real(name: str, value: object) -> float:
    """Convert any real type; True is refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: it must be a number")
    return float(value)


def check_proven(mechanism: str, sampling: str, adjacency: str, delta: float, directions: int) -> None:
    """Raise ValueError unless the accounting of this setting is proven."""
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}: it must be at least 0 and below 1")
    if 0 < delta < MIN_DELTA:
        raise ValueError(
            f"delta is {delta:g}: it must be 0 (with laplace) or at least {MIN_DELTA:g}, the least that is "
            "accounted for"
        )
    pair = (sampling, adjacency)
    if mechanism == "gaussian":
        proven = delta > 0 and (pair in PROVEN or pair == ("poisson", "replace_one"))
    else:
        proven = mechanism == "laplace" and directions == 1 and pair in PROVEN
    if not proven:
        several = f" and {directions} directions" if directions > 1 else ""
        raise ValueError(
            f"no proven accounting for {mechanism} with {sampling} sampling, {adjacency}, delta "
            f"{delta:g}{several}: offered are {OFFERED}{SHUFFLING if 'shuffle' in str(sampling) else ''}"
        )
