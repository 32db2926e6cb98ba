"""A direction is a function of (seed, step, tensor, element) alone, whatever the law and whoever computes it.

Statistical tests fail by chance below 1e-6 each: bounds are in standard deviations, the number of figures that are held against one
is in the test. A Gaussian exceeds 5.5 of them with 3.8e-8, 6 with 2e-9, 8 with 1e-15.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzero.zeroth_order import dispatch
from dpzero.zeroth_order.directions import LAWS, Move, make_law
from dpzero.zeroth_order.kernels_torch import gaussian, signs

ALL = [(name, 1) for name in LAWS] + [("low_rank", 2)]
DRAWS = 400_000

every_law = pytest.mark.parametrize("law", ALL, ids=lambda law: f"{law[0]}-{law[1]}")


@pytest.fixture(params=["compiled", "plain"])
def engine(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(dispatch, "kernels_numba", None)
    elif dispatch.kernels_numba is None:
        pytest.skip("numba is not installed")


def direction(
    shapes, law=("gaussian", 1), seed=0, step=0, number=0, dtype=torch.float32
) -> list[torch.Tensor]:
    tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    make_law(law[0], seed, law[1]).add_(tensors, step, 1.0, number)
    return tensors


def equal(these, those) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


# A function of its address ---------------------------------------------------------------------------------------------

SHAPES = st.lists(st.lists(st.integers(1, 17), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


@every_law
def test_chunks_and_pieces_change_no_bit(law, engine):
    @settings(deadline=None, max_examples=10)
    @given(SHAPES, st.integers(100, 3000), st.integers(0, 2**32 - 1))
    def check(shapes, size, step):
        shapes = [*shapes, (3001,), (30, 20)]
        expected = direction(shapes, law, step=step)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "PIECE", size)
            patch.setattr(dispatch, "CHUNK", size)
            assert equal(direction(shapes, law, step=step), expected)

    check()


@every_law
def test_threads_change_no_bit(law, monkeypatch):
    shapes = [(40_000,), (200, 300), (5,), *[(3, 4)] * 200]
    threads, drawn = torch.get_num_threads(), []
    monkeypatch.setattr(dispatch, "PIECE", 2**12)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            drawn.append(direction(shapes, law))
    finally:
        torch.set_num_threads(threads)
    assert equal(*drawn)


@pytest.mark.parametrize("law", [("gaussian", 1), ("rademacher", 1)], ids=lambda law: law[0])
def test_a_longer_tensor_begins_like_a_shorter_one(law, engine):
    """So that a shard or a padded tensor sees the elements that it holds, and neighbours and shapes do not matter."""

    @settings(deadline=None, max_examples=30)
    @given(SHAPES, st.integers(1, 3000))
    def check(shapes, more):
        sizes = [math.prod(shape) for shape in shapes]
        flat, shaped = direction([(size,) for size in sizes], law), direction(shapes, law)
        longer = direction([(size + more,) for size in sizes], law)
        for size, a, b, c in zip(sizes, flat, longer, shaped, strict=True):
            assert torch.equal(a, b[:size]) and torch.equal(a, c.flatten())

    check()


def test_a_larger_low_rank_matrix_begins_like_a_smaller_one():
    """In both of its sides, with rank 1. With a higher rank the second column of U begins where the first ends."""
    [wide], [narrow] = direction([(50, 90)], ("low_rank", 1)), direction([(31, 17)], ("low_rank", 1))
    assert torch.equal(wide[:31, :17], narrow)
    assert equal(direction([(70,)], ("low_rank", 2)), direction([(70,)]))  # a vector is normal
    [kernel], [matrix] = direction([(4, 3, 2, 2)], ("low_rank", 2)), direction([(4, 12)], ("low_rank", 2))
    assert torch.equal(kernel.view(4, 12), matrix)


def test_the_sphere_is_the_gaussian_over_its_norm():
    """One factor for all tensors, rounded to float32 once."""
    shapes = [(40,), (8, 9)]
    law = make_law("sphere", 0).fit([torch.empty(shape) for shape in shapes])
    scaled = [torch.zeros(shape) for shape in shapes]
    make_law("gaussian", 0).add_(scaled, 5, law.factor(5, 0))
    assert equal(direction(shapes, ("sphere", 1), step=5), scaled)


def test_the_sphere_takes_the_norm_of_the_tensors_that_it_is_given():
    law = make_law("sphere", 0)
    for shapes in ([(40,)], [(8, 9), (7,)], [(40,)]):
        z = [torch.zeros(shape) for shape in shapes]
        law.add_(z, 0, 1.0)
        assert equal(z, direction(shapes, ("sphere", 1)))


@every_law
def test_steps_can_be_visited_in_any_order(law):
    shapes = [(33,), (4, 5)]
    expected = [direction(shapes, law, step=step) for step in range(5)]
    mine = make_law(law[0], 0, law[1])  # what it keeps of a step must not leak into another
    for step in (4, 0, 3, 3, 1):
        z = [torch.zeros(shape) for shape in shapes]
        mine.add_(z, step, 1.0)
        assert equal(z, expected[step])


@every_law
def test_global_seeds_do_not_matter_and_are_not_moved(law):
    torch.manual_seed(0)
    expected, after = direction([(40,), (3, 4)], law), torch.rand(3)
    torch.manual_seed(0)
    again = direction([(40,), (3, 4)], law)
    assert torch.equal(torch.rand(3), after) and equal(again, expected)
    torch.manual_seed(1)
    assert equal(direction([(40,), (3, 4)], law), expected)


@every_law
def test_an_empty_tensor_has_no_direction_and_keeps_its_place(law, engine):
    [empty, flat, z] = direction([(0,), (0, 3), (5,)], law)
    assert empty.shape == (0,) and flat.shape == (0, 3)
    expected = direction([(2,), (2, 3), (5,)], law)[2]
    if law[0] == "sphere":  # whose norm has the elements that are there
        z, expected = z / z.norm(), expected / expected.norm()
    assert torch.allclose(z, expected)


def test_an_unknown_law_or_rank_is_refused():
    with pytest.raises(ValueError, match="'uniform': give one of gaussian, sphere, rademacher, low_rank"):
        make_law("uniform", 0)
    with pytest.raises(ValueError, match="rank is 0: it must be at least 1"):
        make_law("low_rank", 0, 0)


# Moves -----------------------------------------------------------------------------------------------------------------


def start(shapes, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@every_law
def test_the_scale_multiplies_and_the_rest_is_kept(law, engine):
    shapes = [(50,), (30, 40)]
    z, x = direction(shapes, law, step=2), start(shapes)
    moved = [tensor.clone() for tensor in x]
    make_law(law[0], 0, law[1]).add_(moved, 2, -0.25)
    for mine, origin, z_ in zip(moved, x, z, strict=True):
        assert torch.allclose(mine, origin - 0.25 * z_, rtol=0, atol=5e-7)


@every_law
def test_double_precision_tensors_move_along_the_same_direction(law, engine):
    """Which is of float32 numbers; the sphere's are over a norm in float64."""
    shapes = [(100,), (11, 13)]
    single, double = direction(shapes, law), direction(shapes, law, dtype=torch.float64)
    for a, b in zip(single, double, strict=True):
        assert torch.allclose(a.double(), b, rtol=2e-7, atol=1e-15)
    if law[0] in ("gaussian", "rademacher"):
        assert equal(single, [b.float() for b in double])
        assert equal(double, [a.double() for a in single])


