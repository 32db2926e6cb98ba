"""Settings of a cell: the table of `settings.yaml`, its validator, and the rules between settings.

Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ..errors import UsageError, unknown
from ..language.data import tasks
from ..language.data.datasets import ALL, Draw
from ..language.models import model_catalogue
from ..privacy.accounting import Setting
from ..privacy.public_implementations import IMPLEMENTATIONS
from . import registry
from .registry import TYPES, Card

# Ranges of numbers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both included by default. No range holds an infinity or NaN."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # `least` itself is excluded
    below: bool = False  # `most` itself is excluded

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if self == ANY:
            return "finite"
        if self.most < math.inf and self.least > -math.inf and not (self.above or self.below):
            return f"from {self.least:.12g} to {self.most:.12g}"
        low = f"{'above' if self.above else 'at least'} {self.least:.12g}"
        high = f"{'below' if self.below else 'at most'} {self.most:.12g}"
        return " and ".join([low] * (self.least > -math.inf) + [high] * (self.most < math.inf))


ANY = Range()
COUNT, POSITIVE_COUNT = Range(0, 10**9), Range(1, 10**9)
NOT_NEGATIVE, POSITIVE = Range(0), Range(0, above=True)
FACTOR = Range(1e-12, 1e12)  # the product of two larger numbers would overflow float32
DELTA = Range(0, 1, below=True)
SEED = Range(0, 2**32 - 1)  # what NumPy's legacy generator takes, which draws the published splits
EPSILON = Range(1e-6, 1e6)
RANGES = {  # names that settings.yaml has for them
    "count": COUNT,
    "positive_count": POSITIVE_COUNT,
    "not_negative": NOT_NEGATIVE,
    "positive": POSITIVE,
    "factor": FACTOR,
    "delta": DELTA,
}


def number(value: object, kind: type, allowed: Range) -> int | float:
    """Convert a number or its text to `kind`.

    Raises ValueError for anything else (a truth value, 8.5 as an int) and for a number out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, str) and not re.fullmatch(
        r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value.strip(), re.ASCII | re.I
    ):
        raise ValueError
    if kind is int and not re.fullmatch(r"[+-]?\d{1,40}", str(value).strip()):
        raise ValueError
    converted = kind(value)
    if converted not in allowed:
        raise ValueError
    return converted


# The validator ----------------------------------------------------------------------------------------------


Allowed = Range | tuple[str, ...]  # values of a setting


@dataclass(frozen=True)
class Entry:
    """One setting."""

    type: str = ""  # int, float, str or bool
    default: object = None  # None: it must be given
    allowed: Allowed | None = None
    help: str = ""
    omit_default: bool = False  # a cell names it only if it differs from the default
    private: bool = False  # for methods that add noise
    many: bool = False  # a list of values
    read_if: Mapping[str, Allowed] = field(default_factory=dict)  # it is read where one of these holds


Schema = Mapping[str, Entry]


def typed(given: Mapping[str, object], schema: Schema, where: str) -> dict[str, object]:
    """Check settings against a schema and fill in the defaults.

    Args:
        given: setting -> value, as read from YAML or JSON.
        schema: setting -> its type, default and allowed values.
        where: start of an error message, such as "method dpzero".

    Returns:
        Every setting of the schema, in its order, with values of the declared types. A setting with
        `omit_default` is left out if it has its default.

    Raises:
        UsageError: a setting that the schema does not have, or a value that it does not allow.
    """
    refuse_unknown(given, schema, where)
    values = {
        key: value_of(where, key, given.get(key, entry.default), entry) for key, entry in schema.items()
    }
    return {k: v for k, v in values.items() if not (schema[k].omit_default and v == schema[k].default)}


ELSEWHERE = {  # what people look for among the settings
    "epsilon": "it is no setting: give `epsilons` in the sweep",
    "noise_scale": "the noise follows from epsilon: give `epsilons` in the sweep",
    "seed": "it is no setting: give `seeds` in the sweep",
    "dropout": "the two passes of a zeroth-order step need the same function, so it is for fine_tuning and dp_sgd",
    "dataset_size": "it is the number of the task's training rows, or of those that train_examples or shots draws",
}


def refuse_unknown(given: Mapping[str, object], schema: Schema, where: str) -> None:
    for key in given:
        if key not in schema:
            raise UsageError(f"{where}: " + unknown("setting", key, schema, ELSEWHERE))


