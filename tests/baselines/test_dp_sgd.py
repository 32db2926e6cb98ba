"""DP-SGD clips each example's own gradient, in both ways: against one backward pass an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.dp_sgd import DPSGD
from dpzero.experiment import memory
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


both_ways = pytest.mark.parametrize("clipping", ["hooks", "ghost"])


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


def check_step(model, loss, batch, clip, clipping) -> int:
    """One step of rate 1 without noise moves by the sum of clipped gradients; returns on how many examples the bound bites."""
    trained = [p for p in model.parameters() if p.requires_grad]
    expected, bitten = brute_force(model, loss, batch, trained, clip)
    before = [p.detach().clone() for p in trained]
    DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=clip, clipping=clipping).step(batch)
    largest = max(total.abs().max().item() for total in expected)
    for start, p, total in zip(before, trained, expected, strict=True):
        assert ((start - p.detach()) * BATCH_SIZE - total).abs().max() < 1e-5 * largest + 2e-6
    return bitten


@both_ways
@pytest.mark.parametrize("clip", [CLIP, 2.0], ids=["every gradient is clipped", "some are"])
@pytest.mark.parametrize("tune", ["bias", "full", "lora", "head"])
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_a_step_is_the_sum_of_each_examples_clipped_gradient(name, tune, clip, clipping, batch):
    model = models.load(name, tasks.load("toy"), tune)
    assert check_step(model, losses.CrossEntropy(64), batch, clip, clipping) > 0


@both_ways
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_a_token_that_a_text_repeats_adds_up_in_its_row(name, clipping):
    model = models.load(name, tasks.load("toy"), "full")
    repeated = examples.Examples.of([[5, 7, 5, 5, 7], [9] * 12, [5, 6]], [0, 1, 2])
    assert check_step(model, losses.CrossEntropy(64), repeated, CLIP, clipping) == 3


def test_both_ways_release_the_same(batch):
    """The same noise, divisor, micro-batches and loss, also where a text holds the padding token (0), whose row autograd skips."""
    padded = examples.Examples.of(
        [*(batch.ids(i).tolist() for i in range(6)), [0, 4, 0]], [0, 1, 2, 3, 0, 1, 2]
    )
    ends, said = [], []
    for clipping in ("hooks", "ghost"):
        model = models.load("tiny-encoder", tasks.load("toy"), "full")
        loss = losses.CrossEntropy(24)
        assert len(list(loss.parts(padded))) > 2
        me = DPSGD(model, loss, budget(0.5), learning_rate=1.0, clip=CLIP, clipping=clipping)
        for _ in range(2):
            me.step(padded)
        ends.append(nn.utils.parameters_to_vector(me.parameters).detach())
        said.append(me.training_loss)
    assert (ends[0] - ends[1]).abs().max() < 1e-5
    assert said[0] == pytest.approx(said[1], rel=1e-5)


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


class Plain:
    """The model's own output is the losses, and a tensor the batch."""

    def parts(self, batch):
        yield batch

    def __call__(self, model, batch):
        return model(batch)


