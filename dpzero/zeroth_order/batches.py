"""What a batch holds, whatever a collator made of it: its number of examples, their users, some of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
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
        lengths = {
            name: len(field)
            for name, field in batch.items()
            if isinstance(field, (list, tuple)) or (isinstance(field, Fields) and field.ndim)
        }
        if len(set(lengths.values())) == 1:
            return set(lengths.values())
        fields = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no field with a length"
        raise ValueError(
            f"the batch is a mapping whose fields do not agree on the number of examples ({fields}): give each "
            "field one row an example"
        )
    if not hasattr(batch, "__len__"):
        raise ValueError(
            f"a batch of type {type(batch).__name__} has no length: give step one that has, such as a list of examples"
        )
    are_fields = isinstance(batch, (list, tuple)) and all(isinstance(p, Fields) and p.ndim for p in batch)
    rows = {len(part) for part in batch} if are_fields else set()
    return {len(batch), *rows} if len(rows) == 1 else {len(batch)}


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


def single_examples(batch: Any, count: int, pick: Take) -> Iterator[Any]:
    """Each of the `count` examples as a batch of its own."""
    for row in range(count):
        example = pick([row])
        if example is None:
            raise ValueError(
                f"cannot take one example out of a batch of type {type(batch).__name__}: give step indices, a list of "
                "examples, or what budget.loader hands out"
            )
        yield example


def number_users(users: ArrayLike, sizes: Collection[int]) -> np.ndarray:
    """Numbers the users of a batch.

    Args:
        users: the user of each example, integers or strings [B].
        sizes: what B may be.

    Returns:
        int64 [B], each example's user as a number from 0.

    Raises:
        ValueError: users of another type, or not one for each example.
    """
    names = np.asarray(users)
    if names.ndim != 1 or (names.dtype.kind not in "iuUS" and names.size):
        raise ValueError("`users` must be integers or strings, one for each example")
    if len(names) not in sizes:
        raise ValueError(f"{len(names)} users for {max(sizes)} examples: give the user of each example")
    return np.unique(names, return_inverse=True)[1].astype(np.int64) if names.size else np.zeros(0, np.int64)


def user_means(values: Tensor, numbers: np.ndarray | None) -> Tensor:
    """Means over each user's examples: [B, K] -> [users, K]. Without numbers: the values as they are."""
    if numbers is None:
        return values
    users = torch.from_numpy(numbers)
    sums = torch.zeros(int(numbers.max(initial=-1)) + 1, *values.shape[1:], dtype=values.dtype)
    return sums.index_add_(0, users, values) / torch.bincount(users, minlength=len(sums))[:, None]