def value_of(where: str, key: str, value: object, entry: Entry) -> object:
    """The value in its declared type (PyYAML reads 1e-5 as text). Raises UsageError if it is not allowed."""
    if entry.many:
        if not isinstance(value, list) or not value:
            raise UsageError(f"{where}: setting {key} is {value!r}, but must be a list of numbers")
        return [value_of(where, key, item, replace(entry, many=False)) for item in value]
    kind, allowed = TYPES[entry.type], entry.allowed
    wrong = f"{where}: setting {key} is {value!r}, but must be of type {entry.type}"
    if kind in (int, float):
        try:
            return number(value, kind, allowed if isinstance(allowed, Range) else ANY)
        except (ValueError, OverflowError):
            raise UsageError(wrong + (f", {allowed}" if allowed not in (None, ANY) else "")) from None
    if type(value) is not kind:
        raise UsageError(wrong)
    if isinstance(allowed, tuple) and value not in allowed:
        raise UsageError(f"{where}: " + unknown(f"value of {key}", value, allowed))
    return value


def listed(value: object) -> list:
    """One value may stand without brackets, in a file as on the command line."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


# The table --------------------------------------------------------------------------------------------------


def _allowed(written: str | list) -> Allowed:
    """A range by its name, [least, most], or values."""
    if isinstance(written, str):
        return RANGES[written]
    return tuple(written) if isinstance(written[0], str) else Range(*written)


def _entry(
    allowed: str | list | None = None, read_if: Mapping = MappingProxyType({}), **fields: Any
) -> Entry:
    """An entry of settings.yaml."""
    conditions = {gate: _allowed(values) for gate, values in read_if.items()}
    return Entry(allowed=_allowed(allowed) if allowed else None, read_if=conditions, **fields)


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
SCHEMAS = {part: {name: _entry(**row) for name, row in rows.items()} for part, rows in _TABLE.items()}
RUN_SETTINGS = SCHEMAS["run"]
TUNES: tuple[str, ...] = tuple(_TABLE["run"]["tune"]["allowed"])
DERIVED = {
    "max_length": "the task's",
    "noise_arithmetic": "exact for forward passes under a secret key, else float",
}

# which some values of tune alone read
TUNE_SETTINGS = tuple(name for name, entry in RUN_SETTINGS.items() if "tune" in entry.read_if)
REMOVED = ("both_signs", "cuda_graphs", "regularization")  # settings and values that there are no longer


def method_settings(card: Card) -> dict[str, Entry]:
    """A method's own settings: its signature, with ranges of the table. Other numbers may have any value."""
    entries = {}
    for name, kind in card.settings.items():
        entry, choices = SCHEMAS["method"].get(name, Entry()), registry.choices(kind)
        kind = "str" if choices else kind
        allowed = entry.allowed or choices or (ANY if kind in ("int", "float") else None)
        entries[name] = replace(entry, type=kind, default=card.defaults.get(name), allowed=allowed)
    return entries


def cell_settings(card: Card) -> dict[str, Entry]:
    """All settings of a cell of this method."""
    return _run_settings(card) | method_settings(card)


def defaults(card: Card) -> dict[str, object]:
    """Setting -> default, of a cell of this method."""
    return {name: entry.default for name, entry in cell_settings(card).items()}


def _run_settings(card: Card) -> dict[str, Entry]:
    """Those of every run. Demonstrations are written by the whole model: see `_check_writer`."""
    whole = {"tune": replace(RUN_SETTINGS["tune"], default="full")} if card.writes_demonstrations else {}
    return RUN_SETTINGS | whole


def rows() -> Iterator[tuple[str, ...]]:
    """Setting, methods that have it, type, default, allowed values, help: the printed table."""
    for name, entry in RUN_SETTINGS.items():
        yield name, "all", *_shown(name, entry)
    methods: dict[tuple[str, ...], list[str]] = {}
    for method, card in registry.cards().items():
        for name, entry in method_settings(card).items():
            methods.setdefault((name, *_shown(name, entry)), []).append(method)
    for (name, *shown), having in methods.items():
        yield name, ", ".join(having), *shown


def _shown(name: str, entry: Entry) -> tuple[str, str, str, str]:
    allowed = ", ".join(entry.allowed) if isinstance(entry.allowed, tuple) else str(entry.allowed or "")
    default = DERIVED.get(name, "must be given") if entry.default is None else str(entry.default)
    if entry.type == "bool":
        allowed, default = "true, false", default.lower()
    return entry.type, default, allowed, entry.help


