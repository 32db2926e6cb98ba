"""Micro-batches in which the bits of a text's loss are its own: no other text of the batch moves them.

What else would: the length that a text is padded to, whether any text beside it is padded (attention without a mask may be another
kernel), and the number of rows of a matrix product, or a row's place in it, since a kernel may then sum in another order. So each text's
own length says to which length it is padded, and micro-batches have powers of two of rows, filled up with copies. Which powers give the
same bits is tried once for each length, with copies of a stand-in: it must be the same at all places, and as among the usual rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from . import weights

SHORTEST = 16  # tokens: what is shorter is padded to it, for few passes
USUAL = 256  # tokens: a CPU takes that many at nearly full speed
PASS = {"cpu": 32}  # what a pass costs beside its tokens, in tokens (measured, MiniLM)
PASS_ELSEWHERE = 512  # a GPU waits for launches
PLANS = (
    256  # of cuts that are kept: both points of a step ask for one, and the head on frozen features for few
)

Kind = tuple[
    int, ...
]  # padded length, whether it is the text's own, and whatever else a loss tells texts apart by
StandIns = Callable[[Sequence[Kind]], Tensor]
"""What the model makes of a stand-in of each kind, in one pass at the first one's padded length: [rows, ...]."""
Cut = tuple[np.ndarray, np.ndarray, Kind]
"""Positions of a micro-batch's texts, ascending, the same filled up to its rows, and their kind."""


class Parts(Protocol):
    def parts(self, token_budget: int) -> Iterator[tuple[np.ndarray, object]]: ...


def batch_shapes(batch: Parts, token_budget: int) -> list[Cut]:
    """The micro-batches of `parts`, whose shapes are the batch's: each padded to the longest of its texts."""
    orders = [np.sort(order) for order, _ in batch.parts(token_budget)]
    return [(order, order, (0,)) for order in orders]


