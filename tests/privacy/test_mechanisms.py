"""Releases of an empty sum are the noise itself: its scale and distribution. Chance of failure below 1e-6
each.

This catches a factor of two between conventions, a misplaced division or the wrong adjacency: more than any
audit.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzero.privacy import RunKey, Setting, StandInBudget, discrete_noise
from dpzero.privacy.mechanisms import ARITHMETICS, CHUNK, GRID_BITS, MECHANISMS, delta_excess

RELEASES, DIRECTIONS = 20_000, 50_000
CLIP, NOISE_SCALE = 0.7, 1.7

every_arithmetic = pytest.mark.parametrize("arithmetic", ARITHMETICS)
every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def budget(mechanism="gaussian", seed=0, arithmetic="float", directions=1) -> StandInBudget:
    setting = Setting(mechanism, "poisson", "add_remove", 1000, 10, RELEASES, 1e-5, directions)
    return StandInBudget(setting, NOISE_SCALE, RunKey.published(seed), noise_arithmetic=arithmetic)


def empty(*shape: int) -> torch.Tensor:
    """What is handed in for a batch in which nobody was."""
    return torch.zeros(0, *shape, dtype=torch.float64)


def add_noise(source: StandInBudget, sums: list[torch.Tensor]) -> None:
    source.admit(0)
    source.release_(sums, CLIP)


def zero_releases(mechanism: str, arithmetic: str) -> np.ndarray:
    """RELEASES numbers, ten to a step where several directions are offered."""
    if mechanism == "laplace":
        source = budget(mechanism, arithmetic=arithmetic)
        return np.array([source.release(empty(), CLIP) for _ in range(RELEASES)])
    source = budget(mechanism, arithmetic=arithmetic, directions=10)
    return np.array([source.release(empty(10), CLIP) for _ in range(RELEASES // 10)]).ravel()


def within(value: float, law) -> bool:
    """Inside the 2e-7 quantiles on both sides; 1e5 numbers tell a scale that is off by 2 %, 2e4 one by 5
    %.
    """
    return law.ppf(2e-7) < value < law.isf(2e-7)


@every_arithmetic
def test_gaussian_releases_have_the_standard_deviation_noise_scale_times_clip(arithmetic):
    noise = zero_releases("gaussian", arithmetic) / (NOISE_SCALE * CLIP)
    assert within((noise**2).sum(), stats.chi2(RELEASES))
    assert not within((1.05**2 * noise**2).sum(), stats.chi2(RELEASES))
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 5e-7


@every_arithmetic
def test_laplace_releases_have_the_scale_noise_scale_times_clip(arithmetic):
    noise = zero_releases("laplace", arithmetic) / (NOISE_SCALE * CLIP)
    assert within(2 * np.abs(noise).sum(), stats.chi2(2 * RELEASES))
    assert not within(1.06 * 2 * np.abs(noise).sum(), stats.chi2(2 * RELEASES))
    assert stats.kstest(noise, stats.laplace.cdf).pvalue > 5e-7


@every_arithmetic
def test_directions_of_one_step_have_the_same_noise_each(arithmetic):
    """The factor for several directions belongs to the calibrated noise scale, not here."""
    noise = np.array(budget(arithmetic=arithmetic, directions=DIRECTIONS).release(empty(DIRECTIONS), CLIP))
    noise /= NOISE_SCALE * CLIP
    assert within((noise**2).sum(), stats.chi2(DIRECTIONS))
    assert not within((1.03**2 * noise**2).sum(), stats.chi2(DIRECTIONS))
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 6 / DIRECTIONS**0.5
    assert len(np.unique(noise)) == DIRECTIONS


def test_vector_releases_have_the_same_noise_in_every_coordinate():
    sums = [torch.zeros(60_000, dtype=torch.float64), torch.zeros(200, 200, dtype=torch.float64)]
    add_noise(budget(), sums)
    noise = torch.cat([s.flatten() for s in sums]).numpy() / (NOISE_SCALE * CLIP)
    assert within((noise**2).sum(), stats.chi2(len(noise)))
    assert not within((1.02**2 * noise**2).sum(), stats.chi2(len(noise)))
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 5e-7


def test_no_two_coordinates_share_their_noise():
    """Among equal tensors, neighbouring chunks of a large one, and two steps."""
    source = budget()
    sums = [torch.zeros(2 * CHUNK, dtype=torch.float64) for _ in range(2)]
    add_noise(source, sums)
    later = [torch.zeros(CHUNK, dtype=torch.float64)]
    add_noise(source, later)
    parts = [*sums[0].split(CHUNK), *sums[1].split(CHUNK), *later]
    assert len(torch.cat(parts).unique()) == 5 * CHUNK
    unrelated = np.corrcoef(torch.stack(parts).numpy()) - np.eye(5)
    assert np.abs(unrelated).max() < 6 / CHUNK**0.5


@every_mechanism
@pytest.mark.parametrize(
    ("arithmetic", "rounding"), [("float", 1e-15), ("exact", 4 * CLIP * 2.0**-GRID_BITS)]
)
def test_the_noisy_sum_is_the_sum_plus_noise(mechanism, arithmetic, rounding):
    """Exact arithmetic rounds each value to the grid: by half a point at most, which is no more than 1e-12
    of the bound.
    """
    values = torch.tensor([0.7, 0.7, 0.7, -0.31, 1e-30], dtype=torch.float64)
    noise = budget(mechanism, arithmetic=arithmetic).release(empty(), CLIP)
    noisy = budget(mechanism, arithmetic=arithmetic).release(values, CLIP)
    assert noisy - noise == pytest.approx(values.sum().item(), abs=rounding)


def test_the_noisy_sum_of_vectors_is_their_sum_plus_noise():
    sums = [torch.full((7,), 2.5, dtype=torch.float64)]
    zeros = [torch.zeros(7, dtype=torch.float64)]
    add_noise(budget(), sums)
    add_noise(budget(), zeros)
    assert torch.allclose(sums[0], 2.5 + zeros[0], rtol=1e-15, atol=1e-15)


def test_laplace_noise_on_vectors_is_refused():
    with pytest.raises(ValueError, match="laplace mechanism is offered for scalars: use gaussian"):
        add_noise(budget("laplace"), [torch.zeros(3)])


# Exact arithmetic -----------------------------------------------------------------------------------------


@every_mechanism
@pytest.mark.parametrize("clip", [1.0, CLIP, 3e-5, 1e4])
def test_an_exact_release_is_a_whole_number_of_grid_points(mechanism, clip):
    """The release is a function of that number alone, to the bit."""
    point = clip * 2.0**-GRID_BITS
    values = clip * torch.linspace(-1, 1, 7, dtype=torch.float64)[:5]
    whole_by_chance = 0
    for _ in range(50):
        released = budget(mechanism, arithmetic="exact").release(values, clip)
        assert round(released / point) * 2.0**-GRID_BITS * clip == released
        rounded = budget(mechanism).release(values, clip)
        whole_by_chance += round(rounded / point) * 2.0**-GRID_BITS * clip == rounded
    assert whole_by_chance < 10  # float noise is not on the grid, so the test can tell


@settings(deadline=None, max_examples=30)
@given(st.permutations(list(np.linspace(-1, 1, 23) ** 3)), st.sampled_from(list(MECHANISMS)))
def test_an_exact_release_is_the_same_in_any_order_of_the_batch(order, mechanism):
    values = CLIP * torch.tensor(order, dtype=torch.float64)
    expected = budget(mechanism, arithmetic="exact").release(values.sort().values, CLIP)
    assert budget(mechanism, arithmetic="exact").release(values, CLIP) == expected


def test_without_noise_an_exact_release_is_the_sum_on_the_grid():
    source = StandInBudget(budget().setting, 0.0, noise_arithmetic="exact")
    values = torch.tensor([0.25, -1.0, 0.125, 1.0, 1.0], dtype=torch.float64)
    assert source.release(values, 1.0) == 1.375


@pytest.mark.parametrize("noise_scale", [0.3, 1.7, np.nextafter(2.0, 3), 1e-12])
def test_the_discrete_law_has_no_less_variance_than_was_asked_for(noise_scale, monkeypatch):
    """Exactly: a float64 square would round down for every other scale."""
    parameters = {}
    for law in ("gaussian", "laplace"):
        monkeypatch.setattr(
            discrete_noise, law, lambda bits, parameter, law=law: parameters.setdefault(law, parameter)
        )
        MECHANISMS[law].grid_noise(RunKey.published(0).stream("noise"), noise_scale, 0, 0)
    on_grid = Fraction(noise_scale) * 2**GRID_BITS
    assert 0 <= parameters["gaussian"] - on_grid**2 < 1
    assert 0 <= parameters["laplace"] - on_grid < 1


def total_variation(mechanism: str, scale: int) -> float:
    """Total variation between the discrete law and the rounded continuous one, by summing."""
    reach = 45 * scale
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    continuous = {"gaussian": stats.norm, "laplace": stats.laplace}[mechanism](scale=scale)
    exact = np.exp(-(k**2) / (2 * scale**2) if mechanism == "gaussian" else -np.abs(k) / scale)
    upper = np.abs(k) - 0.5  # by symmetry, from the tail that does not cancel
    rounded = continuous.sf(upper) - continuous.sf(upper + 1)
    return float(np.abs(exact / exact.sum() - rounded).sum() / 2)


@every_mechanism
@pytest.mark.parametrize("scale", [1, 2, 3, 7, 30, 200])
def test_the_discrete_law_is_as_near_the_continuous_one_as_the_excess_says(mechanism, scale):
    """One scalar at epsilon minus infinity: the excess is then the distance."""
    claimed = delta_excess(scale * 2.0**-GRID_BITS, scalars=1, epsilon=-np.inf)
    measured = total_variation(mechanism, scale)
    assert measured <= claimed
    assert measured > claimed / 20  # and the bound is about that distance, not any large number


@pytest.mark.parametrize("epsilon", [0.0, 2.0, 8.0])
def test_the_excess_counts_every_scalar_in_both_worlds(epsilon):
    one = delta_excess(1.7, scalars=1, epsilon=-np.inf)
    assert delta_excess(1.7, scalars=500, epsilon=epsilon) == pytest.approx(500 * one * (1 + np.exp(epsilon)))


def test_exact_noise_costs_a_negligible_delta():
    """With less noise and more steps than any sweep has."""
    assert delta_excess(0.3, scalars=100_000, epsilon=10.0) < 1e-8 * 1e-6
    assert delta_excess(0.3, scalars=100_000, epsilon=1e6) > 0  # no overflow
