"""A body that is not trained makes the same features of a text at every step: made once, kept in the cache, read by the head alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...files import replacing
from ..data import assets
from ..data.encoding import Examples
from . import models
from .batch_invariance import Kind

TOKEN_BUDGET = 4096  # of a micro-batch
FORMAT = 1  # raise it when the same model and texts give other features


@dataclass(frozen=True)
class Features:
    """What the head is given of n texts, and their labels. Stands where `Examples` do: a row is as long as one token."""

    values: np.ndarray  # float32 [n, H]
    labels: np.ndarray  # int64 [n]
    pass_cost: ClassVar[int] = (
        512  # rows of a head that take as long as all else that a pass does (see `invariant`)
    )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray) -> Features:
        return Features(self.values[indices], self.labels[indices])

    def parts(self, token_budget: int) -> Iterator[tuple[np.ndarray, Features]]:
        for start in range(0, len(self), token_budget):  # rows are of one length
            order = np.arange(start, min(len(self), start + token_budget))
            yield order, self[order]

    def kinds(self, model: nn.Module) -> list[Kind]:
        return [(1, False)] * len(self)

    def stand_ins(self, model: nn.Module, kinds: Sequence[Kind]) -> Features:
        values = np.random.default_rng(0).normal(size=self.values.shape[1]).astype(np.float32)
        return Features(np.tile(values, (len(kinds), 1)), np.zeros(len(kinds), np.int64))

    def padded(self, device: torch.device, length: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """values [n, H], a mask of ones [n, 1], labels [n]."""
        mask = np.ones((len(self), 1), np.int64)
        return tuple(torch.from_numpy(a).to(device) for a in (self.values, mask, self.labels))


def applies(model: nn.Module, settings: Mapping) -> bool:
    """Whether a run's steps may begin at the features: the head alone is trained, and read at one position, in float32."""
    plain = settings["compute"] == "float32" and not settings.get("cuda_graphs")
    return settings["tune"] == "head" and isinstance(model, models.Classifier) and plain


def stand_in(model: models.Classifier, size: int) -> Features:
    """Features that say nothing of private texts."""
    return Features(np.zeros((size, model.head.in_features), np.float32), np.zeros(size, np.int64))


def read(name: str, model: models.Classifier, texts: Examples) -> Features:
    """The features of texts, from the cache where they are there. `name` is the model's in the catalogue."""
    device = next(model.parameters()).device
    key = hashlib.sha256(f"{FORMAT} {models.digest(name)} {device.type}".encode())
    for array in (texts.tokens, texts.offsets):
        key.update(array.tobytes())
    path = assets.cache_folder() / "features" / f"{name}-{key.hexdigest()[:16]}.npy"
    with assets.locked(path.stem):
        if not path.exists():
            with replacing(path) as file:
                np.save(file, features(model, texts))
    return Features(np.load(path), texts.labels)


@torch.no_grad()
def features(model: models.Classifier, texts: Examples) -> np.ndarray:
    """What the head is given, float32 [n, H]: the same bits whatever the number of threads."""
    device = next(model.parameters()).device
    found = np.empty((len(texts), model.head.in_features), np.float32)
    with _one_thread():
        for order, part in texts.parts(TOKEN_BUDGET):
            ids, mask, _ = part.padded(device)
            found[order] = model.features(ids, mask).cpu().numpy()
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
