"""What somebody types who knows other libraries: help shows every option, and a refusal names the right word."""

from __future__ import annotations

import inspect
import re
import traceback

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from baselines.dp_aggzo import DPAggZO
from baselines.mezo import MeZO
from dpzero import Budget, DPZero, calibrate_noise, losses, replay, spent_epsilon
from dpzero.errors import UsageError, unknown
from dpzero.privacy import RunKey
from dpzero.private_two_point import PrivateTwoPoint

SIZES = {"epsilon": 2, "delta": 1e-3, "dataset_size": 40, "batch_size": 8, "steps": 5}
DATA = TensorDataset(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
cross_entropy = losses.from_reduction_none(nn.CrossEntropyLoss(reduction="none"))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def make(loss=cross_entropy, **settings) -> DPZero:
    budget = Budget.calibrated(**SIZES, key=RunKey.published(0))
    return DPZero(linear(), loss, budget, **({"learning_rate": 0.01, "clip": 1.0} | settings))


# Help ---------------------------------------------------------------------------------------------------------


def options(cls: type) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(cls).parameters.items()}


def test_help_shows_every_option_by_name():
    first = ["model", "loss", "budget", "learning_rate", "clip", "smoothing", "seed"]
    assert list(options(DPZero))[:7] == first
    further = {"direction_law", "direction_rank", "perturb", "second_moment", "one_at_a_time", "groups"}
    assert (
        further
        <= options(DPZero).keys()
        >= set(inspect.signature(PrivateTwoPoint.__init__).parameters)
        - {
            "self",
            "engine",
        }
    )
    assert options(DPZero)["smoothing"] == 1e-3 and options(DPZero)["one_at_a_time"] is False
    said = DPZero.__doc__
    assert all(re.search(rf"\b{name}\b", said) for name in options(DPZero))
    assert {"ledger", "unit", "overspend", "noise_arithmetic"} <= options(Budget.calibrated).keys()


def test_help_of_a_method_shows_its_own_options_and_those_that_it_passes_on():
    assert options(DPAggZO) == options(DPZero) | {"directions": 4}
    assert {"batch_size", "direction_law"} <= options(MeZO).keys() and "budget" not in options(MeZO)

    class Mine(DPZero):
        def __init__(self, *arguments, patience: int = 3, **settings) -> None:
            super().__init__(*arguments, **settings)

    assert options(Mine) == options(DPZero) | {"patience": 3}


# Names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lr", "DPZero: unknown argument 'lr': did you mean 'learning_rate'?"),
        ("learningrate", "did you mean 'learning_rate'?"),
        ("max_grad_norm", "did you mean 'clip'?"),
        ("zo_eps", "did you mean 'smoothing'?"),
        ("eps", "that belongs to the budget, Budget.calibrated(epsilon=..."),
        ("noise_multiplier", "that belongs to the budget"),
        ("batch_size", "that belongs to the budget"),
        ("zzz", "known are model, loss, budget, learning_rate, clip"),
    ],
)
def test_an_unknown_option_names_the_right_one(given, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        make(**{given: 1.0})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("target_epsilon", "Budget.calibrated: unknown argument 'target_epsilon': did you mean 'epsilon'?"),
        ("epochs", "did you mean 'steps'?"),
        ("sigma", "the noise follows from epsilon"),
        ("lr", "that belongs to the optimizer, DPZero(model, loss, budget, ...)"),
    ],
)
def test_an_unknown_option_of_a_budget_names_the_right_one(given, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        Budget.calibrated(**SIZES, **{given: 1.0})


def test_an_unknown_part_of_a_setting_names_the_right_one():
    with pytest.raises(TypeError, match="calibrate_noise: unknown argument 'bs': did you mean 'batch_size'"):
        calibrate_noise(epsilon=2, bs=8)
    with pytest.raises(
        TypeError, match="spent_epsilon: unknown argument 'target_delta': did you mean 'delta'"
    ):
        spent_epsilon(noise_scale=2, target_delta=1e-5)


def test_a_missing_argument_is_named_with_the_method():
    with pytest.raises(
        TypeError, match=r"^DPZero: missing a required argument: 'budget', see help\(DPZero\)$"
    ):
        DPZero(linear(), cross_entropy, learning_rate=1.0, clip=1.0)
    with pytest.raises(TypeError, match="unknown argument 'lr': did you mean 'learning_rate'"):
        DPZero(linear().parameters(), lr=1.0)  # as torch.optim.SGD is made


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lr", "did you mean 'learning_rate'?"),
        ("learning-rate", "did you mean 'learning_rate'?"),
        ("lambda", "did you mean 'smoothing'?"),
        ("max_grad_norm", "did you mean 'clip'?"),
        ("max_steps", "did you mean 'steps'?"),
        ("epsilon", "it is no setting: give `epsilons` in the sweep"),
        ("eps", "it is no setting: give `epsilons` in the sweep"),
        ("sigma", "the noise follows from epsilon: give `epsilons` in the sweep"),
        ("noise", "the noise follows from epsilon: give `epsilons` in the sweep"),
        ("seed", "it is no setting: give `seeds` in the sweep"),
        ("clipp", "did you mean 'clip'?"),
    ],
)
def test_an_unknown_setting_of_a_sweep_names_the_right_one(given, words, write):
    with pytest.raises(UsageError) as error:
        write("one", f"extends: smoke\nmethods: {{dpzero: {{clip: 1, learning_rate: 1, {given}: 1}}}}\n")
    assert f"unknown setting {given!r}: {words}" in str(error.value)