MOVES = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1), st.integers(0, 5), st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)
    ),
    min_size=1,
    max_size=4,
)


@every_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_and_plain_agree_to_the_bit_in_many_moves_and_one_by_one(law, dtype):
    """The reference is plain torch. Several moves of several scales in one pass are what they are one after the other."""
    if dispatch.kernels_numba is None:
        pytest.skip("numba is not installed")

    @settings(deadline=None, max_examples=20)
    @given(SHAPES, MOVES, st.integers(0, 2**63))
    def check(shapes, drawn, seed):
        shapes = [*shapes, (2100,), (64,)]
        moves = [Move(step, k, (a, b)) for step, k, a, b in drawn]
        mine, ends = make_law(law[0], seed, law[1]).fit([torch.empty(shape) for shape in shapes]), []
        for compiled in (dispatch.kernels_numba, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dispatch, "kernels_numba", compiled)
                together, alone = start(shapes, dtype), start(shapes, dtype)
                dispatch.run(mine.pieces(enumerate(together), moves))
                for move in moves:
                    for scale in move.scales:
                        dispatch.run(
                            mine.pieces(enumerate(alone), [Move(move.step, move.direction, (scale,))])
                        )
                ends += [together, alone]
        assert all(equal(end, ends[0]) for end in ends[1:])

    check()


@pytest.mark.parametrize("law", [("gaussian", 1), ("sphere", 1), ("rademacher", 1)], ids=lambda law: law[0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 7, 64, 130])
def test_rows_are_those_of_the_whole_tensor(law, dtype, columns, engine):
    """In any order, some more than once, none."""
    shape, rows = (60, columns), torch.tensor([59, 0, 17, 17, 3, 30])
    tensors = start([(4,), shape], dtype)
    mine, move = make_law(law[0], 0, law[1]).fit(tensors), Move(8, 1, (0.5, -0.2))
    few, none = tensors[1][rows].clone(), tensors[1][:0].clone()
    mine.add_rows_(few, rows, 1, shape, move)
    mine.add_rows_(none, rows[:0], 1, shape, move)
    assert torch.equal(mine.perturbed_copy(tensors[1], 1, move)[rows], few)


