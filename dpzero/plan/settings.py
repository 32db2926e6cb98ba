"""Settings of a cell: type, default, allowed values and help, in the one table that check and help read.

Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import UsageError, unknown
from . import registry

TYPES = registry.TYPES

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


@dataclass(frozen=True)
class Entry:
    """One setting."""

    kind: str  # int, float, str or bool
    default: object  # None: it must be given
    allowed: Range | tuple[str, ...] | None
    help: str
    omit_default: bool = False  # a cell names it only if it differs from the default
    private: bool = False  # for methods that add noise
    many: bool = False  # a list of values


Schema = Mapping[str, Entry]


def typed(given: Mapping[str, object], schema: Schema, where: str) -> dict[str, object]:
    """Check settings against a schema and fill in the defaults.

    Args:
        given: setting -> value, as read from YAML or JSON.
        schema: setting -> its type, default and allowed values.
        where: start of an error message, such as "method dpzero".

    Returns:
        Every setting of the schema, in its order, with values of the declared types.

    Raises:
        UsageError: a setting that the schema does not have, or a value that it does not allow.
    """
    refuse_unknown(given, schema, where)
    return {key: value_of(where, key, given.get(key, entry.default), entry) for key, entry in schema.items()}


def refuse_unknown(given: Mapping[str, object], schema: Schema, where: str) -> None:
    for key in given:
        if key not in schema:
            raise UsageError(f"{where}: " + unknown("setting", key, schema))


def value_of(where: str, key: str, value: object, entry: Entry) -> object:
    """The value in its declared type (PyYAML reads 1e-5 as text). Raises UsageError if it is not allowed."""
    if entry.many:
        if not isinstance(value, list) or not value:
            raise UsageError(f"{where}: setting {key} is {value!r}, but must be a list of numbers")
        return [_one(where, key, item, entry) for item in value]
    return _one(where, key, value, entry)


def _one(where: str, key: str, value: object, entry: Entry) -> object:
    kind, allowed = TYPES[entry.kind], entry.allowed
    wrong = f"{where}: setting {key} is {value!r}, but must be of type {entry.kind}"
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


# The table --------------------------------------------------------------------------------------------------

SAMPLINGS = ("poisson", "random_allocation", "without_replacement", "full_batch")
VERSION = Entry("int", 1, COUNT, "raise it to run again after the code changed")

# Settings of every run, beside those of its method
RUN_SETTINGS: dict[str, Entry] = {
    "tune": Entry("str", "bias", ("full", "bias", "lora", "prefix", "head"), "trainable parameters"),
    "batch_size": Entry(
        "int", 16, POSITIVE_COUNT, "expected batch size (Poisson batches vary); all rows if there are fewer"
    ),
    "steps": Entry("int", None, COUNT, "training steps; 0 for a method that trains nothing"),
    "max_length": Entry("int", None, POSITIVE_COUNT, "tokens of a text, which is cut beyond them"),
    "token_budget": Entry("int", 2048, POSITIVE_COUNT, "padded tokens of a micro-batch"),
    "compute": Entry(
        "str",
        "float32",
        ("float32", "bfloat16"),
        "type of matrix products; weights and losses are always float32",
    ),
    "evaluate_every": Entry("int", 0, COUNT, "steps between points of the learning curve; 0: start and end"),
    "curve_examples": Entry("int", 256, COUNT, "dev examples for a point of the curve"),
    "split": Entry("str", "test", ("test", "dev"), "split of the metric; dev for choosing settings"),
    "iterate": Entry(
        "str",
        "last",
        ("last", "best_dev", "accounted"),
        "checkpoint that is reported: the last; the one with the least dev loss; or the one that a private "
        "choice takes by dev accuracy (best_dev for methods without noise)",
        omit_default=True,
    ),
    "noise_key": Entry(
        "str", "published", ("published", "secret"), "secret: the run is a private release", private=True
    ),
    "noise_arithmetic": Entry(
        "str",
        None,
        ("float", "exact"),
        "exact: integer sums and discrete noise, for methods that release scalars",
        private=True,
    ),
    "delta": Entry(
        "float", 1e-5, DELTA, "of (epsilon, delta); 0 with Laplace noise is pure epsilon", private=True
    ),
    "mechanism": Entry("str", "gaussian", ("gaussian", "laplace"), "distribution of the noise", private=True),
    "sampling": Entry("str", "poisson", SAMPLINGS, "how batches are drawn"),
    "adjacency": Entry(
        "str", "add_remove", ("add_remove", "replace_one"), "how neighbouring data sets differ", private=True
    ),
    "version": VERSION,
    "as_published": Entry(
        "bool",
        False,
        None,
        "sample, add noise and divide as the method's public code does",
        omit_default=True,
    ),
    "shots": Entry(
        "int",
        0,
        COUNT,
        "training rows of each class, drawn as by LM-BFF with the cell's seed; 0: all",
        omit_default=True,
    ),
    "train_examples": Entry(
        "int",
        0,
        COUNT,
        "training rows in all, drawn as by MeZO on OPT with the cell's seed; 0: all",
        omit_default=True,
    ),
    "demonstrations": Entry(
        "int",
        0,
        COUNT,
        "training rows in front of each prompt, for a method that trains nothing",
        omit_default=True,
    ),
    "data": Entry(
        "str", "", None, "SHA-256 of the task's local files: computed, not chosen", omit_default=True
    ),
    "weights": Entry(
        "str", "", None, "SHA-256 of the model's local files: computed, not chosen", omit_default=True
    ),
}
DERIVED = {"max_length": "the task's", "noise_arithmetic": "exact for scalars under a secret key, else float"}

# Settings of methods: type, default and choices stand in the method's signature; these are the ranges and the
# help
METHOD_SETTINGS: dict[str, tuple[Range | None, str]] = {
    "learning_rate": (Range(1e-30, 1e30), "step size"),
    "clip": (
        FACTOR,
        "bound on one example's contribution: a loss difference, or the norm of a gradient or of several "
        "differences",
    ),
    "smoothing": (FACTOR, "distance of the two points from the weights, along the direction"),
    "directions": (Range(1, 2**20), "random directions of one batch"),
    "direction_law": (None, "distribution of the directions"),
    "direction_rank": (Range(1, 2**20), "rank of low_rank directions"),
    "perturb": (None, "where weights are perturbed: in place, or as they are read"),
    "second_moment": (DELTA, "decay of Adam's second moment of the released scalars; 0: none"),
    "optimizer": (None, "name of torch's optimizer"),
    "weight_decay": (NOT_NEGATIVE, "decoupled weight decay of the optimizer"),
    "implementation": (None, "implementation of torch's optimizer"),
    "clipping": (
        None,
        "hooks: per-sample gradients in memory; ghost: norms alone, and a second backward pass",
    ),
    "stages": (Range(1, 64), "stages, each twice as long as the one before and with half its learning rate"),
    "first_stage": (COUNT, "steps of the first stage; 0: the stages share the steps"),
}
REMOVED = ("both_signs", "cuda_graphs", "regularization")  # settings and values that there are no longer


def method_settings(card: registry.Card) -> dict[str, Entry]:
    """A method's own settings: its signature, with ranges of the table. Other numbers may have any value."""
    found = {}
    for name, kind in card.settings.items():
        allowed, words = METHOD_SETTINGS.get(name, (None, ""))
        choices = registry.choices(kind)
        plain = "str" if choices else kind
        fallback = choices or (ANY if plain in ("int", "float") else None)
        found[name] = Entry(plain, card.defaults.get(name), allowed or fallback, words)
    return found


def cell_settings(card: registry.Card) -> dict[str, Entry]:
    """All settings of a cell of this method."""
    return RUN_SETTINGS | method_settings(card)


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
    default = str(entry.default)
    if entry.kind == "bool":
        allowed, default = "true, false", default.lower()
    if entry.default is None:
        default = DERIVED.get(name, "must be given")
    return entry.kind, default, allowed, entry.help


def markdown() -> str:
    """The table of settings as Markdown."""
    heading = ("setting", "methods", "type", "default", "allowed", "what it is")
    lines = [heading, ("---",) * len(heading), *rows()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
