"""A direction is a function of (seed, step, tensor, element) alone. Statistical tests fail by chance below 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzero.experiment.memory import LiveStorage
from dpzero.zeroth_order import Gaussian, directions

DRAWS = 400_000
MIB = 2**20


def direction(shapes, seed=0, step=0) -> list[torch.Tensor]:
    tensors = [torch.zeros(shape) for shape in shapes]
    Gaussian(seed).add_(tensors, step, 1.0)
    return tensors


def one(count: int = DRAWS, seed=0, step=0, tensor=0) -> np.ndarray:
    return direction([(1,)] * tensor + [(count,)], seed, step)[-1].double().numpy()


# A function of its address ---------------------------------------------------------------------------------------------

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([4, 8, 64, 1024]), st.integers(0, 10**6))
def test_chunks_and_groups_change_no_bit(shapes, chunk, step):
    expected = direction(shapes, step=step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "CHUNK", chunk)
        for mine, theirs in zip(direction(shapes, step=step), expected, strict=True):
            assert torch.equal(mine, theirs)


@settings(deadline=None)
@given(SHAPES)
def test_a_longer_tensor_begins_like_a_shorter_one(shapes):
    """So that a shard or a padded tensor sees the elements that it holds, and neighbours do not matter."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = direction([(size,) for size in sizes])
    longer = direction([(size + 37,) for size in sizes])
    shaped = direction(shapes)
    for size, a, b, c in zip(sizes, flat, longer, shaped, strict=True):
        assert torch.equal(a, b[:size]) and torch.equal(a, c.flatten())


def test_a_big_tensor_has_the_elements_of_its_own_address():
    size = 3 * directions.CHUNK + 7
    small, big = direction([(5,), (size,)])
    assert torch.equal(direction([(5,), (9,)])[1], big[:9])
    assert torch.equal(direction([(5,), (size - 1,)])[1], big[:-1])
    assert torch.equal(direction([(5,)])[0], small)


def test_steps_can_be_visited_in_any_order():
    law, expected = Gaussian(0), [direction([(33,)], step=step)[0] for step in range(5)]
    for step in (4, 0, 3, 3, 1):
        z = torch.zeros(33)
        law.add_([z], step, 1.0)
        assert torch.equal(z, expected[step])


def test_global_seeds_do_not_matter_and_are_not_moved():
    torch.manual_seed(0)
    expected, after = direction([(40,)]), torch.rand(3)
    torch.manual_seed(0)
    again = direction([(40,)])
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(1)
    assert torch.equal(direction([(40,)])[0], expected[0]) and torch.equal(again[0], expected[0])


def test_the_scale_multiplies_and_the_rest_is_kept():
    z = direction([(50,), (3, 4)], step=2)
    start = [torch.randn(z_.shape, generator=torch.Generator().manual_seed(1)) for z_ in z]
    moved = [tensor.clone() for tensor in start]
    Gaussian(0).add_(moved, 2, -0.25)
    for mine, origin, z_ in zip(moved, start, z, strict=True):
        assert torch.equal(mine, origin.add(z_, alpha=-0.25))


def test_double_precision_tensors_move_along_the_same_direction():
    z = torch.zeros(100, dtype=torch.float64)
    Gaussian(0).add_([z], 0, 1.0)
    assert torch.equal(z.float(), direction([(100,)])[0])


def test_an_empty_tensor_has_no_direction_and_keeps_its_place():
    assert torch.equal(direction([(0,), (5,)])[1], direction([(2,), (5,)])[1])


def test_the_law_is_the_one_that_its_version_names():
    """Records replay for ever: who changes these numbers gives the law another version."""
    assert Gaussian.law == "gaussian-philox4x32-10-boxmuller-v1"
    assert Gaussian(0).key == (2316889879, 3912700329)
    golden = {
        (0, 0): [
            [-1.5114685297, 0.5148758888, 2.0160100460, 0.0026672087, 0.9390947819, 0.7243710756],
            [1.9804120064, -0.4473388195, -0.0412798636, -0.6683958769],
        ],
        (7, 1000): [
            [0.4637665153, 2.3108317852, 0.7240880728, -0.2640750706, 1.2076256275, 0.1167778597],
            [1.6756975651, -0.2768581808, -0.6640911698, -0.6479262114],
        ],
    }
    for (seed, step), expected in golden.items():
        for z, values in zip(direction([(6,), (2, 2)], seed, step), expected, strict=True):
            assert z.flatten().tolist() == pytest.approx(values, rel=1e-5)


# The law ---------------------------------------------------------------------------------------------------------------


def test_elements_are_standard_normal():
    z = one()
    assert stats.kstest(z, stats.norm.cdf).pvalue > 2e-7
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 5.5 * math.sqrt(variance / DRAWS)


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"step": 2**20}, {"tensor": 1}, {"tensor": 1, "step": 1}, {"seed": 1}, {"seed": 2**31}],
    ids=str,
)
def test_other_steps_tensors_and_seeds_are_unrelated(other):
    z, other = one(), one(**other)
    assert abs(correlation(z, other)) < 6 / DRAWS**0.5
    assert abs(correlation(z**2, other**2)) < 6 / DRAWS**0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, directions.CHUNK])
def test_elements_of_a_tensor_are_unrelated(lag):
    z = one()
    assert abs(correlation(z[:-lag], z[lag:])) < 6 / (DRAWS - lag) ** 0.5
    assert abs(correlation(z[:-lag] ** 2, z[lag:] ** 2)) < 6 / (DRAWS - lag) ** 0.5


def test_directions_of_many_steps_are_isotropic():
    """E z z' = I over steps: what the two-point estimate rests on."""
    steps = 2000
    z = np.stack([direction([(3,), (4,)], step=step)[1].numpy() for step in range(steps)]).astype(float)
    off = z.T @ z / steps - np.eye(4)
    assert np.abs(off).max() < 6 * math.sqrt(2 / steps)


# Memory ----------------------------------------------------------------------------------------------------------------


def test_no_temporary_is_as_large_as_a_big_tensor():
    tensors = [torch.zeros(8 * MIB // 4), torch.zeros(32), torch.zeros(32)]
    tracker = LiveStorage()
    for tensor in tensors:
        tracker.add(tensor)
    held = tracker.live
    with tracker:
        Gaussian(0).add_(tensors, 0, 1.0)
    assert tracker.peak - held < 2 * MIB
    assert tracker.live == held


def test_many_small_tensors_go_together():
    """Hundreds of bias vectors cost a few rounds of the generator, not hundreds."""
    tensors = [torch.zeros(64) for _ in range(500)]
    assert len(list(directions._groups(tensors))) == 1


# Several directions a step ----------------------------------------------------------------------------------------------


def test_the_directions_of_a_step_are_unrelated():
    """And the first is that of a step with one. Any of 10 correlations exceeds 5.5 standard deviations with 4e-7."""
    drawn = []
    for k in range(5):
        tensor = torch.zeros(DRAWS)
        Gaussian(0).add_([tensor], 3, 1.0, direction=k)
        drawn.append(tensor.double().numpy())
    assert np.array_equal(drawn[0], one(step=3))
    correlations = np.corrcoef(drawn) - np.eye(5)
    assert np.abs(correlations).max() < 5.5 / math.sqrt(DRAWS)
