"""What every method keeps to, whoever writes it: tests that pytest runs on each method file.

`python -m dpzero check-method FILE` runs them on a method of one's own, and the project's suite on its own methods. A
method that needs a setting which SETTINGS below does not know, or another value, has it in `contract_settings` on its
class. The suite cannot see whether a clipped value depends on its own example alone.
"""

from __future__ import annotations

import ast
import copy
import inspect
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.memory import trackers
from dpzero.plan import registry
from dpzero.plan.registry import Card, cards
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget

CHOSEN = os.environ.get("DPZERO_CONTRACT_METHODS")  # the methods to test, with commas; by default all
CARDS = {name: card for name, card in cards().items() if name in (CHOSEN or name).split(",")}
BATCH_SIZE, STEPS = 16, 100
# What a required setting is where a method is of order 0 and of order 1
SETTINGS = {"learning_rate": {0: 3e-4, 1: 0.01}, "clip": {0: 50.0, 1: 1.0}}
# Another way to the same release keeps to the same: its method and its settings
WAYS = {
    "dp_sgd, ghost": ("dp_sgd", {"clipping": "ghost"}),
    "pazo, subspace": ("pazo", {"variant": "subspace", "directions": 2, "learning_rate": 0.03}),
    "dp_sgd, book-keeping": ("dp_sgd", {"clipping": "book_keeping"}),
    "pazo, select": ("pazo", {"variant": "select", "clip": 20.0}),
    "dp_sgd, automatic": ("dp_sgd", {"clipping": "book_keeping", "clip_rule": "automatic"}),
    "dp_sgd, per layer": ("dp_sgd", {"clipping": "book_keeping", "clip_rule": "per_layer", "clip": 5.0}),
}
EVERY: dict[str, Card] = CARDS | {way: CARDS[name] for way, (name, _) in WAYS.items() if name in CARDS}
LENGTH = 16


