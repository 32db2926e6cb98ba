"""The two-point step on functions whose gradient is known, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dpzero.zeroth_order import Gaussian, TwoPoint
from dpzero.zeroth_order.model_requirements import trainable


class Plain(TwoPoint):
    """The mean difference as it is; remembers the differences."""

    def projected_gradient(self, difference):
        self.difference = difference
        return difference.sum().item() / (2 * self.smoothing * self.batch_size)


class PerUser(Plain):
    unit = "user"


class Point(nn.Module):
    """Two parameters of 30 and 10 numbers."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        values = torch.randn(40, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.a, self.b = nn.Parameter(values[:30].view(5, 6).clone()), nn.Parameter(values[30:].clone())

    def vector(self) -> torch.Tensor:
        return torch.cat([self.a.flatten(), self.b])


EXAMPLES = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))


def quadratic(model: Point, batch: torch.Tensor) -> torch.Tensor:
    """Loss i: half the squared distance to example i, and a constant that float32 has to carry along."""
    return 0.7 + ((model.vector() - batch) ** 2).sum(1) / 80


def method(model, loss=quadratic, kind=Plain, **settings) -> TwoPoint:
    settings = {"batch_size": 6, "learning_rate": 0.1, "smoothing": 1e-3, "seed": 0} | settings
    return kind(model, loss, **settings)


def explicit(step: int, seed=0) -> torch.Tensor:
    z = [torch.zeros(5, 6), torch.zeros(10)]
    Gaussian(seed).add_(z, step, 1.0)
    return torch.cat([part.flatten() for part in z])


@pytest.mark.parametrize("smoothing", [1e-2, 1e-3])
def test_the_difference_is_the_slope_along_the_direction(smoothing):
    model = Point()
    slopes = ((model.vector() - EXAMPLES) / 40).detach() @ explicit(0)
    me = method(model, smoothing=smoothing)
    me.step(EXAMPLES)
    assert me.difference.dtype == torch.float64
    assert (me.difference / (2 * smoothing)).tolist() == pytest.approx(slopes.tolist(), abs=1e-3)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_step_is_the_plain_formula_with_the_direction_written_out(seed):
    model = Point(torch.float64)
    me = method(model, seed=seed)
    x = model.vector().detach()
    for step in range(5):
        z, h = explicit(step, seed).double(), me.smoothing

        def loss(at, x=x, z=z):
            return 0.7 + ((x + at * z - EXAMPLES) ** 2).sum(1) / 80

        gradient = ((loss(h) - loss(-h)) / (2 * h)).sum() / 6
        assert me.step(EXAMPLES) == pytest.approx(gradient.item(), rel=1e-9)
        x = x - 0.1 * gradient * z
        assert torch.allclose(model.vector(), x, rtol=1e-9, atol=1e-12)
    assert me.steps_taken == 5


def test_without_a_gradient_a_step_restores_what_it_perturbed():
    """200 steps in float32: rounding walks at random, to less than 1e-5 of the weights."""
    model = Point()
    start = model.vector().detach().clone()
    me = method(model, loss=lambda model, batch: torch.zeros(len(batch)))
    for _ in range(200):
        assert me.step(EXAMPLES) == 0.0
    assert (model.vector() - start).abs().max() < 1e-5 * start.abs().max()


def test_sums_are_divided_by_the_expected_batch_size():
    gradients = [method(Point(torch.float64), batch_size=6).step(EXAMPLES[:count]) for count in (2, 4)]
    alone = [method(Point(torch.float64), batch_size=6).step(EXAMPLES[i : i + 1]) for i in range(4)]
    assert gradients == pytest.approx([sum(alone[:2]), sum(alone)], rel=1e-9)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_with_unit_user_the_value_is_the_mean_over_a_users_examples(kind):
    example, user = method(Point(torch.float64)), method(Point(torch.float64), kind=PerUser)
    example.step(EXAMPLES)
    user.step(EXAMPLES, kind([2, 0, 2, 1, 2, 0]))
    a, b, c, d, e, f = example.difference.tolist()
    assert user.difference.dtype == torch.float64
    assert user.difference.tolist() == pytest.approx([(b + f) / 2, d, (a + c + e) / 3], rel=1e-9)