class Calling(nn.Module):
    """`forward(model, x)` as a model with the layers that are given."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def method(model, clipping) -> DPSGD:
    return DPSGD(model, Plain(), budget(1.0), learning_rate=1.0, clip=CLIP, clipping=clipping)


@both_ways
def test_a_model_that_would_be_clipped_per_token_is_refused(clipping):
    """OPT flattens batch and length before its feed-forward layers: without the check nothing would warn."""
    model = Calling(lambda m, x: m.layer(x.flatten(0, 1)).view(x.shape).sum((1, 2)), layer=nn.Linear(4, 4))
    with pytest.raises(
        RuntimeError, match=r"returned 15 gradients for 3 examples .*: this model needs a patch"
    ):
        method(model, clipping).step(torch.randn(3, 5, 4))


@both_ways
def test_one_row_of_positions_for_the_whole_batch_is_refused(clipping):
    model = Calling(
        lambda m, x: m.head(x + m.positions(torch.arange(5)[None])).sum((1, 2)),
        positions=nn.Embedding(5, 4),
        head=nn.Linear(4, 1),
    )
    with pytest.raises(RuntimeError, match=r"returned 1 gradients for 3 examples in positions\.weight"):
        method(model, clipping).step(torch.randn(3, 5, 4))


def tied() -> Calling:
    """Looks a text up and scores it with the same matrix."""
    layers = {"embedding": nn.Embedding(7, 4), "output": nn.Linear(4, 7, bias=False)}
    layers["output"].weight = layers["embedding"].weight
    torch.manual_seed(0)
    nn.init.normal_(layers["embedding"].weight)
    return Calling(lambda m, x: m.output(m.embedding(x).tanh().sum(1)).log_softmax(1)[:, 0], **layers)


def test_an_embedding_tied_to_the_output_layer_is_exact_with_hooks_and_refused_with_ghost_norms():
    tokens = torch.randint(0, 7, (9, 3), generator=torch.Generator().manual_seed(1))
    assert check_step(tied(), Plain(), tokens, 0.5, "hooks") == 9
    with pytest.raises(RuntimeError, match=r"embedding\.weight is used 2 times .*set clipping to hooks"):
        method(tied(), "ghost").step(tokens)


@both_ways
def test_an_embedding_read_without_its_layer_is_refused(clipping):
    """Hooks see the look-up and not the scores: half of the gradient would be clipped, and nothing would warn."""
    model = Calling(
        lambda m, x: (m.embedding(x).tanh().sum(1) @ m.embedding.weight.T).log_softmax(1)[:, 0],
        embedding=nn.Embedding(7, 4),
    )
    with pytest.raises(RuntimeError, match=r"embedding\.weight is used 2 times in a forward pass, 1 of them"):
        method(model, clipping).step(torch.arange(6).view(2, 3))


@both_ways
def test_a_parameter_that_no_loss_depends_on_is_refused(clipping):
    model = Calling(lambda m, x: m.layer(x).sum(1), layer=nn.Linear(4, 4), pooler=nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match=r"pooler\.weight is used 0 times .*freeze it"):
        method(model, clipping).step(torch.randn(3, 4))


def test_a_layer_that_is_called_twice_is_exact_with_hooks_and_refused_with_ghost_norms():
    def model():
        torch.manual_seed(0)
        return Calling(lambda m, x: m.layer(m.layer(x).tanh()).square().sum(1), layer=nn.Linear(4, 4))

    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert check_step(model(), Plain(), inputs, CLIP, "hooks") > 0
    with pytest.raises(RuntimeError, match=r"layer\.weight is used 2 times .*set clipping to hooks"):
        method(model(), "ghost").step(inputs)


class Scaled(nn.Module):
    """A layer that Opacus has no rule for, and runs again without the second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x, factor=1.0):
        return x * self.gain * factor


@pytest.mark.parametrize(
    "layer", [nn.EmbeddingBag(5, 4), nn.Conv1d(4, 4, 1), Scaled()], ids=lambda x: type(x).__name__
)
def test_a_layer_without_exact_ghost_norms_is_refused_before_the_first_step(layer):
    model = Calling(None, inner=layer)
    with pytest.raises(
        ValueError, match=rf"not exact for layer inner \({type(layer).__name__}\): set clipping to hooks"
    ):
        method(model, "ghost")
    method(
        Calling(None, inner=layer, head=nn.Linear(2, 2)).requires_grad_(False).head.requires_grad_(), "ghost"
    )


class Penalised(Plain):
    """A loss that reads more of the model than its output."""

    def __call__(self, model, batch):
        return model(batch) + model.layer.weight.sum() * batch.sum(1)


class Activated(Plain):
    """A loss that reads an activation: the second pass, which starts from the output, would miss it."""

    def __call__(self, model, batch):
        return model(batch) + model._module.hidden.square().sum(1)


class Tupled(Plain):
    def __call__(self, model, batch):
        return model(batch)[0]


@pytest.mark.parametrize(
    ("loss", "result", "message"),
    [
        (Penalised(), lambda x: x.sum(1), r"layer\.weight is used 2 times in a forward pass, 1 of them"),
        (
            Activated(),
            lambda x: x.sum(1),
            "more than a function of the model's output: set clipping to hooks",
        ),
        (Tupled(), lambda x: (x.sum(1), None), "output is no tensor but tuple: set clipping to hooks"),
        (Tupled(), lambda x: x.sum(1)[None], "returned 1 gradients for 3 examples in the model's output"),
    ],
)
def test_ghost_norms_want_losses_that_depend_on_the_models_output_alone(loss, result, message):
    def forward(model, x):
        model.hidden = model.layer(x)
        return result(model.hidden)

    me = method(Calling(forward, layer=nn.Linear(4, 4)), "ghost")
    me.loss = loss
    with pytest.raises(RuntimeError, match=message):
        me.step(torch.randn(3, 4))


def test_ghost_norms_find_their_losses_whatever_order_these_are_in():
    """A loss may run the model on its batch in an order of its own, and give the values in the batch's."""

    class Backwards(Plain):
        def __call__(self, model, batch):
            return model(batch.flip(0)).flip(0)

    inputs = torch.arange(1.0, 6.0)[:, None] * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    model = Calling(lambda m, x: m.layer(x).square().sum(1), layer=nn.Linear(4, 4))
    assert check_step(model, Backwards(), inputs, 5.0, "ghost") in range(1, 5)


