"""A whole grid in one pass over the data: each of its settings is the plain algorithm with the project's own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.mezo import MeZO
from dpzero import DPZero
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.privacy.clipping import clip_factors
from dpzero.studies.quadratic import public_directions
from dpzero.studies.quadratic_solver import (
    PIECE,
    ClippedGradients,
    Grid,
    Quadratic,
    clipped_mean,
    first_order,
    zeroth_order,
)

SIZE, DIMENSION, SEED = 50, 7, 3
STEPS, RATES, CLIPS, SCALES = (PIECE + 6, 10), (0.02, 0.2), (0.3, 3.0, 100.0), (40.0, 15.0)
PROBLEM = Quadratic.drawn(SIZE, DIMENSION, decay=0.5, informative=0, seed=SEED)
GRID = Grid.product(STEPS, RATES, CLIPS, SCALES, SIZE)
SETTINGS = list(zip(GRID.steps, GRID.learning_rates, GRID.clips, strict=True))
DIRECTIONS = public_directions(DIMENSION, SEED)


def normals(count):
    stream = RunKey.published(SEED).stream("noise")
    return lambda step: stream.normals(count, step, 0, 0)


class Point(nn.Module):
    """The descending point; what the project's own optimisers train."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(DIMENSION, dtype=torch.float64))


def loss(model, batch):
    offset = model.x - torch.from_numpy(PROBLEM.examples)[batch]
    return 0.5 * (offset**2 @ torch.from_numpy(PROBLEM.curvature))


def budget(steps, kind=Budget):
    setting = Setting("gaussian", "full_batch", "replace_one", SIZE, SIZE, int(steps), 1e-6)
    return kind(setting, dict(zip(STEPS, SCALES, strict=True))[steps], RunKey.published(SEED))


def test_every_setting_of_the_grid_is_a_run_of_DPZero():
    points = zeroth_order(PROBLEM, GRID, DIRECTIONS, normals(1))
    for point, (steps, rate, clip) in zip(points, SETTINGS, strict=True):
        model, own_budget = Point(), budget(steps)
        options = {"learning_rate": rate, "clip": clip, "smoothing": 1e-4, "seed": SEED}
        optimizer = DPZero(model, loss, own_budget, **options)
        for batch in own_budget.batches():
            optimizer.step(batch)
        np.testing.assert_allclose(point, model.x.detach(), rtol=1e-6, atol=1e-6 * abs(point).max())


def test_every_setting_without_clip_and_noise_is_a_run_of_MeZO():
    grid = Grid.product(STEPS, RATES)
    points = zeroth_order(PROBLEM, grid, DIRECTIONS)
    for point, steps, rate in zip(points, grid.steps, grid.learning_rates, strict=True):
        model = Point()
        optimizer = MeZO(model, loss, SIZE, learning_rate=rate, smoothing=1e-4, seed=SEED)
        for _ in range(steps):
            optimizer.step(np.arange(SIZE))
        np.testing.assert_allclose(point, model.x.detach(), rtol=1e-6, atol=1e-6 * abs(point).max())


def vector_release(own_budget, vectors, clip):
    """The mean of clipped vectors [n, d] with the budget's noise."""
    squares = torch.from_numpy(vectors**2).sum(1)
    total = (clip_factors(squares, clip)[:, None] * torch.from_numpy(vectors)).sum(0)
    own_budget.admit(len(vectors))
    own_budget.release_([total], clip)
    return total.numpy() / SIZE


def test_every_setting_with_noise_on_the_vector_is_algorithm_1():
    points = zeroth_order(PROBLEM, GRID, DIRECTIONS, normals(DIMENSION), vector=True)
    for point, (steps, rate, clip) in zip(points, SETTINGS, strict=True):
        x, own_budget = np.zeros(DIMENSION), budget(steps, StandInBudget)
        for step in range(steps):
            u = DIRECTIONS(step)
            estimates = np.outer((x - PROBLEM.examples) @ (PROBLEM.curvature * u), u)
            x = x - rate * vector_release(own_budget, estimates, clip)
        np.testing.assert_allclose(point, x, rtol=1e-9, atol=1e-9 * abs(point).max())


