"""How many examples a batch has, whatever a collator made of them, and parts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

Fields = (Tensor, np.ndarray)
Take = Callable[[Sequence[int]], object]
"""Positions of examples -> a batch of these."""


def sizes(batch: object) -> set[int]:
    """How many examples the batch may have; several numbers for a list of tensors, which may be examples or fields.

    A mapping (a dict, a BatchEncoding) has as many as its fields have rows, anything else as many as `len` says.

    Raises:
        ValueError: fields of different lengths, or none, or a batch without a length.
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


def indices(batch: object) -> np.ndarray | None:
    """The batch as indices, int64 [B], where it is nothing but a row of integers."""
    if isinstance(batch, Mapping) or (isinstance(batch, Fields) and batch.ndim != 1):
        return None
    if isinstance(batch, (np.ndarray, Tensor, range)) or (
        isinstance(batch, (list, tuple)) and all(isinstance(part, (int, np.integer)) for part in batch)
    ):
        row = np.asarray(batch)
        return row.astype(np.int64) if row.dtype.kind in "iu" else None
    return None


def picker(batch: object, size: int, own: Take | None = None) -> Take:
    """What makes a batch of some examples of this one: `own` where there is one, as of a batch that a collator padded, else `take`."""
    return own or (lambda rows: take(batch, rows, size))


def take(batch: object, rows: Sequence[int], size: int) -> object:
    """The examples of these numbers of a batch of `size`, in a batch of the same kind; None where it cannot be told how."""
    if isinstance(batch, Mapping):
        return type(batch)({key: take(field, rows, size) for key, field in batch.items()})
    if isinstance(batch, Fields):
        return batch[list(rows)] if len(batch) == size else None
    if isinstance(batch, (list, tuple)):
        return _take_of_list(batch, rows, size)
    if isinstance(batch, range):
        return [batch[row] for row in rows]
    try:
        part = batch[np.asarray(rows)]  # type: ignore[index]
    except (TypeError, KeyError, IndexError, ValueError):
        return None
    return part if hasattr(part, "__len__") and len(part) == len(rows) else None


def padded(batch: object, size: int) -> bool:
    """Whether the examples of a batch of `size` may have been padded to the longest: it has fields with a row for each."""
    if isinstance(batch, Mapping):
        return any(padded(field, size) for field in batch.values())
    if isinstance(batch, (list, tuple)) and len(batch) != size:
        return any(padded(field, size) for field in batch)
    return isinstance(batch, Fields) and batch.ndim > 1


def _take_of_list(batch: Sequence, rows: Sequence[int], size: int) -> object:
    """Of examples, or of fields; None where as many fields as examples leave open which."""
    are_fields = all(isinstance(part, Fields) and part.ndim and len(part) == size for part in batch)
    if len(batch) == size:
        return None if are_fields else type(batch)([batch[row] for row in rows])
    return type(batch)([take(field, rows, size) for field in batch])


def _rows_of(fields: Mapping[object, object]) -> int:
    lengths = {
        name: len(field)
        for name, field in fields.items()
        if isinstance(field, (list, tuple)) or (isinstance(field, Fields) and field.ndim)
    }
    if len(set(lengths.values())) == 1:
        return next(iter(lengths.values()))
    told = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no field with a length"
    raise ValueError(
        f"the batch is a mapping whose fields do not agree on the number of examples ({told}): give each field one row an example"
    )