def test_a_batch_without_users_is_a_step_too():
    me = method(Point(), kind=PerUser)
    assert me.step(EXAMPLES[:0], np.zeros(0, np.int64)) == 0.0
    assert me.steps_taken == 1 and me.difference.shape == (0,)


def test_an_empty_batch_is_a_step_without_a_forward_pass():
    def never(model, batch):
        raise AssertionError("the model was called")

    model = Point()
    start = model.vector().detach().clone()
    me = method(model, loss=never)
    assert me.step(EXAMPLES[:0]) == 0.0
    assert me.steps_taken == 1 and me.training_loss is None
    assert torch.allclose(model.vector(), start, atol=1e-6)
    me.loss = quadratic
    me.step(EXAMPLES)
    assert torch.allclose(
        (model.vector() - start).detach(), -0.1 * me.difference.sum().float() / 0.012 * explicit(1), atol=1e-5
    )


def test_the_training_loss_is_the_mean_of_both_points():
    model = Point(torch.float64)
    me = method(model)
    expected = quadratic(model, EXAMPLES.double()).mean().item()
    me.step(EXAMPLES)
    assert me.training_loss == pytest.approx(expected, rel=1e-4)


def test_no_graph_is_kept():
    seen = []

    def loss(model, batch):
        seen.append(quadratic(model, batch))
        return seen[-1]

    model = Point()
    method(model, loss=loss).step(EXAMPLES)
    assert all(not values.requires_grad for values in seen)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_stay_to_the_bit():
    model = Point()
    model.b.requires_grad_(False)
    start = model.b.clone()
    me = method(model)
    me.step(EXAMPLES)
    assert torch.equal(model.b, start) and [p.shape for p in me.parameters] == [(5, 6)]


def test_a_tied_parameter_is_perturbed_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    assert len(trainable([model.embedding.weight, model.head.weight, model.embedding.weight])) == 1
    start, z = model.head.weight.detach().clone(), torch.zeros(4, 4)
    Gaussian(0).add_([z], 0, 1.0)
    seen = []
    method(model, loss=lambda m, batch: seen.append(m.head.weight.clone()) or torch.zeros(len(batch))).step(
        EXAMPLES
    )
    assert torch.allclose(seen[0], start + 1e-3 * z, atol=1e-7)
    assert torch.allclose(seen[1], start - 1e-3 * z, atol=1e-7)


@pytest.mark.parametrize("call", [1, 2])
def test_the_weights_are_back_when_the_loss_raises(call):
    """To rounding, and the step can be taken again."""
    model, calls = Point(torch.float64), []
    start = model.vector().detach().clone()

    def failing(model, batch):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return quadratic(model, batch)

    me, other = method(model, loss=failing), method(Point(torch.float64))
    with pytest.raises(KeyboardInterrupt):
        me.step(EXAMPLES)
    assert torch.allclose(model.vector(), start, rtol=0, atol=1e-15) and me.steps_taken == 0
    assert me.step(EXAMPLES) == pytest.approx(other.step(EXAMPLES), rel=1e-9)


def test_a_state_can_be_loaded_after_a_failed_step():
    """A method whose release fails has its weights on the other side of the direction."""
    model, other = Point(torch.float64), Point(torch.float64)
    me, untroubled = method(model), method(other)
    state, working = me.state_dict(), me.projected_gradient
    me.projected_gradient = None
    with pytest.raises(TypeError):
        me.step(EXAMPLES)
    me.load_state_dict(state)
    me.projected_gradient = working
    assert me.step(EXAMPLES) == untroubled.step(EXAMPLES)
    assert torch.equal(model.vector(), other.vector())


@pytest.mark.parametrize(
    "wrong", [lambda values: values.mean(), lambda values: values.half()], ids=["not per example", "float16"]
)
def test_the_weights_are_back_when_the_loss_is_refused(wrong):
    model = Point()
    start = model.vector().detach().clone()
    with pytest.raises(ValueError, match="the loss returned"):
        method(model, loss=lambda model, batch: wrong(quadratic(model, batch))).step(EXAMPLES)
    assert torch.allclose(model.vector(), start, rtol=0, atol=1e-6)