def test_a_synonym_is_offered_only_where_it_is_known():
    assert unknown("column", "n", ["text", "label"]) == "unknown column 'n': known are text, label"
    assert unknown("column", "lr", ["learning_rate"]) == "unknown column 'lr': did you mean 'learning_rate'?"
    assert unknown("key", "C", ["clip", "c_min"]) == "unknown key 'C': did you mean 'clip'?"


# A step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), (lambda: 0.0,)], ids=["nothing", "a closure"])
def test_a_step_without_a_batch_says_what_to_give(arguments):
    optimizer = make()
    with pytest.raises(TypeError, match=r"for batch in budget\.loader\(dataset\): optimizer\.step\(batch\)"):
        optimizer.step(*arguments)
    with pytest.raises(TypeError, match=r"step needs a batch, .* give it a list of examples"):
        MeZO(linear(), cross_entropy, 8, learning_rate=0.1).step(*arguments)
    assert len(optimizer.budget.ledger) == 0


def of_one_example(example):
    return example


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(), 'dpzero.losses.from_reduction_none(nn.CrossEntropyLoss(reduction="none"))'),
        (nn.MSELoss(reduction="none"), 'dpzero.losses.from_reduction_none(nn.MSELoss(reduction="none"))'),
        (functional.cross_entropy, "give dpzero.losses.from_reduction_none(cross_entropy)"),
        (losses.causal_lm, "loss causal_lm cannot be called as loss(model, batch)"),
        (of_one_example, "loss of_one_example cannot be called as loss(model, batch)"),
        ("cross_entropy", "loss is of type str: give a function (model, batch) -> one loss for each example"),
    ],
    ids=["a reduced criterion", "a criterion", "a function", "not called", "of an example", "a name"],
)
def test_a_loss_that_is_not_of_model_and_batch_says_what_to_give(loss, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        make(loss)


class Output:
    """As of a Hugging Face model."""

    loss = 1.0


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
            "the loss returned shape ()",
        ),
        (lambda model, batch: Output(), "the loss returned a Output: it must return a tensor"),
        (lambda model, batch: 3.0, "the loss returned a float: it must return a tensor"),
    ],
    ids=["reduced", "an output", "a number"],
)
def test_a_loss_that_is_not_of_each_example_says_what_to_give(loss, words):
    optimizer = make(loss)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        optimizer.step(next(iter(optimizer.budget.loader(DATA))))
    assert "dpzero.losses has functions" in str(error.value) and len(optimizer.budget.ledger) == 0


def test_a_loss_of_outputs_and_targets_fails_with_a_note():
    optimizer = make(lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="none"))
    with pytest.raises(TypeError) as error:
        optimizer.step(next(iter(optimizer.budget.loader(DATA))))
    said = "".join(traceback.format_exception(error.value))
    assert "(raised in loss(model, batch), which returns one value for each example; dpzero.losses" in said


# Replay -------------------------------------------------------------------------------------------------------


def test_a_model_is_replayed_as_its_trained_parameters_are(tmp_path):
    optimizer, models = make(), [linear(), linear()]
    for model in (optimizer.model, *models):
        model.bias.requires_grad_(False)
    optimizer = DPZero(optimizer.model, cross_entropy, optimizer.budget, learning_rate=0.01, clip=1.0)
    optimizer.write_transcript(tmp_path / "run")
    for batch in optimizer.budget.loader(DATA):
        optimizer.step(batch)
    assert replay(models[0], tmp_path / "run") == replay([models[1].weight], tmp_path / "run") == 5
    for model in models:
        assert torch.equal(model.weight, optimizer.model.weight) and not torch.equal(
            model.weight, linear().weight
        )
