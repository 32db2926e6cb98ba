"""Batch-invariant micro-batches: no other text of the batch changes a bit of a text's loss.

Four things could: the length that a text is padded to, whether any text next to it is padded (attention
without a mask may use another kernel), the number of rows of a matrix product, and a row's place in it (a
kernel may then sum in another order). So a text's own length decides its padded length, and micro-batches
have a power of two of rows, filled up with copies (of cached features any number). Which powers give the same
bits is tried once for each length, with copies of a stand-in text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import model_catalogue

SHORTEST = 16  # tokens: shorter texts are padded to it, for fewer passes
USUAL = 256  # tokens that a CPU processes at nearly full speed
PASS_COST = {"cpu": 32}  # of a pass in addition to its tokens, in tokens (measured, MiniLM)
PASS_COST_ELSEWHERE = 512  # a GPU waits for launches
MAX_PLANS = 256  # both points of a step ask for one plan, and a head on cached features asks for few

Bucket = tuple[int, ...]
"""Of texts that may share a micro-batch: padded length, whether the texts fill it, further keys of a loss."""
Forward = Callable[[Sequence[Bucket]], Tensor]
"""The output [rows, ...] for a stand-in of each bucket, in one pass at the first one's padded length."""
Cut = tuple[NDArray[np.int64], NDArray[np.int64], Bucket]
"""Positions of a micro-batch's texts, ascending; the same filled up to its rows; their bucket."""


def batch_shapes(batch: Any, token_budget: int) -> list[Cut]:
    """Micro-batches that are not batch-invariant: each is padded to its longest text."""
    orders = [np.sort(order) for order, _ in batch.parts(token_budget)]
    return [(order, order, (0,)) for order in orders]