def markdown() -> str:
    """The table of settings as Markdown."""
    heading = ("setting", "methods", "type", "default", "allowed", "what it is")
    lines = [heading, ("---",) * len(heading), *rows()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# The settings of one cell -----------------------------------------------------------------------------------

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
    settings: dict[str, Any] = {name: entry.default for name, entry in _run_settings(card).items()}
    for depth, layer in enumerate(layers):
        for key, value in layer.items():
            if removed := [word for word in REMOVED if word in (key, value)]:
                raise UsageError(f"{where}: {removed[0]} was removed: leave it out")
            if key in schema:
                settings[key] = value_of(where, key, value, schema[key])
            elif depth > 0 or not for_others(key):
                raise UsageError(f"{where}: " + unknown("setting", key, schema, ELSEWHERE))
    _check_steps(where, card, settings)
    _check_writer(where, card, cell["model"], settings)
    if settings["as_published"] and card.file not in IMPLEMENTATIONS:
        raise UsageError(
            f"{where}: as_published is offered for {', '.join(IMPLEMENTATIONS)}, so leave it out"
        )
    _check_public_rows(where, card, cell["task"], settings)
    settings["batch_size"] = min(settings["batch_size"], _most_rows(cell["task"], settings))
    if not card.private:
        settings = {k: v for k, v in settings.items() if not (k in RUN_SETTINGS and RUN_SETTINGS[k].private)}
    _check_read(where, schema, settings)
    _check_conflicts(where, schema, settings)
    if card.private:
        _check_users(where, card, cell["task"], settings)
        _check_privacy(where, card, settings)
    _check_batch_loss(where, card, cell["task"], settings)
    _check_head(where, card, cell["model"], settings)
    _check_checkpoint_selection(where, card, cell["task"], settings)
    _check_rows(where, card, settings)
    _add_digests(cell, settings)
    omitted = {
        key for key, entry in schema.items() if entry.omit_default and settings.get(key) == entry.default
    }
    return {key: settings[key] for key in sorted(settings.keys() - omitted)}


def _check_steps(where: str, card: Card, settings: dict) -> None:
    if card.order is None:
        settings |= {"iterate": "last"} | ({"curve_examples": 0} if card.private else {"steps": 0})
    for key in (*sorted(card.required), "steps"):
        if settings.get(key) is None:
            raise UsageError(f"{where} needs the setting {key!r}: add it to its stanza in the sweep")
    if (card.order is not None or card.private) and not settings["steps"]:
        does = "writes demonstrations" if card.order is None else "trains"
        raise UsageError(f"{where}: setting steps is 0, but a method that {does} takes at least 1")


def _check_writer(where: str, card: Card, model: str, settings: dict) -> None:
    """Demonstrations are written by a whole causal model, as it is."""
    if not card.writes_demonstrations:
        return
    if model_catalogue.stanza(model)["kind"] != "causal":
        raise UsageError(
            f"{where}: demonstrations are written by a causal model, and {model} is none: give one that is"
        )
    if settings["tune"] != "full":
        raise UsageError(
            f"{where}: a method that trains nothing has no use for tune {settings['tune']}: give tune full"
        )


def _value(key: str, schema: Schema, settings: Mapping) -> Any:
    return settings.get(key, schema[key].default)


def _check_read(where: str, schema: Schema, settings: Mapping) -> None:
    """Refuse a setting that the other settings leave unread: cells that differ in it alone would be one and the same."""
    for key, value in settings.items():
        conditions = _conditions(key, schema)
        met = any(_value(gate, schema, settings) in values for gate, values in conditions.items())
        if conditions and not met and value != schema[key].default:
            words = " or ".join(f"{gate} {_in_words(values)}" for gate, values in conditions.items())
            raise UsageError(f"{where}: {key} is for {words}: leave it out")


def _conditions(key: str, schema: Schema) -> dict[str, Allowed]:
    """Those of its `read_if` that are about this method's settings: a user's method may mean something else by a name."""

    def known(gate: str, values: Allowed) -> bool:
        allowed = schema[gate].allowed if gate in schema else None
        if isinstance(values, Range):
            return isinstance(allowed, Range)
        return isinstance(allowed, tuple) and {*values} <= {*allowed}

    return {gate: values for gate, values in schema[key].read_if.items() if known(gate, values)}


def _in_words(values: Allowed) -> str:
    return str(values) if isinstance(values, Range) else " or ".join(values)


CONFLICTS: tuple[tuple[dict[str, Range | tuple], str], ...] = (  # what excludes each other, and why
    (
        {"shots": POSITIVE, "train_examples": POSITIVE},
        "shots and train_examples both say which rows to draw: give one",
    ),
    (
        {"second_moment": POSITIVE, "shrinkage": POSITIVE},
        "second_moment and shrinkage both scale the released scalars: set one of them to 0",
    ),
    (
        {"clipping": ("ghost",), "clip_rule": ("per_layer",)},
        "the second backward pass of clipping ghost has one factor for all layers: with clip_rule per_layer set clipping to "
        "book_keeping or hooks",
    ),
    (
        {"tune": ("reversible",), "dropout": (True,)},
        "a network of tune reversible computes activations again, which would draw other masks: leave dropout out",
    ),
    (
        {"noise_key": ("secret",), "dropout": (True,)},
        "dropout draws masks by a public seed, given which one example more changes those of the others: leave it out, or "
        "take noise_key published",
    ),
)


def _check_conflicts(where: str, schema: Schema, settings: Mapping) -> None:
    for together, why in CONFLICTS:
        if all(k in schema and _value(k, schema, settings) in values for k, values in together.items()):
            raise UsageError(f"{where}: {why}")


def _check_privacy(where: str, card: Card, settings: dict) -> None:
    """Refuse what no proof covers before anything runs, whatever the size of the data."""
    size = settings["batch_size"]
    names = ("mechanism", "sampling", "adjacency", "steps", "delta")
    try:
        group = group_size(settings)
        Setting(
            dataset_size=size, batch_size=size, group_size=group, **{name: settings[name] for name in names}
        )
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    if "redaction" in card.settings:
        _check_selective(where, settings)
    if settings["mechanism"] != "gaussian" and _releases_many(card):
        raise UsageError(
            f"{where}: {settings['mechanism']} noise is for methods that release one scalar a step, and {card.file} releases "
            "a vector: use mechanism gaussian"
        )
    if settings["noise_arithmetic"] == "exact" and card.order != 0:
        raise UsageError(
            f"{where}: exact noise is offered for methods that train by forward passes alone, and {card.file} does not: use "
            "noise_arithmetic float"
        )
    if settings["as_published"]:
        for key in DECIDED_BY_PUBLIC_CODE:
            if settings.pop(key) not in (RUN_SETTINGS[key].default, "float"):
                raise UsageError(f"{where}: as_published decides {key} itself, so leave {key} out")
    elif settings["noise_arithmetic"] is None:
        secret_scalars = settings["noise_key"] == "secret" and card.order == 0
        settings["noise_arithmetic"] = "exact" if secret_scalars else "float"


def _check_selective(where: str, settings: dict) -> None:
    needed = {"adjacency": "replace_one", "noise_key": "published", "unit": "example"}
    for key, value in needed.items():
        if settings[key] != value:
            raise UsageError(
                f"{where}: selective privacy is of a row's sensitive words, while the rest of it is read without noise: set "
                f"{key} to {value}"
            )
    if settings["iterate"] == "accounted":
        raise UsageError(
            f"{where}: iterate accounted has an epsilon of whole rows, and this method none: leave it out"
        )


def _releases_many(card: Card) -> bool:
    """Whether a step releases a vector, of scalars or a gradient, in place of one scalar."""
    return card.order != 0 or "directions" in card.settings


def group_size(settings: Mapping[str, Any]) -> int:
    """Examples of a user that group privacy covers; 1 where units are drawn whole."""
    return settings["examples_per_user"] if settings.get("user_level") == "group_privacy" else 1


def _check_users(where: str, card: Card, task: str, settings: dict) -> None:
    """Who the users are, and that nothing counts them as examples."""
    if settings["unit"] == "example":
        return
    if card.public_data or card.writes_demonstrations:
        raise UsageError(f"{where}: method {card.file} draws examples, not users: leave unit out")
    clips_examples = (card.order == 0 and _releases_many(card)) or "map_share" in card.settings
    if clips_examples and settings["user_level"] == "user_wise":
        raise UsageError(
            f"{where}: method {card.file} clips examples, not users: take user_level group_privacy, or leave unit out"
        )
    named = "user" in tasks.stanza(task)
    if named == bool(settings["synthetic_users"]):
        remedy = "leave synthetic_users out" if named else "give the task's stanza `user`, or synthetic_users"
        raise UsageError(
            f"{where}: the rows of task {task} name {'their' if named else 'no'} users: {remedy}"
        )
    if settings["user_level"] == "group_privacy" and not settings["examples_per_user"]:
        raise UsageError(f"{where}: group_privacy covers a group of known size: give examples_per_user")
    for key, value in (("as_published", True), ("iterate", "accounted")):
        if settings[key] == value:
            raise UsageError(
                f"{where}: {key} {value} counts examples, and the unit is the user: leave it out"
            )


def _check_batch_loss(where: str, card: Card, task: str, settings: dict) -> None:
    """The mean over a batch's tokens weighs an example by the others' lengths, so that no clip bounds its share.

    Labels have one loss an example, and nothing else to choose.
    """
    if settings["batch_loss"] == "mean_of_tokens" and card.private:
        raise UsageError(
            f"{where}: batch_loss mean_of_tokens lets one example's loss depend on its batch, which no private method may "
            "do: leave it out, or give this method mean_of_examples"
        )
    if "words" in tasks.stanza(task) or card.order is None:
        settings["batch_loss"] = RUN_SETTINGS["batch_loss"].default


def _check_head(where: str, card: Card, model: str, settings: dict) -> None:
    """What of a masked model's head is trained. Without full fine-tuning the head is a copy in any case."""
    if card.order is None or settings["tune"] != "full":
        settings["tie_embeddings"] = True
    masked = model_catalogue.stanza(model)["kind"] == "masked"
    if not settings["tie_embeddings"] and not masked:
        raise UsageError(
            f"{where}: tie_embeddings false is for masked models, and {model} is none: leave it out"
        )
    if settings["lora_head"] == "trained" and not (masked and settings["tune"] == "lora"):
        raise UsageError(f"{where}: lora_head trained is for tune lora of a masked model: leave it out")


PUBLIC_SETTINGS = (
    "public_examples",
    "public_task",
    "public_batch_size",
)  # of a method that reads public rows


def _check_public_rows(where: str, card: Card, task: str, settings: dict) -> None:
    """A cell says which rows are public. Those of another task teach this one only if a label means the same in both."""
    if not card.public_data:
        return
    settings |= {key: card.defaults[key] for key in PUBLIC_SETTINGS if key not in settings}
    if not (other := settings["public_task"]):
        return
    mine, theirs = (list(tasks.stanza(name).get("words", ())) for name in (task, other))
    if other == task or not mine or mine != theirs:
        raise UsageError(
            f"{where}: public_task {other} must be another task with the labels of {task}, in their order "
            f"({', '.join(mine) or 'it has none'}): leave it out, so that public_examples training rows are public"
        )


def _check_checkpoint_selection(where: str, card: Card, task: str, settings: dict) -> None:
    """Dev rows are private: a release reports no checkpoint that was chosen on them without noise."""
    if settings["iterate"] == "accounted" and not card.private:
        settings["iterate"] = "best_dev"
    rule = settings["iterate"]
    if rule == "last":
        return
    if not settings["curve_examples"]:
        raise UsageError(f"{where}: iterate {rule} needs dev examples: give curve_examples")
    if rule != "accounted" and settings.get("noise_key") == "secret":
        raise UsageError(
            f"{where}: iterate {rule} with noise_key secret, but dev rows are private and the choice "
            "is not accounted: take iterate accounted, or leave it out"
        )
    if rule != "best_dev" and (metric := tasks.load(task).metric) != "accuracy":
        raise UsageError(
            f"task {task}: iterate {rule} counts right answers, but {metric} is no such count: leave "
            "iterate out"
        )
    if rule != "accounted":
        return
    if settings["as_published"]:
        raise UsageError(f"{where}: as_published accounts for no choice: leave iterate out")
    if not 0 < settings["evaluate_every"] < settings["steps"]:
        raise UsageError(
            f"{where}: iterate accounted chooses among points of the curve: give evaluate_every below "
            f"{settings['steps']} steps"
        )


# Rows and weights -------------------------------------------------------------------------------------------


def _check_rows(where: str, card: Card, settings: dict) -> None:
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
    public = 0 if settings.get("public_task") else settings.get("public_examples", 0)
    return max(1, min(by_shots, settings["train_examples"] or math.inf) - public)


def draw_of(cell: Mapping) -> Draw:
    """Which rows a cell trains on."""
    drawn = {key: value for key, value in cell["settings"].items() if key in Draw._fields}
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
