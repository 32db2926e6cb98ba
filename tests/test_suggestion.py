"""`dpzero.suggest`: a clip and a learning rate from public examples, with which DPZero learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dpzero import Budget, DPZero, losses, suggest
from dpzero.privacy import RunKey
from dpzero.zeroth_order.transcript import digest
from tests.test_models_of_users import CASES, EXAMPLES

LOSS = losses.from_reduction_none(functional.cross_entropy)
TARGET = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])


def rows(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x @ TARGET > 0).long()


def budget(dataset_size=1000, **change) -> Budget:
    settings = {"epsilon": 2, "delta": 1e-5, "batch_size": 64, "steps": 200} | change
    return Budget.calibrated(dataset_size=dataset_size, key=RunKey.published(0), **settings)


def network(width: int, scale: float = 1.0) -> nn.Module:
    """Linear if the width is 0. Inputs of 1 / scale give the outputs of scale 1."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2)] if width else [nn.Linear(5, 2)]
    with torch.no_grad():
        layers[0].weight *= scale
    return nn.Sequential(*layers)


def accuracy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((model(batch[0]).argmax(1) == batch[1]).float().mean())


@pytest.mark.parametrize("width", [0, 16])
def test_with_what_is_suggested_a_classifier_learns(width):
    model, given, (x, y) = network(width), budget(), rows(0, 1000)
    found = suggest(model, LOSS, rows(1, 64), given)
    optimizer = DPZero(model, LOSS, given, **found)
    before = accuracy(model, rows(2, 1000))
    for indices in given.batches():
        optimizer.step((x[indices], y[indices]))
    assert before < 0.7 and accuracy(model, rows(2, 1000)) > 0.85
    assert given.epsilon_spent() <= 2


def test_the_clip_is_the_median_slope_and_the_rate_keeps_the_noise_below_the_tolerance():
    """Checked on a quadratic, whose loss at x + r z is known: f + r^2 d / 2 on average."""
    size, curvature = 400, 0.5

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return 1 + curvature / 2 * model.x.square().sum() + batch @ model.x

    batch = torch.randn(64, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = budget()
    found = suggest(Point(), loss, batch, given, directions=32)
    assert found["clip"] == pytest.approx(0.674 * math.sqrt(size), rel=0.1)  # slopes are N(0, |gradient|^2)
    radius = math.sqrt(0.1 / (curvature / 2 * size))
    noise = given.noise_scale * found["clip"] / 64
    least = (
        radius / math.sqrt(200) / math.hypot(noise, 2 * found["clip"] / 8)
    )  # clipped values in [-clip, clip]
    assert least < found["learning_rate"] < radius / math.sqrt(200) / noise * 1.05


def test_more_noise_steps_or_curvature_give_a_smaller_rate():
    batch = rows(1, 64)
    plain = suggest(network(16), LOSS, batch, budget())
    for other in (budget(epsilon=0.2), budget(steps=2000)):
        found = suggest(network(16), LOSS, batch, other)
        assert found["clip"] == plain["clip"] and found["learning_rate"] < plain["learning_rate"]
    large = suggest(network(16, scale=0.1), LOSS, (10 * batch[0], batch[1]), budget())
    assert large["learning_rate"] < plain["learning_rate"]


@pytest.mark.parametrize("name", ["GPT-2", "RoBERTa with a tied head", "an LSTM"])
def test_it_leaves_weights_and_budget_as_they_are(name):
    case = CASES[name]
    model, given = case.model().eval(), budget(dataset_size=EXAMPLES, batch_size=6, delta=1e-3, steps=10)
    before, batch = digest(list(model.parameters())), torch.utils.data.default_collate(case.rows())
    found = suggest(model, case.loss, batch, given, tolerance=0.01)
    assert all(0 < value < math.inf for value in found.values())
    assert digest(list(model.parameters())) == before
    assert len(given.ledger) == 0 and given.epsilon_spent() == 0


def test_what_tells_nothing_is_refused():
    with pytest.raises(ValueError, match="a batch of 1 examples: give some tens"):
        suggest(network(0), LOSS, {"labels": torch.zeros(1)}, budget())
    with pytest.raises(ValueError, match="does not change with the weights"):
        suggest(network(0), lambda model, batch: torch.ones(len(batch[0])), rows(0, 8), budget())
    with pytest.raises(ValueError, match=r"never rises by 0.1 of itself .* give a smaller tolerance"):
        suggest(
            network(0), lambda model, batch: 9 + model[0].bias.sum().tanh().expand(8), rows(0, 8), budget()
        )
    dropping = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        suggest(dropping, LOSS, rows(0, 8), budget())