@both_ways
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_tokens_that_cancel_do_not_hide_a_norm_from_the_bound(gap, clipping):
    """Opacus' own float32 norm is 0.3 %, then a third too small, then 0, which clips nothing."""
    signs, draw = torch.tensor([1.0, -1.0])[:, None], torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    first = torch.randn(8, 64, generator=draw)
    tokens = torch.stack([first, first + gap * torch.randn(8, 64, generator=draw)], 1)
    model = Calling(lambda m, x: (m.layer(x) * signs).sum((1, 2)), layer=layer)
    assert check_step(model, Plain(), tokens, gap / 10, clipping) == 8


@both_ways
def test_the_rounding_of_tokens_that_cancel_altogether_is_bounded(clipping):
    """Each gradient is 0, in float32 up to 1e-7 of what cancels, which is a thousand million times the bound."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.7, 0.1, 0.0])
    weights = 1e10 * torch.cat([weights[:2], -weights.sum()[None]])[:, None]
    tokens = torch.randn(8, 1, 64, generator=draw).expand(8, 3, 64).contiguous()
    model = Calling(lambda m, x: (m.layer(x) * weights).sum((1, 2)), layer=nn.Linear(64, 64, bias=False))
    start = model.layer.weight.detach().clone()
    me = DPSGD(model, Plain(), budget(0.0), learning_rate=1.0, clip=1.0, clipping=clipping)
    me.step(tokens)
    assert (model.layer.weight - start).norm() * BATCH_SIZE < 8 * (1 + 1e-4)


def test_inputs_of_any_rank_have_ghost_norms():
    for shape in ((5, 4), (5, 3, 4), (5, 2, 3, 4)):
        model = Calling(lambda m, x: m.layer(x).square().flatten(1).sum(1), layer=nn.Linear(4, 4))
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert check_step(model, Plain(), inputs, CLIP, "ghost") == 5


@both_ways
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_example_whose_gradient_is_not_finite_is_as_if_absent(value, clipping):
    """Inside the model too, where a factor of 0 would meet an infinite activation; 1e30 is finite, and its square is not."""
    ends = []
    inputs = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
    for chosen in (inputs[:3], torch.cat([inputs[:2], torch.full((1, 3, 4), value), inputs[2:3]])):
        torch.manual_seed(0)
        layers = {"first": nn.Linear(4, 4), "last": nn.Linear(4, 1)}
        me = method(Calling(lambda m, x: m.last(m.first(x)).square().sum((1, 2)), **layers), clipping)
        me.step(chosen)
        ends.append(nn.utils.parameters_to_vector(me.parameters).detach())
    assert ends[1].isfinite().all() and torch.allclose(*ends, atol=1e-6)


@both_ways
def test_a_batch_of_nothing_but_such_examples_releases_noise(clipping):
    model = Calling(lambda m, x: m.layer(x).sum((1, 2)), layer=nn.Linear(4, 4))
    start = model.layer.weight.detach().clone()
    me = method(model, clipping)
    me.step(torch.full((2, 3, 4), float("nan")))
    assert len(me.budget.ledger) == 1 and 1e-4 < (model.layer.weight - start).abs().max() < 1


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_ghost_norms_take_less_memory_than_the_gradients_of_every_example(name):
    """64 short texts and 52 thousand weights: gradients of single examples are what fills the memory of a step."""
    peaks = {}
    for clipping in ("hooks", "ghost"):
        model, loss = models.load(name, tasks.load("toy"), "full"), losses.CrossEntropy(2**20)
        me = DPSGD(model, loss, budget(1.0), learning_rate=0.1, clip=CLIP, clipping=clipping)
        texts = examples.Examples.of([[1, 2, 3, 4]] * 64, [0] * 64)
        peaks[clipping] = memory.peak_bytes(model, lambda me=me, texts=texts: me.step(texts))
    assert peaks["hooks"] > 64 * memory.weights_bytes(model) and peaks["ghost"] < peaks["hooks"] / 5


@both_ways
def test_evaluation_after_training_sees_no_dropout_and_leaves_nothing_of_an_example(batch, clipping):
    model, loss = models.load("tiny-encoder", tasks.load("toy"), "full"), losses.CrossEntropy(64)
    me = DPSGD(model, loss, budget(0.0), learning_rate=0.1, clip=CLIP, clipping=clipping)
    me.step(batch)
    assert losses.evaluate(model, batch, 64) == losses.evaluate(model, batch, 64)
    left = ("grad", "grad_sample", "_norm_sample", "_current_grad_sample")
    assert all(getattr(p, name, None) is None for p in model.parameters() for name in left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"optimizer": "sdg"}, "one of adamw, adam, sgd"),
        ({"clipping": "gohst"}, "clipping is 'gohst': give one of hooks, ghost"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(change, message):
    model = models.load("tiny-encoder", tasks.load("toy"), "bias")
    with pytest.raises(ValueError, match=message):
        DPSGD(model, losses.CrossEntropy(64), budget(1.0), **{"learning_rate": 1.0, "clip": 1.0} | change)
