"""DPZero against the paper's formula, against the methods it must become in the limit, and as the README uses it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from opacus.accountants.utils import get_noise_multiplier
from torch import nn

import dpzero
from baselines.dp_zo import DPZO
from baselines.mezo import MeZO
from dpzero.language.data import tasks
from dpzero.language.models import encoding, text_classifier
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.privacy.imitation_budget import PublicCodeBudget
from dpzero.privacy.public_implementations import IMPLEMENTATIONS, PublicRun
from dpzero.privacy.sampling import Users
from dpzero.zeroth_order import Gaussian

DATA = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = (DATA @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]) > 0).float()
BATCH_SIZE, SMOOTHING, LEARNING_RATE = 8, 2.0**-9, 0.05  # powers of two: the same product in any order


def losses(model: nn.Module, batch: np.ndarray) -> torch.Tensor:
    rows = torch.as_tensor(batch)
    return nn.functional.binary_cross_entropy_with_logits(
        model(DATA[rows].to(model.weight.dtype))[:, 0], LABELS[rows].to(model.weight.dtype), reduction="none"
    )


def linear(dtype=torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 1).to(dtype)


def budget(noise_scale: float, steps=20, seed=0, unit="example", **change) -> Budget:
    setting = {"mechanism": "gaussian", "sampling": "poisson", "adjacency": "add_remove"} | change
    return Budget(
        Setting(dataset_size=40, batch_size=BATCH_SIZE, steps=steps, delta=1e-5, **setting),
        noise_scale,
        RunKey.published(seed),
        unit=unit,
    )


def stand_in_budget(noise_scale: float, unit="example") -> StandInBudget:
    """For batches of the test's own."""
    return StandInBudget(budget(1.0).setting, noise_scale, unit=unit)


def optimizer(kind, share, model, loss=losses, **settings):
    settings = {"learning_rate": LEARNING_RATE, "smoothing": SMOOTHING, "seed": 0} | settings
    return kind(model, loss, share, **settings)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The methods side by side ----------------------------------------------------------------------------------------------


def test_without_noise_and_bound_dpzero_is_mezo_to_the_bit():
    ours, theirs, none = linear(), linear(), budget(0.0)
    private, plain = optimizer(dpzero.DPZero, none, ours, clip=1e9), optimizer(MeZO, BATCH_SIZE, theirs)
    for batch in none.batches():
        assert private.step(batch) == plain.step(batch)
        assert torch.equal(weights(ours), weights(theirs))
    assert not torch.equal(weights(ours), weights(linear()))


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_dp_zo_with_the_bound_in_units_of_the_loss_is_dpzero(mechanism):
    """clip(d) / (2 smoothing) with bound 2 smoothing C is clip(d / (2 smoothing)) with bound C, noise included."""
    clip = 0.3  # bites on most examples
    ours, theirs = linear(torch.float64), linear(torch.float64)
    one, two = budget(1.5, mechanism=mechanism), budget(1.5, mechanism=mechanism)
    zero = optimizer(dpzero.DPZero, one, ours, clip=clip)
    zo = optimizer(DPZO, two, theirs, clip=2 * SMOOTHING * clip)
    for batch, same in zip(one.batches(), two.batches(), strict=True):
        assert zero.step(batch) == pytest.approx(zo.step(same), rel=1e-6)
    assert torch.allclose(weights(ours), weights(theirs), rtol=1e-6)


# The formula -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.2, 50.0], ids=["clip bites", "clip is loose"])
def test_the_released_scalar_is_the_formula_of_the_paper(clip):
    model, share, noise_scale = linear(torch.float64), budget(1.25), 1.25
    me = optimizer(dpzero.DPZero, share, model, clip=clip, seed=7)
    noise = RunKey.published(0).stream("noise")
    clipped = 0
    for step, batch in enumerate(share.batches()):
        x, z = weights(model), [torch.zeros(1, 5), torch.zeros(1)]
        Gaussian(7).add_(z, step, 1.0)
        u = torch.cat([part.flatten() for part in z]).double()

        def loss(at, x=x, batch=batch):
            other = linear(torch.float64)
            nn.utils.vector_to_parameters(at, other.parameters())
            return losses(other, batch).detach()

        d = (loss(x + SMOOTHING * u) - loss(x - SMOOTHING * u)) / (2 * SMOOTHING)
        clipped += int((d.abs() > clip).sum())
        bounded = d * torch.clamp(clip / d.abs(), max=1.0)
        g = (bounded.sum().item() + noise_scale * clip * noise.normals(1, step, 0, 0)[0]) / BATCH_SIZE
        assert me.step(batch) == pytest.approx(g, rel=1e-7)
        assert torch.allclose(weights(model), x - LEARNING_RATE * g * u, rtol=1e-9, atol=1e-12)
    assert (clipped > 0) == (clip == 0.2)