def test_a_step_is_taken_at_the_learning_rate_that_its_group_has_then():
    """0 too: a warm-up begins with it."""
    model = Point(torch.float64)
    me = method(model)
    for step, rate in enumerate([0.1, 0.05, 0.0, 0.01, torch.tensor(0.02, dtype=torch.float64)]):
        before = model.vector().detach().clone()
        me.param_groups[0]["lr"] = rate
        gradient = me.step(EXAMPLES)
        assert torch.allclose(model.vector(), before - rate * gradient * explicit(step).double(), atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"direction_law": "cauchy"}, "direction_law is 'cauchy': give one of gaussian"),
        ({"direction_law": "low_rank", "direction_rank": 0}, "rank is 0: it must be at least 1"),
        ({"perturb": "twice"}, "perturb is 'twice': give one of in_place, on_read"),
    ],
)
def test_an_unknown_law_or_way_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        method(Point(), **wrong)


# Refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reduced", [lambda values: values.mean(), lambda values: values[:, None], lambda values: values[:-1]]
)
def test_a_loss_that_is_not_per_example_is_refused(reduced):
    with pytest.raises(ValueError, match="for 6 examples: it must return one value per example"):
        method(Point(), loss=lambda model, batch: reduced(quadratic(model, batch))).step(EXAMPLES)


@pytest.mark.parametrize(
    ("kind", "users", "message"),
    [
        (Plain, [0] * 6, "the unit is the example: give `users` if it is the user, and only then"),
        (PerUser, None, "the unit is the user: give `users` if it is the user, and only then"),
        (PerUser, [0] * 5, "5 users for 6 examples: give the user of each example"),
        (PerUser, [], "0 users for 6 examples"),
    ],
)
def test_examples_without_their_users_are_refused_and_nothing_moves(kind, users, message):
    model = Point()
    start, me = model.vector().detach().clone(), method(model, kind=kind)
    with pytest.raises(ValueError, match=message):
        me.step(EXAMPLES, users if users is None else np.array(users, dtype=np.int64))
    assert torch.equal(model.vector(), start) and me.steps_taken == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=f"parameter is stored in {dtype}.*: use float32 weights"):
        method(Point(dtype))
    with pytest.raises(ValueError, match=f"the loss returned {dtype}.*: compute it in float32"):
        method(Point(), loss=lambda model, batch: quadratic(model, batch).to(dtype)).step(EXAMPLES)


def test_frozen_weights_may_be_in_half_precision():
    model = Point()
    model.b = nn.Parameter(model.b.half(), requires_grad=False)
    assert len(method(model).parameters) == 1


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter has requires_grad: nothing to train"):
        method(Point().requires_grad_(False))


def test_a_parameter_that_is_not_contiguous_is_refused():
    model = Point()
    model.a = nn.Parameter(torch.zeros(6, 5).t())
    with pytest.raises(ValueError, match=r"shape \(5, 6\) is not contiguous"):
        method(model)


@pytest.mark.parametrize("name", ["smoothing", "batch_size"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_setting_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: it must be positive"):
        method(Point(), **{name: value})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_a_number_that_is_not_perturbed_is_refused(dtype):
    model = Point()
    model.a = nn.Parameter(torch.zeros(2, 3).to(dtype))
    with pytest.raises(ValueError, match=rf"shape \(2, 3\) is stored in {dtype}, which is not perturbed"):
        method(model)


def test_two_parameters_on_the_same_memory_are_refused():
    model = Point()
    model.b = nn.Parameter(model.a.data.view(-1)[25:])
    with pytest.raises(ValueError, match=r"share memory: tie them as one nn.Parameter under two names"):
        method(model)
    whole = torch.zeros(30)
    model.a, model.b = nn.Parameter(whole[:20]), nn.Parameter(whole[20:])
    assert len(method(model).parameters) == 2


def test_a_refused_release_leaves_the_weights_where_they_were():
    class Refusing(Plain):
        def projected_gradient(self, difference):
            raise ValueError("no")

    model = Point()
    start, me = model.vector().detach().clone(), method(model, kind=Refusing, smoothing=0.5)
    with pytest.raises(ValueError, match="no"):
        me.step(EXAMPLES)
    assert torch.allclose(model.vector(), start, atol=1e-6) and me.steps_taken == 0
