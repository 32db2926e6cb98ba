"""Noise that is shared out: shares add up to what was calibrated, and epsilon is that of the least number of them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpzero.privacy import Budget, RunKey, Setting
from dpzero.privacy.mechanisms import GRID_BITS
from dpzero.privacy.shared_noise import NoiseShare, SharedNoiseBudget, from_grid, share_scale, to_grid

SETTING = Setting("gaussian", "poisson", "add_remove", 12, 4, 30, 1e-4)
LEAST, CLIP = 8, 2.0


def budget(noise_scale: float = 2.0, **options) -> SharedNoiseBudget:
    return SharedNoiseBudget(SETTING, noise_scale, RunKey.secret(), least_shares=LEAST, **options)


@given(st.floats(1e-3, 1e6), st.integers(1, 10_000))
def test_the_variances_of_the_least_shares_add_up_to_at_least_the_calibrated_one(noise_scale, least):
    assert Fraction(share_scale(noise_scale, least)) ** 2 * least >= Fraction(noise_scale) ** 2


def test_the_sum_of_shares_has_the_variance_of_the_noise():
    """Of 2,000 sums, within 6 standard errors, which fails by chance below 1e-8."""
    shares = [NoiseShare(SETTING, 2.0, LEAST, number, RunKey.secret()) for number in range(LEAST)]
    sums = np.array([from_grid(sum(share.add(0, step) for share in shares), CLIP) for step in range(2_000)])
    expected = (2.0 * CLIP) ** 2
    assert abs(sums.var() / expected - 1) < 6 * math.sqrt(2 / len(sums))


def test_clients_take_part_at_the_rate_that_is_accounted():
    """Of 12 x 1,000 draws at rate 1/3, within 6 standard errors, which fails by chance below 1e-8."""
    shares = [NoiseShare(SETTING, 2.0, LEAST, number, RunKey.secret()) for number in range(12)]
    joined = np.mean([share.takes_part(step) for share in shares for step in range(1_000)])
    assert abs(joined - SETTING.rate) < 6 * math.sqrt(SETTING.rate * (1 - SETTING.rate) / 12_000)


def test_clients_draw_apart_even_under_one_published_key():
    shares = [NoiseShare(SETTING, 2.0, LEAST, number, RunKey.published(0)) for number in range(12)]
    assert len({share.add(0, 0) for share in shares}) == 12
    assert len({tuple(share.takes_part(step) for step in range(100)) for share in shares}) == 12


def test_a_secret_key_serves_one_client():
    key = RunKey.secret()
    NoiseShare(SETTING, 2.0, LEAST, 0, key)
    with pytest.raises(ValueError, match="another budget uses this secret key"):
        NoiseShare(SETTING, 2.0, LEAST, 1, key)


@given(st.floats(-1, 1), st.floats(1e-3, 1e3))
def test_a_value_on_the_grid_is_within_the_clip_and_comes_back(value, clip):
    term = to_grid(value * clip, clip)
    assert abs(term) <= 2**GRID_BITS and to_grid(from_grid(term, clip), clip) == term


def test_epsilon_is_that_of_a_budget_which_adds_the_noise_itself():
    shared, central = budget(), Budget(SETTING, 2.0, RunKey.secret(), unit="user")
    for spending in (shared, central):
        spending.record_influence(0.0)
    for clients, drawn in zip(shared.batches(), central.batches(), strict=True):
        assert len(clients) == SETTING.dataset_size  # the server does not know who takes part
        shared.release_shares([0] * 12, CLIP)
        central.release(torch.zeros(len(drawn)), CLIP)
    assert shared.epsilon_spent() == central.epsilon_spent() == shared.epsilon_of_shares(LEAST)
    assert shared.epsilon_of_shares(LEAST - 1) > shared.epsilon_spent() > shared.epsilon_of_shares(12)
    assert shared.epsilon_of_shares(0) == math.inf
    assert shared.valid_release and shared.statement()["least_noise_shares"] == LEAST


def test_a_valid_release_of_shared_noise_says_that_it_assumes_secure_aggregation():
    assert budget().statement()["assumes"] == "secure aggregation"
    assert "assumed: secure aggregation" in str(budget()) and f"{LEAST} shares" in str(budget())


def test_too_few_shares_release_nothing_and_count():
    shared = budget()
    rounds = shared.batches()
    next(rounds)
    assert shared.release_shares([2**GRID_BITS] * (LEAST - 1), CLIP) == 0.0
    next(rounds)
    assert shared.release_shares([2**GRID_BITS] * LEAST, CLIP) == LEAST * CLIP
    assert len(shared.ledger) == 2


def test_the_server_adds_no_noise_of_its_own():
    shared = budget()
    next(shared.batches())
    with pytest.raises(ValueError, match="give release_shares their terms"):
        shared.release(torch.zeros(12), CLIP)


@pytest.mark.parametrize(
    ("setting", "least", "words"),
    [
        (
            Setting("laplace", "poisson", "add_remove", 12, 4, 30, 1e-4),
            8,
            "gaussian mechanism, poisson sampling",
        ),
        (Setting("gaussian", "full_batch", "add_remove", 12, 12, 30, 1e-4), 8, "gaussian mechanism, poisson"),
        (SETTING, 13, "least_shares is 13, of 12 clients"),
        (SETTING, 0, "least_shares is 0"),
    ],
)
def test_what_has_no_proof_is_refused(setting, least, words):
    with pytest.raises(ValueError, match=words):
        SharedNoiseBudget(setting, 2.0, RunKey.secret(), least_shares=least)


def test_shares_that_are_too_small_for_the_grid_are_refused():
    with pytest.raises(ValueError, match="too small for its grid"):
        share_scale(1e-10, 10)


@pytest.mark.parametrize("noise_scale", [0.0, -2.0, math.inf, math.nan])
def test_shares_of_no_noise_are_refused(noise_scale):
    with pytest.raises(ValueError, match="needs a finite one above 0"):
        share_scale(noise_scale, 4)
