"""An auditor that this project did not write, over `Budget.release`: jax-privacy's canary scores (Google
DeepMind, PyPI).

It stands in for dp-recorder (the Re:cord-play audit), which the package index does not have. What is followed
is the same: one canary, a transcript of everything that is released with it and one without, many times; the
score is the log likelihood ratio, by Neyman and Pearson the best there is; the auditor makes a lower bound of
epsilon at delta of the scores, by Clopper and Pearson, whatever their law, at a threshold that was fixed
beforehand. Batches are the budget's own, the other examples add 0.

Keys are published ones: a verdict is the same in every run. Of other keys one in a million at most would
raise a false alarm. To have it: pip install --no-deps jax-privacy (no jax is imported).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from dpzero.privacy import Budget, RunKey, Setting
from dpzero.privacy.audit import log_likelihood_ratio

FOUND = importlib.util.find_spec("jax_privacy")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOUND is None, reason="jax-privacy is not installed: pip install --no-deps jax-privacy"
    ),
]
SETTING = Setting("gaussian", "poisson", "add_remove", 10, 9, 2, 0.01)
CANARY, CLIP, SIGNIFICANCE = 3, 0.25, 1e-6
TRANSCRIPTS = {
    1.0: 10_000,
    4.0: 10_000,
    6.0: 40_000,
}  # a bound that knows no law is log of their number at most
THRESHOLD = {
    "gaussian": 0.35,
    "laplace": 0.6,
}  # of the score, over the claim: where half the noise shows most
OF_ONE_BUDGET = 500


@pytest.fixture(scope="module")
def auditing():
    """Load the module alone: importing the package would import jax."""
    spec = importlib.util.spec_from_file_location(
        "jax_privacy_auditing", Path(FOUND.origin).parent / "auditing.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _each_question_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("noise_scale", "epsilon"):
            patch.setattr(Setting, name, cache(getattr(Setting, name)))
        yield


def transcripts(
    setting: Setting, scale: float, arithmetic: str, present: bool, number: int, seed: int
) -> np.ndarray:
    """Released sums over the clip, [number, steps], from budgets that are used many times."""
    released = []
    for key in map(RunKey.published, count(seed)):
        budget = Budget(setting, scale, key, noise_arithmetic=arithmetic, overspend=True)
        for _ in range(OF_ONE_BUDGET):
            for batch in budget.batches():
                values = torch.from_numpy(CLIP * (batch == CANARY) * present)
                released.append(budget.release(values, CLIP) / CLIP)
        if len(released) >= number * setting.steps:
            return np.array(released[: number * setting.steps]).reshape(number, setting.steps)
    raise AssertionError


def lower_bound(
    auditing, setting: Setting, scale: float, claimed: float, arithmetic: str, number: int
) -> float:
    """Lower bound on epsilon at the setting's delta, if `scale` is added and `claimed` is claimed."""
    scores = [
        log_likelihood_ratio(setting, claimed, transcripts(setting, scale, arithmetic, present, number, seed))
        for present, seed in ((True, 0), (False, 10**6))
    ]
    auditor = auditing.CanaryScoreAuditor(*scores)
    threshold = auditing.Explicit(THRESHOLD[setting.mechanism] * setting.epsilon(claimed))
    return auditor.epsilon_clopper_pearson(SIGNIFICANCE, setting.delta, threshold_strategy=threshold)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    ("epsilon", "arithmetic"),
    [(1.0, "float"), (1.0, "exact"), (4.0, "float"), (4.0, "exact"), (6.0, "exact")],
)
def test_an_independent_auditor_confirms_the_claim_and_detects_half_the_noise(
    auditing, epsilon, arithmetic, mechanism
):
    setting, number = replace(SETTING, mechanism=mechanism), TRANSCRIPTS[epsilon]
    scale = setting.noise_scale(epsilon)
    honest, halved = (
        lower_bound(auditing, setting, added, scale, arithmetic, number) for added in (scale, scale / 2)
    )
    print(
        f"epsilon {epsilon:g} {mechanism} {arithmetic}: {honest:.3f} honest, {halved:.3f} with half the noise"
    )
    assert honest <= epsilon < halved