@pytest.mark.parametrize("rank", [1, 2])
def test_rows_and_products_of_low_rank_are_those_of_the_whole_matrix(rank):
    shape, rows, x = (20, 30), torch.tensor([19, 0, 7, 7]), torch.randn(2, 5, 30, dtype=torch.float64)
    law, move = make_law("low_rank", 0, rank), Move(8, 1, (0.5, -0.2))
    z = law.perturbed_copy(torch.zeros(shape, dtype=torch.float64), 1, move)
    out, product = torch.zeros(4, 30, dtype=torch.float64), torch.zeros(2, 5, 20, dtype=torch.float64)
    law.add_rows_(out, rows, 1, shape, move)
    law.add_product_(product, x, 1, shape, move)
    assert torch.allclose(out, z[rows], rtol=1e-6, atol=1e-6)  # products of two float32 numbers, rounded in z
    assert torch.allclose(product, x @ z.T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("name", "make"), [("gaussian", gaussian), ("rademacher", signs)])
def test_elements_beyond_the_32nd_bit_are_those_of_the_reference(name, make, engine):
    """In a tensor of 2^33 + 2^20: some of its last rows."""
    shape, rows = (2**20 + 128, 2**13), torch.tensor([2**20 + 127, 2**19 + 5])
    law, out = make_law(name, 3), torch.zeros(2, shape[1])
    law.add_rows_(out, rows, 2, shape, Move(1, 0, (1.0,)))
    for mine, row in zip(out, rows.tolist(), strict=True):
        z = make(law.key, (2, 1, 0), row * shape[1], shape[1], torch.device("cpu"))
        assert torch.equal(mine, z) and not torch.equal(z, make(law.key, (2, 1, 0), 0, shape[1], z.device))


def test_the_sum_of_squares_does_not_depend_on_kernels_or_pieces(monkeypatch):
    sizes, device = [1, 64, 5000, 0, 100], torch.device("cpu")
    key = make_law("gaussian", 0).key
    expected = round(
        sum(z.double().square().sum().item() for z in direction([(size,) for size in sizes], step=3)) * 2**20
    )
    totals = set()
    for compiled in (dispatch.kernels_numba, None):
        for piece in (2**19, 64, 777):
            monkeypatch.setattr(dispatch, "kernels_numba", compiled)
            monkeypatch.setattr(dispatch, "PIECE", piece)
            totals.add(dispatch.sum_of_squares(sizes, key, 3, 0, device))
    assert len(totals) == 1
    assert totals.pop() == pytest.approx(expected, abs=sum(sizes) / 2)


# The law: independent streams of numbers ---------------------------------------------------------------------------------


@cache
def stream(name: str, count=DRAWS, seed=0, step=0, tensor=0, number=0) -> np.ndarray:
    """Numbers that should be independent and of one distribution. Of low rank: those of U and of V."""
    if name in ("left", "right"):
        factors = make_law("low_rank", seed).factors(
            tensor, (count, count), step, number, torch.device("cpu")
        )
        return factors[name == "right"].flatten().double().numpy()
    return direction([(1,)] * tensor + [(count,)], (name, 1), seed, step, number)[-1].double().numpy()


STREAMS = ["gaussian", "sphere", "rademacher", "left", "right"]
every_stream = pytest.mark.parametrize("name", STREAMS)


def correlations(a, b) -> list[float]:
    """Of the numbers and, but for signs, of their squares; in standard deviations."""
    pairs = [(a, b)] if (a**2 == 1).all() else [(a, b), (a**2, b**2)]
    return [abs(float(np.corrcoef(*pair)[0, 1])) * math.sqrt(len(a)) for pair in pairs]


@every_stream
def test_the_numbers_have_the_moments_of_the_law(name):
    """Four figures at 5.5: 1.6e-7."""
    z, moments = stream(name), [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]
    if name == "rademacher":
        assert (z**2 == 1).all()
        moments = [(1, 0, 1)]
    for power, mean, variance in moments:
        assert abs((z**power).mean() - mean) < 5.5 * math.sqrt(variance / DRAWS)


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "rademacher"])
def test_the_numbers_are_normal(name):
    """Kolmogorov and Smirnov, of the numbers and of their sizes (the tails count twice): 4e-7."""
    z = stream(name)
    assert stats.kstest(z, stats.norm.cdf).pvalue > 2e-7
    assert stats.kstest(z**2, stats.chi2(1).cdf).pvalue > 2e-7


