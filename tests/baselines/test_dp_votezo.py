"""DP-VoteZO: its step is the formula, votes are bounded and without a scale, and the shrinkage follows from the releases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.dp_votezo import DPVoteZO
from dpzero import DPZero, replay
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.zeroth_order import Gaussian
from dpzero.zeroth_order.transcript import SecondMoment, read

SILENT = 1e-12  # noise over clip
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
Y = torch.tensor([0, 1, 1, 0, 2, 1])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 3).double()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(X[batch]), Y[batch], reduction="none")


def budget(noise_scale: float = SILENT, steps: int = 10) -> StandInBudget:
    setting = Setting("gaussian", "poisson", "add_remove", 6, 3, steps, 1e-3)
    return StandInBudget(setting, noise_scale, RunKey.published(0))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def direction(mine: nn.Module, step: int, k: int) -> torch.Tensor:
    parts = [torch.zeros_like(p) for p in mine.parameters()]
    Gaussian(7).add_(parts, step, 1.0, k)
    return torch.cat([part.flatten() for part in parts])


def losses_at(weights: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    logits = X[batch] @ weights[:6].reshape(3, 2).T + weights[6:]
    return nn.functional.cross_entropy(logits, Y[batch], reduction="none")


def test_two_steps_are_the_formula():
    mine, directions, smoothing, doubt = model(), 3, 1e-3, 0.7
    x = flat(mine)
    me = DPVoteZO(
        mine,
        loss,
        budget(),
        learning_rate=0.5,
        seed=7,
        directions=directions,
        smoothing=smoothing,
        doubt=doubt,
    )
    for step, batch in enumerate((torch.arange(5), torch.arange(2, 6))):
        z = torch.stack([direction(mine, step, k) for k in range(directions)])
        base = losses_at(x, batch)
        slopes = torch.stack([(losses_at(x + smoothing * d, batch) - base) / smoothing for d in z], 1)
        weights = ((1 - torch.exp(-base)) / doubt).clamp(max=1)
        assert weights.min() < 1
        g = (weights[:, None] * slopes / slopes.norm(dim=1, keepdim=True)).sum(0) / 3
        x = x - 0.5 * g @ z
        assert me.step(batch) == pytest.approx(g.tolist(), abs=1e-9)
        assert torch.allclose(flat(mine), x, atol=1e-9)


def test_a_vote_has_no_scale_and_a_norm_of_at_most_the_clip():
    me = DPVoteZO(model(), loss, budget(), learning_rate=0.1, clip=2.5)
    differences, losses = torch.randn(50, 8, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    votes = me._votes(differences, losses)
    assert torch.allclose(votes, me._votes(1e-6 * differences, losses))
    assert votes.norm(dim=1).max() == pytest.approx(2.5)
    assert votes.norm(dim=1).min() < 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_an_example_without_a_direction_casts_no_vote(bad):
    me = DPVoteZO(model(), loss, budget(), learning_rate=0.1)
    differences = torch.full((1, 8), bad, dtype=torch.float64)
    assert not me._votes(differences, torch.ones(1, dtype=torch.float64)).any()


def test_the_known_noise_in_the_scalars_shortens_the_step():
    """Of releases that are noise alone next to nothing is left; of others the part that is not noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    for signal, expected in ((0.0, 0.0), (1.0, 0.5), (3.0, 0.9)):
        moment = SecondMoment(0.999, noise=1.0)
        for row in (noise + signal).tolist():
            scaled = moment.scaled(row)
        assert scaled[0] / row[0] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("method", [DPVoteZO, DPZero])
def test_the_noise_that_shrinkage_takes_off_is_the_one_that_is_added(method):
    """Measured on steps without examples, whose releases are noise alone."""
    noisy = budget(noise_scale=0.7, steps=400)
    me = method(model(), loss, noisy, learning_rate=0.0, clip=1.5, shrinkage=0.9)
    releases = torch.tensor([me.step(torch.arange(0)) for _ in range(400)])
    assert releases.square().mean().sqrt().item() == pytest.approx(me.moment.noise, rel=0.1)


def test_a_moment_without_its_noise_is_that_of_the_signal():
    """Of releases that are noise alone the floor is left: the root of a tenth divides them."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    for signal, size in ((0.0, 0.1**0.5), (1.0, 1.0), (3.0, 3.0)):
        moment = SecondMoment(0.999, noise=1.0, floor=0.1)
        for row in (noise + signal).tolist():
            scaled = moment.scaled(row)
        assert row[0] / scaled[0] == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    "scaling", [{"shrinkage": 0.9}, {"shrinkage": 0, "second_moment": 0.9, "moment_floor": 0.2}]
)
def test_a_run_resumes_from_its_transcript_and_is_replayed_to_the_bit(tmp_path, scaling):
    def make(mine: nn.Module) -> DPVoteZO:
        return DPVoteZO(mine, loss, budget(0.3, steps=60), learning_rate=0.05, directions=2, **scaling)

    whole, part, path = model(), model(), tmp_path / "part"
    me = make(whole)
    me.write_transcript(tmp_path / "whole")
    for _ in range(60):
        me.step(torch.arange(4))
    first = make(part)
    first.write_transcript(path)
    for _ in range(25):
        first.step(torch.arange(4))
    first.transcript.close()
    resumed = model()
    second = make(resumed)
    second.write_transcript(path)
    assert second.steps_taken == 25
    for _ in range(35):
        second.step(torch.arange(4))
    second.transcript.close()
    assert torch.equal(flat(whole), flat(resumed))
    header = read(path).header
    assert header["one_sided"] and header["noise"] == me.moment.noise
    again = model()
    assert replay(list(again.parameters()), path) == 60
    assert torch.equal(flat(again), flat(whole))


def test_two_ways_to_scale_the_scalars_are_refused():
    with pytest.raises(
        ValueError, match="second_moment and shrinkage both scale the scalars: give one of them"
    ):
        DPVoteZO(model(), loss, budget(), learning_rate=0.1, second_moment=0.9)


@pytest.mark.parametrize("settings", [{}, {"second_moment": 0.9, "moment_floor": 2}, {"shrinkage": 0.9}])
def test_a_floor_needs_a_moment_to_stand_under(settings):
    with pytest.raises(
        ValueError, match="give a share of at most 1, beside second_moment and without shrinkage"
    ):
        DPZero(model(), loss, budget(), learning_rate=0.1, clip=1.0, **{"moment_floor": 0.1} | settings)


def test_a_private_release_is_valid():
    setting = Setting("gaussian", "poisson", "add_remove", 6, 3, 5, 1e-3)
    mine = Budget(setting, 1.0, RunKey.secret())
    me = DPVoteZO(model(), loss, mine, learning_rate=0.1, one_at_a_time=True)
    for indices in mine.batches():
        me.step(torch.as_tensor(indices))
    assert mine.statement()["valid_release"] is True
    assert mine.epsilon_spent() == pytest.approx(setting.epsilon(1.0))
