"""One cell of the benchmark: its run id, its complete settings, the rows that it reads. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import UsageError, unknown
from ..files import run_id as run_id
from ..language.data import tasks
from ..language.data.datasets import ALL, Draw
from ..language.models import model_catalogue
from ..privacy.accounting import Setting
from ..privacy.public_implementations import IMPLEMENTATIONS
from .registry import Card
from .settings import EPSILON, REMOVED, RUN_SETTINGS, cell_settings, value_of

DECIDED_BY_PUBLIC_CODE = ("mechanism", "sampling", "adjacency", "noise_arithmetic")


def canonical_epsilon(value: object) -> str:
    """2, 2.0, "2" -> "2"; .5 -> "0.5": one spelling for paths and keys."""
    try:
        decimal = Decimal(str(value) if str(value).isascii() else "nan")
    except InvalidOperation:
        decimal = Decimal(0)
    if not decimal.is_finite() or decimal <= 0:
        raise UsageError(
            f"epsilon {value!r} is not a positive number: non-private methods are listed without one, so "
            "give numbers only"
        )
    if float(decimal) not in EPSILON:
        raise UsageError(f"epsilon {value!r} is out of range: give a number {EPSILON}")
    return format(decimal.normalize(), "f")


# Settings ---------------------------------------------------------------------------------------------------


def check_settings(
    cell: Mapping, card: Card, layers: Iterable[Mapping], for_others: Callable[[str], bool] = lambda _: False
) -> dict[str, Any]:
    """Check and complete the settings of a cell.

    Args:
        cell: has task, model and method.
        card: the method's.
        layers: settings, of which the last layer wins.
        for_others: whether a setting is meant for other methods; the first layer may hold such.

    Returns:
        The settings by name. A setting with `omit_default` is left out if it has its default.

    Raises:
        UsageError: a setting that is unknown, missing, of another type, or whose privacy no proof covers.
    """
    where, schema = f"method {cell['method']}", cell_settings(card)
    settings: dict[str, Any] = {name: entry.default for name, entry in RUN_SETTINGS.items()}
    for depth, layer in enumerate(layers):
        for key, value in layer.items():
            if removed := [word for word in REMOVED if word in (key, value)]:
                raise UsageError(f"{where}: {removed[0]} was removed: leave it out")
            if key in schema:
                settings[key] = value_of(where, key, value, schema[key])
            elif depth > 0 or not for_others(key):
                raise UsageError(f"{where}: " + unknown("setting", key, schema))
    _check_steps(where, card, settings)
    if settings["as_published"] and card.file not in IMPLEMENTATIONS:
        raise UsageError(
            f"{where}: as_published is offered for {', '.join(IMPLEMENTATIONS)}, so leave it out"
        )
    settings["batch_size"] = min(settings["batch_size"], _most_rows(cell["task"], settings))
    if card.private:
        _check_privacy(where, card, settings)
    else:
        settings = {k: v for k, v in settings.items() if not (k in RUN_SETTINGS and RUN_SETTINGS[k].private)}
    _check_checkpoint_selection(where, card, cell["task"], settings)
    _check_rows(where, card, settings)
    _add_digests(cell, settings)
    omitted = {k for k, entry in RUN_SETTINGS.items() if entry.omit_default and settings[k] == entry.default}
    return {key: settings[key] for key in sorted(settings.keys() - omitted)}


def _check_steps(where: str, card: Card, settings: dict) -> None:
    if card.order is None:
        settings |= {"steps": 0, "iterate": "last"}
    for key in (*sorted(card.required), "steps"):
        if settings.get(key) is None and key != "seed":
            raise UsageError(f"{where} needs the setting {key!r}: add it to its stanza in the sweep")
    if card.order is not None and not settings["steps"]:
        raise UsageError(f"{where}: setting steps is 0, but a method that trains takes at least 1")


def _check_privacy(where: str, card: Card, settings: dict) -> None:
    """Refuse what no proof covers before anything runs, whatever the size of the data."""
    size = settings["batch_size"]
    names = ("mechanism", "sampling", "adjacency", "steps", "delta")
    try:
        Setting(dataset_size=size, batch_size=size, **{name: settings[name] for name in names})
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    if settings["noise_arithmetic"] == "exact" and card.order == 1:
        raise UsageError(
            f"{where}: exact noise is offered for methods that release scalars: use noise_arithmetic float"
        )
    if settings["as_published"]:
        for key in DECIDED_BY_PUBLIC_CODE:
            if settings.pop(key) not in (RUN_SETTINGS[key].default, "float"):
                raise UsageError(f"{where}: as_published decides {key} itself, so leave {key} out")
    elif settings["noise_arithmetic"] is None:
        secret_scalars = settings["noise_key"] == "secret" and card.order == 0
        settings["noise_arithmetic"] = "exact" if secret_scalars else "float"


def _check_checkpoint_selection(where: str, card: Card, task: str, settings: dict) -> None:
    """Dev rows are private: a release reports no checkpoint that was chosen on them without noise."""
    if settings["iterate"] == "accounted" and not card.private:
        settings["iterate"] = "best_dev"
    rule = settings["iterate"]
    if rule == "last":
        return
    if not settings["curve_examples"]:
        raise UsageError(f"{where}: iterate {rule} needs dev examples: give curve_examples")
    if rule == "best_dev":
        if settings.get("noise_key") == "secret":
            raise UsageError(
                f"{where}: iterate best_dev with noise_key secret, but dev rows are private and the choice "
                "is not accounted: take iterate accounted, or leave it out"
            )
        return
    if settings["as_published"]:
        raise UsageError(f"{where}: as_published accounts for no choice: leave iterate out")
    if not 0 < settings["evaluate_every"] < settings["steps"]:
        raise UsageError(
            f"{where}: iterate accounted chooses among points of the curve: give evaluate_every below "
            f"{settings['steps']} steps"
        )
    metric = tasks.load(task).metric
    if metric != "accuracy":
        raise UsageError(
            f"task {task}: iterate accounted counts right answers, but {metric} is no such count: leave "
            "iterate out"
        )


# Rows and weights -------------------------------------------------------------------------------------------


def _check_rows(where: str, card: Card, settings: dict) -> None:
    if settings["shots"] and settings["train_examples"]:
        raise UsageError(f"{where}: shots and train_examples both say which rows to draw: give one")
    if settings["demonstrations"] and card.order is not None:
        raise UsageError(
            f"{where}: demonstrations are private examples that stand in every prompt, for a method that "
            "trains nothing: leave them out"
        )


def _add_digests(cell: Mapping, settings: dict) -> None:
    """Name local rows and weights by their digests: other files make another cell.

    A release does not name its rows: an adversary who knows all rows but one could try the last until the
    digest fits.
    """
    release = settings.get("noise_key") == "secret"
    settings["data"] = "" if release else settings["data"] or tasks.local_digest(cell["task"]) or ""
    settings["weights"] = settings["weights"] or model_catalogue.local_digest(cell["model"]) or ""


def _most_rows(task: str, settings: dict) -> float:
    """Upper bound on the training rows, as far as the draw alone says; a larger batch holds all rows."""
    labels = len(tasks.stanza(task).get("words", {})) or math.inf
    by_shots = settings["shots"] * labels if settings["shots"] else math.inf
    return min(by_shots, settings["train_examples"] or math.inf)


def draw_of(cell: Mapping) -> Draw:
    """Which rows a cell trains on."""
    drawn = {key: cell["settings"].get(key, 0) for key in ("shots", "train_examples", "demonstrations")}
    return Draw(**drawn, seed=cell["seed"]) if any(drawn.values()) else ALL


def check_files(cell: Mapping) -> None:
    """Raise UsageError if the local weights or rows are not those that the cell was made for."""
    task, model, settings = cell["task"], cell["model"], cell["settings"]
    digests = {f"weights of model {model}": ("weights", model_catalogue.local_digest(model), "model_dir")}
    if settings.get("noise_key") != "secret":
        digests[f"rows of task {task}"] = ("data", tasks.local_digest(task), "data_dir")
    for what, (key, found, place) in digests.items():
        planned = settings.get(key)
        if planned != found:
            raise UsageError(
                f"the {what} are {found or 'not local'}, but the cell was made for "
                f"{planned or 'those of the hub'}: give the {place} that it was made with"
            )
