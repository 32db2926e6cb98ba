"""What a clipped gradient is, by each rule and way: against a loop over examples; and what book-keeping keeps in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from baselines._book_keeping import BookKeeping
from baselines.dp_sgd import CLIP_RULES, DPSGD, HOOKS
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.memory import trackers
from tests.baselines.brute_force import BATCH_SIZE, Calling, Plain, budget, check_step
from tests.baselines.test_dp_sgd_models import AtOnePosition, adapted, language_model

DEFINED = [(way, rule) for way in HOOKS for rule in CLIP_RULES if (way, rule) != ("ghost", "per_layer")]
every_pair = pytest.mark.parametrize(("clipping", "clip_rule"), DEFINED)
STABILITY = 0.05


def factors_of(clip_rule: str, model: nn.Module, clip: float, stability: float = STABILITY):
    """The factor of each parameter's gradient from the norms of an example's gradients, by the definitions."""
    names = [name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad]

    def factors(norms: list[float]) -> list[float]:
        if clip_rule == "automatic":
            return [clip / (math.hypot(*norms) + stability)] * len(norms)
        if clip_rule == "flat":
            return [min(1.0, clip / math.hypot(*norms))] * len(norms)
        layers = {
            layer: math.hypot(*(n for n, name in zip(norms, names, strict=True) if name == layer))
            for layer in names
        }
        share = clip / math.sqrt(len(layers))
        return [min(1.0, share / max(layers[name], 1e-30)) for name in names]

    return factors


def texts(*of: list[int]) -> encoding.Examples:
    return encoding.Examples.from_token_ids(list(of), [i % 2 for i in range(len(of))])


MODELS = {
    "small BERT": lambda: text_classifier.load("tiny-encoder", tasks.load("toy"), "full"),
    "small BERT, biases": lambda: text_classifier.load("tiny-encoder", tasks.load("toy"), "bias"),
    "tied masked LM": lambda: AtOnePosition(language_model("roberta", True)),
    "tied OPT": lambda: AtOnePosition(language_model("opt", True)),
    "OPT, LoRA on the feed-forward layers": lambda: adapted("opt", ["fc1", "fc2"]),
    "OPT, LoRA": lambda: adapted("opt", ["q_proj", "v_proj"]),
    "small BERT, FFA-LoRA": lambda: text_classifier.load(
        "tiny-encoder", tasks.load("toy"), "lora", lora_a="frozen"
    ),
}
BATCH = texts([3], [5, 9, 40, 7, 20, 11, 60, 8, 90], [5, 1, 7], [5, 7, 5, 5, 7, 5], [11] * 9)


@every_pair
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_the_sum_of_what_the_rule_makes_of_each_gradient(name, clipping, clip_rule):
    """Short and long micro-batches, so that book-keeping takes ghost norms and per-sample gradients."""
    for clip, token_budget in ((1.0, 2048), (0.05, 12)):
        model = MODELS[name]()
        rule = {"clip_rule": clip_rule, "stability": STABILITY}
        factors = factors_of(clip_rule, model, clip)
        check_step(model, losses.CrossEntropy(token_budget), BATCH, clip, clipping, factors, **rule)


def one_layer(width: int) -> Calling:
    torch.manual_seed(0)
    return Calling(lambda m, x: m.layer(x).sin().flatten(1).sum(1), layer=nn.Linear(width, width))


def test_book_keeping_takes_the_smaller_way_to_norms():
    """Many tokens in a narrow layer: inner products would take 64 times its gradients. Few in a wide one: the reverse."""
    for width, length, bound in ((8, 64, 8 * 64 * 64), (256, 4, 8 * 256 * 256)):
        model, inputs = one_layer(width), torch.randn(8, length, width)
        me = DPSGD(model, Plain(), budget(1.0), learning_rate=0.1, clip=1.0, clipping="book_keeping")
        peak = trackers.peak_bytes(model, lambda me=me, inputs=inputs: me.step(inputs))
        assert peak < 8 * bound  # bytes of float64 inner products, twice those of float32 gradients


def test_per_layer_clipping_keeps_one_layer_at_a_time():
    """Flat, the gradients of ten layers' outputs wait for the last norm."""
    peaks = {}
    for clip_rule in ("flat", "per_layer"):
        layers = {f"layer{i}": nn.Linear(64, 64, bias=False) for i in range(10)}

        def run(m, x):
            for i in range(10):
                x = getattr(m, f"layer{i}")(x).tanh()
            return x.flatten(1).sum(1)

        model, inputs = Calling(run, **layers), torch.randn(256, 8, 64)
        settings = {"learning_rate": 0.1, "clip": 1.0, "clipping": "book_keeping", "clip_rule": clip_rule}
        me = DPSGD(model, Plain(), budget(1.0), **settings)
        peaks[clip_rule] = trackers.peak_bytes(model, lambda me=me, inputs=inputs: me.step(inputs))
    assert peaks["flat"] - peaks["per_layer"] > 8 * inputs.numel() * 4


