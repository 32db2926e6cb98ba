"""Transcripts of the real step code on neighbouring data sets, with and without a canary, for `privacy.audit`.

Sampler, clipping, sum, noise and ledger are those of training. The model is not evaluated: directions are
public, so an example enters through its loss difference alone. The canary's is infinite, which clipping turns
into the bound; all others are zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UsageError
from ..language.models import losses, random_models
from ..plan.registry import card
from ..privacy import Budget, RunKey, Setting, StandInBudget
from ..privacy.audit import judge, log_likelihood_ratio
from ..run.measurements import stand_ins
from ..zeroth_order import TwoPoint
from ..zeroth_order.leave_one_out import others_move

CANARY = 0  # its index in the data set


def audit(
    method: str,
    setting: Setting,
    epsilon: float,
    *,
    transcripts: int = 20_000,
    noise_factor: float = 1.0,
    keys: Iterator[RunKey] | None = None,
) -> dict:
    """Test a claimed epsilon on runs with `noise_factor` times the noise that it needs.

    Args:
        method: file of a private zeroth-order method.
        transcripts: number on each data set.
        keys: one for each transcript; from the operating system if None.

    Raises:
        UsageError: the method releases no noisy scalars.
    """
    method_card = card(method)
    if not method_card.private or method_card.order != 0:
        raise UsageError(f"method {method!r} releases no noisy scalars: audit dpzero or dp_zo")
    start = time.perf_counter()
    claimed_noise = setting.noise_scale(epsilon)
    noise = claimed_noise * noise_factor
    keys = keys or (RunKey.secret() for _ in repeat(None))
    ratios = []
    for difference in (np.inf, 0.0 if setting.adjacency == "add_remove" else -np.inf):
        sums = released_sums(method_card.load(), setting, noise, keys, difference, transcripts)
        ratios.append(log_likelihood_ratio(setting, claimed_noise, sums))
    present, absent = ratios
    verdict = judge(setting, claimed_noise, absent, present)
    refuted = verdict["profile_excess"] > 0
    return {
        "method": method,
        "mechanism": setting.mechanism,
        "sampling": setting.sampling,
        "adjacency": setting.adjacency,
        "noise_scale": noise,
        **verdict,
        "refuted": refuted,
        "verdict": "the claim is refuted" if refuted else "consistent with the claim",
        "seconds": round(time.perf_counter() - start, 1),
    }


def released_sums(
    make: Callable,
    setting: Setting,
    noise_scale: float,
    keys: Iterator[RunKey],
    difference: float,
    count: int,
) -> NDArray[np.float64]:
    """Released sums over the clip bound [count, T], where the canary has this loss difference."""
    model = nn.Linear(1, 1, bias=False)

    def method(budget: Budget) -> TwoPoint:
        return make(model, _no_loss, budget, learning_rate=1.0, clip=1.0, smoothing=1e-3)

    unit = method(StandInBudget(setting, 0.0)).projected_gradient(torch.tensor([torch.inf]))  # the clip bound
    rows = []
    for _ in range(count):
        # float noise has the same law, and 40,000 transcripts take a minute
        budget = Budget(setting, noise_scale, next(keys), noise_arithmetic="float")
        rows.append(_transcript(method(budget), budget, difference))
    return np.array(rows) / unit


def _transcript(method: TwoPoint, budget: Budget, difference: float) -> list[float]:
    scalars = []
    for batch in budget.batches():
        differences = torch.zeros(len(batch), dtype=torch.float64)
        differences[torch.from_numpy(batch == CANARY)] = difference
        scalars.append(method.projected_gradient(differences))
        method.steps_taken += 1
    return scalars


def _no_loss(model: nn.Module, batch: object) -> Tensor:
    raise AssertionError("an audit evaluates no model")


def measure_batch_invariance(models: Sequence[str]) -> list[dict]:
    """How far the others move when one of eight random texts leaves, by model and type of matrix products.

    Weights are random, in the published shapes, and the biases are perturbed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision, rows = torch.get_float32_matmul_precision(), []
    for name in models:
        model = random_models.build(name, device=device)
        for place, parameter in model.named_parameters():
            parameter.requires_grad_(place.endswith("bias"))
        batch = stand_ins(None, model, length=16)
        for compute in (*losses.COMPUTE, *(["tf32"] if device == "cuda" else [])):
            loss = losses.CrossEntropy(2048, compute.replace("tf32", "float32"))
            torch.set_float32_matmul_precision("high" if compute == "tf32" else precision)
            moved = others_move(loss, model, batch, clip=50.0, smoothing=1e-3, leaving=(0, 4))
            torch.set_float32_matmul_precision(precision)
            rows.append({"model": name, "compute": compute, **moved})
    return rows
