"""PACZero's releases: the smallest pair of data sets that tells, what a secret subset is worth, the public search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from dpzero.privacy.sign_releases import (
    SignReleases,
    candidate_signs,
    chance_of_minus,
    information_of_flips,
    information_of_sign,
    noise_of_search,
)
from dpzero.zeroth_order import TwoPoint

COIN = math.inf


def memberships(rows: int, candidates: int, seed: int = 0) -> np.ndarray:
    """Each row in half of the candidates, as in the public code: bool [rows, candidates]."""
    generator = np.random.default_rng(seed)
    return np.array([generator.permutation(candidates) < candidates // 2 for _ in range(rows)])


# The smallest pair ----------------------------------------------------------------------------------------


class SignOfSubsets(TwoPoint):
    """PACZero-ZPL on this project's two-point step. Keeps the releases."""

    title, private = "signs of subsets", False
    released: tuple[tuple[bool, float], ...] = ()  # (whether the first row slopes up, the release)

    def projected_gradient(self, difference: torch.Tensor) -> float:
        slopes = difference.double().numpy()
        members = memberships(len(slopes), 8)
        coin = np.random.default_rng([len(slopes), self.steps_taken]).random()
        sign = -1.0 if coin < chance_of_minus(slopes, members, COIN) else 1.0
        self.released += ((slopes[0] > 0, sign),)
        return sign


def signs_while_the_first_row_slopes_up(rows: int, steps: int = 60) -> list[float]:
    """Of a run on one text with the one label, and with a second row on the same text with the other."""
    torch.manual_seed(0)
    model, text = nn.Linear(4, 2), torch.randn(4)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(text.expand(len(batch), 4)), batch % 2, reduction="none")

    method = SignOfSubsets(model, loss, learning_rate=1e-3, batch_size=rows)
    for _ in range(steps):
        method.step(torch.arange(rows))
    return [sign for up, sign in method.released if up]


def test_a_second_row_makes_a_sign_possible_that_the_first_alone_never_releases():
    """So no epsilon bounds the release, at any delta below one half a step. Nobody sees a coin for 20 steps with 1e-6."""
    alone, together = map(signs_while_the_first_row_slopes_up, (1, 2))
    assert len(alone) > 20 and len(together) > 20
    assert set(alone) == {1.0} and set(together) == {-1.0, 1.0}


@pytest.mark.parametrize("noise", [COIN, 0.5, 40.0])
def test_the_row_that_tells_need_not_be_in_the_secret_subset(noise):
    """An empty candidate counts as +, so that a row that slopes up makes all of them agree."""
    members = memberships(2, 126)
    secret = int(np.flatnonzero(members[0] & ~members[1])[0])
    alone, together = (chance_of_minus(np.array([1.0, -1.0])[:n], members[:n], noise, secret) for n in (1, 2))
    assert alone == 0 < together
    assert SignReleases(0.0, 126, 1000).epsilon_at_least() == math.inf


def test_a_row_that_changes_no_sign_tells_nothing():
    members = memberships(2, 126)
    assert chance_of_minus(np.ones(2), members, COIN) == chance_of_minus(np.ones(1), members[:1], COIN) == 0


def test_whoever_knows_the_membership_of_forty_rows_knows_the_secret_subset():
    """Each row halves the candidates that are left: one more of 128 is left with 1e-10."""
    members = memberships(40, 128)
    for secret in range(128):
        assert (members == members[:, [secret]]).all(0).sum() == 1


def test_two_direction_seeds_reveal_the_secret_and_the_coins():
    """NumPy's one generator draws the secret's number, then a direction seed and a coin a step. Its seed is 42 in every script."""

    def run(seed: int, steps: int) -> tuple[int, list[tuple[int, float]]]:
        generator = np.random.RandomState(seed)
        secret = generator.randint(128)
        return secret, [(generator.randint(1_000_000_000), generator.random_sample()) for _ in range(steps)]

    secret, steps = run(42, 5)
    seen = [direction for direction, _ in steps[:2]]
    (seed,) = [seed for seed in range(2000) if [d for d, _ in run(seed, 2)[1]] == seen]
    assert run(seed, 5) == (secret, steps)


