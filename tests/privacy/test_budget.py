"""Releases of a budget: noise, ledger and the epsilon of what ran."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.privacy.budget import UNITS
from dpzero.privacy.mechanisms import ARITHMETICS

SETTING = Setting("gaussian", "poisson", "add_remove", 240, 16, 10, 1e-5)
SCALE = 4.0


def budget(key=None, setting=SETTING, ledger=None, **options) -> Budget:
    return Budget(setting, SCALE, key or RunKey.published(0), ledger, **options)


def released(source: Budget, steps=5) -> list[float]:
    """Release the next batches; each example adds 0.5."""
    drawn = itertools.islice(source.batches(), steps)
    return [source.release(torch.full((len(batch),), 0.5), 2.0) for batch in drawn]


every_arithmetic = pytest.mark.parametrize("arithmetic", ARITHMETICS)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


# Streams --------------------------------------------------------------------------------------------------


@every_arithmetic
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_global_seeds_change_neither_noise_nor_batches(seed, arithmetic):
    expected, batches = released(budget(noise_arithmetic=arithmetic)), list(budget().batches())
    seed_everything(seed)
    assert released(budget(noise_arithmetic=arithmetic)) == expected
    assert all(np.array_equal(a, b) for a, b in zip(budget().batches(), batches, strict=True))


@every_arithmetic
def test_global_seeds_do_not_make_a_secret_key_replay(arithmetic):
    draws = []
    for _ in range(2):
        seed_everything(0)
        draws.append(released(budget(RunKey.secret(), noise_arithmetic=arithmetic)))
    assert not set(draws[0]) & set(draws[1])


def test_noise_does_not_use_the_global_generators():
    seed_everything(0)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    seed_everything(0)
    source = budget()
    released(source)
    released(budget(noise_arithmetic="exact"))
    source.admit(len(next(source.batches())))
    source.release_([torch.zeros(10)], 1.0)
    list(source.batches())
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_the_key_is_secret_unless_one_is_given():
    source = Budget.calibrated(
        epsilon=0.5,
        delta=1e-5,
        dataset_size=240,
        batch_size=16,
        steps=10,
        unit="user",
        noise_arithmetic="exact",
    )
    assert source.key.valid_release
    assert source.setting == SETTING
    assert source.noise_scale == pytest.approx(SETTING.noise_scale(0.5), rel=1e-9)
    assert (source.unit, source.noise_arithmetic) == ("user", "exact")


# Batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [SETTING, replace(SETTING, sampling="full_batch", batch_size=240)], ids=lambda s: s.sampling
)
def test_the_sampler_that_runs_is_the_sampler_that_is_accounted(setting):
    source = budget(setting=setting)
    assert source.sampler.name == setting.sampling == source.ledger.event.sampling
    assert (source.sampler.dataset_size, source.sampler.batch_size) == (240, setting.batch_size)
    assert source.statement(1.0, 2.0)["sampling"] == setting.sampling


def test_a_resumed_run_continues_with_the_same_batches():
    whole = list(budget().batches())
    assert len(whole) == 10
    source = budget()
    source.start_at(4)
    tail = list(source.batches())[:6]
    assert all(np.array_equal(a, b) for a, b in zip(whole[4:], tail, strict=True))


# Releases -------------------------------------------------------------------------------------------------


@every_arithmetic
def test_a_published_step_replays(arithmetic):
    """In another process, or in another budget of the same key; one budget releases no batch twice."""
    source = budget(noise_arithmetic=arithmetic)
    first, then = released(source), released(source)
    assert first == released(budget(noise_arithmetic=arithmetic))
    assert len({*first, *then}) == len(source.ledger) == 10


@every_arithmetic
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_direction_has_its_own_sum_and_its_own_noise(arithmetic, dtype):
    several = replace(SETTING, directions=3)
    values = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.25, -1.0]], dtype=dtype)
    one, two = (StandInBudget(several, SCALE, noise_arithmetic=arithmetic) for _ in range(2))
    noise, noisy = one.release(values[:0], 1.0), two.release(values, 1.0)
    assert len(set(noise)) == 3
    assert [y - z for y, z in zip(noisy, noise, strict=True)] == pytest.approx([1.5, 0.25, -2.0], abs=1e-12)


def full(**options) -> Budget:
    """A budget of full batches of two examples."""
    return budget(
        setting=replace(SETTING, sampling="full_batch", dataset_size=2, batch_size=2, delta=0.1), **options
    )


pytestmark = pytest.mark.filterwarnings("ignore:delta is 0.1 for 2")


@every_arithmetic
@pytest.mark.parametrize("beyond", [1.0 + 2**-52, -1.5, float("inf"), float("nan")])
def test_a_value_beyond_the_clip_is_refused_and_nothing_is_released(arithmetic, beyond):
    """The last line of defence: a method that forgets to clip does not release."""
    source = full(noise_arithmetic=arithmetic)
    next(source.batches())
    with pytest.raises(ValueError, match=r"lies beyond the clip of 1.0: clip each one first"):
        source.release(torch.tensor([0.0, beyond], dtype=torch.float64), 1.0)
    assert len(source.ledger) == 0
    source.release(torch.tensor([1.0, -1.0]), 1.0)


@every_arithmetic
def test_a_vector_beyond_the_clip_is_refused_and_nothing_is_released(arithmetic):
    source = full(noise_arithmetic=arithmetic)
    next(source.batches())
    for beyond in ([0.8, 0.7], [1.0, 1e-3], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match=r"is longer than the clip of 1.0: clip each one first"):
            source.release_vectors(torch.tensor([[0.0, 0.0], beyond], dtype=torch.float64), 1.0)
    assert len(source.ledger) == 0
    assert len(source.release_vectors(torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64), 1.0)) == 2


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan"), 1e308, 1e-320])
def test_an_invalid_clip_is_refused(clip):
    """Noise proportional to an infinite clip is infinite; infinity minus infinity would reveal an infinite
    loss.
    """
    source = full()
    next(source.batches())
    for release in (
        source.release,
        source.release_vectors,
        lambda values, clip: source.release_([values], clip),
    ):
        with pytest.raises(ValueError, match=re.escape(f"clip is {clip}: give a bound from 1e-30 to 1e+30")):
            release(torch.zeros(2, 1) if release == source.release_vectors else torch.zeros(2), clip)
    assert len(source.ledger) == 0


@pytest.mark.parametrize(
    ("directions", "shape"), [(1, (4, 2)), (2, (4,)), (2, (0,)), (2, (4, 4)), (2, (4, 1)), (1, (2, 1, 1))]
)
def test_another_number_of_directions_than_was_accounted_is_refused(directions, shape):
    source = budget(setting=replace(SETTING, directions=directions))
    with pytest.raises(ValueError, match=f"the setting has {directions} for each example"):
        source.release(torch.zeros(shape), 1.0)
    assert len(source.ledger) == 0


@every_arithmetic
def test_nothing_is_released_that_the_ledger_could_not_record(monkeypatch, arithmetic):
    source, vectors = full(noise_arithmetic=arithmetic), full()

    def no_space(number, name, value=""):
        raise OSError("no space left on device")

    for each in (source, vectors):
        next(each.batches())
        monkeypatch.setattr(each.ledger, "record", no_space)
    sums = [torch.zeros(3)]
    with pytest.raises(OSError):
        source.release(torch.ones(2), 1.0)
    vectors.admit(2)
    with pytest.raises(OSError):
        vectors.release_(sums, 1.0)
    assert not sums[0].any()


@every_arithmetic
def test_a_batch_whose_values_are_all_zero_gets_noise_like_any_other(arithmetic):
    source = budget(noise_arithmetic=arithmetic)
    noise = [source.release(torch.zeros(len(batch)), 2.0) for batch in source.batches()]
    assert len(set(noise)) == 10 and 0.0 not in noise


# What was spent -------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_steps_that_ran():
    source = budget()
    assert source.epsilon_spent() == 0.0
    released(source, steps=3)
    assert source.epsilon_spent() == replace(SETTING, steps=3).epsilon(SCALE) < SETTING.epsilon(SCALE)
    released(source, steps=7)
    assert source.epsilon_spent() == SETTING.epsilon(SCALE)


def test_more_steps_than_planned_cost_more_than_planned():
    source = budget(overspend=True)
    released(source, steps=10)
    released(source, steps=4)
    assert source.statement()["overspent"] == "14 steps of 10"
    assert source.epsilon_spent() == replace(SETTING, steps=14).epsilon(SCALE) > SETTING.epsilon(SCALE)


def test_a_step_repeated_after_a_kill_counts_twice_under_a_new_secret_key(tmp_path):
    """A run that took two of its four steps continues. Its budget ends two steps early, unless it may be
    overspent.
    """
    for overspend, steps in ((False, 10), (True, 12)):
        path = tmp_path / f"ledger {overspend}"
        options = {"noise_arithmetic": "float", "overspend": overspend}
        killed = budget(RunKey.secret(), ledger=path, **options)
        released(killed, steps=4)
        killed.close()
        resumed = budget(RunKey.secret(), ledger=path, **options)
        resumed.start_at(2)
        taken = released(resumed, steps=6) + (released(resumed, steps=2) if overspend else [])
        assert len(taken) == steps - 4 and resumed.statement(1.0, 2.0)["steps"] == steps
        assert resumed.epsilon_spent() == replace(SETTING, steps=steps).epsilon(SCALE)


def test_a_step_repeated_after_a_kill_counts_once_under_the_published_key(tmp_path):
    killed = budget(ledger=tmp_path / "ledger")
    first = released(killed, steps=4)
    killed.close()
    resumed = budget(ledger=tmp_path / "ledger")
    resumed.start_at(2)
    again = released(resumed, steps=10)
    assert again[:2] == first[2:] and len(again) == 8
    assert resumed.epsilon_spent() == SETTING.epsilon(SCALE)


def test_two_budgets_cannot_share_a_secret_key_and_so_its_noise():
    key = RunKey.secret()
    budget(key)
    with pytest.raises(ValueError, match=r"another budget uses this secret key.*draw a new one"):
        budget(key)
    assert budget(RunKey.published(0)) and budget(RunKey.published(0))


def test_the_statement_says_what_ran():
    source = budget()
    released(source, steps=3)
    source.admit(len(next(source.batches())))
    source.release_([torch.zeros(5)], 2.0)
    statement = source.statement(clip=2.0, epsilon_target=6.0)
    expected = {
        "unit": "example",
        "adjacency": "add_remove",
        "sampling": "poisson",
        "mechanism": "gaussian",
        "dataset_size": 240,
        "batch_size": 16,
        "steps": 4,
        "clip": 2.0,
        "noise_scale": SCALE,
        "delta": 1e-5,
        "epsilon_target": 6.0,
        "epsilon_spent": replace(SETTING, steps=4).epsilon(SCALE),
        "epsilon_spent_rdp": replace(SETTING, steps=4).epsilon_rdp(SCALE),
        "gdp_mu": replace(SETTING, steps=4).gdp_mu(SCALE),
        "noise_arithmetic": "float",
        "noise_key": "published",
        "valid_release": False,
    }
    assert statement.items() >= expected.items()
    assert statement["epsilon_spent_rdp"] > statement["epsilon_spent"]


def test_only_a_secret_key_makes_a_valid_release():
    """A valid release also needs integer noise (the low-order bits of float noise reveal the sum) and values
    that no other example moves.
    """

    def statement(*arguments, moved: float | None = 0.0, **options) -> dict:
        source = budget(*arguments, **options)
        source.record_influence(moved)
        return source.statement(1.0, 2.0)

    assert not statement(noise_arithmetic="exact")["valid_release"]
    floats = statement(RunKey.secret(), noise_arithmetic="float")
    assert (floats["noise_key"], floats["valid_release"]) == ("secret", False)
    exact = statement(RunKey.secret())
    assert (exact["noise_key"], exact["noise_arithmetic"], exact["valid_release"]) == (
        "secret",
        "exact",
        True,
    )
    assert [exact[key] for key in ("steps", "epsilon_spent", "epsilon_spent_rdp", "gdp_mu")] == [0, 0, 0, 0]
    assert budget(RunKey.secret()).statement()["valid_release"] is False  # nobody has measured it
    for moved in (1e-6, None):
        with pytest.warns(UserWarning, match="no release is called valid"):
            assert statement(RunKey.secret(), moved=moved)["valid_release"] is False


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("unit", UNITS)
def test_the_statement_says_the_unit_and_the_arithmetic(unit, arithmetic):
    statement = budget(unit=unit, noise_arithmetic=arithmetic).statement(1.0, 2.0)
    words = "user, as a group of at most 1 example" if unit == "group" else unit
    assert (statement["unit"], statement["noise_arithmetic"]) == (words, arithmetic)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_arithmetic": "fixed"}, "noise_arithmetic is 'fixed': give one of float, exact"),
        ({"unit": "document"}, "unit is 'document': give one of example, user"),
    ],
)
def test_a_unit_or_an_arithmetic_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        budget(**options)


@pytest.mark.parametrize("options", [{"noise_arithmetic": "exact"}, {"unit": "user"}])
def test_vectors_are_released_with_float_noise_for_examples_only(options):
    """Clipping per example would not give the user-level guarantee that the budget states."""
    source, sums = budget(**options), [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"offered for scalars: (use|make) .* for (vectors|gradients)"):
        source.release_(sums, 1.0)
    assert len(source.ledger) == 0 and not sums[0].any()


def test_the_statement_does_not_reveal_the_key():
    source = budget(RunKey.secret())
    released(source)
    assert source.key.key.hex() not in repr(source.statement(1.0, 2.0))
