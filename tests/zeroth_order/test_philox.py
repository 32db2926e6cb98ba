"""Philox4x32-10 against the known answers of Random123, its authors' library."""

from __future__ import annotations

import pytest
import torch

from dpzero.zeroth_order.philox import normals, philox

ONES = 0xFFFFFFFF
KNOWN = {  # (counter, key): words
    ((0, 0, 0, 0), (0, 0)): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ((ONES, ONES, ONES, ONES), (ONES, ONES)): "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
        "d16cfe09 94fdcceb 5001e420 24126ea1"
    ),
}


def words(counter, key) -> tuple[torch.Tensor, ...]:
    return philox(key, tuple(torch.tensor([c]) for c in counter))


@pytest.mark.parametrize(("counter", "key"), KNOWN)
def test_known_answers(counter, key):
    assert " ".join(f"{word.item():08x}" for word in words(counter, key)) == KNOWN[counter, key]


def test_many_counters_at_once_give_what_each_gives_alone():
    first = torch.arange(100)
    together = philox((3, 4), (first, first * 7, first + 5, torch.zeros_like(first)))
    for i in (0, 1, 57, 99):
        alone = words((i, 7 * i, i + 5, 0), (3, 4))
        assert [word[i].item() for word in together] == [word.item() for word in alone]


@pytest.mark.parametrize("word", [0, 1, 2**31, ONES])
def test_the_extreme_words_are_finite_normals(word):
    values = normals(tuple(torch.tensor([word]) for _ in range(4)))
    assert values.shape == (1, 4) and values.dtype == torch.float32
    assert torch.isfinite(values).all() and values.abs().max() < 6.77