def test_a_step_in_the_published_setting_is_the_formula_of_the_published_code():
    """DPZero on SST-2: 1,024 examples, batches of 64 from shuffled epochs, clip 200, 10,000 steps at epsilon 2."""
    clip, smoothing, learning_rate, sizes = 200.0, 1e-3, 1e-6, {"dataset_size": 1024, "batch_size": 64}
    multiplier = get_noise_multiplier(
        target_epsilon=2.0, target_delta=1e-5, sample_rate=1 / 16, steps=10_000, accountant="rdp"
    )
    assert multiplier == pytest.approx(13.516, abs=0.002)
    claimed = Setting("gaussian", "poisson", "add_remove", **sizes, steps=10_000, delta=1e-5)
    theirs = PublicRun(IMPLEMENTATIONS["dpzero"], 2.0, claimed)
    share = PublicCodeBudget(theirs, RunKey.published(0))
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "full").double()
    rows = encoding.encode(tasks.load("toy"), "tiny-encoder", 24)["train"]

    def loss(model, batch):
        ids, mask, labels = rows[batch % len(rows)].padded(torch.device("cpu"))
        return nn.functional.cross_entropy(model.head(model.features(ids, mask)), labels, reduction="none")

    settings = {"learning_rate": learning_rate, "smoothing": smoothing, "seed": 42}
    me = dpzero.DPZero(model, loss, share, clip=clip, **settings)
    noise = RunKey.published(0).stream("noise")
    trained = [p for p in model.parameters() if p.requires_grad]
    for step, batch in zip(range(3), share.batches(), strict=False):
        assert len(batch) == 64
        x, z = weights(model), [torch.zeros(p.shape) for p in trained]
        Gaussian(42).add_(z, step, 1.0)
        for j, row in me.perturbation.fixed_rows.items():  # which public code moves, though no text reads it
            z[j][row] = 0
        u = torch.cat([part.flatten() for part in z]).double()
        other = copy.deepcopy(model)

        def at(point, other=other, batch=batch):
            nn.utils.vector_to_parameters(point, other.parameters())
            return loss(other, batch).detach()

        g = (
            ((at(x + smoothing * u) - at(x - smoothing * u)) / (2 * smoothing))
            .clamp(-clip, clip)
            .mean()
            .item()
        )
        added = 2 * multiplier * clip / 64 * noise.normals(1, step, 0, 0)[0]
        assert me.step(batch) - added == pytest.approx(g, rel=1e-6)
        assert torch.allclose(weights(model), x - learning_rate * (g + added) * u, rtol=1e-9, atol=1e-12)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))


def test_one_example_moves_the_release_by_the_bound_at_most():
    """Whatever its loss is: this and the noise are all of the proof."""

    def hostile(plus, minus):
        """Example 3 has one loss at the first point and another at the second."""
        answers = iter([plus, minus])

        def loss(model, batch):
            return torch.where(torch.as_tensor(batch) == 3, next(answers), losses(model, batch))

        return loss

    batch, clip = np.array([1, 3, 8, 20]), 0.4
    without = optimizer(dpzero.DPZero, stand_in_budget(2.0), linear(), clip=clip).step(batch[batch != 3])
    inf, nan = float("inf"), float("nan")
    for pair in [
        (0.0, 0.0),
        (1e-45, 0.0),
        (1e30, -1e30),
        (-1.0, 1.0),
        (inf, -inf),
        (0.0, inf),
        (inf, inf),
        (nan, 1.0),
    ]:
        released = optimizer(
            dpzero.DPZero, stand_in_budget(2.0), linear(), loss=hostile(*pair), clip=clip
        ).step(batch)
        assert abs(released - without) <= clip / BATCH_SIZE * (1 + 1e-12)


# Users -----------------------------------------------------------------------------------------------------------------


def slopes(model: Scalar, batch: np.ndarray) -> torch.Tensor:
    """Example i: a loss of slope batch[i]."""
    return torch.as_tensor(batch, dtype=torch.float64) * model.x.double()


def direction(step=0) -> float:
    z = torch.zeros(1)
    Gaussian(0).add_([z], step, 1.0)
    return z.item()