def padded_length(length: int, longest: int) -> int:
    """The next power of two, or halfway to it, but at most what the longest text of the model has."""
    step = max(SHORTEST // 2, 1 << max(0, (length - 1).bit_length() - 2))
    return max(length, min(longest, max(SHORTEST, -(-length // step) * step)))


class Cutter:
    """Cuts batches for one loss, and keeps what it found out about each model."""

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget
        self._known: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()

    def cut(
        self, model: nn.Module, kinds: Sequence[Kind], made: StandIns, pass_cost: int = 0
    ) -> Sequence[Cut]:
        """Micro-batches of texts of one padded length, the longest first: too little memory shows at once.

        Args:
            pass_cost: in tokens, where it is not that of a whole model on this device.
        """
        device = next(model.parameters()).device
        known = self._known.setdefault(model, {}).setdefault((device, *_circumstances()), {})
        plans, key = known.setdefault("plans", {}), tuple(kinds)
        if key not in plans:
            pass_cost = pass_cost or PASS.get(device.type, PASS_ELSEWHERE)
            tried = _Tried(known, made, self.token_budget, pass_cost)
            if len(plans) == PLANS:
                plans.clear()
            plans[key] = list(self._cuts(kinds, tried))
        return plans[key]

    def _cuts(self, kinds: Sequence[Kind], tried: _Tried) -> Iterator[Cut]:
        for kind, left in self._groups(kinds, tried):
            for rows in tried.rows(kind, len(left)):
                order, left = left[:rows], left[rows:]
                yield order, order if len(order) == rows else np.resize(order, rows), kind

    def _groups(self, kinds: Sequence[Kind], tried: _Tried) -> Iterator[tuple[Kind, np.ndarray]]:
        """The positions of each kind."""
        merged = {kind: tried.merged(kind) for kind in set(kinds)}
        groups: dict[Kind, list[int]] = {}
        for i, kind in enumerate(kinds):
            groups.setdefault(merged[kind], []).append(i)
        yield from ((kind, np.array(groups[kind])) for kind in sorted(groups, reverse=True))


def _circumstances() -> tuple[int | str, ...]:
    """What torch chooses kernels by, beside shapes and device: what was found under others says nothing here.

    Among them is whether weights are read in a mode of torch, which computes in its own way (see `zeroth_order.reads`).
    """
    modes = torch._C._len_torch_function_stack()
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), modes


class _Tried:
    """What passes over stand-ins say of one model under the same circumstances.

    `known`: what they said before; `budget`: tokens of a pass at most, of texts that are counted once each.
    """

    def __init__(self, known: dict, made: StandIns, budget: int, pass_cost: int) -> None:
        self.known, self.made, self.budget, self.pass_cost = known, made, budget, pass_cost

    def rows(self, kind: Kind, count: int) -> Iterator[int]:
        """Of each pass over `count` texts of a kind."""
        sizes = [1 << n for n in range(1, (self.budget // kind[0]).bit_length())]
        while count > 0:
            while rows := _next_rows(count, tuple(sizes), kind[0], self.pass_cost):
                if self.agree(kind, rows):
                    break
                sizes.remove(rows)
            yield rows or 1
            count -= rows or 1

    def merged(self, kind: Kind) -> Kind:
        """The kind of texts that are padded, where there is room for two and a padded one changes no bit of one beside it that is not."""
        if not kind[1] or self.budget < 2 * kind[0]:
            return kind
        other = (kind[0], False, *kind[2:])
        if (kind, "merged") not in self.known:
            expected, rows = self._expected(kind)
            mixed = self.made([kind] * (rows - 1) + [other])[:-1]
            self.known[kind, "merged"] = bool((mixed == expected).all())
        return other if self.known[kind, "merged"] else kind

    def agree(self, kind: Kind, rows: int) -> bool:
        """Whether a text has the same bits at each place among `rows` as at the first among the usual number of rows."""
        if (kind, rows) not in self.known:
            whole = (kind[0], True, *kind[2:])
            both = [kind] if self.merged(whole) == whole else [kind, whole]  # whichever came first
            self.known[kind, rows] = all(
                bool((self.made([one] * rows) == self._expected(one)[0]).all()) for one in both
            )
        return self.known[kind, rows]

    def _expected(self, kind: Kind) -> tuple[Tensor, int]:
        """[1, ...], and how many rows it was made among."""
        rows = 1 << max(1, (min(USUAL, self.budget) // kind[0]).bit_length() - 1)
        if (kind, "usual") not in self.known:
            self.known[kind, "usual"] = self.made([kind] * rows)[:1]
        return self.known[kind, "usual"], rows


@lru_cache(4096)
def _next_rows(count: int, sizes: tuple[int, ...], length: int, pass_cost: int) -> int:
    """The rows of the first of those passes that take `count` texts for the least; 0 where there are no sizes."""
    if not sizes or count >= 2 * max(sizes):
        return max(sizes, default=0)
    least, first = [0] * (count + 1), [0] * (count + 1)
    for left in range(1, count + 1):
        costs = [(rows * length + pass_cost + least[max(0, left - rows)], -rows) for rows in sizes]
        least[left], first[left] = min(costs)
    return -first[count]


def stand_in_ids(model: nn.Module, length: int) -> np.ndarray:
    """Words that any text might have, of the model's vocabulary: the same ones for the same length."""
    tables = [m.get_input_embeddings() for m in model.modules() if hasattr(m, "get_input_embeddings")]
    words = max([getattr(table, "num_embeddings", 2) for table in tables], default=2)
    return np.random.default_rng(length).integers(1, words, length)


def longest_text(model: nn.Module) -> int:
    """Tokens of the longest text that the model reads."""
    configs = (m.config for m in model.modules() if hasattr(getattr(m, "config", None), "get_text_config"))
    return next((weights.positions(config.get_text_config()) for config in configs), 2**31)
