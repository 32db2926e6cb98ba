"""Fine-tuning without privacy: one update, whatever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.fine_tuning import IMPLEMENTATIONS, OPTIMIZERS, FineTuning
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.studies.method_contract import read_by_the_loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_implementation_makes_the_same_update(optimizer):
    draw = np.random.default_rng(0)
    batch = encoding.Examples.from_token_ids(draw.integers(3, 1000, (6, 5)).tolist(), draw.integers(0, 4, 6))
    ends = {}
    for implementation in IMPLEMENTATIONS:
        model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
        me = FineTuning(
            model,
            losses.CrossEntropy(2048),
            6,
            learning_rate=1e-3,
            optimizer=optimizer,
            weight_decay=0.1,
            implementation=implementation,
        )
        read = read_by_the_loss(model).values()
        start = nn.utils.parameters_to_vector(read).detach()
        for _ in range(3):
            me.step(batch)
        ends[implementation] = nn.utils.parameters_to_vector(read).detach() - start
    assert ends["default"].abs().max() > 1e-4
    assert all(torch.allclose(end, ends["default"], rtol=1e-3, atol=1e-6) for end in ends.values())


def test_an_implementation_that_torch_does_not_have_is_refused():
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "head")
    with pytest.raises(
        ValueError, match="implementation is 'compiled': give one of default, loop, foreach, fused"
    ):
        FineTuning(model, losses.CrossEntropy(64), 6, learning_rate=1e-3, implementation="compiled")


# --- a falling learning rate


def test_the_learning_rate_falls_by_as_much_in_each_step_and_is_0_after_the_last(texts):
    """As by torch's own schedule, whether or not the run stops in between."""
    me, first, plain = (trained(optimizer="sgd", **how) for how in ({"decay_steps": 4},) * 2 + ({},))
    schedule = torch.optim.lr_scheduler.LambdaLR(plain.optimizer, lambda step: max(0.0, 1 - step / 4))
    for step in range(6):
        before = weights(me)
        me.step(texts)
        plain.step(texts)
        schedule.step()
        assert torch.equal(weights(me), weights(plain))
        assert torch.equal(weights(me), before) == (step >= 4)
        if step < 2:
            first.step(texts)
    later = trained(optimizer="sgd", decay_steps=4)
    later.load_state_dict(first.state_dict())
    for _ in range(4):
        later.step(texts)
    assert torch.equal(weights(later), weights(me))
    assert not torch.equal(weights(me), weights(trained(optimizer="sgd")))


def test_a_negative_number_of_steps_in_which_the_rate_falls_is_refused():
    with pytest.raises(ValueError, match="decay_steps is -1: give the number of steps, or 0"):
        trained(decay_steps=-1)


# --- dropout


@pytest.fixture
def texts() -> encoding.Examples:
    draw = np.random.default_rng(0)
    return encoding.Examples.from_token_ids(draw.integers(3, 1000, (6, 5)).tolist(), draw.integers(0, 4, 6))


def trained(name: str = "tiny-encoder", budget: int = 10, **settings: object) -> FineTuning:
    """Adam, in micro-batches of two texts."""
    model = text_classifier.load(name, tasks.load("toy"), "bias")
    return FineTuning(model, losses.CrossEntropy(budget), 6, learning_rate=1e-2, **settings)


def weights(me: FineTuning) -> torch.Tensor:
    return nn.utils.parameters_to_vector(me.parameters).detach()


def test_a_model_drops_out_in_training_alone_where_it_is_asked_to(texts):
    me, other = trained(dropout=True), trained()
    for method in (me, other):
        method.step(texts)
        assert not any(module.training for module in method.model.modules())
        with torch.no_grad():
            assert torch.equal(method.loss(method.model, texts), method.loss(method.model, texts))
    assert (weights(me) - weights(other)).abs().max() > 1e-4


def test_masks_are_of_the_seed_and_the_step_and_move_no_generator(texts):
    one, same, another = trained(dropout=True), trained(dropout=True), trained(dropout=True, seed=1)
    state = torch.get_rng_state()
    one.step(texts)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)  # whatever else draws
    same.step(texts)
    another.step(texts)
    assert torch.equal(weights(one), weights(same)) and not torch.equal(weights(one), weights(another))
    start, later = trained(dropout=True), trained(dropout=True)
    later.steps_taken = 1
    assert float(start.gradients(texts)) != float(later.gradients(texts))


def test_a_run_that_goes_on_from_its_state_drops_out_as_if_it_had_not_stopped(texts):
    whole, first, later = (trained(dropout=True) for _ in range(3))
    for _ in range(5):
        whole.step(texts)
    for _ in range(2):
        first.step(texts)
    torch.rand(3)
    later.load_state_dict(first.state_dict())
    for _ in range(3):
        later.step(texts)
    assert torch.equal(weights(later), weights(whole))


def test_a_gradient_with_dropout_is_torchs_own_with_the_same_masks(texts):
    me = trained(dropout=True)
    me.gradients(texts)
    mine = [p.grad.clone() for p in me.parameters]
    with torch.random.fork_rng([]):
        torch.manual_seed(int(me.masks.words(1, 0)[0]))
        me.model.train()
        total = sum(me.loss(me.model, part).sum() for part in me.loss.parts(texts))
        expected = torch.autograd.grad(total / 6, me.parameters)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(mine, expected, strict=True))


def test_dropout_of_a_model_without_any_is_refused_and_an_empty_batch_draws_none(texts):
    with pytest.raises(ValueError, match="dropout is true, but no rate of this model is above 0: leave it"):
        trained("tiny-causal", dropout=True).step(texts)
    trained(dropout=True).step(texts[np.zeros(0, np.int64)])
