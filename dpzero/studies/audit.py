"""Transcripts of the real step code, from a world with a canary and a world without, for `privacy.audit` to judge.

Sampler, clip, sum, noise and ledger are those that train. The model is not asked: a direction is public and a loss difference
is what it is, so the canary's is made infinite, which the clip turns into the bound, and all others' zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..plan.registry import card
from ..privacy import Budget, Rehearsal, RunKey, Setting
from ..privacy.audit import judge, log_likelihood_ratio

CANARY = 0  # its index in the data


def audit(
    method: str,
    setting: Setting,
    epsilon: float,
    *,
    transcripts: int = 20_000,
    noise_factor: float = 1.0,
    keys: Iterator[RunKey] | None = None,
) -> dict:
    """Claims epsilon, runs with `noise_factor` times the noise that it needs, judges what comes out.

    Args:
        method: a private zeroth-order method's file in baselines.
        transcripts: of each world.
        keys: one a transcript; drawn from the operating system if None.
    """
    found = card(method)
    if not found.private or found.order != 0:
        raise UsageError(f"method {method!r} releases no noisy scalars: audit dpzero or dp_zo")
    start = time.perf_counter()
    claimed = setting.noise_scale(epsilon)
    keys = keys or (RunKey.secret() for _ in repeat(None))
    present, without = (
        log_likelihood_ratio(
            setting,
            claimed,
            released(found.load(), setting, claimed * noise_factor, keys, value, transcripts),
        )
        for value in (np.inf, 0.0 if setting.adjacency == "add_remove" else -np.inf)
    )
    verdict = judge(setting, claimed, without, present)
    refuted = verdict["profile_excess"] > 0
    return {
        "method": method,
        "mechanism": setting.mechanism,
        "sampling": setting.sampling,
        "adjacency": setting.adjacency,
        "noise_scale": claimed * noise_factor,
        **verdict,
        "refuted": refuted,
        "verdict": "the claim is refuted" if refuted else "consistent with the claim",
        "seconds": round(time.perf_counter() - start, 1),
    }


def released(
    make: Callable, setting: Setting, noise_scale: float, keys: Iterator[RunKey], value: float, count: int
) -> np.ndarray:
    """`count` transcripts of released sums over the clip bound [count, T]; the canary's loss difference is `value`."""
    model = nn.Linear(1, 1, bias=False)
    unit = _step(make, model, Rehearsal(setting, 0.0), torch.tensor([torch.inf]))
    return (
        np.array(
            [_transcript(make, model, _budget(setting, noise_scale, next(keys)), value) for _ in range(count)]
        )
        / unit
    )


def _budget(setting: Setting, noise_scale: float, key: RunKey) -> Budget:
    """With float noise: the law is the same, and 40,000 transcripts take a minute."""
    return Budget(setting, noise_scale, key, noise_arithmetic="float")


def _transcript(make: Callable, model: nn.Module, budget: Budget, value: float) -> list[float]:
    method = _method(make, model, budget)
    scalars = []
    for batch in budget.batches():
        difference = torch.zeros(len(batch), dtype=torch.float64)
        difference[torch.from_numpy(batch == CANARY)] = value
        scalars.append(method.projected_gradient(difference))
        method.steps_taken += 1
    return scalars


def _step(make: Callable, model: nn.Module, budget: Budget, difference: torch.Tensor) -> float:
    return _method(make, model, budget).projected_gradient(difference)


def _method(make: Callable, model: nn.Module, budget: Budget):
    return make(model, _no_loss, budget, learning_rate=1.0, clip=1.0, smoothing=1e-3)


def _no_loss(model: nn.Module, batch) -> torch.Tensor:
    raise AssertionError("an audit asks no model")