def test_signs_are_balanced_and_unrelated_in_every_bit_position():
    """32 bits and 64 words of a tile at 6 (2e-7), 496 pairs of bits and 2016 of words at 6.5 (2e-7)."""
    tiles = 4000
    bits = stream("rademacher", tiles * 2048).reshape(tiles, 32, 64)
    for positions in (bits.transpose(1, 0, 2).reshape(32, -1), bits.transpose(2, 0, 1).reshape(64, -1)):
        count = positions.shape[1]
        assert np.abs(positions.mean(1)).max() < 6 / math.sqrt(count)
        related = positions @ positions.T / count
        np.fill_diagonal(related, 0)
        assert np.abs(related).max() < 6.5 / math.sqrt(count)


@every_stream
@pytest.mark.parametrize(
    "other",
    [
        {"step": 1},
        {"step": 2**20},
        {"tensor": 1},
        {"tensor": 1, "step": 1},
        {"seed": 1},
        {"seed": 2**31},
        {"number": 1},
        {"number": 7},
    ],
    ids=str,
)
def test_other_steps_tensors_seeds_and_directions_are_unrelated(name, other):
    """Two figures at 6: 4e-9."""
    assert max(correlations(stream(name), stream(name, **other))) < 6


@every_stream
@pytest.mark.parametrize("lag", [1, 2, 3, 16, 48, 64, 1024, 2048])
def test_elements_of_a_tensor_are_unrelated(name, lag):
    """The lags are those of a tile's words, lanes and bits. Two figures at 6: 4e-9."""
    z = stream(name)
    assert max(correlations(z[:-lag], z[lag:])) < 6


def test_the_two_sides_of_low_rank_are_unrelated_to_each_other_and_to_the_vectors():
    """Six figures at 6: 1.2e-8."""
    sides = [stream(name) for name in ("left", "right", "gaussian")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert max(correlations(sides[a], sides[b])) < 6


def test_two_words_of_a_counter_make_unrelated_normals_of_every_size():
    """A pair shares its radius and, but for a turn, its angle. Independence of sizes: chi-square over 16 x 16 cells, 1e-7."""
    tiles = stream("gaussian", 64 * 20_000).reshape(-1, 4, 16)
    cells = (stats.norm.cdf(tiles) * 16).astype(int)
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        counts = np.bincount((cells[:, a] * 16 + cells[:, b]).flatten(), minlength=256)
        assert stats.chisquare(counts).pvalue > 2.5e-8


# The law: whole directions -----------------------------------------------------------------------------------------------


@every_law
def test_directions_of_many_steps_are_isotropic(law):
    """E z z' = I over steps, across a vector and a matrix: what the two-point estimate rests on.

    55 figures at 8 standard deviations. A product of normals has E z^4 = 9 and E z_i^2 z_j^2 = 3 at most within a row; its tail,
    exp(-|z|), needs |z| > 40 to exceed the bound alone: 1e-15.
    """
    steps, mine = 3000, make_law(law[0], 0, law[1])
    z = np.empty((steps, 10))
    for step in range(steps):
        tensors = [torch.zeros(4), torch.zeros(2, 3)]
        mine.add_(tensors, step, 1.0)
        z[step] = torch.cat([tensor.flatten() for tensor in tensors])
    product = law[0] == "low_rank"
    off = np.abs(z.T @ z / steps - np.eye(10))
    diagonal = np.diagonal(off).copy()
    np.fill_diagonal(off, 0)
    assert diagonal.max() < 8 * math.sqrt((8 if product else 2) / steps)
    assert off.max() < 8 * math.sqrt((3 if product else 1) / steps)
    assert np.abs(z.mean(0)).max() < 8 / math.sqrt(steps)


@pytest.mark.parametrize("shapes", [[(8,)], [(1000,), (3, 7)], [(5,), (100_003,), (40, 50)]], ids=str)
def test_a_direction_of_the_sphere_has_the_norm_of_its_dimension(shapes, engine):
    for step in range(5):
        z = torch.cat([part.flatten() for part in direction(shapes, ("sphere", 1), step=step)]).double()
        assert z.norm().item() == pytest.approx(math.sqrt(len(z)), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_matrix_of_low_rank_has_its_rank(rank):
    for step in range(5):
        [matrix] = direction([(40, 30)], ("low_rank", rank), step=step)
        sizes = torch.linalg.svdvals(matrix.double())
        assert sizes[rank - 1] > 1e-2 * sizes[0] and sizes[rank] < 1e-6 * sizes[0]
