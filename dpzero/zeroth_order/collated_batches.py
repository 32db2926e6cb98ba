"""The number of examples of a batch, whatever a collator made of it, and batches of some of its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Fields = (Tensor, np.ndarray)
Take = Callable[[Sequence[int]], Any]
"""Positions of examples -> a batch of them."""


def sizes(batch: Any) -> set[int]:
    """How many examples a batch may have: several numbers for a list of tensors, which may be examples or fields.

    A mapping (a dict, a BatchEncoding) has as many as its fields have rows, anything else as many as `len`
    says.

    Raises:
        ValueError: fields of different lengths, no field, or a batch without a length.
    """
    if isinstance(batch, Mapping):
        return {_rows_of(dict(batch.items()))}
    if not hasattr(batch, "__len__"):
        raise ValueError(
            f"a batch of type {type(batch).__name__} has no length: give step one that has, such as a list of examples"
        )
    own = {len(batch)}
    if (
        isinstance(batch, (list, tuple))
        and batch
        and all(isinstance(part, Fields) and part.ndim for part in batch)
    ):
        rows = {len(part) for part in batch}
        return own | rows if len(rows) == 1 else own
    return own


def indices(batch: Any) -> np.ndarray | None:
    """The batch as indices, int64 [B], if it is a row of integers, else None."""
    if isinstance(batch, Mapping) or (isinstance(batch, Fields) and batch.ndim != 1):
        return None
    if isinstance(batch, (np.ndarray, Tensor, range)) or (
        isinstance(batch, (list, tuple)) and all(isinstance(part, (int, np.integer)) for part in batch)
    ):
        row = np.asarray(batch)
        return row.astype(np.int64) if row.dtype.kind in "iu" else None
    return None


def picker(batch: Any, size: int, own: Take | None = None) -> Take:
    """What makes a batch of some examples of this one.

    Args:
        own: used if given, as for a batch that a collator padded; else `take` is.
    """
    return own or (lambda rows: take(batch, rows, size))


def take(batch: Any, rows: Sequence[int] | np.ndarray, size: int) -> Any:
    """Some examples of a batch of `size`, in a batch of the same kind. None if its structure is unknown."""
    kind: Any = type(batch)
    if isinstance(batch, Mapping):
        return kind({key: take(field, rows, size) for key, field in batch.items()})
    if isinstance(batch, Fields):
        return batch[list(rows)] if len(batch) == size else None
    if isinstance(batch, (list, tuple)):
        are_fields = all(isinstance(part, Fields) and part.ndim and len(part) == size for part in batch)
        if len(batch) != size:
            return kind([take(field, rows, size) for field in batch])
        return None if are_fields else kind([batch[row] for row in rows])  # None: examples or fields?
    if isinstance(batch, range):
        return [batch[row] for row in rows]
    try:
        part = batch[np.asarray(rows)]
    except (TypeError, KeyError, IndexError, ValueError):
        return None
    return part if hasattr(part, "__len__") and len(part) == len(rows) else None


def padded(batch: Any, size: int) -> bool:
    """Whether a batch of `size` may have been padded: it has fields of several dimensions."""
    if isinstance(batch, Mapping):
        return any(padded(field, size) for field in batch.values())
    if isinstance(batch, (list, tuple)) and len(batch) != size:
        return any(padded(field, size) for field in batch)
    return isinstance(batch, Fields) and batch.ndim > 1


def _rows_of(fields: Mapping[object, object]) -> int:
    lengths = {
        name: len(field)
        for name, field in fields.items()
        if isinstance(field, (list, tuple)) or (isinstance(field, Fields) and field.ndim)
    }
    if len(set(lengths.values())) == 1:
        return next(iter(lengths.values()))
    found = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no field with a length"
    raise ValueError(
        f"the batch is a mapping whose fields do not agree on the number of examples ({found}): give each field one "
        "row an example"
    )
