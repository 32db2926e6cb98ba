"""Discrete noise has exactly its distribution. Each statistical test fails by chance below 1e-6.

P11 in test_pitfalls attacks the low-order bits of float and of discrete noise.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpzero.privacy import RunKey, discrete_noise
from dpzero.privacy.discrete_noise import BLOCK_BYTES, Bits

DRAWS = 20_000
LARGE = 17 * 2**40 // 10 + 1  # as in a run: noise_scale 1.7 on a grid of 2^-40


def stream(seed=0):
    return RunKey.published(seed).stream("noise")


def bits(*counter: int) -> Bits:
    return Bits(stream(), *(counter or (0,)))


def fits(values: np.ndarray, probability: dict[int, float]) -> bool:
    """Chi-square test against a law on some integers; rare and unlisted values share one further cell. Fails
    by chance with 5e-7.
    """
    expected = {value: p * len(values) for value, p in probability.items() if p * len(values) >= 10}
    observed = [int((values == value).sum()) for value in expected]
    rest = len(values) - sum(expected.values())
    if rest < 10:  # too little to be a cell of its own
        assert sum(observed) > len(values) - 60  # rest of at most 10 expected: 1e-20 by chance
        counts = np.array(observed)
        return (
            stats.chisquare(
                counts, np.array([*expected.values()]) * counts.sum() / sum(expected.values())
            ).pvalue
            > 5e-7
        )
    return stats.chisquare([*observed, len(values) - sum(observed)], [*expected.values(), rest]).pvalue > 5e-7


def normalised(weight, reach: int) -> dict[int, float]:
    weights = {x: weight(x) for x in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    return {x: w / total for x, w in weights.items()}


# Bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [2, 3, 5, 7, 96, 257])
def test_integers_below_a_bound_are_uniform(bound):
    """Taking remainders would favour small integers: 0 twice as often as 2, below 3."""
    source = bits()
    values = np.array([source.below(bound) for _ in range(DRAWS)])
    assert fits(values, dict.fromkeys(range(bound), 1 / bound))


def test_integers_below_a_large_bound_are_uniform_from_end_to_end():
    source, bound = bits(), 3 * 2**90 + 1
    values = [source.below(bound) for _ in range(DRAWS)]
    assert all(0 <= value < bound for value in values)
    assert stats.kstest([value / bound for value in values], stats.uniform.cdf).pvalue > 2e-7
    assert fits(np.array([value % 8 for value in values]), dict.fromkeys(range(8), 1 / 8))


def test_only_the_bound_one_uses_no_random_bits():
    source = bits()
    assert [source.below(1) for _ in range(5)] == [0] * 5
    assert source.below(2**64) == bits().below(2**64)


def test_every_bit_of_the_stream_is_used_once_and_in_turn():
    """Across blocks of bytes too, when few bits are left and many are needed."""
    blocks = b"".join(stream().octets(BLOCK_BYTES, 0, block) for block in range(4))
    whole, source, at = int.from_bytes(blocks, "little"), bits(), 0
    for size in [1, 63, 64, 7, 4000, 100, 5000, 3, 2048]:
        assert source.below(2**size) == (whole >> at) & (2**size - 1)
        at += size
    assert BLOCK_BYTES * 8 * 2 < at < len(blocks) * 8


def test_draws_are_a_function_of_key_and_counter():
    def drawn(source: Bits) -> list[int]:
        return [
            discrete_noise.gaussian(source, LARGE**2),
            discrete_noise.laplace(source, LARGE),
            source.below(10**30),
        ]

    others = [drawn(bits(*counter)) for counter in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**40, 3)]]
    others.append(drawn(Bits(stream(seed=1), 0)))
    assert len({number for numbers in others for number in numbers}) == 3 * len(others)
    assert drawn(bits(1)) == others[1] and drawn(bits(0)) == others[0]


# Coins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(1, 3), (2, 7), (1, 2**70), (2**70 - 1, 2**70), (0, 5), (5, 5)]
)
def test_a_coin_has_its_probability(numerator, denominator):
    source = bits()
    heads = sum(source.bernoulli(numerator, denominator) for _ in range(DRAWS))
    assert stats.binomtest(heads, DRAWS, numerator / denominator).pvalue > 5e-7


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(0, 3), (1, 1000), (1, 7), (1, 2), (1, 1), (3, 2), (2, 1), (10, 3), (6, 1)]
)
def test_a_coin_of_exp_minus_gamma_has_its_probability(numerator, denominator):
    source = bits()
    heads = sum(source.bernoulli_exp(numerator, denominator) for _ in range(DRAWS))
    assert stats.binomtest(heads, DRAWS, math.exp(-numerator / denominator)).pvalue > 5e-7
    assert heads == DRAWS or numerator > 0


# Laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 10])
def test_laplace_has_its_law(scale):
    source = bits()
    values = np.array([discrete_noise.laplace(source, scale) for _ in range(DRAWS)])
    assert fits(values, normalised(lambda x: math.exp(-abs(x) / scale), 60 * scale))


@pytest.mark.parametrize("variance", [1, 2, 3, 4, 7, 50, 99, 100])
def test_gaussian_has_its_law(variance):
    """Squares and their neighbours: the proposal's scale is the root rounded down, plus one."""
    source = bits()
    values = np.array([discrete_noise.gaussian(source, variance) for _ in range(DRAWS)])
    assert fits(values, normalised(lambda x: math.exp(-x * x / 2 / variance), 12 * math.isqrt(variance) + 12))


