"""What was made of a drawn batch, kept to tell it from another one that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HandedOut:
    """Keeps a batch (and the users of its examples) without copying a number.

    Fields that were replaced or changed in place since are noticed, but for those of nested lists and arrays.
    """

    def __init__(self, *parts: Any) -> None:
        self._parts = [_keep(part) for part in parts]

    def holds(self, *parts: Any) -> bool:
        """Whether these parts are the same objects, or the same values on another device, or some of the fields."""
        return len(parts) == len(self._parts) and all(map(_same, parts, self._parts))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor, and how often it had been changed in place."""

    tensor: Tensor
    version: int | None

    @property
    def unchanged(self) -> bool:
        return self.version == _version(self.tensor)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _keep(part: Any, nested: bool = False) -> Any:
    if isinstance(part, Tensor):
        return _Kept(part, _version(part))
    if isinstance(part, (list, tuple)):  # a list in a list or mapping may be a text's tokens: as it is
        return part if nested else [_keep(field, nested=True) for field in part]
    if isinstance(part, Mapping):
        return {key: _keep(field, nested=True) for key, field in part.items()}
    return part


def _same(given: Any, kept: Any) -> bool:
    if given is kept:
        return True
    if isinstance(kept, _Kept):
        return kept.unchanged and (given is kept.tensor or _equal(given, kept.tensor))
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        return all(key in kept and _same(field, kept[key]) for key, field in given.items())
    if isinstance(given, (list, tuple)) and isinstance(kept, (list, tuple)):
        return len(given) == len(kept) and all(map(_same, given, kept))
    if isinstance(kept, (Tensor, np.ndarray)):
        return _equal(given, kept)
    return isinstance(given, (str, int, float)) and type(given) is type(kept) and given == kept


def _equal(given: Any, field: Tensor | np.ndarray) -> bool:
    """Whether two fields have the same type and values."""
    if isinstance(given, np.ndarray) and isinstance(field, np.ndarray):
        return given.dtype == field.dtype and np.array_equal(given, field)
    if not (isinstance(given, (Tensor, np.ndarray)) and isinstance(field, Tensor)):
        return False
    other = torch.as_tensor(given)
    return other.dtype == field.dtype and torch.equal(other.cpu(), field.cpu())