def read_by_the_loss(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters, by name, without the biases of keys.

    Softmax takes the same amount off every score of a query, so the loss does not read such a bias. Its gradient is
    what rounding leaves, which follows the processor; Adam then makes whole steps of it.
    """
    named = model.named_parameters()
    return {name: p for name, p in named if p.requires_grad and "key.bias" not in name}


def where(**wanted) -> list[str]:
    return [name for name, card in EVERY.items() if all(getattr(card, k) == v for k, v in wanted.items())]


every = pytest.mark.parametrize("name", EVERY)
every_trained = pytest.mark.parametrize("name", where(order=0) + where(order=1))
every_private_trained = pytest.mark.parametrize(
    "name", [n for n in where(private=True) if EVERY[n].order is not None]
)
every_private = pytest.mark.parametrize("name", where(private=True))
every_zeroth_order = pytest.mark.parametrize("name", where(order=0))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, dict[str, encoding.Examples]]:
    """The toy task as each tiny model reads it; the user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPZERO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {
            model: encoding.encode(tasks.load("toy"), model, LENGTH)
            for model in ("tiny-encoder", "tiny-causal")
        }


@pytest.fixture(scope="module")
def train(data) -> encoding.Examples:
    return data["tiny-encoder"]["train"]


def make_model(tune="full", name="tiny-encoder"):
    return text_classifier.load(name, tasks.load("toy"), tune)


def make_budget(key: RunKey | None = None, noise_scale=1e-3) -> StandInBudget:
    setting = Setting("gaussian", "poisson", "add_remove", 240, BATCH_SIZE, STEPS, 1e-5)
    return StandInBudget(setting, noise_scale, key or RunKey.published(0))


def make_strict_budget(name) -> Budget:
    """Under a secret key, for the batches that it draws alone. `contract_budget` of a class has what else it needs."""
    more = getattr(EVERY[name].load(), "contract_budget", {})
    return Budget(make_budget().setting, 1.0, RunKey.secret(), noise_arithmetic="float", **more)


def make(name, model, budget=None, loss=None, **settings):
    card = EVERY[name]
    own = getattr(card.load(), "contract_settings", {})
    settings = own | WAYS.get(name, (name, {}))[1] | settings
    unknown = card.required - SETTINGS.keys() - own.keys()
    assert not unknown, f"give {card.class_name}.contract_settings a value for {', '.join(unknown)}"
    required = {key: SETTINGS[key][card.order or 0] for key in card.required if key not in own}
    share = (budget or make_budget()) if card.private else BATCH_SIZE
    method = card.load()(model, loss or losses.CrossEntropy(2048), share, seed=0, **required | settings)
    if card.public_data:
        rows = public_examples()  # a test's own loss may change the losses of label 3
        method.public = rows if loss is None else rows[np.flatnonzero(rows.labels != 3)]
    return method


@cache
def public_examples() -> encoding.Examples:
    return encoding.encode_labelled(tasks.load("toy"), "tiny-encoder", LENGTH, "dev")


def batches(train, start=0, stop=STEPS):
    sampler = make_budget().sampler
    for step in range(start, stop):
        yield train[sampler.batch(step)]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def tensors(state) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


# What planning reads and what runs are the same --------------------------------------------------------------------------


@every
def test_the_card_read_from_the_source_is_the_class_that_runs(name):
    card, cls = EVERY[name], EVERY[name].load()
    assert (card.title, card.private, card.order) == (cls.title, cls.private, cls.order)
    assert cls.__name__ == card.class_name
    assert cls.private in (True, False) and cls.order in (0, 1, None)


@every
def test_the_settings_on_the_card_are_the_keyword_arguments(name):
    card, defaults = EVERY[name], dict[str, object]()
    for cls in EVERY[name].load().__mro__:
        if init := vars(cls).get("__init__"):
            defaults = (init.__kwdefaults__ or {}) | defaults
            if inspect.getfullargspec(init).varkw is None:
                break
    assert "seed" in defaults
    assert set(card.settings) - card.required == set(defaults) - {"seed", *registry.NOT_IN_SWEEPS}
    listed = {kind for kind in card.settings.values() if kind.startswith("Literal[")}
    assert set(card.settings.values()) - listed <= {"int", "float", "str", "bool"}


# Steps -----------------------------------------------------------------------------------------------------------------


@every
def test_a_method_counts_its_steps_the_empty_ones_too(name, train):
    me = make(name, make_model())
    assert me.steps_taken == 0 and me.training_loss is None
    me.step(train[np.arange(4)])
    me.step(train[np.zeros(0, int)])
    assert me.steps_taken == 2 and me.training_loss is None
    me.step(train[np.arange(30)])
    assert me.steps_taken == 3
    assert me.training_loss is None or 0.5 < me.training_loss < 5


@every_trained
def test_a_step_takes_as_many_forward_passes_for_each_example_as_the_method_says(name, train):
    """A backward pass counts two. Passes without gradients may read filling rows, so the loss counts examples."""
    passes = [0]

    class Counted(losses.CrossEntropy):
        def __call__(self, model, batch):
            passes[0] += len(batch)
            return super().__call__(model, batch)

    def count_backward(_, __, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.append(2 * len(gradient)))

    model = make_model()
    me = make(name, model, loss=Counted(2048))
    with model.register_forward_hook(count_backward):
        me.step(train[np.arange(8)])
    assert sum(passes) == 8 * me.forwards_per_example + getattr(me, "public_forwards", 0)


@every
def test_the_first_batch_may_be_empty(name, train):
    model = make_model()
    me = make(name, model)
    me.step(train[np.zeros(0, int)])
    me.step(train[np.arange(4)])
    assert me.steps_taken == 2 and torch.isfinite(weights(model)).all()


@every_trained
def test_a_step_moves_what_is_trained_and_nothing_else(name, train):
    model = make_model("bias")
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    make(name, model).step(train[np.arange(8)])
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, start[key])}
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert moved <= trained and moved >= read_by_the_loss(model).keys() and 0 < len(trained) < len(start)


@every_trained
def test_the_loss_falls(name, train):
    model = make_model()
    start = losses.CrossEntropy(2048).evaluate(model, train)["loss"]
    me = make(name, model)
    for batch in batches(train, stop=80 if EVERY[name].order == 0 else 20):
        me.step(batch)
    assert losses.CrossEntropy(2048).evaluate(model, train)["loss"] < start - 0.03


@pytest.mark.parametrize("name", where(order=None))
def test_an_untrained_method_leaves_the_model_alone(name, train):
    model = make_model()
    start = weights(model)
    make(name, model).step(train[np.arange(8)])
    assert torch.equal(weights(model), start)


@every
def test_a_method_resumes_from_its_state_to_the_bit(name, train, tmp_path):
    def fresh():
        model = make_model()
        return model, make(name, model)

    model, me = fresh()
    for batch in batches(train, stop=3):
        me.step(batch)
    torch.save(me.state_dict(), tmp_path / "state.pt")
    for batch in batches(train, 3, 6):
        me.step(batch)

    resumed, other = fresh()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.steps_taken == 3
    for batch in batches(train, 3, 6):
        other.step(batch)
    assert torch.equal(weights(model), weights(resumed)) and other.steps_taken == 6