@every_pair
def test_no_example_moves_what_is_released_by_more_than_the_clip(clipping, clip_rule):
    """Large gradients, of which per-layer and flat clipping leave exactly the clip; and an automatic factor is below."""
    model = MODELS["small BERT"]()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    rule = {"clip_rule": clip_rule, "stability": STABILITY}
    me = DPSGD(
        model, losses.CrossEntropy(64), budget(0.0), learning_rate=1.0, clip=1e-6, clipping=clipping, **rule
    )
    me.step(texts([5, 9, 40]))
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm().item() * BATCH_SIZE
    assert 0.5e-6 < moved < 1e-6 * (1 + 0.02)  # the weights are float32


@pytest.mark.parametrize("clipping", HOOKS)
def test_auto_v_gives_every_gradient_the_same_length_but_that_of_length_zero(clipping):
    model = Calling(lambda m, x: m.layer(x).sum(1), layer=nn.Linear(4, 2, bias=False))
    inputs = torch.eye(4)[:3] * torch.tensor([1e-4, 1.0, 0.0])[:, None]
    start = model.layer.weight.detach().clone()
    rule = {"clip_rule": "automatic", "stability": 0.0}
    DPSGD(model, Plain(), budget(0.0), learning_rate=1.0, clip=2.0, clipping=clipping, **rule).step(inputs)
    moved = (start - model.layer.weight.detach()) * BATCH_SIZE
    assert torch.allclose(moved.norm(dim=0), torch.tensor([2.0, 2.0, 0.0, 0.0]), rtol=1e-5)


@every_pair
def test_a_gradient_that_is_not_finite_counts_as_absent_by_every_rule(clipping, clip_rule):
    ends = []
    good = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
    for chosen in (good[:3], torch.cat([good[:2], torch.full((1, 3, 4), math.inf), good[2:3]])):
        torch.manual_seed(0)
        layers = {"first": nn.Linear(4, 4), "last": nn.Linear(4, 1)}
        model = Calling(lambda m, x: m.last(m.first(x)).square().sum((1, 2)), **layers)
        settings = {"learning_rate": 1.0, "clip": 1.0, "clipping": clipping, "clip_rule": clip_rule}
        DPSGD(model, Plain(), budget(0.0), **settings).step(chosen)
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert ends[1].isfinite().all() and torch.allclose(*ends, atol=1e-6)


def test_book_keeping_needs_no_loss_of_the_models_output_alone():
    """Ghost clipping, whose second pass starts at the output, refuses it."""

    class Activated(Plain):
        def __call__(self, model, batch):
            return model(batch) + model.hidden.square().sum(1)

    def forward(model, x):
        model.hidden = model.layer(x)
        return model.hidden.sum(1)

    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    model = Calling(forward, layer=nn.Linear(4, 4))
    assert check_step(model, Activated(), inputs, 0.5, "book_keeping") == 5


def test_book_keeping_of_half_precision_products_sums_in_float32():
    """One example's clipped gradient has the length of the clip, which a sum in bfloat16 would miss."""
    model = AtOnePosition(language_model("opt", True))
    loss = losses.CrossEntropy(2048, compute="bfloat16")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    DPSGD(model, loss, budget(0.0), learning_rate=1.0, clip=0.1, clipping="book_keeping").step(
        texts([11] * 9)
    )
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm() * BATCH_SIZE
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_an_optimizer_step_of_book_keeping_leaves_nothing_on_the_model():
    model = MODELS["tied OPT"]()
    before = [(type(m), set(vars(m))) for m in model.modules()], [set(vars(p)) for p in model.parameters()]
    me = DPSGD(
        model, losses.CrossEntropy(64), budget(1.0), learning_rate=0.1, clip=1.0, clipping="book_keeping"
    )
    me.step(BATCH)
    assert HOOKS[me.clipping] is BookKeeping and me.forwards_per_example == 3
    assert before == (
        [(type(m), set(vars(m))) for m in model.modules()],
        [set(vars(p)) for p in model.parameters()],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_rule": "flatt"}, "clip_rule is 'flatt': give one of flat, automatic, per_layer"),
        (
            {"clip_rule": "per_layer", "clipping": "ghost"},
            "one factor for all layers .* set clipping to book_keeping",
        ),
        ({"clip_rule": "automatic", "stability": -1.0}, "stability is -1.0: give 0 or a positive number"),
        ({"clip_rule": "automatic", "stability": math.nan}, "stability is nan"),
    ],
    ids=str,
)
def test_rules_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DPSGD(one_layer(4), Plain(), budget(1.0), learning_rate=1.0, clip=1.0, **change)
