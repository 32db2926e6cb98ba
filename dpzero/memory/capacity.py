"""What fits into a GPU: of each method the largest model, or for one model the largest batch. All of it predicted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..errors import UsageError
from ..language.models import architectures
from ..plan.method_variants import variant
from .predict import Unpredictable, predict
from .workload import Workload

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
MODELS = tuple(name for name in architectures.catalogue() if name.startswith("opt-"))
LARGEST_BATCH = 2**16
COPIES = {"adamw": 4, "sgd": 2}  # of what is trained: value, gradient, moments


def bytes_of(text: str) -> int:
    """24GiB -> bytes. Raises UsageError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise UsageError(f"{text!r} is no size of memory: write it as 24GiB, 80GB or 512MiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def largest_models(
    models: Sequence[str], room: int, methods: Sequence[str], settings: dict, log: Callable[[str], object]
) -> list[dict]:
    """A row a method: the largest of the models whose step needs at most `room` bytes, and what the next one needs."""
    ordered = sorted(models, key=_parameters, reverse=True)
    rows = []
    for method in methods:
        row = {"method": method, "title": variant(method).title, "model": None, "peak_bytes": None}
        for model in ordered:
            least = _least(model, method, settings)
            if least > room:
                row |= {"next_model": model, "next_at_least_bytes": least}
                continue
            peak, how = _peak(Workload(model, method, **settings))
            if peak is not None and peak <= room:
                row |= {"model": model, "peak_bytes": peak, "how": how}
                break
            row |= {"next_model": model, "next_at_least_bytes": peak}
            if peak is None:
                row["not_predicted"] = how
        log(f"{row['title']}: {row['model'] or 'none'}{_gib(row['peak_bytes'])}")
        rows.append(row)
    return rows


def largest_batches(
    model: str, room: int, methods: Sequence[str], settings: dict, log: Callable[[str], object]
) -> list[dict]:
    """A row a method: the largest batch of the model whose step needs at most `room` bytes; 0 if one text does not fit."""
    rows = []
    for method in methods:
        row = {"method": method, "title": variant(method).title, "model": model}

        def peak(size: int, method: str = method) -> int:
            found, how = _peak(Workload(model, method, **settings | {"batch_size": size}))
            if found is None:
                raise UsageError(how)
            return found

        try:
            size, size_peak = _largest(peak, room)
            row |= {"batch_size": size, "peak_bytes": size_peak}
        except UsageError as error:
            row |= {"batch_size": None, "peak_bytes": None, "not_predicted": str(error)}
        log(f"{row['title']}: batch of {row['batch_size']}{_gib(row['peak_bytes'])}")
        rows.append(row)
    return rows


def _largest(peak: Callable[[int], int], room: int) -> tuple[int, int | None]:
    """The largest size with a peak of at most `room`, and that peak. A peak is all but a line in the size: so aim by a secant."""
    known = {size: peak(size) for size in (2, 3)}
    if known[2] > room:
        one = peak(1)
        return (1, one) if one <= room else (0, None)
    low, high = max(s for s in known if known[s] <= room), LARGEST_BATCH + 1
    while high - low > 1:
        a, b = sorted(known)[-2:]
        slope = max(1.0, (known[b] - known[a]) / (b - a))
        aim = int(low + (room - known[low]) / slope)
        size = min(max(aim, low + 1), high - 1)
        known[size] = peak(size)
        if known[size] <= room:
            low = size
        else:
            high = size
    return low, known[low]


def _peak(workload: Workload) -> tuple[int | None, str]:
    try:
        found = predict(workload)
    except Unpredictable as error:
        return None, str(error)
    return found["peak_bytes"], found["how"]


def _parameters(model: str) -> int:
    if model not in architectures.catalogue():
        raise UsageError(f"no shape {model!r}: give some of {', '.join(architectures.catalogue())}")
    return architectures.catalogue()[model]["parameters"]


def _least(model: str, method: str, settings: dict) -> int:
    """Bytes that it needs in any case, without asking: so that few models are predicted."""
    full = (settings.get("tune") or variant(method).tune) == "full"
    copies = COPIES.get(variant(method).settings.get("optimizer", ""), 1) if full else 1
    # an untied output table is not trained, and the published number is known within 1 %
    return int(
        _parameters(model) * (4 if settings["dtype"] == "float32" else 2) * (1 + 0.85 * (copies - 1)) * 0.99
    )


def _gib(size: int | None) -> str:
    return "" if size is None else f" ({size / 2**30:.2f} GiB, predicted)"
