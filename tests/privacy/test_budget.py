"""The one door through which private data leaves: noise, ledger and the epsilon of what ran."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpzero.privacy import Budget, RunKey, Setting

SETTING = Setting("gaussian", "poisson", "add_remove", 240, 16, 10, 1e-5)
SCALE = 4.0


def budget(key=None, setting=SETTING, ledger=None) -> Budget:
    return Budget(setting, SCALE, key or RunKey.published(0), ledger)


def released(source: Budget, steps=5) -> list[float]:
    return [source.release(step, 0.5, 2.0) for step in range(steps)]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


# Streams ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_global_seeds_move_neither_noise_nor_batches(seed):
    expected, batches = released(budget()), list(budget().batches())
    seed_everything(seed)
    assert released(budget()) == expected
    assert all(np.array_equal(a, b) for a, b in zip(budget().batches(), batches, strict=True))


def test_global_seeds_do_not_tame_a_secret_key():
    draws = []
    for _ in range(2):
        seed_everything(0)
        draws.append(released(budget(RunKey.secret())))
    assert not set(draws[0]) & set(draws[1])


def test_noise_takes_nothing_from_the_global_generators():
    seed_everything(0)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    seed_everything(0)
    source = budget()
    released(source)
    source.release_(7, [torch.zeros(10)], 1.0)
    list(source.batches())
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_the_key_is_secret_unless_one_is_given():
    source = Budget.calibrated(epsilon=0.5, delta=1e-5, dataset_size=240, batch_size=16, steps=10)
    assert source.key.valid_release
    assert source.setting == SETTING
    assert source.noise_scale == pytest.approx(SETTING.noise_scale(0.5), rel=1e-9)


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


def test_a_published_step_replays():
    source = budget()
    assert released(source) == released(source) == released(budget())
    assert len(source.ledger) == 5


@pytest.mark.parametrize("again", ["release", "release_"])
def test_secret_noise_is_never_used_for_a_second_sum(again):
    """Two sums with the same noise tell their exact difference, whatever the ledger counts."""
    source = budget(RunKey.secret())
    source.release(3, 1.0, 1.0)
    with pytest.raises(ValueError, match="step 3 was released before under this secret key"):
        getattr(source, again)(3, 2.0 if again == "release" else [torch.zeros(2)], 1.0)
    assert len(source.ledger) == 1


def test_nothing_leaves_that_the_ledger_does_not_have(monkeypatch):
    source = budget()

    def full(step, name):
        raise OSError("no space left on device")

    monkeypatch.setattr(source.ledger, "record", full)
    sums = [torch.zeros(3)]
    with pytest.raises(OSError):
        source.release(0, 1.0, 1.0)
    with pytest.raises(OSError):
        source.release_(0, sums, 1.0)
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
        resumed.release(step, 0.0, 1.0)
    assert resumed.statement(1.0, 2.0)["steps"] == 12
    assert resumed.epsilon_spent() == replace(SETTING, steps=12).epsilon(SCALE)


def test_a_step_repeated_after_a_kill_counts_once_under_the_published_key(tmp_path):
    released(budget(ledger=tmp_path / "ledger"), steps=4)
    resumed = budget(ledger=tmp_path / "ledger")
    for step in range(2, 10):
        resumed.release(step, 0.0, 1.0)
    assert resumed.epsilon_spent() == SETTING.epsilon(SCALE)


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
        "noise_key": "published",
        "valid_release": False,
    }
    assert said.items() >= expected.items()
    assert said["epsilon_spent_rdp"] > said["epsilon_spent"]


def test_only_a_secret_key_makes_a_valid_release():
    said = budget(RunKey.secret()).statement(1.0, 2.0)
    assert (said["noise_key"], said["valid_release"]) == ("secret", True)
    assert (said["steps"], said["epsilon_spent"], said["epsilon_spent_rdp"]) == (0, 0.0, 0.0)


def test_the_statement_tells_no_key():
    source = budget(RunKey.secret())
    released(source)
    assert source.key.key.hex() not in repr(source.statement(1.0, 2.0))
