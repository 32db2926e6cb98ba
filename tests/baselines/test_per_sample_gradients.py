"""Opacus' hooks, layer by layer: each example's own gradient in all ways, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.dp_sgd import DPSGD, HOOKS
from tests.baselines.brute_force import BATCH_SIZE, CLIP, Calling, Plain, budget, check_step, method

every_way = pytest.mark.parametrize("clipping", HOOKS)


@every_way
def test_a_model_that_would_be_clipped_per_token_is_refused(clipping):
    """OPT flattens batch and length before its feed-forward layers: without the check nothing would warn."""
    model = Calling(lambda m, x: m.layer(x.flatten(0, 1)).view(x.shape).sum((1, 2)), layer=nn.Linear(4, 4))
    with pytest.raises(
        RuntimeError, match=r"layer layer \(Linear\) has 15 rows for 3 examples.*: this model needs a patch"
    ):
        method(model, clipping).step(torch.randn(3, 5, 4))


@every_way
def test_one_row_of_positions_for_the_whole_batch_is_refused(clipping):
    model = Calling(
        lambda m, x: m.head(x + m.positions(torch.arange(5)[None])).sum((1, 2)),
        positions=nn.Embedding(5, 4),
        head=nn.Linear(4, 1),
    )
    with pytest.raises(RuntimeError, match=r"layer positions \(Embedding\) has 1 rows for 3 examples"):
        method(model, clipping).step(torch.randn(3, 5, 4))


def tied() -> Calling:
    """Looks a text up and scores it with the same matrix."""
    layers = {"embedding": nn.Embedding(7, 4), "output": nn.Linear(4, 7, bias=False)}
    layers["output"].weight = layers["embedding"].weight
    torch.manual_seed(0)
    nn.init.normal_(layers["embedding"].weight)
    return Calling(lambda m, x: m.output(m.embedding(x).tanh().sum(1)).log_softmax(1)[:, 0], **layers)


@every_way
def test_an_embedding_tied_to_the_output_layer_is_clipped_as_a_whole(clipping):
    """The two uses have an inner product: without it a norm would be wrong, here by up to 40 %."""
    tokens = torch.randint(0, 7, (9, 3), generator=torch.Generator().manual_seed(1))
    assert check_step(tied(), Plain(), tokens, 0.5, clipping) == 9


@every_way
def test_an_embedding_read_without_its_layer_is_refused(clipping):
    """Hooks see the look-up and not the scores: half of the gradient would be clipped, and nothing would warn."""
    model = Calling(
        lambda m, x: (m.embedding(x).tanh().sum(1) @ m.embedding.weight.T).log_softmax(1)[:, 0],
        embedding=nn.Embedding(7, 4),
    )
    with pytest.raises(
        RuntimeError, match=r"embedding\.weight is used 2 times in a forward pass, 1 of them by its layer"
    ):
        method(model, clipping).step(torch.arange(6).view(2, 3))


@every_way
def test_a_parameter_that_no_loss_depends_on_is_refused(clipping):
    model = Calling(lambda m, x: m.layer(x).sum(1), layer=nn.Linear(4, 4), pooler=nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match=r"pooler\.weight is used 0 times .*freeze it"):
        method(model, clipping).step(torch.randn(3, 4))


@every_way
@pytest.mark.parametrize("layer", [nn.Linear, nn.LayerNorm, nn.RMSNorm], ids=lambda x: x.__name__)
def test_a_layer_that_is_called_twice_is_clipped_as_a_whole_or_refused(layer, clipping):
    torch.manual_seed(0)
    inner = nn.Linear(4, 4) if layer is nn.Linear else layer(4)
    model = Calling(lambda m, x: m.layer(m.layer(x).tanh()).mul(x).square().sum(1), layer=inner)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    if layer is nn.Linear and clipping == "ghost":
        with pytest.raises(RuntimeError, match=r"layer\.weight is used 2 times .*: set clipping to hooks"):
            method(model, clipping).step(inputs)
    else:
        assert check_step(model, Plain(), inputs, CLIP, clipping) > 0


def test_a_layer_of_two_branches_has_each_input_with_its_own_gradient():
    """The second call's branch is the longer one, and the first one's is reached again after it."""
    torch.manual_seed(0)
    model = Calling(
        lambda m, x: (m.layer(x) * m.layer(x.flip(1)).tanh().exp() * m.layer(x.square())).sum(1),
        layer=nn.Linear(4, 4),
    )
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert check_step(model, Plain(), inputs, CLIP, "hooks") > 0


class Scaled(nn.Module):
    """Not a layer that torch has; it may be given a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x, factor=1.0):
        return x * self.gain * factor


