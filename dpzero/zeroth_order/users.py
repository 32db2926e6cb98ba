"""Batches whose unit is the user: one value a user, the mean over the user's examples."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


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