# Information ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plus", [0.5, 0.3, 1 / 128])
@pytest.mark.parametrize("noise", [0.3, 1.0, 7.0])
def test_the_information_of_a_noisy_sign_is_that_of_the_densities(plus, noise):
    def term(y: float) -> float:
        up, down = stats.norm.pdf(y, 1, noise), stats.norm.pdf(y, -1, noise)
        both = plus * up + (1 - plus) * down
        return sum(p * f * math.log(f / both) for p, f in ((plus, up), (1 - plus, down)) if f > 1e-300)

    reach = 1 + 12 * noise
    expected, _ = integrate.quad(term, -reach, reach, points=(-1, 1), limit=200)
    assert information_of_sign(plus, noise) == pytest.approx(expected, rel=1e-6)


def test_much_noise_leaves_the_variance_over_twice_that_of_the_noise():
    for plus in (0.5, 0.1):
        assert information_of_sign(plus, 1e3) == pytest.approx(4 * plus * (1 - plus) / 2e6, rel=1e-4)


def information(chances: np.ndarray) -> float:
    """I(S; Y) for a uniform S, from P(Y | S): [secrets, outcomes]."""
    joint = chances / len(chances)
    return float((joint * np.log(chances / joint.sum(0))).sum())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_information_of_flips_is_that_of_all_their_outcomes(count):
    wrong = [sum(outcome) for outcome in itertools.product((0, 1), repeat=count)]
    one = np.array([0.2**k * 0.8 ** (count - k) for k in wrong])
    assert information_of_flips(0.2, count) == pytest.approx(information(np.array([one, one[::-1]])))
    assert information_of_flips(0.5, count) == pytest.approx(0, abs=1e-12)


def test_the_lower_bound_is_the_information_of_all_outcomes_about_four_candidates():
    """Step t splits the candidates by bit t modulo 2 of their number."""
    releases = SignReleases(0.8, 4, 4)
    wrong = stats.norm.cdf(-1 / releases.noise)
    outcomes = np.array(list(itertools.product((0, 1), repeat=4)))
    signs = np.array([[secret >> step % 2 & 1 for step in range(4)] for secret in range(4)])
    chances = np.where(outcomes == signs[:, None], 1 - wrong, wrong).prod(2)
    assert releases.information_at_least() == pytest.approx(information(chances))


def test_any_signs_can_be_those_of_the_candidates():
    """So that the rows of the lower bound exist: more rows than candidates have means of any sign."""
    members = memberships(200, 128)
    wanted = np.where(np.arange(128) & 1, 1.0, -1.0)
    slopes = np.linalg.lstsq(members.T.astype(float), wanted, rcond=None)[0]
    assert np.array_equal(candidate_signs(slopes, members), wanted)


# The public search ----------------------------------------------------------------------------------------


def test_three_claims_below_the_tolerance_get_the_same_noise():
    """The search for 1e-7 nats a step stops at five times as many, also where a posterior is no longer uniform."""
    claims, splits = (1e-4, 3e-4, 1e-3), (0.45, 0.5, 0.55)
    noises = {noise_of_search(plus, claim / 1000) for claim in claims for plus in splits}
    assert len(noises) == 1 and information_of_sign(0.5, *noises) > 4.9e-7


@pytest.mark.parametrize(
    "claim, verdict", [(0.0, "held"), (1e-4, "refuted"), (3e-4, "refuted"), (1e-2, "open"), (0.33, "open")]
)
def test_what_becomes_of_a_claim(claim, verdict):
    releases = SignReleases(claim, 128, 1000)
    low, high = releases.information_at_least(), releases.information_at_most()
    assert low <= high and verdict == ("held" if high <= claim else "refuted" if low > claim else "open")


def test_a_claim_far_above_the_tolerance_gets_the_noise_that_spends_it():
    assert information_of_sign(0.5, noise_of_search(0.5, 0.33)) == pytest.approx(0.33, abs=1e-6)
