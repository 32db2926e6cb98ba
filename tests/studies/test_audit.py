"""The audit on the step code that trains, small: keys are published ones, so each verdict is the same in every run of the suite."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from dpzero.errors import UsageError
from dpzero.plan.registry import card
from dpzero.privacy import RunKey, Setting
from dpzero.privacy.mechanisms import Gaussian
from dpzero.studies.audit import audit, released_sums

SETTING = Setting("gaussian", "poisson", "add_remove", 10, 9, 8, 1e-5)


def keys(start: int = 0):
    return (RunKey.published(seed) for seed in count(start))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpzero", "dp_zo"])
def test_the_real_step_is_consistent_with_its_claim(method):
    verdict = audit(method, SETTING, 4.0, transcripts=2000, keys=keys())
    assert not verdict["refuted"] and verdict["verdict"] == "consistent with the claim"
    assert 2.5 < verdict["lower_bound_epsilon_through_mu"] <= 4.0
    assert verdict["lower_bound_epsilon_distribution_free"] > 0.5


def test_half_the_noise_in_the_real_step_is_refuted(monkeypatch):
    unit_noise = Gaussian.unit_noise
    monkeypatch.setattr(Gaussian, "unit_noise", staticmethod(lambda *arguments: unit_noise(*arguments) / 2))
    assert audit("dpzero", SETTING, 4.0, transcripts=500, keys=keys())["refuted"]


@pytest.mark.parametrize("method", ["dpzero", "dp_zo"])
def test_a_transcript_is_in_units_of_the_clip(method):
    """Without noise: the canary adds 1 in the steps that draw it and nothing in the others."""
    sums = released_sums(card(method).load(), SETTING, 1e-9, keys(), np.inf, 200)
    assert sums.shape == (200, 8)
    assert np.abs(sums - sums.round()).max() < 1e-6 and set(sums.round().ravel()) == {0.0, 1.0}
    assert np.abs(released_sums(card(method).load(), SETTING, 1e-9, keys(), -np.inf, 5) + 1).min() < 1e-6


def test_other_kinds_of_methods_are_refused():
    with pytest.raises(UsageError, match="'dp_sgd' releases no noisy scalars: audit dpzero or dp_zo"):
        audit("dp_sgd", SETTING, 4.0)