@pytest.mark.parametrize("kind", [dpzero.DPZero, DPZO])
def test_the_mean_of_a_users_examples_is_clipped_not_each_of_them(kind):
    """(3, 0) is 1.5 on average, beyond the bound of 1; (4, -4) is nothing, and a quarter stays a quarter."""
    values, whose = np.array([3.0, 0.0, 4.0, 0.25, -4.0]), np.array([0, 0, 1, 2, 1])
    unit = abs(direction()) * (
        2 * SMOOTHING if kind is DPZO else 1
    )  # what a slope of 1 is to this method's clip
    me = optimizer(kind, stand_in_budget(0.0, unit="user"), Scalar(), loss=slopes, clip=unit)
    assert me.step(values, whose) == pytest.approx((1 + 0 + 0.25) * direction() / BATCH_SIZE, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("kind", [dpzero.DPZero, DPZO])
def test_one_user_moves_the_release_by_the_bound_at_most_however_many_examples_he_has(kind, count):
    others, inf, nan = np.array([0.1, -0.3, 2.0]), float("inf"), float("nan")
    clip = 0.4 * (2 * SMOOTHING if kind is DPZO else 1)

    def released(mine: list[float]) -> float:
        batch = np.concatenate([others, mine])
        whose = np.array([0, 0, 1] + [2] * len(mine))
        return optimizer(kind, stand_in_budget(2.0, unit="user"), Scalar(), loss=slopes, clip=clip).step(
            batch, whose
        )

    without, bound = released([]), 0.4 / BATCH_SIZE
    for mine in ([5.0] * count, [-1e30] * count, [inf] * count, [nan] + [1.0] * (count - 1), [0.0] * count):
        assert abs(released(mine) - without) <= bound * (1 + 1e-9)
    assert abs(released([5.0] * count) - without) == pytest.approx(bound, rel=1e-9)  # the bound is reached


def test_user_level_training_draws_users_and_its_statement_says_user():
    """40 users with 1 to 7 examples each: every step asks for all examples of those who were drawn, and of no one else."""
    wrote = np.repeat(np.arange(40), 1 + np.arange(40) % 7)
    users, share, asked = Users(wrote.tolist()), budget(1.0, unit="user"), []

    def loss(model, batch):
        asked.append(batch)
        return model.x.double().expand(len(batch))

    me = optimizer(dpzero.DPZero, share, Scalar(), loss=loss, clip=1.0)
    for batch in share.batches():
        asked.clear()
        me.step(*users.examples(batch))
        assert all(np.array_equal(seen, np.flatnonzero(np.isin(wrote, batch))) for seen in asked[-2:])
    statement = budget(1.0, unit="user").statement(clip=1.0, epsilon_target=2.0)
    assert (statement["unit"], statement["dataset_size"], len(share.ledger)) == ("user", len(users), 20)


@pytest.mark.parametrize(("unit", "users"), [("user", None), ("example", np.zeros(4, np.int64))])
@pytest.mark.parametrize("kind", [dpzero.DPZero, DPZO])
def test_a_budget_of_another_unit_than_the_step_is_refused(kind, unit, users):
    share = budget(1.0, unit=unit)
    with pytest.raises(ValueError, match=f"the unit is the {unit}: give `users` if"):
        optimizer(kind, share, Scalar(), loss=slopes, clip=1.0).step(np.ones(4), users)
    assert len(share.ledger) == 0


# Streams ---------------------------------------------------------------------------------------------------------------


def test_two_optimizers_of_one_budget_share_its_steps_and_no_noise():
    share, released = Budget(budget(1.0).setting, 1.0, RunKey.secret()), []
    for _ in range(2):
        me = optimizer(
            dpzero.DPZero, share, linear(), loss=lambda model, batch: 0 * losses(model, batch), clip=1.0
        )
        released += [me.step(batch) for _, batch in zip(range(10), share.batches(), strict=False)]
    assert len(set(released)) == len(share.ledger) == 20
    assert not list(share.batches())


# Use -------------------------------------------------------------------------------------------------------------------


def test_as_the_readme_uses_it_a_logistic_regression_learns():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(512, 2, generator=generator)
    data = [(x, float(x[0] > x[1])) for x in inputs]

    def loss(model, batch):
        x, y = torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])
        return nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y, reduction="none")

    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    budget = dpzero.Budget.calibrated(
        epsilon=4, delta=1e-5, dataset_size=len(data), batch_size=64, steps=200, key=RunKey.published(0)
    )
    assert budget.epsilon_spent() == 0
    me = dpzero.DPZero(model, loss, budget, learning_rate=0.3, clip=1.0)
    for batch in budget.loader(data, collate_fn=list):
        me.step(batch)
    right = ((model(inputs)[:, 0] > 0).float() == torch.tensor([y for _, y in data])).float().mean()
    assert right > 0.9
    assert 3.99 < budget.epsilon_spent() <= 4.0
    assert me.steps_taken == len(budget.ledger) == 200


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(clip):
    with pytest.raises(ValueError, match=f"clip is {clip}: give a bound from"):
        optimizer(dpzero.DPZero, budget(1.0), linear(), clip=clip)


def test_the_package_offers_what_it_promises():
    assert set(dpzero.__all__) >= {"DPZero", "Budget", "calibrate_noise", "spent_epsilon"}
    assert all(hasattr(dpzero, name) for name in dpzero.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Zero'"):
        _ = dpzero.Zero
