"""DP-SGD clips each example's own gradient, in all ways: against one backward pass an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.dp_sgd import DPSGD, HOOKS
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.memory import trackers
from dpzero.privacy import Budget, RunKey
from tests.all_pairs import pairwise
from tests.baselines.brute_force import BATCH_SIZE, CLIP, SETTING, brute_force, budget, check_step


@pytest.fixture(scope="module")
def batch() -> encoding.Examples:
    """13 texts of 1 to 15 tokens, with ids that both tiny models have."""
    draw = np.random.default_rng(0)
    return encoding.Examples.from_token_ids(
        [draw.integers(3, 1000, length).tolist() for length in draw.integers(1, 16, 13)],
        draw.integers(0, 4, 13),
    )


every_way = pytest.mark.parametrize("clipping", HOOKS)


@pairwise(
    "name, tune, clip, clipping",
    ["tiny-encoder", "tiny-causal"],
    ["bias", "full", "lora", "head"],
    [CLIP, 2.0],  # every gradient is clipped, or some are
    list(HOOKS),
)
def test_a_step_is_the_sum_of_each_examples_clipped_gradient(name, tune, clip, clipping, batch):
    model = text_classifier.load(name, tasks.load("toy"), tune)
    assert check_step(model, losses.CrossEntropy(64), batch, clip, clipping) > 0


@every_way
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_a_token_that_a_text_repeats_adds_up_in_its_row(name, clipping):
    model = text_classifier.load(name, tasks.load("toy"), "full")
    repeated = encoding.Examples.from_token_ids([[5, 7, 5, 5, 7], [9] * 12, [5, 6]], [0, 1, 2])
    assert check_step(model, losses.CrossEntropy(64), repeated, CLIP, clipping) == 3


def test_all_ways_release_the_same(batch):
    """The same noise, divisor, micro-batches and loss, also where a text holds the padding token (0), whose row autograd skips."""
    padded = encoding.Examples.from_token_ids(
        [*(batch.ids(i).tolist() for i in range(6)), [0, 4, 0]], [0, 1, 2, 3, 0, 1, 2]
    )
    ends, training_losses = [], []
    for clipping in HOOKS:
        model = text_classifier.load("tiny-encoder", tasks.load("toy"), "full")
        loss = losses.CrossEntropy(24)
        assert len(list(loss.parts(padded))) > 2
        me = DPSGD(model, loss, budget(0.5), learning_rate=1.0, clip=CLIP, clipping=clipping)
        for _ in range(2):
            me.step(padded)
        ends.append(nn.utils.parameters_to_vector(me.parameters).detach())
        training_losses.append(me.training_loss)
    assert all((ends[0] - end).abs().max() < 1e-5 for end in ends[1:])
    assert training_losses == pytest.approx([training_losses[0]] * len(HOOKS), rel=1e-5)


def test_no_batch_moves_further_than_its_size_times_the_bound(batch):
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "full")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    DPSGD(model, losses.CrossEntropy(64), budget(0.0), learning_rate=1.0, clip=CLIP).step(batch)
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm()
    assert 0 < moved < 13 / BATCH_SIZE * CLIP * (1 + 1e-4)


def test_the_noise_of_a_step_has_its_scale_in_every_coordinate():
    """An empty batch: 52 thousand coordinates of noise_scale * clip / batch_size, told apart by 2 % (7 sigma)."""
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "full")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    me = DPSGD(model, losses.CrossEntropy(64), budget(5.0), learning_rate=1.0, clip=CLIP)
    me.step(encoding.Examples.from_token_ids([], []))
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert moved.std().item() == pytest.approx(5.0 * CLIP / BATCH_SIZE, rel=0.02)


def test_adam_takes_its_moments_from_the_noisy_sums_alone(batch):
    """Ordinary Adam, fed with brute-force sums and the same noise, goes the same way."""
    model, twin = (text_classifier.load("tiny-encoder", tasks.load("toy"), "bias") for _ in range(2))
    loss = losses.CrossEntropy(64)
    me = DPSGD(model, loss, budget(3.0), learning_rate=0.01, clip=CLIP, optimizer="adam")
    trained, noise = [p for p in twin.parameters() if p.requires_grad], budget(3.0)
    plain = torch.optim.Adam(trained, lr=0.01)
    for _ in range(3):
        released, _ = brute_force(twin, loss, batch, trained, CLIP)
        noise.admit(len(batch))
        noise.release_(released, CLIP)
        for p, total in zip(trained, released, strict=True):
            p.grad = total / BATCH_SIZE
        plain.step()
        me.step(batch)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(me.parameters, trained, strict=True))


@every_way
def test_with_dropout_each_examples_gradient_has_its_own_mask_and_is_clipped(clipping, batch):
    """Each example is a micro-batch, so that a second pass over them in their order draws the same masks."""
    model, loss = text_classifier.load("tiny-encoder", tasks.load("toy"), "full"), losses.CrossEntropy(1)
    clip = 30.0  # which bites on some
    me = DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=clip, clipping=clipping, dropout=True)
    before = [p.detach().clone() for p in me.parameters]
    sums, bitten = [torch.zeros_like(p) for p in me.parameters], 0
    with torch.random.fork_rng([]):
        torch.manual_seed(int(me.masks.words(1, 0)[0]))
        model.train()
        for part in loss.parts(batch):
            gradients = torch.autograd.grad(loss(model, part).sum(), me.parameters)
            norm = torch.sqrt(sum(g.double().square().sum() for g in gradients)).item()
            bitten += norm > clip
            sums = [s + g * min(1.0, clip / norm) for s, g in zip(sums, gradients, strict=True)]
    model.eval()
    without, _ = brute_force(model, loss, batch, me.parameters, clip)
    me.step(batch)
    moved = [(start - p.detach()) * BATCH_SIZE for start, p in zip(before, me.parameters, strict=True)]
    assert 0 < bitten < len(batch)
    assert all((a - b).abs().max() < 2e-4 for a, b in zip(moved, sums, strict=True))
    assert max((a - b).abs().max() for a, b in zip(moved, without, strict=True)) > 1e-2


def test_dropout_under_a_secret_key_is_refused():
    secret = Budget(SETTING, 1.0, RunKey.secret())
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
    with pytest.raises(ValueError, match="dropout draws masks that whoever knows the seed can compute"):
        DPSGD(model, losses.CrossEntropy(64), secret, learning_rate=1.0, clip=CLIP, dropout=True)


def test_the_moments_are_part_of_the_state(batch):
    def fresh():
        model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
        loss = losses.CrossEntropy(64)
        return DPSGD(model, loss, budget(1.0), learning_rate=0.01, clip=CLIP, optimizer="adam")

    me, other = fresh(), fresh()
    for _ in range(3):
        me.step(batch)
    other.load_state_dict(me.state_dict())
    me.step(batch)
    other.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(me.parameters, other.parameters, strict=True))


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_ghost_norms_take_less_memory_than_the_gradients_of_every_example(name):
    """64 short texts and 52 thousand weights: gradients of single examples are what fills the memory of a step."""
    peaks = {}
    for clipping in HOOKS:
        model, loss = text_classifier.load(name, tasks.load("toy"), "full"), losses.CrossEntropy(2**20)
        me = DPSGD(model, loss, budget(1.0), learning_rate=0.1, clip=CLIP, clipping=clipping)
        texts = encoding.Examples.from_token_ids([[1, 2, 3, 4]] * 64, [0] * 64)
        peaks[clipping] = trackers.peak_bytes(model, lambda me=me, texts=texts: me.step(texts))
    assert peaks["hooks"] > 64 * trackers.weights_bytes(model)
    assert peaks["ghost"] < peaks["hooks"] / 5 and peaks["book_keeping"] < peaks["hooks"] / 5


@every_way
def test_evaluation_after_training_sees_no_dropout_and_leaves_nothing_of_an_example(batch, clipping):
    model, loss = text_classifier.load("tiny-encoder", tasks.load("toy"), "full"), losses.CrossEntropy(64)
    me = DPSGD(model, loss, budget(0.0), learning_rate=0.1, clip=CLIP, clipping=clipping)
    me.step(batch)
    assert losses.CrossEntropy(64).evaluate(model, batch) == losses.CrossEntropy(64).evaluate(model, batch)
    left = ("grad", "grad_sample", "_norm_sample", "_current_grad_sample")
    assert all(getattr(p, name, None) is None for p in model.parameters() for name in left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"optimizer": "sdg"}, "one of adamw, adam, sgd"),
        ({"clipping": "gohst"}, "clipping is 'gohst': give one of hooks, ghost, book_keeping"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(change, message):
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
    with pytest.raises(ValueError, match=message):
        DPSGD(model, losses.CrossEntropy(64), budget(1.0), **{"learning_rate": 1.0, "clip": 1.0} | change)
