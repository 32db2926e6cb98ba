"""The settings of a cell: what there is, of which type, and which promises go with them. Imports no torch."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable

from ..errors import UsageError, unknown
from ..language import tasks
from ..privacy.accounting import Setting
from ..privacy.published import PRACTICES
from . import data
from .methods import TYPES, Card

CHOICES = {
    "tune": ("full", "bias", "lora", "prefix", "head"),
    "compute": ("float32", "bfloat16"),
    "split": ("test", "dev"),
    "iterate": ("last", "best_dev", "accounted"),
    "noise_key": ("published", "secret"),
    "noise_arithmetic": ("float", "exact"),
    "mechanism": ("gaussian", "laplace"),
    "sampling": ("poisson", "without_replacement", "full_batch"),
    "adjacency": ("add_remove", "replace_one"),
}
# What every run has, beside the settings of its method: name -> (type, default)
RUN_SETTINGS = {
    "tune": ("str", "bias"),  # what is trained
    "batch_size": ("int", 16),  # expected: Poisson batches vary
    "steps": ("int", None),
    "max_length": ("int", None),  # tokens; the task's where none is given
    "token_budget": ("int", 2048),  # padded tokens of a micro-batch
    "compute": ("str", "float32"),  # of matrix products; weights and losses are float32 in any case
    "evaluate_every": ("int", 0),  # steps between points of the learning curve; 0: start and end
    "curve_examples": ("int", 256),  # dev examples for the curve
    "split": ("str", "test"),  # what the metric is taken on; dev for choosing settings
    # which one is reported, of those at the points of the curve: best_dev that of the least dev loss; accounted one of those that are right
    # most often on dev, by a private choice (best_dev for methods without noise), for which each point is kept on disk
    "iterate": ("str", "last"),
    "noise_key": ("str", "published"),
    "noise_arithmetic": (
        "str",
        "float",
    ),  # exact: integer sums and discrete noise, for methods that release scalars
    "delta": ("float", 1e-5),
    "mechanism": ("str", "gaussian"),
    "sampling": ("str", "poisson"),
    "adjacency": ("str", "add_remove"),
    "version": ("int", 1),  # raise it to rerun a method after its code changed
    "as_published": ("bool", False),  # sample, add and divide as the method's public code does
    "shots": ("int", 0),  # training rows of each class, drawn as by LM-BFF with the cell's seed; 0: all
    "train_examples": (
        "int",
        0,
    ),  # training rows in all, drawn as by MeZO on OPT with the cell's seed; 0: all
    "demonstrations": ("int", 0),  # training rows before each prompt, for a method that trains nothing
    "data": ("str", ""),  # SHA-256 of the task's local files: found, not chosen
    "weights": ("str", ""),  # the same of the model's
}


def of(
    method: str, method_card: Card, task: str, layers: Iterable[dict], others: Callable[[str], bool]
) -> dict:
    """From layers, the last of which wins; in the first, settings that are for `others` alone are passed over.

    Raises UsageError for what is unknown, missing, of another type, or promised by no proof.
    """
    known = {**{k: t for k, (t, _) in RUN_SETTINGS.items()}, **method_card.settings}
    settings = {k: default for k, (_, default) in RUN_SETTINGS.items()}
    for number, layer in enumerate(layers):
        for key, value in layer.items():
            if key in known:
                settings[key] = _typed(key, value, known[key], method)
            elif number > 0 or not others(key):
                raise UsageError(f"method {method}: " + unknown("setting", key, known))
    if method_card.order is None:
        settings |= {"steps": 0, "iterate": "last"}
    missing = [k for k in [*method_card.required, "steps"] if settings.get(k) is None and k != "seed"]
    if missing:
        raise UsageError(
            f"method {method} needs the setting {missing[0]!r}: add it to its stanza in the sweep"
        )
    if not method_card.private:
        for key in ("delta", "mechanism", "adjacency", "noise_key", "noise_arithmetic"):
            settings.pop(key)
    else:
        _check_promise(method, method_card, settings)
    _as_published(method, method_card, settings)
    _iterate(method, method_card, task, settings)
    data.settle(method, method_card, task, settings)
    return dict(sorted(settings.items()))


def _check_promise(method: str, method_card: Card, settings: dict) -> None:
    """What no proof covers is refused before anything runs, whatever the size of the data."""
    size = settings["batch_size"]
    names = ("mechanism", "sampling", "adjacency", "steps", "delta")
    try:
        Setting(dataset_size=size, batch_size=size, **{name: settings[name] for name in names})
    except ValueError as error:
        raise UsageError(f"method {method}: {error}") from error
    if settings["noise_arithmetic"] == "exact" and method_card.order == 1:
        raise UsageError(
            f"method {method}: exact noise is offered for methods that release scalars: use noise_arithmetic float"
        )


def _as_published(method: str, method_card: Card, settings: dict) -> None:
    """Where it is not asked for, a cell does not name it; where it is, it decides the rest itself."""
    if not settings["as_published"]:
        settings.pop("as_published")
        return
    if method_card.file not in PRACTICES:
        raise UsageError(
            f"method {method}: as_published is offered for {', '.join(PRACTICES)}, so leave it out"
        )
    for key in ("mechanism", "sampling", "adjacency", "noise_arithmetic"):
        if settings.pop(key) != RUN_SETTINGS[key][1]:
            raise UsageError(f"method {method}: as_published decides {key} itself, so leave {key} out")


def _iterate(method: str, method_card: Card, task: str, settings: dict) -> None:
    """A cell names it where it is not the last. Dev rows are private, so a release reports none that was chosen on them without noise."""
    if settings["iterate"] == "accounted" and not method_card.private:
        settings["iterate"] = "best_dev"
    rule = settings["iterate"]
    if rule == "last":
        settings.pop("iterate")
    elif not settings["curve_examples"]:
        raise UsageError(f"method {method}: iterate {rule} needs dev examples: give curve_examples")
    elif rule == "best_dev" and settings.get("noise_key") == "secret":
        raise UsageError(
            f"method {method}: iterate best_dev with noise_key secret, but dev rows are private and the choice is not accounted: take "
            "iterate accounted, or leave it out"
        )
    elif rule == "accounted":
        _private_choice(method, task, settings)


def _private_choice(method: str, task: str, settings: dict) -> None:
    if settings.get("as_published"):
        raise UsageError(f"method {method}: as_published accounts for no choice: leave iterate out")
    if not 0 < settings["evaluate_every"] < settings["steps"]:
        raise UsageError(
            f"method {method}: iterate accounted chooses among points of the curve: give evaluate_every below {settings['steps']} steps"
        )
    metric = tasks.stanza(task)["metric"]
    if metric != "accuracy":
        raise UsageError(
            f"task {task}: iterate accounted counts right answers, but {metric} is no such count: leave iterate out"
        )


def _typed(key: str, value: object, type_name: str, method: str) -> object:
    """PyYAML reads 1e-5 as text: convert by the declared type."""
    kind = TYPES.get(type_name.split(" | ")[0], str)
    try:
        if isinstance(value, bool) is not (kind is bool) or (kind is str and not isinstance(value, str)):
            raise ValueError
        if kind is int and not re.fullmatch(r"[+-]?\d+", str(value)):
            raise ValueError
        converted = kind(value)  # type: ignore[call-arg]
        if kind is float and not math.isfinite(converted):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"method {method}: setting {key} is {value!r}, but must be of type {type_name}"
        ) from None
    choices = CHOICES.get(key, ())
    if type_name.startswith("Literal["):
        choices = ast.literal_eval(type_name.removeprefix("Literal"))
    if choices and converted not in choices:
        raise UsageError(f"method {method}: " + unknown(f"value of {key}", converted, choices))
    return converted