@every_trained
def test_a_kept_state_does_not_move(name, train):
    """Neither with the method that it was taken from nor with one that it was loaded into: moments are no exception."""
    me = make(name, make_model())
    me.step(train[np.arange(8)])
    state = me.state_dict()
    before = copy.deepcopy(state)
    other = make(name, make_model())
    other.load_state_dict(state)
    for method in (me, other):
        method.step(train[np.arange(8)])
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(state), strict=True))


@every_trained
def test_global_seeds_move_nothing(name, train):
    ends = []
    for seed in (0, 1):
        model = make_model()
        me = make(name, model)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        for batch in batches(train, stop=2):
            me.step(batch)
        ends.append(weights(model))
    assert torch.equal(*ends)


@every_trained
def test_micro_batches_change_nothing_but_rounding(name, train):
    """One draw of noise a step, however many parts its batch has."""
    ends = []
    for loss in (losses.CrossEntropy(2048), losses.CrossEntropy(64)):
        model = make_model()
        me = make(name, model, make_budget(noise_scale=0.5), loss, learning_rate=1e-4)
        for batch in batches(train, stop=2):
            me.step(batch)
        ends.append(weights(model))
    gap = (ends[0] - ends[1]).abs()
    assert gap.max() < 1e-4 and gap.mean() < 1e-5 * (ends[0] - weights(make_model())).abs().mean() + 1e-6


# Privacy ---------------------------------------------------------------------------------------------------------------


@every_private_trained
def test_noise_is_added_and_differs_from_key_to_key(name, train):
    """A step of PAZO-S picks one of six candidates: eight equal picks under two keys are a false alarm in 6^-8."""
    ends = []
    for _ in range(2):
        model = make_model()
        me = make(name, model, make_budget(RunKey.secret(), noise_scale=1.0))
        for _ in range(8):
            me.step(train[np.arange(8)])
        ends.append(weights(model))
    assert not torch.equal(*ends)


@pytest.mark.parametrize("name", [name for name in where(private=True) if name in CARDS])
def test_a_batch_size_in_place_of_a_budget_is_refused(name):
    with pytest.raises(TypeError, match=r"budget is 64: give a private method Budget.calibrated\("):
        make(name, make_model(), 64)


@every_private_trained
def test_an_empty_batch_releases_noise(name, train):
    """A step that does nothing would tell that nobody was in it."""
    model = make_model()
    start = weights(model)
    budget = make_budget(noise_scale=1.0)
    make(name, model, budget).step(train[np.zeros(0, int)])
    assert len(budget.ledger) == 1
    assert (weights(model) - start).abs().max() > 1e-4


@every_private
def test_the_ledger_has_every_step(name, train):
    budget = make_budget(noise_scale=1.0)
    me = make(name, make_model(), budget)
    for count, size in enumerate((5, 0, 40), start=1):
        me.step(train[np.arange(size)])
        assert len(budget.ledger) == me.steps_taken == count
    assert list(budget.ledger) == [(step, budget.key.name) for step in range(3)]


@every_private
def test_a_method_does_not_repeat_secret_noise(name, train):
    """Back at an earlier state it goes on with another batch and other noise, and the ledger counts both."""
    budget = make_strict_budget(name)
    me, batches = make(name, make_model(), budget), budget.batches()
    state = me.state_dict()
    me.step(train[next(batches)])
    me.load_state_dict(state)
    me.step(train[next(batches)])
    assert me.steps_taken == 1 and [number for number, _ in budget.ledger] == [0, 1]
    with pytest.raises(ValueError, match="was not handed out by the budget"):
        me.step(train[np.arange(9)])


@every_private
def test_under_a_secret_key_there_is_no_training_loss(name, train):
    budget = make_strict_budget(name)
    me = make(name, make_model(), budget)
    for batch, _ in zip(budget.batches(), range(3), strict=False):
        me.step(train[batch])
        assert me.training_loss is None


@every_private
def test_a_budget_for_users_is_kept_or_refused(name, train):
    """Clipped per example under a statement that says user: whoever wrote many examples would not have what it promises."""
    setting, model = make_budget().setting, make_model()
    budget, start = StandInBudget(setting, 1.0, RunKey.published(0), unit="user"), weights(model)
    with pytest.raises(ValueError, match="unit"):
        make(name, model, budget).step(train[np.arange(8)])
    assert len(budget.ledger) == 0 and torch.equal(weights(model), start)


