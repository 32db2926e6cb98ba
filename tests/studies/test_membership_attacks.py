"""Membership attacks on scores whose truth is known.

Where a test is statistical its numbers come from a published stream, so it passes always or never; the bounds are six standard
errors wide: had the stream been drawn anew, each check would fail a correct implementation with probability below 1e-8.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from dpzero.errors import UsageError
from dpzero.privacy import RunKey, Setting
from dpzero.studies.membership_attacks import (
    NO_LEARNING,
    Claim,
    advantages,
    aucs,
    interval,
    likelihood_ratio,
    loss_and_log_odds,
    measure,
    rates,
)

STREAM = RunKey.published(2024).stream("tests of attacks")
RUNS, TEXTS = 64, 400


def normals(number: int, runs: int = RUNS, texts: int = TEXTS) -> np.ndarray:
    return STREAM.normals(runs * texts, number).reshape(runs, texts)


def halves(number: int, runs: int = RUNS, texts: int = TEXTS) -> np.ndarray:
    return STREAM.uniforms(runs * texts, number).reshape(runs, texts) < 0.5


def near(values: np.ndarray, truth: float) -> bool:
    return abs(values.mean() - truth) < 6 * values.std(ddof=1) / np.sqrt(len(values))


# -- scores from logits ------------------------------------------------------------------------------------------------


def test_loss_and_log_odds_is_the_loss_and_the_log_odds_of_the_label():
    logits, labels = normals(0, 3, 5 * 4).reshape(3, 5, 4), np.array([0, 3, 1, 2, 2])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = p[:, np.arange(5), labels]
    loss, log_odds = loss_and_log_odds(logits, labels)
    assert np.allclose(loss, -np.log(p)) and np.allclose(log_odds, np.log(p / (1 - p)))


def test_the_log_odds_of_a_sure_model_are_finite_and_still_in_order():
    logits = np.array([[200.0, 0.0], [300.0, 0.0], [-300.0, 0.0]], dtype=np.float32)
    _, log_odds = loss_and_log_odds(logits, np.zeros(3, int))
    assert np.allclose(log_odds, [200, 300, -300])


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_a_perfect_attack_finds_every_member():
    inside = halves(1)
    true, false = rates(inside * 1.0, inside, 0.01)
    assert (true == 1).all() and np.allclose(false, 0.01)  # ties among non-members, broken by lot
    assert (aucs(inside * 1.0, inside) == 1).all()


def test_an_attack_without_a_score_guesses():
    inside = halves(1)
    true, false = rates(np.zeros_like(inside, float), inside, 0.01)
    assert np.allclose(true, 0.01) and np.allclose(false, 0.01)
    assert (aucs(np.zeros_like(inside, float), inside) == 0.5).all()


@pytest.mark.parametrize("target", [0.01, 0.1])
def test_an_attack_on_noise_finds_as_many_members_as_others(target):
    true, false = rates(normals(2), halves(3), target)
    assert near(true, target) and near(false, target)
    assert near(aucs(normals(2), halves(3)), 0.5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_attack_of_known_strength_has_its_rates(shift):
    inside = halves(4)
    scores = normals(5) + shift * inside
    true, false = rates(scores, inside, 0.01)
    assert near(true, ndtr(shift + ndtri(0.01))) and near(false, 0.01)
    assert near(aucs(scores, inside), ndtr(shift / np.sqrt(2)))


def test_the_threshold_of_a_run_comes_from_the_other_runs():
    inside, scores = halves(3), normals(2)
    scores[7] += 100  # a threshold of its own non-members would hide it
    true, false = rates(scores, inside, 0.01)
    assert true[7] == false[7] == 1
    assert max(np.delete(true, 7).max(), np.delete(false, 7).max()) < 0.1


def test_the_area_counts_pairs_and_half_the_ties():
    scores, inside = np.round(normals(6, 4, 30)), halves(7, 4, 30)
    for score, member, area in zip(scores, inside, aucs(scores, inside), strict=True):
        differences = score[member][:, None] - score[~member][None]
        assert area == pytest.approx((differences > 0).mean() + (differences == 0).mean() / 2, abs=1e-12)


# -- LiRA --------------------------------------------------------------------------------------------------------------


def shifted_log_odds(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of texts that differ far more among themselves than membership (`shift` deviations of each) does."""
    inside = halves(8)
    easy, spread = 20 * normals(9, 1)[0], np.exp(normals(10, 1)[0])
    return easy + spread * (normals(11) + shift * inside), inside


