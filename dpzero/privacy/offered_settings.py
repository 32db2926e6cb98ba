"""What is proven, and is therefore offered; everything else is refused, and the offer named."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accounting import Setting

LEAST_DELTA = 1e-30  # tested down to here against an independent accountant
MOST_STEPS = 10**10  # of more the rounding is no longer small
FOR_BOTH = (  # mechanisms
    ("poisson", "add_remove"),
    ("random_allocation", "add_remove"),
    ("without_replacement", "replace_one"),
    ("full_batch", "add_remove"),
    ("full_batch", "replace_one"),
)
OFFERED = (
    "gaussian or laplace with poisson sampling and add_remove, with random_allocation and add_remove, with without_replacement "
    "and replace_one, and with full_batch and either adjacency; gaussian with poisson sampling and replace_one; delta 0 with "
    "laplace; several directions with gaussian"
)
INSTEAD_OF_SHUFFLING = ". For whoever must shuffle: random_allocation has each example in exactly one batch of each pass, and is accounted for"


def check(setting: Setting) -> None:
    """Raises ValueError unless the setting makes sense and is offered."""
    size, batch, delta = setting.dataset_size, setting.batch_size, setting.delta
    if setting.steps > MOST_STEPS:
        raise ValueError(f"steps is {setting.steps}: at most {MOST_STEPS} are accounted for")
    if batch > size:
        raise ValueError(f"batch_size {batch} is larger than dataset_size {size}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}: it must be at least 0 and below 1")
    if 0 < delta < LEAST_DELTA:
        raise ValueError(
            f"delta is {delta:g}: it must be 0 (with laplace) or at least {LEAST_DELTA:g}, the least that is accounted for"
        )
    if setting.sampling == "full_batch" and batch != size:
        raise ValueError(f"full_batch needs batch_size {size}, not {batch}")
    if not _proven(setting):
        several = f" and {setting.directions} directions" if setting.directions > 1 else ""
        raise ValueError(
            f"no proven accounting for {setting.mechanism} with {setting.sampling} sampling, {setting.adjacency}, "
            f"delta {delta:g}{several}: offered are {OFFERED}"
            + (INSTEAD_OF_SHUFFLING if "shuffle" in str(setting.sampling) else "")
        )


def _proven(setting: Setting) -> bool:
    pair = (setting.sampling, setting.adjacency)
    if setting.mechanism == "gaussian":
        return setting.delta > 0 and (pair in FOR_BOTH or pair == ("poisson", "replace_one"))
    return setting.mechanism == "laplace" and setting.directions == 1 and pair in FOR_BOTH
