"""A sweep file becomes cells: one for each run. Imports no torch, so that planning is instant.

experiment: KIND            `language` where none is named; another kind says itself what else its file holds (see `kinds`)
extends: NAME               start from another sweep
chosen: RULE                how the settings were chosen, one of CHOSEN: a heading of the tables; `selection` has the words
tasks, models, epsilons, seeds:      the axes; any of them, and `methods`, narrows on the command line
settings:                   of every run
gpu_share:                  how many runs may be on one GPU where its memory allows; 1 where it is not said
methods: {NAME: {use: FILE, title: ..., version: N, SETTING: value, grid: {SETTING: [values]}}}      grid: see `grids`
overrides: {TASK/MODEL/METHOD: {SETTING: value}}      `*` for any; the most specific wins
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import product
from pathlib import Path

import yaml

from ..errors import UsageError, unknown
from ..language.data import catalogues, tasks
from . import experiment_types, grids, row_selection, settings, sweep_shape
from .ranges import EPSILON, SEED, number
from .registry import Card, card

FOLDER = Path(__file__).parents[1] / "sweeps"
AXES = ("tasks", "models", "methods", "epsilons", "seeds")
STANZA = ("use", "title")
CHOSEN = {
    "fixed": "settings fixed beforehand",
    "nothing": "nothing is chosen",
    "dev": "settings chosen on dev (not accounted)",
    "elsewhere": "settings chosen on dev rows of other tasks, or fixed beforehand (not accounted)",
    "stated": "settings as the paper states them, else defaults of its code or ours (not tuned here; choices not accounted)",
    "best of grid": "settings best of the grid (not accounted)",
    "tries": "every try of a grid, none chosen",
}


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, **narrowed: object) -> dict[str, dict]:
    """{run id: cell} of a sweep, in the order of its axes. `narrowed`: values for axes, as from the command line.

    Raises UsageError, before anything runs, for every name or value that is not known.
    """
    sweep = _read(str(name))
    for axis in narrowed:
        if axis not in AXES:
            raise UsageError(unknown("axis", axis, AXES))
    chosen = {axis: listed(_split(value)) for axis, value in narrowed.items()}
    experiment = experiment_types.kind_of(sweep)
    if experiment == experiment_types.LANGUAGE:
        return _expand(sweep, chosen, str(name))
    module = experiment_types.module_of(experiment)
    _check_keys(sweep, str(name), module.KEYS)
    return experiment_types.narrow(module.cells(sweep), chosen)


def kind(name: str) -> str:
    """The kind of experiment that a sweep is."""
    return experiment_types.kind_of(_read(str(name)))


def gpu_share(name: str) -> int:
    """How many runs of this sweep may be on one GPU."""
    return _read(name).get("gpu_share", 1)


def chosen(name: str) -> str:
    """By which rule the settings of a sweep were chosen, in words."""
    return CHOSEN[_read(name)["chosen"]]


def core_seconds(name: str) -> float | None:
    """Of one run on one CPU core, measured; None where the sweep does not say."""
    return _read(name).get("core_seconds")


def tokens(name: str) -> dict[str, float]:
    """Mean tokens of a prompt, by task; empty where the sweep does not say."""
    return _read(name).get("tokens", {})


def _read(name: str, before: tuple[str, ...] = ()) -> dict:
    """`before`: the sweeps that extend this one."""
    if name not in names():
        raise UsageError(unknown("sweep", name, names()))
    if name in before:
        raise UsageError(
            f"sweep {name} extends itself ({', '.join((*before, name))}): take one `extends` out"
        )
    try:
        sweep = yaml.safe_load(_text(name)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"sweep {name}: not valid YAML ({' '.join(str(error).split())})") from error
    sweep_shape.check(sweep, name, FOLDER)
    base = _read(sweep.pop("extends"), (*before, name)) if "extends" in sweep else {}
    if sweep.get("methods"):
        sweep["methods"] = grids.spread(sweep["methods"])
    whole = {**base, **sweep}
    if "chosen" not in whole:
        raise UsageError(
            f"sweep {name} does not say how its settings were chosen: give `chosen`, one of {', '.join(CHOSEN)}"
        )
    if whole["chosen"] not in CHOSEN:
        raise UsageError(f"sweep {name}: " + unknown("rule of choice", whole["chosen"], CHOSEN))
    _check_overrides(sweep.get("overrides") or {}, whole.get("methods") or {})
    for part in {"settings", "overrides"} & whole.keys():
        whole[part] = {**(base.get(part) or {}), **(sweep.get(part) or {})}
    return whole


def _text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text("utf-8")


def _split(value: object) -> object:
    """On the command line 2,8 is a list, too."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def listed(value: object) -> list:
    """One value may stand without brackets, in a file as on the command line."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _expand(sweep: dict, narrowed: dict[str, list], name: str) -> dict[str, dict]:
    _check_keys(sweep, name)
    stanzas = sweep.get("methods") or {}
    axes = {axis: narrowed.get(axis, listed(sweep.get(axis))) for axis in AXES}
    axes["methods"] = narrowed.get("methods", list(stanzas))
    _check_axes(axes, _known(stanzas))
    cells: dict[str, dict] = {}
    for task in axes["tasks"]:
        for model in axes["models"]:
            for method in axes["methods"]:
                stanza = stanzas[method] or {}
                method_card = card(stanza.get("use", method))
                epsilons = (
                    [canonical_epsilon(e) for e in axes["epsilons"]] if method_card.private else ["inf"]
                )
                shown = stanza.get("demonstrations")
                if method_card.order is None:
                    epsilons = ["inf" if shown else "0"]  # without demonstrations it reads no private example
                shared = _cell(sweep, task, model, method, method_card)
                # a seed changes nothing for what is not trained, unless it draws what is shown or what is scored
                drawn = shown or shared["settings"].get("train_examples")
                seeds = axes["seeds"] if drawn or method_card.order is not None else [0]
                for epsilon, seed in product(epsilons, seeds):
                    own = {"epsilon": epsilon, "seed": int(seed), "settings": dict(shared["settings"])}
                    cell = shared | own
                    cells.setdefault(run_id(cell), cell)
    if not cells:
        raise UsageError(f"sweep {name} has no runs: give every axis at least one value")
    return cells


def complete(spec: object) -> dict:
    """A cell given by hand: checked like a sweep's, with defaults filled in. A sweep's own comes back as it is."""
    needed = ("task", "model", "method", "epsilon", "seed", "settings")
    if not isinstance(spec, dict) or not isinstance(spec.get("settings"), dict):
        raise UsageError(f"a cell is an object of {', '.join(needed)}: `settings` is one, too")
    for key in needed:
        if key not in spec:
            raise UsageError(f"the cell has no {key!r}: it needs {', '.join(needed)}")
    if experiment_types.kind_of(spec) != experiment_types.LANGUAGE:
        return experiment_types.module_of(experiment_types.kind_of(spec)).check(spec)
    for key in ("task", "model", "method", "title", "use"):
        if not isinstance(spec.get(key, ""), str):
            raise UsageError(f"the cell's {key} is {spec[key]!r}, but must be a text")
    stanza = {key: spec[key] for key in STANZA if key in spec} | spec["settings"]
    axes = {axis: [spec[axis.removesuffix("s")]] for axis in ("tasks", "models", "epsilons", "seeds")}
    (cell,) = _expand({**axes, "methods": {spec["method"]: stanza}}, {}, "of one cell").values()
    return cell


def run_id(cell: dict) -> str:
    return f"{cell['task']}/{cell['model']}/{cell['method']}/eps-{cell['epsilon']}/seed-{cell['seed']}"


def canonical_epsilon(value: object) -> str:
    """2, 2.0, "2" -> "2"; .5 -> "0.5": one spelling for paths and keys."""
    try:
        decimal = Decimal(str(value) if str(value).isascii() else "nan")
    except InvalidOperation:
        decimal = Decimal(0)
    if not decimal.is_finite() or decimal <= 0:
        raise UsageError(
            f"epsilon {value!r} is not a positive number: non-private methods are listed without one, so give numbers only"
        )
    if float(decimal) not in EPSILON:
        raise UsageError(f"epsilon {value!r} is out of range: give a number {EPSILON}")
    return format(decimal.normalize(), "f")


def _cell(sweep: dict, task: str, model: str, method: str, method_card: Card) -> dict:
    """A cell but for its epsilon and its seed, on which no setting depends."""
    own = sweep["methods"][method] or {}
    stanza = {k: v for k, v in own.items() if k not in STANZA}
    shared = {"max_length": tasks.stanza(task)["max_length"]} | (sweep.get("settings") or {})
    layers = [shared, stanza, *_overrides(sweep, (task, model, method))]
    use = own.get("use", method)
    made = settings.of(method, method_card, task, layers, partial(_some_method_has, sweep))
    title = own.get("title", method_card.title if use == method else f"{method_card.title} ({method})")
    if not isinstance(title, str):
        raise UsageError(f"method {method}: title is {title!r}, but must be a text")
    return {
        "task": task,
        "model": model,
        "method": method,
        "use": use,
        "title": title,
        "epsilon": None,  # these two hold their places
        "seed": None,
        "settings": row_selection.with_weights(model, made),
    }


def _some_method_has(sweep: dict, key: str) -> bool:
    """A setting shared by all runs may be meant for some methods only."""
    return any(key in card((stanza or {}).get("use", m)).settings for m, stanza in sweep["methods"].items())


def _overrides(sweep: dict, place: tuple[str, str, str]) -> list[dict]:
    """The overrides that match, the most specific last."""
    matching = []
    for pattern, values in (sweep.get("overrides") or {}).items():
        parts = pattern.split("/")
        if all(part in ("*", value) for part, value in zip(parts, place, strict=True)):
            matching.append((sum(part != "*" for part in parts), values or {}))
    return [values for _, values in sorted(matching, key=lambda pair: pair[0])]


def _check_keys(sweep: dict, name: str, own: Iterable[str] = (*AXES, "settings", "overrides")) -> None:
    known = ("experiment", "description", "selection", "chosen", "core_seconds", "tokens", "gpu_share")
    allowed = (*own, *known)
    for key in sweep:
        if key not in allowed:
            raise UsageError(f"sweep {name}: " + unknown("key", key, allowed))


def _known(methods: Iterable[str]) -> dict[str, list[str]]:
    return {
        "tasks": catalogues.names("tasks"),
        "models": catalogues.names("models"),
        "methods": list(methods),
    }


def _check_overrides(overrides: dict, methods: Iterable[str]) -> None:
    """A misspelt name would match no run, silently."""
    known = _known(methods)
    for pattern in overrides:
        parts = str(pattern).split("/")
        if len(parts) != 3:
            raise UsageError(f"override {pattern!r}: write it as TASK/MODEL/METHOD, with * for any")
        for axis, part in zip(("tasks", "models", "methods"), parts, strict=True):
            if part not in ("*", *known[axis]):
                raise UsageError(
                    f"override {pattern!r}: " + unknown(axis.removesuffix("s"), part, known[axis])
                )


def _check_axes(axes: dict, known: dict[str, list[str]]) -> None:
    for axis, values in axes.items():
        if not values:
            raise UsageError(f"the axis {axis} is empty: give it at least one value")
        for value in values:
            if axis in known and value not in known[axis]:
                raise UsageError(unknown(axis.removesuffix("s"), value, known[axis]))
    for seed in axes["seeds"]:
        try:
            number(seed, int, SEED)
        except ValueError:
            raise UsageError(f"seed {seed!r} is not a whole number {SEED}: write seeds='[0, 1, 2]'") from None
    for method in axes["methods"]:
        if not re.fullmatch(r"[\w+-][\w.+-]*", str(method)):
            raise UsageError(f"method {method!r} names no file: write it with letters, digits and . _ + -")