class Poisoned(losses.CrossEntropy):
    """Every example with label 3 has a loss that is not a number, or an infinite one."""

    def __init__(self, value: float) -> None:
        super().__init__(2048)
        self.value = value

    def __call__(self, model, batch):
        bad = torch.where(torch.from_numpy(batch.labels) == 3, self.value, 1.0)
        return super().__call__(model, batch) * bad


@every_private
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_example_whose_loss_is_not_finite_counts_as_absent(name, train, value):
    bad = int(np.flatnonzero(train.labels == 3)[0])
    good = np.flatnonzero(train.labels != 3)[:6]
    ends = []
    for chosen in (good, np.append(good, bad)):
        model = make_model()
        make(name, model, make_budget(noise_scale=0.1), Poisoned(value)).step(train[chosen])
        ends.append(weights(model))
    assert torch.isfinite(ends[1]).all()
    assert (ends[0] - ends[1]).abs().max() < 1e-6


class Watched(StandInBudget):
    """Keeps what is handed in to be noised."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[torch.Tensor, float]] = []

    def release(self, clipped, clip):
        self.seen.append((clipped.double().sum(0).reshape(-1), clip))
        return super().release(clipped, clip)

    def release_vectors(self, clipped, clip):
        self.seen.append((clipped.sum(0), clip))
        return super().release_vectors(clipped, clip)

    def release_rows_(self, rows, clip, *, threshold, first_share):
        self.seen.append((rows.counts / rows.counts_clip * clip, clip))
        table = rows.gradients.new_zeros(len(rows.counts), rows.gradients.shape[1])
        sums = [table.index_add_(0, rows.numbers, rows.gradients), *rows.others]
        self.seen.append((torch.cat([s.flatten() for s in sums]).double(), clip))
        return super().release_rows_(rows, clip, threshold=threshold, first_share=first_share)

    def release_(self, clipped_sums, clip, unit="example"):
        self.seen.append((torch.cat([s.flatten() for s in clipped_sums]).double(), clip))
        super().release_(clipped_sums, clip, unit)


@every_private
@pytest.mark.parametrize("loud", [1.0, 1e6, -1e6, 1e38])
def test_one_example_moves_what_is_noised_by_the_bound_at_most(name, train, loud):
    class Loud(losses.CrossEntropy):
        def __call__(self, model, batch):
            return super().__call__(model, batch) * torch.where(
                torch.from_numpy(batch.labels) == 3, loud, 1.0
            )

    bad = int(np.flatnonzero(train.labels == 3)[0])
    good, seen = np.flatnonzero(train.labels != 3)[:6], []
    for chosen in (good, np.append(good, bad)):
        budget = Watched(make_budget().setting, 1.0, RunKey.published(0))
        make(name, make_model(), budget, Loud(2048), clip=1e-3).step(train[chosen])
        assert budget.seen, "nothing was handed in"
        seen.append(budget.seen)
    for (without, clip), (present, same) in zip(*seen, strict=True):
        assert clip == same == 1e-3
        moved = (present - without).norm()
        assert moved <= clip * (1 + 1e-5)
        assert moved > 0 or loud > 1e30  # a gradient whose norm overflows contributes nothing


# Memory ----------------------------------------------------------------------------------------------------------------


@every_zeroth_order
@pytest.mark.parametrize("model_name", ["tiny-encoder", "tiny-causal"])
def test_a_zeroth_order_step_takes_the_memory_of_inference(name, model_name):
    """At most 5 % more, and the same with all weights trained: 64 texts of 64 tokens, so that activations matter."""
    model, loss = make_model("full", model_name), losses.CrossEntropy(2**20)
    batch = encoding.Examples.from_token_ids([[1] * 64] * 64, [0] * 64)

    def inference() -> None:
        with torch.no_grad():
            loss(model, batch)

    def two_steps() -> None:
        me = make(name, model, loss=loss)
        me.step(batch)
        me.step(batch)

    floor = trackers.peak_bytes(model, inference)
    assert floor > 3 * trackers.weights_bytes(model)
    assert trackers.peak_bytes(model, two_steps) <= 1.05 * floor


@every_zeroth_order
def test_a_zeroth_order_file_never_asks_for_a_gradient(name):
    """autograd is not in the house: no backward, no .grad."""
    file = Path(inspect.getfile(EVERY[name].load()))
    used = {
        node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not used & {"backward", "grad", "autograd", "vmap", "jvp"}