@every_way
@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(4),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm(4),
        nn.GroupNorm(3, 3),
        nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
        nn.Bilinear(4, 4, 4),
        Scaled(),
    ],
    ids=repr,
)
def test_a_layer_of_any_kind_is_run_again_for_each_example(layer, clipping):
    again = isinstance(layer, nn.Bilinear)
    model = Calling(
        lambda m, x: (m.layer(x, x) if again else m.layer(x)).square().mul(x).sum((1, 2)), layer=layer
    )
    inputs = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    if again:
        with pytest.raises(
            RuntimeError, match=r"layer layer \(Bilinear\) does more than map one tensor to one"
        ):
            method(model, clipping).step(inputs)
    else:
        assert check_step(model, Plain(), inputs, 1.0, clipping) > 0


@every_way
def test_a_layer_that_is_given_a_second_argument_is_refused(clipping):
    """Run again on the first alone, it would give other gradients."""
    for run in (lambda m, x: m.layer(x, 2.0).sum(1), lambda m, x: m.layer(x, factor=2.0).sum(1)):
        with pytest.raises(
            RuntimeError, match=r"layer layer \(Scaled\) does more than map one tensor to one: freeze"
        ):
            method(Calling(run, layer=Scaled()), clipping).step(torch.randn(3, 4))


@every_way
def test_what_overwrites_a_layers_output_or_input_is_refused_by_torch(clipping):
    """What the hooks kept would not be what the layer read or gave."""

    def output(m, x):
        return m.layer(x).mul_(x).sum(1)

    def input(m, x):
        values = m.layer(x)
        x.zero_()
        return values.sum(1)

    for run in (output, input):
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
            method(Calling(run, layer=Scaled()), clipping).step(torch.randn(5, 4))


@every_way
def test_a_layer_that_is_run_in_vain_is_refused(clipping):
    model = Calling(lambda m, x: m.layer(m.layer(x).detach()).sum(1), layer=nn.Linear(4, 4))
    with pytest.raises(
        RuntimeError, match=r"layer\.weight is used 1 times in a forward pass, 2 of them by its layer"
    ):
        method(model, clipping).step(torch.randn(3, 4))


@every_way
def test_a_use_that_is_seen_does_not_stand_for_another(clipping):
    """As many uses as layers, and not the same ones: the gradient of the layer's output never comes."""
    model = Calling(
        lambda m, x: (m.layer(x).sum() * 0).detach() + (x @ m.layer.weight).sum(1),
        layer=nn.Linear(4, 4, bias=False),
    )
    with pytest.raises(RuntimeError, match=r"left no \w+ of 3 examples in layer\.weight: freeze"):
        method(model, clipping).step(torch.randn(3, 4))


@every_way
def test_what_is_not_trained_counts_for_nothing(clipping):
    """Neither in the norm nor in the sum; buffers and parameters that the layers share may be frozen in one name and in all."""
    torch.manual_seed(0)
    layers = {
        "embedding": nn.Embedding(7, 4, padding_idx=2),
        "first": nn.Linear(4, 4),
        "last": nn.Linear(4, 4),
    }
    layers["first"].weight.requires_grad_(False)
    layers["last"].bias.requires_grad_(False)
    model = Calling(
        lambda m, x: m.last(m.first(m.embedding(x)).tanh() * m.scale).square().sum((1, 2)), **layers
    )
    model.register_buffer("scale", torch.arange(1.0, 5.0))
    tokens = torch.randint(0, 7, (9, 3), generator=torch.Generator().manual_seed(1))
    for trained in (None, layers["embedding"]):
        if trained:
            trained.requires_grad_(False)
        before = [p.detach().clone() for p in model.parameters()]
        assert check_step(model, Plain(), tokens, 0.5, clipping) > 0
        for p, start in zip(model.parameters(), before, strict=True):
            assert p.requires_grad or torch.equal(p, start)


@pytest.mark.parametrize(("clipping", "products"), [("hooks", 9), ("ghost", 11), ("book_keeping", 9)])
def test_no_unused_gradient_of_the_whole_batch_is_computed(clipping, products):
    """Three products forward and three backward: two gradients of inputs, and the first layer's own, which has to be asked for.

    Then three clipped sums, or with ghost norms, which are small here, the five of a second backward pass. Book-keeping
    makes the sums from what it kept.
    """
    layers = {name: nn.Linear(64, 64, bias=False) for name in ("first", "second", "third")}
    model = Calling(lambda m, x: m.third(m.second(m.first(x).tanh()).tanh()).square().sum(1), **layers)
    step, texts = method(model, clipping).step, torch.randn(512, 64)
    with FlopCounterMode(display=False) as counter:
        step(texts)
    assert products <= counter.get_total_flops() / (2 * texts.numel() * 64) < products + 0.5