def padded_length(length: int, longest: int) -> int:
    """The next power of two, or halfway to it, but at most `longest`, the model's positions."""
    step = max(SHORTEST // 2, 1 << max(0, (length - 1).bit_length() - 2))
    return max(length, min(longest, max(SHORTEST, -(-length // step) * step)))


class Cutter:
    """Cuts batches for one loss, and remembers the trials on each model."""

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget
        self._results: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()

    def cut(
        self, model: nn.Module, buckets: Sequence[Bucket], forward: Forward, any_rows: bool = False
    ) -> Sequence[Cut]:
        """Micro-batches of texts of one padded length, the longest first: too little memory shows at once.

        Args:
            model: on its device.
            buckets: of each text of the batch.
            forward: the model on stand-ins.
            any_rows: whether to try all texts of a bucket in one pass, whatever their number. Each number is
                tried once, which is worth it only for a quick pass.
        """
        device = next(model.parameters()).device
        results = self._results.setdefault(model, {}).setdefault((device, *_conditions()), {})
        plans, key = results.setdefault("plans", {}), tuple(buckets)
        if key not in plans:
            pass_cost = PASS_COST.get(device.type, PASS_COST_ELSEWHERE)
            if len(plans) == MAX_PLANS:
                plans.clear()
            trials = _Trials(results, forward, self.token_budget, pass_cost, any_rows)
            plans[key] = list(trials.cuts(buckets))
        return plans[key]


def _conditions() -> tuple[int | str, ...]:
    """What torch chooses kernels by, in addition to shapes and device.

    A result is valid for the same conditions alone. One of them is whether weights are perturbed on read, in
    a torch function mode that computes in its own way.
    """
    modes = torch._C._len_torch_function_stack()
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), modes


class _Trials:
    """Passes over stand-ins of one model, under one set of conditions.

    `results`: of earlier trials; `budget`: tokens of a pass; `pass_cost`: of a pass, in tokens; `any_rows`: see
    `Cutter.cut`.
    """

    def __init__(self, results: dict, forward: Forward, budget: int, pass_cost: int, any_rows: bool) -> None:
        self.results, self.forward, self.budget, self.pass_cost = results, forward, budget, pass_cost
        self.any_rows = any_rows

    def cuts(self, buckets: Sequence[Bucket]) -> Iterator[Cut]:
        merged = {bucket: self._merged(bucket) for bucket in set(buckets)}
        groups: dict[Bucket, list[int]] = {}
        for i, bucket in enumerate(buckets):
            groups.setdefault(merged[bucket], []).append(i)
        for bucket in sorted(groups, reverse=True):
            left = np.array(groups[bucket])
            for rows in self._row_counts(bucket, len(left)):
                order, left = left[:rows], left[rows:]
                yield order, order if len(order) == rows else np.resize(order, rows), bucket

    def _row_counts(self, bucket: Bucket, count: int) -> Iterator[int]:
        """The rows of each pass over `count` texts of a bucket."""
        if self.any_rows and count * bucket[0] <= self.budget and self._invariant(bucket, count):
            yield count
            return
        sizes = [1 << n for n in range(1, (self.budget // bucket[0]).bit_length())]
        while count > 0:
            while rows := _next_rows(count, tuple(sizes), bucket[0], self.pass_cost):
                if self._invariant(bucket, rows):
                    break
                sizes.remove(rows)
            yield rows or 1
            count -= rows or 1

    def _merged(self, bucket: Bucket) -> Bucket:
        """The bucket of padded texts, for texts that fill their length, if padding changes no bit of them."""
        if not bucket[1] or self.budget < 2 * bucket[0]:
            return bucket
        padded = (bucket[0], False, *bucket[2:])
        if (bucket, "merged") not in self.results:
            expected, rows = self._expected(bucket)
            mixed = self.forward([bucket] * (rows - 1) + [padded])[:-1]
            self.results[bucket, "merged"] = bool((mixed == expected).all())
        return padded if self.results[bucket, "merged"] else bucket

    def _invariant(self, bucket: Bucket, rows: int) -> bool:
        """Whether a text has the same bits at each place among `rows` as among the usual number of rows."""
        if (bucket, rows) not in self.results:
            full = (bucket[0], True, *bucket[2:])
            # both, so that no earlier batch matters
            tried = [bucket] if self._merged(full) == full else [bucket, full]
            self.results[bucket, rows] = all(
                bool((self.forward([one] * rows) == self._expected(one)[0]).all()) for one in tried
            )
        return self.results[bucket, rows]

    def _expected(self, bucket: Bucket) -> tuple[Tensor, int]:
        """The output [1, ...] among the usual number of rows, and that number.

        Computed for each trial: weights have moved since the last one.
        """
        rows = 1 << max(1, (min(USUAL, self.budget) // bucket[0]).bit_length() - 1)
        return self.forward([bucket] * rows)[:1], rows


@lru_cache(4096)
def _next_rows(count: int, sizes: tuple[int, ...], length: int, pass_cost: int) -> int:
    """The rows of the first of the passes that process `count` texts at the least cost; 0 without sizes."""
    if not sizes or count >= 2 * max(sizes):
        return max(sizes, default=0)
    least, first = [0] * (count + 1), [0] * (count + 1)
    for left in range(1, count + 1):
        costs = [(rows * length + pass_cost + least[max(0, left - rows)], -rows) for rows in sizes]
        least[left], first[left] = min(costs)
    return -first[count]


def stand_in_ids(model: nn.Module, length: int) -> NDArray[np.int64]:
    """Random tokens of the model's vocabulary, the same for the same length."""
    modules: list[Any] = list(model.modules())
    tables = [m.get_input_embeddings() for m in modules if hasattr(m, "get_input_embeddings")]
    words = max([getattr(table, "num_embeddings", 2) for table in tables], default=2)
    return np.random.default_rng(length).integers(1, words, length)


def longest_text(model: nn.Module) -> int:
    """Tokens of the longest text that the model reads."""
    modules: list[Any] = list(model.modules())
    configs = (m.config for m in modules if hasattr(getattr(m, "config", None), "get_text_config"))
    return next((model_catalogue.positions(config.get_text_config()) for config in configs), 2**31)
