"""The games of membership are played on a head alone: its loss on features, and the texts that may be members."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UsageError
from ..language.data import encoding


class FeatureLoss:
    """The cross entropy of each text, from its features. A batch is an array of indices of the pool."""

    def __init__(self, features: NDArray, labels: NDArray) -> None:
        self.features, self.labels = torch.from_numpy(features), torch.from_numpy(labels)

    def parts(self, batch: NDArray) -> Iterator[NDArray]:
        yield batch

    def __call__(self, head: nn.Module, batch: NDArray) -> Tensor:
        rows = torch.from_numpy(batch)
        return nn.functional.cross_entropy(head(self.features[rows]), self.labels[rows], reduction="none")


def distinct(texts: encoding.Examples, count: int) -> NDArray[np.int64]:
    """Indices of the first `count` texts of which none has the tokens of another. UsageError where there are not so many."""
    first: dict[bytes, int] = {}
    for i in range(len(texts)):
        first.setdefault(texts.ids(i).tobytes(), i)
    if len(first) < count:
        raise UsageError(
            f"the pool is to hold {count} distinct training texts, of {len(first)}: make it smaller"
        )
    return np.array(list(first.values())[:count])
