"""The largest model, or the largest batch, whose step fits into a given memory. All peaks are predicted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UsageError
from ..language.models import random_models
from ..plan.method_variants import variant
from .predict import Unpredictable, predict
from .stand_in_step import Workload

UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
METHODS = (
    "dpzero",
    "public",
    "lora",
    "adamw_checkpointing",
    "adamw",
    "dp_lora",
    "dp_sgd_ghost",
    "dp_sgd_hooks",
)
MODELS = tuple(name for name in random_models.catalogue() if name.startswith("opt-"))
LARGEST_BATCH = 2**16


def parse_size(text: str) -> int:
    """24GiB -> bytes. Raises UsageError for anything that is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is no size of memory: write it as 24GiB, 80GB or 512MiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def largest_models(
    models: Sequence[str], limit: int, methods: Sequence[str], settings: dict, log: Callable[[str], object]
) -> list[dict]:
    """The largest model of each method whose step needs at most `limit` bytes, and the need of the next one.

    Args:
        models: names of architectures.
        limit: bytes.
        methods: names of variants.
        settings: the other arguments of `Workload`.
    """
    ordered = sorted(models, key=_parameters)
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method, "title": variant(method).title}
        row |= {"model": None, "peak_bytes": None}
        low, high = 0, len(ordered)  # a model below `low` fits, and one from `high` on does not
        while low < high:
            middle = (low + high) // 2
            model, peak = ordered[middle], None
            try:
                prediction = predict(Workload(model, method, **settings))
                peak, how = prediction["peak_bytes"], prediction["how"]
            except Unpredictable as error:
                row["not_predicted"] = str(error)
            if peak is not None and peak <= limit:
                row |= {"model": model, "peak_bytes": peak, "how": how}
                low = middle + 1
            else:
                row |= {"next_model": model, "next_bytes": peak}
                high = middle
        log(f"{row['title']}: {row['model'] or 'none'}{_gibibytes(row['peak_bytes'])}")
        rows.append(row)
    return rows


def largest_batches(
    model: str, limit: int, methods: Sequence[str], settings: dict, log: Callable[[str], object]
) -> list[dict]:
    """The largest batch of each method whose step needs at most `limit` bytes; 0 if not even one text fits.

    The arguments are those of `largest_models`.
    """
    rows = []
    for method in methods:

        def peak(size: int, method: str = method) -> int:
            return predict(Workload(model, method, **settings | {"batch_size": size}))["peak_bytes"]

        row: dict[str, Any] = {"method": method, "title": variant(method).title, "model": model}
        try:
            size, size_peak = _largest(peak, limit)
            row |= {"batch_size": size, "peak_bytes": size_peak}
        except Unpredictable as error:
            row |= {"batch_size": None, "peak_bytes": None, "not_predicted": str(error)}
        log(f"{row['title']}: batch of {row['batch_size']}{_gibibytes(row['peak_bytes'])}")
        rows.append(row)
    return rows


def _largest(peak: Callable[[int], int], limit: int) -> tuple[int, int | None]:
    """The largest size whose peak is within the limit, and that peak. Secant steps: peaks are nearly linear."""
    known = {size: peak(size) for size in (2, 3)}
    if known[2] > limit:
        one = peak(1)
        return (1, one) if one <= limit else (0, None)
    low, high = max(s for s in known if known[s] <= limit), LARGEST_BATCH + 1
    while high - low > 1:
        a, b = sorted(known)[-2:]
        slope = max(1.0, (known[b] - known[a]) / (b - a))
        aim = int(low + (limit - known[low]) / slope)
        size = min(max(aim, low + 1), high - 1)
        known[size] = peak(size)
        if known[size] <= limit:
            low = size
        else:
            high = size
    return low, known[low]


def _parameters(model: str) -> int:
    if model not in random_models.catalogue():
        raise UsageError(f"no shape {model!r}: give some of {', '.join(random_models.catalogue())}")
    return random_models.catalogue()[model]["parameters"]


def _gibibytes(size: int | None) -> str:
    return "" if size is None else f" ({size / 2**30:.2f} GiB, predicted)"