def test_the_advantage_is_the_largest_difference_of_rates_and_nothing_for_noise():
    """A shift of s standard deviations has the largest TPR - FPR 2 Phi(s / 2) - 1, up to the threshold's own error."""
    members = halves(30)
    strong = advantages(normals(31) + 2.0 * members, members)
    assert abs(strong.mean() - (2 * ndtr(1.0) - 1)) < 0.02 + 6 * strong.std(ddof=1) / np.sqrt(RUNS)
    assert near(advantages(normals(32), members), 0.0)
    assert advantages(np.zeros((3, 8)), halves(33, 3, 8)).tolist() == [0, 0, 0]


def test_lira_finds_members_that_the_log_odds_alone_do_not_show():
    log_odds, inside = shifted_log_odds(shift=2)
    assert aucs(log_odds, inside).mean() < 0.6
    scores = likelihood_ratio(log_odds, inside)
    # about 32 shadow models estimate mean and deviation: close to, and below, the normal law's rate
    true, false = rates(scores, inside, 0.01)
    assert 0.75 * ndtr(2 + ndtri(0.01)) < true.mean() < ndtr(2 + ndtri(0.01))
    assert near(false, 0.01)
    assert aucs(scores, inside).mean() == pytest.approx(ndtr(2 / np.sqrt(2)), abs=0.02)


def test_lira_finds_nothing_without_a_shift():
    scores = likelihood_ratio(*shifted_log_odds(shift=0))
    true, false = rates(scores, shifted_log_odds(0)[1], 0.01)
    assert near(true, 0.01) and near(false, 0.01) and near(aucs(scores, shifted_log_odds(0)[1]), 0.5)


def test_lira_finds_nothing_among_redrawn_members():
    log_odds, _ = shifted_log_odds(shift=3)
    redrawn = halves(12)
    scores = likelihood_ratio(log_odds, redrawn)
    assert near(rates(scores, redrawn, 0.01)[0], 0.01) and near(aucs(scores, redrawn), 0.5)


def test_lira_fits_a_run_on_the_others_alone_and_only_on_those_without_the_text():
    log_odds, inside = shifted_log_odds(shift=1)
    before = likelihood_ratio(log_odds, inside)
    moved = log_odds.copy()
    moved[5] += 10.0
    moved[~inside] = np.where(np.arange(RUNS)[:, None] == 5, moved, log_odds)[~inside]
    after = likelihood_ratio(moved, inside)
    shadow = [np.delete(log_odds[:, i], 5)[~np.delete(inside[:, i], 5)] for i in range(TEXTS)]
    assert np.allclose(after[5] - before[5], [10 / values.std(ddof=1) for values in shadow])
    others = np.arange(RUNS) != 5
    held = inside[5]  # a run that held the text is nobody's shadow model of it
    assert np.array_equal(after[others][:, held], before[others][:, held])


def test_lira_gives_no_score_to_a_model_that_never_moves():
    log_odds = np.broadcast_to(normals(9, 1), (RUNS, TEXTS)).copy()
    assert (likelihood_ratio(log_odds, halves(8)) == 0).all()


