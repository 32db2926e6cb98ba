"""The one door through which private data leaves: noise, ledger and the epsilon of what ran."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpzero.privacy import Budget, RunKey, Setting
from dpzero.privacy.budget import UNITS
from dpzero.privacy.mechanisms import ARITHMETICS

SETTING = Setting("gaussian", "poisson", "add_remove", 240, 16, 10, 1e-5)
SCALE = 4.0


def budget(key=None, setting=SETTING, ledger=None, **how) -> Budget:
    return Budget(setting, SCALE, key or RunKey.published(0), ledger, **how)


def released(source: Budget, steps=5) -> list[float]:
    return [source.release(step, torch.tensor([0.5, -1.0]), 2.0) for step in range(steps)]


every_arithmetic = pytest.mark.parametrize("arithmetic", ARITHMETICS)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


# Streams ---------------------------------------------------------------------------------------------------------------


@every_arithmetic
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_global_seeds_move_neither_noise_nor_batches(seed, arithmetic):
    expected, batches = released(budget(noise_arithmetic=arithmetic)), list(budget().batches())
    seed_everything(seed)
    assert released(budget(noise_arithmetic=arithmetic)) == expected
    assert all(np.array_equal(a, b) for a, b in zip(budget().batches(), batches, strict=True))


@every_arithmetic
def test_global_seeds_do_not_tame_a_secret_key(arithmetic):
    draws = []
    for _ in range(2):
        seed_everything(0)
        draws.append(released(budget(RunKey.secret(), noise_arithmetic=arithmetic)))
    assert not set(draws[0]) & set(draws[1])


def test_noise_takes_nothing_from_the_global_generators():
    seed_everything(0)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    seed_everything(0)
    source = budget()
    released(source)
    released(budget(noise_arithmetic="exact"))
    source.release_(7, [torch.zeros(10)], 1.0)
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


# Batches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [SETTING, replace(SETTING, sampling="full_batch", batch_size=240)], ids=lambda s: s.sampling
)
def test_the_sampler_that_runs_is_the_sampler_that_is_accounted(setting):
    source = budget(setting=setting)
    assert source.sampler.name == setting.sampling == source.ledger.event.sampling
    assert (source.sampler.dataset_size, source.sampler.batch_size) == (240, setting.batch_size)
    assert source.statement(1.0, 2.0)["sampling"] == setting.sampling


def test_a_resumed_run_goes_on_with_the_same_batches():
    whole = list(budget().batches())
    assert len(whole) == 10
    tail = list(budget().batches(start=4))
    assert len(tail) == 6 and all(np.array_equal(a, b) for a, b in zip(whole[4:], tail, strict=True))


# Releases --------------------------------------------------------------------------------------------------------------


@every_arithmetic
def test_a_published_step_replays(arithmetic):
    source = budget(noise_arithmetic=arithmetic)
    first = released(source)
    assert first == released(source) == released(budget(noise_arithmetic=arithmetic))
    assert len(set(first)) == len(source.ledger) == 5


@every_arithmetic
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_direction_has_its_own_sum_and_its_own_noise(arithmetic, dtype):
    several = replace(SETTING, directions=3)
    values = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.25, -1.0]], dtype=dtype)
    noise = budget(setting=several, noise_arithmetic=arithmetic).release(2, values[:0], 1.0)
    noisy = budget(setting=several, noise_arithmetic=arithmetic).release(2, values, 1.0)
    assert len(set(noise)) == 3
    assert [y - z for y, z in zip(noisy, noise, strict=True)] == pytest.approx([1.5, 0.25, -2.0], abs=1e-12)


@every_arithmetic
@pytest.mark.parametrize("beyond", [1.0 + 2**-52, -1.5, float("inf"), float("nan")])
def test_a_value_beyond_the_clip_is_refused_and_nothing_leaves(arithmetic, beyond):
    """The last line of defence: a method that forgets to clip does not release."""
    source = budget(noise_arithmetic=arithmetic)
    with pytest.raises(ValueError, match=r"lies beyond the clip of 1.0: clip each one first"):
        source.release(0, torch.tensor([0.0, beyond, 1.0], dtype=torch.float64), 1.0)
    assert len(source.ledger) == 0
    source.release(0, torch.tensor([1.0, -1.0, 0.0]), 1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(clip):
    """Noise in proportion to an infinite bound is infinite, and infinity minus infinity would tell that a loss was infinite."""
    source = budget()
    with pytest.raises(ValueError, match=f"clip is {clip}: a release needs a positive and finite bound"):
        source.release(0, torch.zeros(2), clip)
    with pytest.raises(ValueError, match=f"clip is {clip}: a release needs"):
        source.release_(0, [torch.zeros(2)], clip)
    assert len(source.ledger) == 0


@pytest.mark.parametrize(
    ("directions", "shape"), [(1, (4, 2)), (2, (4,)), (2, (0,)), (2, (4, 4)), (2, (4, 1)), (1, (2, 1, 1))]
)
def test_another_number_of_directions_than_was_accounted_is_refused(directions, shape):
    source = budget(setting=replace(SETTING, directions=directions))
    with pytest.raises(ValueError, match=f"the setting has {directions} for each example"):
        source.release(0, torch.zeros(shape), 1.0)
    assert len(source.ledger) == 0


@pytest.mark.parametrize("again", ["release", "release_"])
def test_secret_noise_is_never_used_for_a_second_sum(again):
    """Two sums with the same noise tell their exact difference, whatever the ledger counts."""
    source = budget(RunKey.secret())
    source.release(3, torch.ones(1), 1.0)
    with pytest.raises(ValueError, match="step 3 was released before under this secret key"):
        getattr(source, again)(3, torch.ones(2) if again == "release" else [torch.zeros(2)], 1.0)
    assert len(source.ledger) == 1


@every_arithmetic
def test_nothing_leaves_that_the_ledger_does_not_have(monkeypatch, arithmetic):
    source, vectors = budget(noise_arithmetic=arithmetic), budget()

    def full(step, name):
        raise OSError("no space left on device")

    for each in (source, vectors):
        monkeypatch.setattr(each.ledger, "record", full)
    sums = [torch.zeros(3)]
    with pytest.raises(OSError):
        source.release(0, torch.ones(1), 1.0)
    with pytest.raises(OSError):
        vectors.release_(0, sums, 1.0)
    assert not sums[0].any()


# What was spent --------------------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_steps_that_ran():
    source = budget()
    assert source.epsilon_spent() == 0.0
    released(source, steps=3)
    assert source.epsilon_spent() == replace(SETTING, steps=3).epsilon(SCALE) < SETTING.epsilon(SCALE)
    released(source, steps=10)
    assert source.epsilon_spent() == SETTING.epsilon(SCALE)


def test_more_steps_than_planned_cost_more_than_planned():
    source = budget()
    released(source, steps=14)
    assert source.epsilon_spent() == replace(SETTING, steps=14).epsilon(SCALE) > SETTING.epsilon(SCALE)


def test_a_step_repeated_after_a_kill_counts_twice_under_a_new_secret_key(tmp_path):
    released(budget(RunKey.secret(), ledger=tmp_path / "ledger"), steps=4)
    resumed = budget(RunKey.secret(), ledger=tmp_path / "ledger")
    for step in range(2, 10):
        resumed.release(step, torch.zeros(1), 1.0)
    assert resumed.statement(1.0, 2.0)["steps"] == 12
    assert resumed.epsilon_spent() == replace(SETTING, steps=12).epsilon(SCALE)


def test_a_step_repeated_after_a_kill_counts_once_under_the_published_key(tmp_path):
    released(budget(ledger=tmp_path / "ledger"), steps=4)
    resumed = budget(ledger=tmp_path / "ledger")
    for step in range(2, 10):
        resumed.release(step, torch.zeros(1), 1.0)
    assert resumed.epsilon_spent() == SETTING.epsilon(SCALE)


def test_two_budgets_cannot_share_a_secret_key_and_so_its_noise():
    key = RunKey.secret()
    budget(key)
    with pytest.raises(ValueError, match=r"this secret key is another budget's.*draw a new one"):
        budget(key)
    assert budget(RunKey.published(0)) and budget(RunKey.published(0))


def test_the_statement_says_what_ran():
    source = budget()
    released(source, steps=3)
    source.release_(3, [torch.zeros(5)], 2.0)
    said = source.statement(clip=2.0, epsilon_target=6.0)
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
    assert said.items() >= expected.items()
    assert said["epsilon_spent_rdp"] > said["epsilon_spent"]


def test_only_a_secret_key_makes_a_valid_release():
    said = budget(RunKey.secret()).statement(1.0, 2.0)
    assert (said["noise_key"], said["valid_release"]) == ("secret", True)
    assert (said["steps"], said["epsilon_spent"], said["epsilon_spent_rdp"], said["gdp_mu"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("unit", UNITS)
def test_the_statement_says_the_unit_and_the_arithmetic(unit, arithmetic):
    said = budget(unit=unit, noise_arithmetic=arithmetic).statement(1.0, 2.0)
    assert (said["unit"], said["noise_arithmetic"]) == (unit, arithmetic)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"noise_arithmetic": "fixed"}, "noise_arithmetic is 'fixed': give one of float, exact"),
        ({"unit": "document"}, "unit is 'document': give one of example, user"),
    ],
)
def test_a_unit_or_an_arithmetic_that_does_not_exist_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        budget(**how)


@pytest.mark.parametrize("how", [{"noise_arithmetic": "exact"}, {"unit": "user"}])
def test_vectors_are_released_with_float_noise_for_examples_only(how):
    """Clipping a gradient per example under a budget that speaks of users would be a promise that is not kept."""
    source, sums = budget(**how), [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"offered for scalars: use .* for vectors"):
        source.release_(0, sums, 1.0)
    assert len(source.ledger) == 0 and not sums[0].any()


def test_the_statement_tells_no_key():
    source = budget(RunKey.secret())
    released(source)
    assert source.key.key.hex() not in repr(source.statement(1.0, 2.0))
