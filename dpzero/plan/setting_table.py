"""Every setting that a cell may have: type, default, what is allowed, what it does. The check, the help and the documents read this one
table. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import registry
from .ranges import ANY, COUNT, FACTOR, NOT_NEGATIVE, POSITIVE_COUNT, Range

Allowed = Range | tuple[str, ...] | None


@dataclass(frozen=True)
class Entry:
    kind: str  # int, float, str or bool
    default: object  # None: it must be given
    allowed: Allowed
    words: str


# What every run has, beside the settings of its method
RUN_SETTINGS: dict[str, Entry] = {
    "tune": Entry("str", "bias", ("full", "bias", "lora", "prefix", "head"), "what is trained"),
    "batch_size": Entry(
        "int",
        16,
        POSITIVE_COUNT,
        "expected examples of a batch (Poisson batches vary); all rows where there are fewer",
    ),
    "steps": Entry("int", None, COUNT, "steps of training; a method that trains nothing has 0"),
    "max_length": Entry(
        "int", None, POSITIVE_COUNT, "tokens of a text, beyond which it is cut; the task's unless it is given"
    ),
    "token_budget": Entry("int", 2048, POSITIVE_COUNT, "padded tokens of a micro-batch"),
    "compute": Entry(
        "str",
        "float32",
        ("float32", "bfloat16"),
        "type of matrix products; weights and losses are float32 in any case",
    ),
    "evaluate_every": Entry("int", 0, COUNT, "steps between points of the learning curve; 0: start and end"),
    "curve_examples": Entry("int", 256, COUNT, "dev examples for a point of the curve"),
    "split": Entry("str", "test", ("test", "dev"), "what the metric is taken on; dev for choosing settings"),
    "iterate": Entry(
        "str",
        "last",
        ("last", "best_dev", "accounted"),
        "which point of the curve is reported: the last; that of the least dev loss; or, by a private choice, one that is right most often "
        "on dev (best_dev for methods without noise)",
    ),
    "noise_key": Entry("str", "published", ("published", "secret"), "secret: the run is a private release"),
    "noise_arithmetic": Entry(
        "str",
        None,
        ("float", "exact"),
        "exact: integer sums and discrete noise, for methods that release scalars, and theirs under a secret key unless it is given",
    ),
    "delta": Entry(
        "float", 1e-5, Range(0, 1, below=True), "of (epsilon, delta); 0 with Laplace noise is pure epsilon"
    ),
    "mechanism": Entry("str", "gaussian", ("gaussian", "laplace"), "law of the noise"),
    "sampling": Entry(
        "str",
        "poisson",
        ("poisson", "random_allocation", "without_replacement", "full_batch"),
        "how batches are drawn",
    ),
    "adjacency": Entry(
        "str", "add_remove", ("add_remove", "replace_one"), "in what neighbouring data sets differ"
    ),
    "version": Entry("int", 1, COUNT, "raise it to run a method again after its code changed"),
    "as_published": Entry("bool", False, None, "sample, add and divide as the method's public code does"),
    "shots": Entry(
        "int", 0, COUNT, "training rows of each class, drawn as by LM-BFF with the cell's seed; 0: all"
    ),
    "train_examples": Entry(
        "int", 0, COUNT, "training rows in all, drawn as by MeZO on OPT with the cell's seed; 0: all"
    ),
    "demonstrations": Entry(
        "int", 0, COUNT, "training rows before each prompt, for a method that trains nothing"
    ),
    "data": Entry("str", "", None, "SHA-256 of the task's local files: found, not chosen"),
    "weights": Entry("str", "", None, "SHA-256 of the model's local files: found, not chosen"),
}

DERIVED = {
    "max_length": "the task's",
    "noise_arithmetic": "by noise_key",
}  # what a setting without a default is

# Of methods, by name: type, default and choices stand in the signature of the method; these are the ranges and words
METHOD_SETTINGS: dict[str, tuple[Allowed, str]] = {
    "learning_rate": (Range(1e-30, 1e30), "step size"),
    "clip": (
        FACTOR,
        "bound of what one example gives: a loss difference, or the norm of a gradient or of several differences",
    ),
    "smoothing": (FACTOR, "distance of the two points from the weights, along the direction"),
    "directions": (Range(1, 2**20), "random directions of one batch"),
    "direction_law": (None, "law of the directions"),
    "direction_rank": (Range(1, 2**20), "rank of low_rank directions"),
    "perturb": (None, "where weights are perturbed: in place, as they are read, or both points in one batch"),
    "cuda_graphs": (None, "record the forward pass once and replay it, on a GPU"),
    "second_moment": (
        Range(0, 1, below=True),
        "decay of Adam's second moment of the released scalars; 0: none",
    ),
    "optimizer": (None, "which of torch"),
    "weight_decay": (NOT_NEGATIVE, "decoupled weight decay of the optimizer"),
    "implementation": (None, "of torch's optimizer"),
    "clipping": (
        None,
        "hooks: each example's gradient in memory; ghost: norms alone, and a second backward pass",
    ),
    "stages": (Range(1, 64), "stages, each twice as long as the one before and with half its learning rate"),
    "first_stage": (COUNT, "steps of the first stage; 0: so that the stages share the steps"),
    "regularization": (NOT_NEGATIVE, "pull towards the weights at the start of a stage"),
}


def of_method(card: registry.Card) -> dict[str, Entry]:
    """The settings of a method: from its signature, with the ranges of this table. One that the table does not know may be any number."""
    found = {}
    for name, kind in card.settings.items():
        allowed, words = METHOD_SETTINGS.get(name, (None, ""))
        choices = registry.choices(kind)
        plain = "str" if choices else kind
        if allowed is None:
            allowed = choices or (ANY if plain in ("int", "float") else None)
        found[name] = Entry(plain, card.defaults.get(name), allowed, words)
    return found


def known(card: registry.Card) -> dict[str, Entry]:
    return RUN_SETTINGS | of_method(card)


def rows() -> Iterator[tuple[str, ...]]:
    """Setting, methods that have it, type, default, allowed, words: as the table is printed."""
    for name, entry in RUN_SETTINGS.items():
        yield name, "all", *_told(name, entry)
    found: dict[tuple[str, ...], list[str]] = {}
    for method, card in registry.cards().items():
        for name, entry in of_method(card).items():
            found.setdefault((name, *_told(name, entry)), []).append(method)
    for (name, *told), having in found.items():
        yield name, ", ".join(having), *told


def _told(name: str, entry: Entry) -> tuple[str, str, str, str]:
    allowed = ", ".join(entry.allowed) if isinstance(entry.allowed, tuple) else str(entry.allowed or "")
    if entry.kind == "bool":
        allowed = "true, false"
    default = (
        DERIVED.get(name, "must be given")
        if entry.default is None
        else str(entry.default).lower()
        if entry.kind == "bool"
        else str(entry.default)
    )
    return entry.kind, default, allowed, entry.words


def markdown() -> str:
    heading = ("setting", "methods", "type", "default", "allowed", "what it is")
    lines = [heading, ("---",) * len(heading), *rows()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