def test_the_chi_square_test_separates_similar_laws():
    source = bits()
    values = np.array([discrete_noise.gaussian(source, 7) for _ in range(DRAWS)])
    assert not fits(values, normalised(lambda x: math.exp(-x * x / 2 / 7.7), 60))
    assert not fits(values, normalised(lambda x: math.exp(-((x - 0.3) ** 2) / 2 / 7), 60))
    twice_zero = np.append(values, np.zeros(600))  # zero with both signs
    assert not fits(twice_zero, normalised(lambda x: math.exp(-x * x / 2 / 7), 60))


def test_large_noise_has_its_scale_and_its_law():
    source = bits()
    normal = np.array([discrete_noise.gaussian(source, LARGE**2) / LARGE for _ in range(DRAWS)])
    double = np.array([discrete_noise.laplace(source, LARGE) / LARGE for _ in range(DRAWS)])
    for total, law in (
        ((normal**2).sum(), stats.chi2(DRAWS)),
        (2 * np.abs(double).sum(), stats.chi2(2 * DRAWS)),
    ):
        assert law.ppf(1e-7) < total < law.isf(1e-7)
        assert not law.ppf(1e-7) < 1.1 * total < law.isf(1e-7)
    assert stats.kstest(normal, stats.norm.cdf).pvalue > 2e-7
    assert stats.kstest(double, stats.laplace.cdf).pvalue > 2e-7


@pytest.mark.parametrize(
    "law",
    [
        lambda source: discrete_noise.gaussian(source, LARGE**2),
        lambda source: discrete_noise.laplace(source, LARGE),
    ],
)
def test_the_low_order_bits_of_large_noise_are_uniform(law):
    """These bits are what attacks on float noise use."""
    source = bits()
    values = np.array([law(source) % 16 for _ in range(DRAWS)])
    assert fits(values, dict.fromkeys(range(16), 1 / 16))


def test_scale_zero_gives_no_noise():
    assert discrete_noise.laplace(bits(), 0) == discrete_noise.gaussian(bits(), 0) == 0


# Arithmetic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [10**30, 10**100])
def test_integers_of_any_size_are_drawn_without_rounding(scale):
    """The low-order digits beyond float precision are kept."""
    source = bits()
    for value in (discrete_noise.gaussian(source, scale**2), discrete_noise.laplace(source, scale)):
        assert type(value) is int and scale / 1000 < abs(value) < 30 * scale
        assert int(float(value)) != value


def test_no_float_is_computed_with():
    """No float constant, no true division, no function that returns a float: bytes in, integers out."""
    tree = ast.parse(Path(discrete_noise.__file__).read_text())
    nodes = list(ast.walk(tree))
    assert not [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, float)]
    assert not [node for node in nodes if isinstance(node, ast.Div)]
    imported = {
        alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
    }
    assert imported == {"annotations", "isqrt", "Stream"}
    read_from_the_stream = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._stream"
    }
    assert read_from_the_stream == {"octets"}
    called = {
        node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called <= {"laplace", "isqrt", "abs"}
