"""Which examples are in the batch of step t. The sampler that runs is the sampler that is accounted."""

from __future__ import annotations

import numpy as np

from .streams import Stream


class Sampler:
    """Batches as index arrays, int64; `batch(step)` needs no earlier step. `batch_size` is the expected size: the divisor."""

    name: str

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if not 1 <= batch_size <= dataset_size:
            raise ValueError(
                f"batch_size is {batch_size}, dataset_size {dataset_size}: the batch size must be between 1 and the data set's"
            )
        self.dataset_size, self.batch_size, self.stream = dataset_size, batch_size, stream

    def batch(self, step: int) -> np.ndarray:
        raise NotImplementedError


class Poisson(Sampler):
    """Every example joins independently with probability batch_size / dataset_size. The batch may be empty."""

    name = "poisson"

    def batch(self, step: int) -> np.ndarray:
        rate = self.batch_size / self.dataset_size
        return np.flatnonzero(self.stream.uniforms(self.dataset_size, step) < rate)


class WithoutReplacement(Sampler):
    """A uniform subset of exactly batch_size examples, drawn anew in each step."""

    name = "without_replacement"

    def batch(self, step: int) -> np.ndarray:
        order = np.argsort(self.stream.words(self.dataset_size, step), kind="stable")
        return np.sort(order[: self.batch_size])


class FullBatch(Sampler):
    """All examples in every step (DPZero's Algorithm 2)."""

    name = "full_batch"

    def __init__(self, dataset_size: int, batch_size: int, stream: Stream) -> None:
        if batch_size != dataset_size:
            raise ValueError(f"batch_size is {batch_size}: full_batch needs dataset_size, {dataset_size}")
        super().__init__(dataset_size, batch_size, stream)

    def batch(self, step: int) -> np.ndarray:
        return np.arange(self.dataset_size)


SAMPLERS = {cls.name: cls for cls in (Poisson, WithoutReplacement, FullBatch)}