def test_lira_needs_two_shadow_models():
    inside = np.array([[True, False], [True, False], [False, True], [False, True]])
    with pytest.raises(UsageError, match="give more runs"):
        likelihood_ratio(np.zeros((4, 2)), inside)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_an_interval_covers_the_mean_as_often_as_it_says():
    intervals = [interval(values) for values in normals(13, 2000, 5)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert abs(covered - 0.95) < 6 * np.sqrt(0.95 * 0.05 / 2000)
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(4.302653 / np.sqrt(3), abs=1e-6) and low + high == 4


def test_runs_without_a_member_or_without_another_text_are_left_out():
    inside = halves(1, 20, 40)
    inside[3], inside[4] = True, False
    metrics = measure(normals(2, 20, 40), inside, 0.01)
    kept = np.delete(np.arange(20), [3, 4])
    assert metrics == measure(normals(2, 20, 40)[kept], inside[kept], 0.01)
    assert np.isfinite(list(metrics.values())).all()


# -- ceilings ----------------------------------------------------------------------------------------------------------


def full_batch(noise_scale: float) -> Claim:
    return Claim.accounted(9.0, Setting("gaussian", "full_batch", "add_remove", 10, 10, 1, 1e-5), noise_scale)


@pytest.mark.parametrize("noise_scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("false_positive_rate", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_the_ceiling_of_one_gaussian_release_is_its_trade_off_curve(noise_scale, false_positive_rate):
    exact = ndtr(ndtri(false_positive_rate) + 1 / noise_scale)
    assert exact <= full_batch(noise_scale).ceiling(false_positive_rate) < exact + 1e-4


def test_the_ceiling_of_a_model_that_learnt_nothing_is_guessing():
    for rate in (0.01, 0.3, 1.0):
        assert NO_LEARNING.ceiling(rate) == pytest.approx(rate, abs=1e-12)


def test_the_best_test_on_the_dominating_pair_reaches_the_ceiling():
    """Sampled Gaussian, 20 steps: likelihood ratio of 40,000 transcripts of each shifted_log_odds (published stream, six errors)."""
    setting, noise, n = Setting("gaussian", "poisson", "add_remove", 4, 2, 20, 1e-5), 2.0, 40_000
    claim = Claim.accounted(setting.epsilon(noise), setting, noise)
    without = noise * STREAM.normals(n * 20, 20).reshape(n, 20)
    drawn = STREAM.uniforms(n * 20, 21).reshape(n, 20) < setting.rate
    present = noise * STREAM.normals(n * 20, 22).reshape(n, 20) + drawn
    ratio = [np.log1p(setting.rate * np.expm1((o - 0.5) / noise**2)).sum(1) for o in (without, present)]
    threshold = np.quantile(ratio[0], 0.99)
    true, false = (ratio[1] > threshold).mean(), (ratio[0] > threshold).mean()
    assert claim.ceiling(false) == pytest.approx(true, abs=6 * np.sqrt(0.1 / n))


def test_the_profile_allows_no_more_than_epsilon_and_delta_alone():
    setting = Setting("gaussian", "poisson", "add_remove", 400, 200, 1000, 1e-5)
    noise = setting.noise_scale(2.0)
    limits = Claim.accounted(2.0, setting, noise).limits(
        {"false_positive_rate_high": 0.01, "true_positive_rate_low": 0.03}, 0.01
    )
    assert limits["ceiling_of_epsilon_delta"] == pytest.approx(np.exp(2) / 100 + 1e-5)
    # the curve of mu = 0.5, which is (2, 1e-5), at 1 %
    assert limits["ceiling"] == pytest.approx(ndtr(ndtri(0.01) + 0.4995), abs=1e-3)
    assert not limits["refuted"]


def test_a_claim_is_refuted_only_by_an_interval_above_its_ceiling():
    claim = full_batch(1.0)
    allowed = claim.ceiling(0.012)
    metrics = {"false_positive_rate_high": 0.012, "true_positive_rate_low": allowed + 1e-3}
    assert claim.limits(metrics, 0.01)["refuted"]
    assert not claim.limits(metrics | {"true_positive_rate_low": allowed - 1e-3}, 0.01)["refuted"]
    assert not claim.limits(metrics | {"false_positive_rate_high": 0.02}, 0.01)["refuted"]
