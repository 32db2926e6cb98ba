"""GeoDPZO: its symmetric clip is DP-AggZO's at another clip and rate, its localized one the public code's."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from baselines.dp_aggzo import DPAggZO
from baselines.geo_dpzo import GeoDPZO, localized
from dpzero.privacy import RunKey, Setting, StandInBudget

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(X[batch]).squeeze(1) - 3).square()


def trained(method: type, **settings: object) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    setting = Setting("gaussian", "poisson", "add_remove", 6, 3, 10, 1e-3)
    budget = StandInBudget(setting, 0.7, RunKey.published(0))
    optimizer = method(model, loss, budget, directions=4, **settings)
    for step in range(4):
        optimizer.step(torch.arange(step, 6))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_symmetric_clip_is_that_of_dp_aggzo_over_the_root_of_two():
    """With the noise: that of the smaller clip, times the larger rate."""
    geo = trained(GeoDPZO, clip=9.0, learning_rate=0.01)
    aggzo = trained(DPAggZO, clip=9.0 / math.sqrt(2), learning_rate=0.01 * math.sqrt(2))
    assert torch.allclose(geo, aggzo, atol=1e-9)
    assert not torch.allclose(geo, trained(DPAggZO, clip=9.0, learning_rate=0.01), atol=1e-3)


def mirrored(slopes: torch.Tensor, clip: float) -> torch.Tensor:
    """As the public code does it: an example's slopes and their negatives, clipped as one vector; their half, times root 2."""
    both = torch.cat([slopes, -slopes.flip(0)])
    return math.sqrt(2) * (both * (clip / torch.linalg.vector_norm(both)).clamp(max=1))[: len(slopes)]


def test_the_symmetric_clip_is_that_of_the_public_code():
    setting = Setting("gaussian", "poisson", "add_remove", 6, 3, 10, 1e-3)
    budget = StandInBudget(setting, 0.7, RunKey.published(0))
    method = GeoDPZO(nn.Linear(2, 1).double(), loss, budget, learning_rate=1, clip=2.0, directions=5)
    vectors = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clipped = method._clipped(vectors)
    expected = torch.stack([mirrored(row, 2.0) for row in vectors])
    assert torch.allclose(clipped, expected, rtol=1e-14, atol=0)
    aggzo = DPAggZO._clipped(method, math.sqrt(2) * vectors) / math.sqrt(
        2
    )  # that is, at the clip over root 2
    norms = torch.linalg.vector_norm(vectors, dim=1)
    assert torch.allclose(aggzo, vectors * (2.0 / math.sqrt(2) / norms).clamp(max=1)[:, None], rtol=1e-14)
    assert 0 < (norms > 2.0 / math.sqrt(2)).sum() < 60  # some are clipped, some are not


def one_by_one(values: list[float]) -> list[float]:
    """As the public code does it, for the slopes of one example."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ordered = [values[place] for place in order]
    pairs = [abs(a + b) for a, b in zip(ordered, ordered[::-1], strict=True)]
    jumps = [abs(b - a) for a, b in pairwise(pairs)]
    corrected = list(ordered)
    for i in range(jumps.index(max(jumps)) + 1):
        j = len(ordered) - 1 - i
        mean = (ordered[i] + ordered[j]) / 2
        corrected[i], corrected[j] = ordered[i] - mean, ordered[j] - mean
    result = [0.0] * len(values)
    for place, value in zip(order, corrected, strict=True):
        result[place] = value
    return result


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16])
def test_the_localized_correction_is_that_of_the_public_code(count):
    vectors = torch.randn(50, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    expected = torch.tensor([one_by_one(row) for row in vectors.tolist()], dtype=torch.float64)
    assert torch.allclose(localized(vectors), expected, atol=1e-12)


def test_both_clips_bound_an_example_even_if_a_slope_is_not_finite():
    for correction in ("symmetric", "localized"):
        torch.manual_seed(0)
        setting = Setting("gaussian", "poisson", "add_remove", 6, 3, 10, 1e-3)
        budget = StandInBudget(setting, 0.7, RunKey.published(0))
        method = GeoDPZO(
            nn.Linear(2, 1).double(), loss, budget, learning_rate=1, clip=1.5, correction=correction
        )
        vectors = torch.tensor(
            [[9.0, -1.0, 4.0], [math.inf, 1.0, 1.0], [0.1, 0.2, -0.1]], dtype=torch.float64
        )
        assert torch.linalg.vector_norm(method._clipped(vectors), dim=1).max() <= 1.5 + 1e-12
