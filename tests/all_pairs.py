"""Cases that cover every pair of values of several parameters, in place of their full product."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairwise(names: str, *axes: Sequence[Any], ids=None) -> pytest.MarkDecorator:
    """As `pytest.mark.parametrize(names, product(*axes))`, with the fewest rows that a greedy choice finds."""

    def pairs(row: tuple[Any, ...]) -> set:
        return set(itertools.combinations(enumerate(map(repr, row)), 2))

    rows, left = list(itertools.product(*axes)), set()
    for row in rows:
        left |= pairs(row)
    chosen = []
    while left:
        best = max(rows, key=lambda row: len(pairs(row) & left))
        chosen.append(best)
        left -= pairs(best)
    return pytest.mark.parametrize(names, chosen, ids=ids)
