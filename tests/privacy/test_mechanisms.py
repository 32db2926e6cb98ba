"""Releases of a sum that is zero are the noise itself: its scale and law. Each test fails by chance below 1e-6.

This catches a factor of two between conventions, a division in the wrong place or an adjacency mixed up: more than any audit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dpzero.privacy import Budget, RunKey, Setting
from dpzero.privacy.budget import CHUNK

RELEASES = 100_000
CLIP, NOISE_SCALE = 0.7, 1.7


def budget(mechanism="gaussian", seed=0) -> Budget:
    setting = Setting(mechanism, "poisson", "add_remove", 1000, 10, RELEASES, 1e-5)
    return Budget(setting, NOISE_SCALE, RunKey.published(seed))


def zero_releases(mechanism: str) -> np.ndarray:
    source = budget(mechanism)
    return np.array([source.release(step, 0.0, CLIP) for step in range(RELEASES)])


def within(value: float, law) -> bool:
    """Inside the 2e-7 quantiles on both sides; 1e5 releases tell a scale that is off by 3 %."""
    return law.ppf(2e-7) < value < law.isf(2e-7)


def test_gaussian_releases_have_the_standard_deviation_noise_scale_times_clip():
    noise = zero_releases("gaussian") / (NOISE_SCALE * CLIP)
    assert within((noise**2).sum(), stats.chi2(RELEASES))
    assert not within((1.03 * noise**2).sum(), stats.chi2(RELEASES))
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 5e-7


def test_laplace_releases_have_the_scale_noise_scale_times_clip():
    noise = zero_releases("laplace") / (NOISE_SCALE * CLIP)
    assert within(2 * np.abs(noise).sum(), stats.chi2(2 * RELEASES))
    assert stats.kstest(noise, stats.laplace.cdf).pvalue > 5e-7


def test_vector_releases_have_the_same_noise_in_every_coordinate():
    sums = [torch.zeros(60_000, dtype=torch.float64), torch.zeros(200, 200, dtype=torch.float64)]
    budget().release_(0, sums, CLIP)
    noise = torch.cat([s.flatten() for s in sums]).numpy() / (NOISE_SCALE * CLIP)
    assert within((noise**2).sum(), stats.chi2(RELEASES))
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 5e-7


def test_no_two_coordinates_share_their_noise():
    """Of equal tensors, of neighbouring chunks of a big one, of two steps."""
    source = budget()
    sums = [torch.zeros(2 * CHUNK, dtype=torch.float64) for _ in range(2)]
    source.release_(0, sums, CLIP)
    later = [torch.zeros(CHUNK, dtype=torch.float64)]
    source.release_(1, later, CLIP)
    parts = [*sums[0].split(CHUNK), *sums[1].split(CHUNK), *later]
    assert len(torch.cat(parts).unique()) == 5 * CHUNK
    unrelated = np.corrcoef(torch.stack(parts).numpy()) - np.eye(5)
    assert np.abs(unrelated).max() < 6 / CHUNK**0.5


def test_the_sum_stands_in_its_noise_unchanged():
    noise = budget().release(3, 0.0, CLIP)
    assert budget().release(3, 2.5, CLIP) == pytest.approx(2.5 + noise, rel=1e-15)
    sums = [torch.full((7,), 2.5, dtype=torch.float64)]
    zeros = [torch.zeros(7, dtype=torch.float64)]
    budget().release_(3, sums, CLIP)
    budget().release_(3, zeros, CLIP)
    assert torch.allclose(sums[0], 2.5 + zeros[0], rtol=1e-15, atol=1e-15)


def test_laplace_noise_on_vectors_is_refused():
    with pytest.raises(ValueError, match="laplace mechanism is offered for scalars: use gaussian"):
        budget("laplace").release_(0, [torch.zeros(3)], CLIP)
