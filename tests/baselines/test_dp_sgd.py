"""DP-SGD clips each example's own gradient: against one backward pass an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.dp_sgd import DPSGD
from dpzero.language import examples, losses, models, tasks
from dpzero.privacy import Budget, RunKey, Setting

# The module's own filter does not reach into pytest
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

BATCH_SIZE, CLIP = 8, 0.1
SETTING = Setting("gaussian", "poisson", "add_remove", 240, BATCH_SIZE, 10, 1e-5)


def budget(noise_scale: float) -> Budget:
    return Budget(SETTING, noise_scale, RunKey.published(0))


@pytest.fixture(scope="module")
def batch() -> examples.Examples:
    """13 texts of 1 to 15 tokens, with ids that both tiny models have."""
    draw = np.random.default_rng(0)
    return examples.Examples.of(
        [draw.integers(3, 1000, length).tolist() for length in draw.integers(1, 16, 13)],
        draw.integers(0, 4, 13),
    )


def brute_force(model, loss, batch, trained, clip) -> tuple[list[torch.Tensor], int]:
    """The sum of clipped gradients, one backward pass an example, and how many examples the bound bites on."""
    sums, bitten = [torch.zeros_like(p) for p in trained], 0
    for i in range(len(batch)):
        gradients = torch.autograd.grad(loss(model, batch[np.array([i])]).sum(), trained)
        norm = torch.sqrt(sum(g.double().square().sum() for g in gradients)).item()
        bitten += norm > clip
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * min(1.0, clip / norm)
    return sums, bitten


@pytest.mark.parametrize("clip", [CLIP, 2.0], ids=["every gradient is clipped", "some are"])
@pytest.mark.parametrize("tune", ["bias", "full", "lora", "head"])
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_a_step_is_the_sum_of_each_examples_clipped_gradient(name, tune, clip, batch):
    model, loss = models.load(name, tasks.load("toy"), tune), losses.CrossEntropy(64)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected, bitten = brute_force(model, loss, batch, trained, clip)
    assert bitten > 0
    before = [p.detach().clone() for p in trained]
    DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=clip).step(batch)
    largest = max(total.abs().max().item() for total in expected)
    for start, p, total in zip(before, trained, expected, strict=True):
        assert ((start - p.detach()) * BATCH_SIZE - total).abs().max() < 1e-5 * largest + 2e-6


def test_no_batch_moves_further_than_its_size_times_the_bound(batch):
    model = models.load("tiny-encoder", tasks.load("toy"), "full")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    DPSGD(model, losses.CrossEntropy(64), budget(0.0), learning_rate=1.0, clip=CLIP).step(batch)
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm()
    assert 0 < moved < 13 / BATCH_SIZE * CLIP * (1 + 1e-4)


def test_the_noise_of_a_step_has_its_scale_in_every_coordinate():
    """An empty batch: 52 thousand coordinates of noise_scale * clip / batch_size, told apart by 2 % (7 sigma)."""
    model = models.load("tiny-encoder", tasks.load("toy"), "full")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    me = DPSGD(model, losses.CrossEntropy(64), budget(5.0), learning_rate=1.0, clip=CLIP)
    me.step(examples.Examples.of([], []))
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert moved.std().item() == pytest.approx(5.0 * CLIP / BATCH_SIZE, rel=0.02)


def test_adam_takes_its_moments_from_the_noisy_sums_alone(batch):
    """Ordinary Adam, fed with brute-force sums and the same noise, goes the same way."""
    model, twin = (models.load("tiny-encoder", tasks.load("toy"), "bias") for _ in range(2))
    loss = losses.CrossEntropy(64)
    me = DPSGD(model, loss, budget(3.0), learning_rate=0.01, clip=CLIP, optimizer="adam")
    trained = [p for p in twin.parameters() if p.requires_grad]
    plain = torch.optim.Adam(trained, lr=0.01)
    for step in range(3):
        released, _ = brute_force(twin, loss, batch, trained, CLIP)
        budget(3.0).release_(step, released, CLIP)
        for p, total in zip(trained, released, strict=True):
            p.grad = total / BATCH_SIZE
        plain.step()
        me.step(batch)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(me.parameters, trained, strict=True))


def test_the_moments_are_part_of_the_state(batch):
    def fresh():
        model = models.load("tiny-encoder", tasks.load("toy"), "bias")
        loss = losses.CrossEntropy(64)
        return DPSGD(model, loss, budget(1.0), learning_rate=0.01, clip=CLIP, optimizer="adam")

    me, other = fresh(), fresh()
    for _ in range(3):
        me.step(batch)
    other.load_state_dict(me.state_dict())
    me.step(batch)
    other.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(me.parameters, other.parameters, strict=True))


def test_a_model_that_would_be_clipped_per_token_is_refused():
    """OPT flattens batch and length before its feed-forward layers: without the check nothing would warn."""

    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x.flatten(0, 1)).view(x.shape).sum((1, 2))

    class Loss:
        def parts(self, batch):
            yield batch

        def __call__(self, model, batch):
            return model(batch)

    me = DPSGD(Flattening(), Loss(), budget(1.0), learning_rate=1.0, clip=CLIP)
    with pytest.raises(
        RuntimeError, match=r"returned 15 gradients for 3 examples .*: this model needs a patch"
    ):
        me.step(torch.randn(3, 5, 4))


def test_evaluation_after_training_sees_no_dropout_and_leaves_no_gradients(batch):
    model, loss = models.load("tiny-encoder", tasks.load("toy"), "bias"), losses.CrossEntropy(64)
    me = DPSGD(model, loss, budget(0.0), learning_rate=0.1, clip=CLIP)
    me.step(batch)
    assert losses.evaluate(model, batch, 64) == losses.evaluate(model, batch, 64)
    assert all(getattr(p, "grad_sample", None) is None and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"optimizer": "sdg"}, "one of adamw, adam, sgd"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(change, message):
    model = models.load("tiny-encoder", tasks.load("toy"), "bias")
    with pytest.raises(ValueError, match=message):
        DPSGD(model, losses.CrossEntropy(64), budget(1.0), **{"learning_rate": 1.0, "clip": 1.0} | change)