@every_way
def test_a_row_that_autograd_leaves_alone_is_left_alone(clipping):
    model = Calling(
        lambda m, x: m.embedding(x).square().sum((1, 2)), embedding=nn.Embedding(7, 4, padding_idx=2)
    )
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)[2] = 100.0
    tokens = torch.tensor([[2, 2, 3], [1, 2, 1], [4, 5, 6]])
    assert check_step(model, Plain(), tokens, 5.0, clipping) == 2
    assert (model.embedding.weight[2] == 100.0).all()


@every_way
def test_rows_and_gradients_that_are_views_are_read_as_they_are(clipping):
    torch.manual_seed(0)
    layers = {"embedding": nn.Embedding(7, 4), "layer": nn.Linear(3, 5)}
    model = Calling(
        lambda m, x: m.layer(m.embedding(x.T.expand(3, 6).T).mT).mT[:, ::2].square().sum((1, 2)), **layers
    )
    tokens = torch.randint(0, 7, (6, 3), generator=torch.Generator().manual_seed(1))
    assert check_step(model, Plain(), tokens, 0.5, clipping) > 0


@every_way
def test_a_step_leaves_the_model_as_it_was(clipping):
    """No hook, no attribute and no mark of an example stays on it, after a refusal too; a second method may take it over."""
    model = tied()

    def state() -> list:
        return [
            [(type(m), set(vars(m))) for m in model.modules()],
            [set(vars(p)) for p in model.parameters()],
        ]

    before = state()
    for _ in range(2):
        method(model, clipping).step(torch.arange(6).view(2, 3))
        me = method(model, clipping)
        me.loss = Penalised()
        with pytest.raises(RuntimeError, match="is used 3 times"):
            me.step(torch.arange(6).view(2, 3))
    assert before == state()
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and not model.training


class Penalised(Plain):
    """A loss that reads more of the model than its output."""

    def __call__(self, model, batch):
        return model(batch) + next(model.parameters()).sum() * batch.sum(1)


class Activated(Plain):
    """A loss that reads an activation: the second pass, which starts from the output, would miss it."""

    def __call__(self, model, batch):
        return model(batch) + model.hidden.square().sum(1)


class Tupled(Plain):
    def __call__(self, model, batch):
        return model(batch)[0]


@pytest.mark.parametrize(
    ("loss", "result", "message"),
    [
        (
            Penalised(),
            lambda x: x.sum(1),
            r"layer\.weight is used 2 times in a forward pass, 1 of them by its layer",
        ),
        (
            Activated(),
            lambda x: x.sum(1),
            "more than a function of the model's output: set clipping to hooks",
        ),
        (
            Tupled(),
            lambda x: (x.sum(1), None),
            "output is not a tensor of 3 rows, one an example: set clipping to hooks",
        ),
        (
            Tupled(),
            lambda x: x.sum(1)[None],
            "output is not a tensor of 3 rows, one an example: set clipping to hooks",
        ),
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


@every_way
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_tokens_that_cancel_do_not_hide_a_norm_from_the_bound(gap, clipping):
    """In float32 the norm would be 0.3 %, then a third too small, then 0, which clips nothing."""
    signs, draw = torch.tensor([1.0, -1.0])[:, None], torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    first = torch.randn(8, 64, generator=draw)
    tokens = torch.stack([first, first + gap * torch.randn(8, 64, generator=draw)], 1)
    model = Calling(lambda m, x: (m.layer(x) * signs).sum((1, 2)), layer=layer)
    assert check_step(model, Plain(), tokens, gap / 10, clipping) == 8


@every_way
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


@every_way
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_example_whose_gradient_is_not_finite_counts_as_absent(value, clipping):
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


@every_way
def test_a_batch_of_only_such_examples_releases_noise(clipping):
    model = Calling(lambda m, x: m.layer(x).sum((1, 2)), layer=nn.Linear(4, 4))
    start = model.layer.weight.detach().clone()
    me = method(model, clipping)
    me.step(torch.full((2, 3, 4), float("nan")))
    assert len(me.budget.ledger) == 1 and 1e-4 < (model.layer.weight - start).abs().max() < 1
