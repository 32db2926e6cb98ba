"""One example's contribution is bounded, whatever its loss, and depends on no other example."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpzero.privacy import clip_scalars
from dpzero.privacy.clipping import MIN_NORM, automatic_factors, clip_factors

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)
CLIPS = st.floats(1e-12, 1e12)
HARD = [0.0, -0.0, 1e-45, 1e-320, 1e308, -1e308, math.inf, -math.inf, math.nan]


@given(st.lists(ANY_FLOAT, max_size=20), CLIPS)
@example(HARD, 1.0)
@example(HARD, 1e-300)
def test_no_value_exceeds_the_bound(values, clip):
    clipped = clip_scalars(torch.tensor(values, dtype=torch.float64), clip)
    assert clipped.dtype == torch.float64 and clipped.shape == (len(values),)
    assert torch.isfinite(clipped).all() and (clipped.abs() <= clip).all()


@given(ANY_FLOAT, CLIPS)
def test_values_within_the_bound_stay_and_others_become_the_bound_with_their_sign(value, clip):
    (clipped,) = clip_scalars(torch.tensor([value], dtype=torch.float64), clip).tolist()
    assert clipped == (0.0 if math.isnan(value) else max(-clip, min(clip, value)))


@given(st.lists(ANY_FLOAT, max_size=8), st.lists(ANY_FLOAT, max_size=8))
def test_a_clipped_value_does_not_depend_on_the_others(own, others):
    alone = clip_scalars(torch.tensor(own, dtype=torch.float64), 1.0)
    together = clip_scalars(torch.tensor(own + others, dtype=torch.float64), 1.0)
    assert torch.equal(alone, together[: len(own)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_is_clipped_in_float64(dtype):
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.25, 100.0], dtype=dtype)
    assert clip_scalars(values, 3.0).tolist() == [0.0, 3.0, -3.0, 0.25, 3.0]


def test_an_empty_batch_is_clipped_to_an_empty_one():
    assert clip_scalars(torch.zeros(0), 1.0).sum().item() == 0.0
    assert clip_factors(torch.zeros(0), 1.0).shape == (0,)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=20), CLIPS)
def test_factors_bring_norms_to_the_bound_and_no_further(squared, clip):
    norms = torch.tensor(squared, dtype=torch.float64).sqrt()
    clipped = clip_factors(torch.tensor(squared, dtype=torch.float64), clip) * norms
    assert (clipped <= clip * (1 + 1e-12)).all()
    assert torch.allclose(clipped, norms.clamp_max(clip), rtol=1e-12, atol=0)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=20), CLIPS, st.floats(0, 1e3))
@example([0.0, 1e-320, 1e300], 1.0, 0.0)
def test_automatic_factors_bring_every_norm_below_the_bound(squared, clip, stability):
    norms = torch.tensor(squared, dtype=torch.float64).sqrt()
    clipped = automatic_factors(torch.tensor(squared, dtype=torch.float64), clip, stability) * norms
    assert clipped.isfinite().all() and (clipped <= clip * (1 + 1e-12)).all()
    known = norms + stability > MIN_NORM
    expected = clip * norms[known] / (norms[known] + stability)
    assert torch.allclose(clipped[known], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("squared", [math.nan, math.inf, -1.0])
def test_a_gradient_that_is_not_finite_contributes_nothing(squared):
    assert clip_factors(torch.tensor([squared, 4.0]), 1.0).tolist() == [0.0, 0.5]
    assert automatic_factors(torch.tensor([squared, 4.0]), 1.0, 0.0).tolist() == [0.0, 0.5]


def test_a_zero_gradient_stays():
    assert clip_factors(torch.tensor([0.0]), 1.0).tolist() == [1.0]
