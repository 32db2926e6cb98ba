"""Philox against the known answers of Random123, its authors' library; the normals against Box and Muller in float64."""

from __future__ import annotations

import math

import pytest
import torch

from dpzero.zeroth_order.kernels_torch import ANGLE, normals, philox

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


# Normals ---------------------------------------------------------------------------------------------------------------

EXTREMES = torch.tensor(
    [0, 1, 2, 3, 2**30, 2**31 - 4, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 3, ONES - 1, ONES]
)


def uniform_words(count: int) -> torch.Tensor:
    return torch.randint(0, 2**32, (2, count), generator=torch.Generator().manual_seed(0))


def radius_words() -> torch.Tensor:
    """Sorted: some of everywhere, and all where the logarithm changes its exponent or its polynomial's end."""
    at = [int(2.0**32 * 2.0**-power * part) for power in range(32) for part in (1, math.sqrt(0.5))]
    near = torch.cat([torch.arange(-1000, 1000) + word for word in at]).clamp(0, ONES)
    return torch.cat([near, uniform_words(100_000)[0]]).unique()


def test_the_extreme_words_are_finite_and_within_the_exact_bound():
    """The least first word lies 32 halvings below 1: sqrt(2 * 32 ln 2) standard deviations."""
    x0, x1 = torch.cartesian_prod(EXTREMES, EXTREMES).T
    bound = math.sqrt(64 * math.log(2))
    for z in normals(x0, x1):
        assert z.dtype == torch.float32 and torch.isfinite(z).all()
        assert z.abs().max().item() == pytest.approx(bound, rel=4 * 2.0**-24)
        assert (z[x0 >= ONES - 1] == 0).all()  # where the first word rounds to 1


@pytest.mark.parametrize(
    "x0", [uniform_words(500_000)[0], radius_words()], ids=["everywhere", "at the seams"]
)
def test_normals_are_those_of_float64_to_two_units_in_the_last_place_of_their_radius(x0):
    """Of the same uniform numbers, rounded to float32: what the polynomials make of them."""
    x1 = uniform_words(len(x0))[1]
    u = ((x0 >> 1).float() + 0.5) * 2.0**-31
    signed = x1 - ((x1 & 0x80000000) << 1)
    angle = (((signed >> 2).float() + 0.5) * ANGLE).double()
    radius = torch.sqrt(-2 * torch.log(u.double()))
    exact = torch.cos(angle + math.pi / 4), torch.sin(angle + math.pi / 4)
    signs = 1 - 2 * (x1 & 1), 1 - (x1 & 2)
    for z, direction, sign in zip(normals(x0, x1), exact, signs, strict=True):
        assert ((z.double() - radius * direction * sign).abs() <= 4 * 2.0**-24 * radius).all()


def test_a_larger_first_word_never_gives_a_larger_radius():
    words = radius_words()
    for z in normals(words, torch.zeros_like(words)):  # one angle
        assert (z.diff() <= 0).all() and z[0] > 4.7 and z[-1] == 0


def test_the_last_two_bits_of_the_second_word_are_the_signs():
    x0, x1 = uniform_words(1000)
    plain = normals(x0, x1 & ~3)
    for bits in range(4):
        z = normals(x0, (x1 & ~3) + bits)
        assert torch.equal(z[0], -plain[0] if bits & 1 else plain[0])
        assert torch.equal(z[1], -plain[1] if bits & 2 else plain[1])
