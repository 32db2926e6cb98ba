"""The best of a random number of tries: its published cost, and the distribution of the number."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import gammaln

from dpzero.privacy import RunKey, Setting
from dpzero.privacy.hyperparameter_selection import SHAPES, Tries

COMMON = Setting("gaussian", "poisson", "add_remove", 1024, 64, 1000, 1e-5)
SUBSETS = replace(COMMON, sampling="without_replacement", adjacency="replace_one")

# Ten tries on average. Renyi epsilon of one try -> of all and the choice; noise/C of that try
PUBLISHED = [
    (4.05028, 2.18, {"poisson": 4.90, "geometric": 4.33, "truncated_negative_binomial": 4.01}),
    (1.39702, 8.68, {"poisson": 17.6, "geometric": 14.0, "truncated_negative_binomial": 13.5}),
]


def digits(value: float) -> float:
    """Slightly more than half a unit of the third digit."""
    return 0.51 * 10 ** (math.floor(math.log10(value)) - 2)


@pytest.mark.parametrize(("noise_scale", "one", "all_tries"), PUBLISHED)
def test_the_cost_of_tries_has_its_published_values(noise_scale, one, all_tries):
    assert COMMON.epsilon_rdp(noise_scale) == pytest.approx(one, abs=digits(one))
    for law, epsilon in all_tries.items():
        assert Tries(law, 10).epsilon(COMMON, noise_scale) == pytest.approx(epsilon, abs=digits(epsilon))


@pytest.mark.parametrize(
    ("law", "setting"),
    [
        *((law, COMMON) for law in SHAPES),
        ("geometric", SUBSETS),
        ("poisson", replace(COMMON, sampling="full_batch", batch_size=1024)),
    ],
    ids=str,
)
def test_choosing_costs_more_than_one_try_and_more_for_more_tries(law, setting):
    noise_scale = 60.0
    few, many = (Tries(law, mean).epsilon(setting, noise_scale) for mean in (2, 30))
    assert setting.epsilon_rdp(noise_scale) < few < many


@pytest.mark.parametrize("law", SHAPES)
def test_noise_for_all_tries_spends_the_target_and_never_more(law):
    tries = Tries(law, 10)
    noise_scale = tries.noise_scale(COMMON, 4.0)
    assert tries.epsilon(COMMON, noise_scale) <= 4.0 < tries.epsilon(COMMON, noise_scale * (1 - 5e-5))


# The number -----------------------------------------------------------------------------------------------

NUMBERS = np.arange(0, 20_000)


def probabilities(law: str, mean: float) -> np.ndarray:
    """Probabilities of 0, 1, 2, ... tries: by scipy if it has the law, else by definition 1 of the paper."""
    if law == "poisson":
        return stats.poisson.pmf(NUMBERS, mean)
    if law == "geometric":
        return stats.geom.pmf(NUMBERS, 1 / mean)
    if law == "logarithmic":
        p = optimize.brentq(lambda p: stats.logser.mean(p) - mean, 1e-6, 1 - 1e-9, xtol=1e-15)
        return stats.logser.pmf(NUMBERS, p)

    def truncated(gamma: float) -> np.ndarray:
        k = NUMBERS[1:]
        weights = np.exp(gammaln(k + 0.5) - gammaln(0.5) - gammaln(k + 1) + k * math.log1p(-gamma))
        return np.concatenate([[0.0], weights / (gamma**-0.5 - 1)])

    return truncated(optimize.brentq(lambda g: truncated(g) @ NUMBERS - mean, 1e-2, 1 - 1e-6, xtol=1e-15))


DRAWS = 6_000


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    keys = [RunKey.published(seed) for seed in range(DRAWS)]
    return {law: np.array([Tries(law, 10).draw(key) for key in keys]) for law in SHAPES}


@pytest.mark.parametrize("law", SHAPES)
def test_the_number_of_tries_follows_its_law(law, drawn):
    """Chi-square over the values with at least 20 expected draws. False alarm 1e-7."""
    expected, observed = DRAWS * probabilities(law, 10), Counter(drawn[law].tolist())
    assert expected.sum() == pytest.approx(DRAWS, rel=1e-9)
    common = NUMBERS[expected >= 20]
    cells = [(observed[k], expected[k]) for k in common.tolist()]
    cells.append((DRAWS - sum(o for o, _ in cells), DRAWS - sum(e for _, e in cells)))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    assert stats.chi2.sf(statistic, len(cells) - 1) > 1e-7


@pytest.mark.parametrize("law", SHAPES)
def test_the_mean_number_of_tries_is_the_mean(law, drawn):
    """5.5 standard errors: false alarm 4e-8."""
    law_of_one = probabilities(law, 10)
    variance = law_of_one @ NUMBERS**2 - (law_of_one @ NUMBERS) ** 2
    assert abs(drawn[law].mean() - 10) < 5.5 * math.sqrt(variance / DRAWS)


def test_only_the_poisson_law_draws_zero_tries(drawn):
    assert all(numbers.min() == 1 for law, numbers in drawn.items() if law != "poisson")
    assert 0 in [Tries("poisson", 0.5).draw(RunKey.published(seed)) for seed in range(60)]


def test_the_number_is_a_function_of_the_key_alone():
    tries = Tries("geometric", 50)
    assert tries.draw(RunKey.published(3)) == tries.draw(RunKey.published(3))
    assert len({tries.draw(RunKey.published(seed)) for seed in range(20)}) > 5


# Refusals -------------------------------------------------------------------------------------------------


def test_an_unknown_law_is_refused_and_the_laws_are_named():
    with pytest.raises(
        ValueError, match=r"the law of tries is 'fixed': give one of logarithmic, .*, geometric, poisson"
    ):
        Tries("fixed", 10)


@pytest.mark.parametrize("mean", [-1.0, 0.0, math.nan, math.inf, 501])
@pytest.mark.parametrize("law", SHAPES)
def test_an_impossible_mean_is_refused(law, mean):
    with pytest.raises(
        ValueError,
        match=r"the mean number of tries is .*: with the .* law it must be above . and at most 500",
    ):
        Tries(law, mean)


@pytest.mark.parametrize("law", [law for law in SHAPES if law != "poisson"])
def test_a_law_without_zero_has_a_mean_above_one(law):
    with pytest.raises(ValueError, match="it must be above 1"):
        Tries(law, 1.0)


@pytest.mark.parametrize(
    "setting",
    [
        replace(COMMON, mechanism="laplace"),
        replace(COMMON, adjacency="replace_one"),
        replace(COMMON, mechanism="laplace", delta=0.0),
        replace(COMMON, sampling="random_allocation"),
    ],
    ids=str,
)
def test_a_setting_without_a_renyi_bound_is_refused_and_the_offer_named(setting):
    with pytest.raises(
        ValueError,
        match=r"through Renyi divergences, .* not offered for .*: offered is gaussian with poisson",
    ):
        Tries("geometric", 10).epsilon(setting, 4.0)
    with pytest.raises(ValueError, match="through Renyi divergences"):
        Tries("geometric", 10).noise_scale(setting, 2.0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_invalid_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon is .*: it must be a positive number"):
        Tries("geometric", 10).noise_scale(COMMON, epsilon)
