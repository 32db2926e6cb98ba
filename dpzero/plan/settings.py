"""The settings of a cell: what there is, of which type, and which promises go with them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..errors import UsageError, unknown
from ..language.data import tasks
from ..privacy.accounting import Setting
from ..privacy.public_implementations import IMPLEMENTATIONS
from . import row_selection, setting_table
from .ranges import ANY, number
from .registry import TYPES, Card
from .setting_table import RUN_SETTINGS, Entry


def of(
    method: str, method_card: Card, task: str, layers: Iterable[dict], others: Callable[[str], bool]
) -> dict:
    """From layers, the last of which wins; in the first, settings that are for `others` alone are passed over.

    Raises UsageError for what is unknown, missing, of another type, or promised by no proof.
    """
    known = setting_table.known(method_card)
    settings = {name: entry.default for name, entry in RUN_SETTINGS.items()}
    for depth, layer in enumerate(layers):
        for key, value in layer.items():
            if key in known:
                settings[key] = value_of(f"method {method}", key, value, known[key])
            elif depth > 0 or not others(key):
                raise UsageError(f"method {method}: " + unknown("setting", key, known))
    if method_card.order is None:
        settings |= {"steps": 0, "iterate": "last"}
    missing = [k for k in [*method_card.required, "steps"] if settings.get(k) is None and k != "seed"]
    if missing:
        raise UsageError(
            f"method {method} needs the setting {missing[0]!r}: add it to its stanza in the sweep"
        )
    if method_card.order is not None and not settings["steps"]:
        raise UsageError(f"method {method}: setting steps is 0, but a method that trains takes at least 1")
    settings["batch_size"] = min(settings["batch_size"], row_selection.most_rows(task, settings))
    if not method_card.private:
        for key in ("delta", "mechanism", "adjacency", "noise_key", "noise_arithmetic"):
            settings.pop(key)
    else:
        _check_promise(method, method_card, settings)
    _as_published(method, method_card, settings)
    if "noise_arithmetic" in settings and settings["noise_arithmetic"] is None:
        secret_scalars = settings["noise_key"] == "secret" and method_card.order == 0
        settings["noise_arithmetic"] = "exact" if secret_scalars else "float"
    _iterate(method, method_card, task, settings)
    row_selection.settle(method, method_card, task, settings)
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
    if method_card.file not in IMPLEMENTATIONS:
        raise UsageError(
            f"method {method}: as_published is offered for {', '.join(IMPLEMENTATIONS)}, so leave it out"
        )
    for key in ("mechanism", "sampling", "adjacency", "noise_arithmetic"):
        if settings.pop(key) not in (RUN_SETTINGS[key].default, "float"):
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


def complete(where: str, given: dict, table: dict[str, Entry]) -> dict[str, object]:
    """Every setting of a table, by the order of the table. Raises UsageError for one that it does not have, or a value that it does not allow."""
    for key in given:
        if key not in table:
            raise UsageError(f"{where}: " + unknown("setting", key, table))
    return {key: value_of(where, key, given.get(key, entry.default), entry) for key, entry in table.items()}


def value_of(where: str, key: str, value: object, entry: Entry) -> object:
    """The value, of the declared type (PyYAML reads 1e-5 as text) and among those allowed. Raises UsageError for any other."""
    kind, allowed = TYPES[entry.kind], entry.allowed
    if kind in (int, float):
        try:
            return number(value, kind, ANY if allowed is None else allowed)
        except (ValueError, OverflowError):
            limits = "" if allowed in (None, ANY) else f", {allowed}"
            raise UsageError(
                f"{where}: setting {key} is {value!r}, but must be of type {entry.kind}{limits}"
            ) from None
    if type(value) is not kind:
        raise UsageError(f"{where}: setting {key} is {value!r}, but must be of type {entry.kind}")
    if isinstance(allowed, tuple) and value not in allowed:
        raise UsageError(f"{where}: " + unknown(f"value of {key}", value, allowed))
    return value