@pytest.mark.parametrize("informative", [0, 2])
def test_every_setting_of_first_order_is_DP_SGD_on_the_full_batch(informative):
    problem = Quadratic.drawn(SIZE, DIMENSION, 0.5, informative, SEED)
    points = first_order(problem, GRID, normals(DIMENSION))
    for point, (steps, rate, clip) in zip(points, SETTINGS, strict=True):
        x, own_budget = np.zeros(DIMENSION), budget(steps, StandInBudget)
        for _ in range(steps):
            gradients = problem.curvature * (x - problem.examples)
            x = x - rate * vector_release(own_budget, gradients, clip)
        # products over the examples are float32
        np.testing.assert_allclose(point, x, rtol=1e-5, atol=1e-5 * abs(point).max())


def test_gradient_descent_ends_where_its_closed_form_says():
    grid = Grid.product([30], [0.1, 1.0])
    left = (1 - grid.learning_rates[:, None] * PROBLEM.curvature) ** 30
    np.testing.assert_allclose(first_order(PROBLEM, grid), PROBLEM.mean * (1 - left), rtol=1e-12)


def test_a_step_that_is_too_long_diverges():
    points = zeroth_order(PROBLEM, Grid.product([2000], [1e-3, 10.0]), DIRECTIONS)
    norms = PROBLEM.gradient_norms(points)
    assert norms[0] < 1 and np.isinf(norms[1])


@pytest.mark.parametrize("bound", [1e-3, 0.5, 2.0, 1e6])
def test_a_clipped_mean_is_the_mean_of_clipped_differences(bound):
    generator = np.random.default_rng(0)
    slopes, places = np.sort(generator.standard_normal(101)), np.array([-9.0, -0.3, 0.0, 0.7, 9.0])
    plain = np.clip(places[:, None] - slopes, -bound, bound).mean(1)
    np.testing.assert_allclose(
        clipped_mean(places, slopes, np.full(5, bound)), plain, atol=1e-13 * bound + 1e-14
    )


def test_gradients_that_no_bound_reaches_are_not_clipped():
    points = np.ones((2, DIMENSION))
    means = ClippedGradients(PROBLEM).means(points, np.array([1e6, 1e-3]))
    np.testing.assert_allclose(means[0], PROBLEM.curvature * (1 - PROBLEM.mean), rtol=1e-12)
    assert np.linalg.norm(means[1]) <= 1e-3


def test_settings_end_in_order_and_no_piece_crosses_an_end():
    assert list(GRID.pieces()) == [(0, 10), (10, PIECE + 6)]
    assert [GRID.live(step) for step in (0, 9, 10, PIECE + 5, PIECE + 6)] == [12, 12, 6, 6, 0]


def test_the_effective_rank_and_the_data_are_those_of_the_law():
    one = Quadratic.drawn(1000, 40, decay=1, informative=1, seed=0)
    assert one.curvature.sum() == pytest.approx(sum(1 / i for i in range(1, 41)))
    assert not one.examples[:, 1:].any() and one.gradient_norms(np.zeros((1, 40))) == pytest.approx(
        1, abs=0.2
    )
    every = Quadratic.drawn(1000, 40, decay=0, informative=0, seed=0)
    assert (every.curvature == 1).all() and (every.examples[:, 0] == one.examples[:, 0]).all()
    # 40,000 and 40 normals: six standard deviations, two of these with a false-alarm rate below 1e-8
    assert abs(every.examples.mean() - 1) < 6 / 200 and abs(every.test_mean.mean() - 1) < 6 / np.sqrt(40_000)
    assert (
        every.gradient_norms(every.mean[None])[0]
        < 1e-12
        < every.gradient_norms(every.mean[None], of_test=True)[0]
    )
