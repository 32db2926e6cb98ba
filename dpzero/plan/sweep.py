"""A sweep file becomes cells, one for each run. Imports no torch, so that planning is instant.

experiment: KIND            `language` by default, which trains a language model; a study (`study_sweeps`)
extends: NAME               start from another sweep
include: [FOLDER]           folders of own tasks, models, methods and sweeps, relative to this file (see `include`)
tuning: RULE                how the settings were chosen, one of TUNING: a heading of the tables
tasks, models, epsilons, seeds:      the axes; any of them, and `methods`, narrows on the command line
settings:                   of every run
gpus:                       how many GPUs hold the model of a run, if there are GPUs; 1 by default
gpu_share:                  how many runs may be on one GPU if its memory allows; 1 by default
methods: {NAME: {use: FILE, title: ..., version: N, SETTING: value, grid: {SETTING: [values]}}}
                            a grid makes a method of each of its points, or with `search` the tries of the method
search: {tries: N, seeds: [...]}    equal tries on dev for each method, task, model and epsilon (see `search`)
overrides: {TASK/MODEL/METHOD: {SETTING: value}}      `*` for any; the most specific wins
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from .. import include
from ..errors import UsageError, unknown
from ..files import REHEARSAL, TRY_MARK, run_id
from ..language import local_files
from ..language.data import tasks
from ..language.data.datasets import ALL
from ..language.models import model_catalogue
from . import rehearsal, search
from .registry import card
from .settings import (
    POSITIVE,
    POSITIVE_COUNT,
    SEED,
    Entry,
    canonical_epsilon,
    check_settings,
    defaults,
    draw_of,
    listed,
    number,
    typed,
    value_of,
)
from .study_sweeps import STUDIES

FOLDER = Path(__file__).parents[1] / "sweeps"
AXES = ("tasks", "models", "methods", "epsilons", "seeds")
STANZA = ("use", "title", "grid")
NEEDED = ("task", "model", "method", "epsilon", "seed", "settings")  # of a cell given by hand
LANGUAGE = "language"  # the kind of experiment that trains a language model
DEFAULTS: dict[str, Any] = {
    "experiment": LANGUAGE,
    "gpus": 1,
    "gpu_share": 1,
    "core_seconds": None,
    "tokens": {},
}
TUNING = {  # how settings were chosen, as the headings of tables say it
    "fixed": "settings fixed beforehand",
    "none": "",
    "dev": "settings chosen on dev (not accounted)",
    "transferred": "settings chosen on dev rows of other tasks, or fixed beforehand (not accounted)",
    "from_paper": "settings as the paper states them, else defaults of its code or ours (not tuned here; "
    "choices not accounted)",
    "best_of_grid": "settings best of the grid (not accounted)",
    "grid": "every try of a grid, none chosen",
    "search": "settings best of {tries} tries on dev for each method, task and ε (not accounted)",
}
RENAMED = {  # old names of keys and rules, which are read for one version
    "chosen": "tuning",
    "nothing": "none",
    "elsewhere": "transferred",
    "stated": "from_paper",
    "best of grid": "best_of_grid",
    "tries": "grid",
}


def names() -> list[str]:
    """The sweeps of the package and of the included folders."""
    return sorted(_files())


def name_of(sweep: str | Path, narrowed: Iterable[str] = ()) -> str:
    """The name under which results are written: the file's name without its ending, and a mark of a rehearsal's.

    `narrowed`: the keys that narrow the sweep; a limit makes it a rehearsal.
    """
    name = Path(sweep).stem if is_path(str(sweep)) else str(sweep)
    return name if rehearsal.LIMITS.keys().isdisjoint(narrowed) else f"{name}{REHEARSAL}"


def is_path(sweep: str) -> bool:
    """Whether a sweep is given by its path, which ends in .yaml."""
    return Path(sweep).suffix in (".yaml", ".yml")


def _files() -> dict[str, Path]:
    built_in = {path.stem: path for path in FOLDER.glob("*.yaml")}
    own = include.sweeps()
    for name, file in own.items():
        include.refuse_built_in(name, file, built_in)
    return built_in | own


def find(sweep: str) -> Path:
    """The file of a sweep that is given as a name or as a path. Raises UsageError for one that is not there."""
    if not is_path(sweep):
        if sweep not in (files := _files()):
            raise UsageError(unknown("sweep", sweep, sorted(files)) + include.hint())
        return files[sweep]
    file = Path(sweep).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no sweep file {sweep}: correct its path")
    if not file.samefile(FOLDER / file.name if (FOLDER / file.name).exists() else file):
        include.refuse_built_in(file.stem, file, names())
    return file


def load(name: str, **narrowed: object) -> dict[str, dict]:
    """Expand a sweep into its cells.

    Args:
        name: of a file in dpzero/sweeps or an included folder, or the path of a file that ends in .yaml.
        narrowed: axis -> its values, or limit of a rehearsal -> number, as from the command line.

    Returns:
        Run id -> cell, in the order of the axes.

    Raises:
        UsageError: a name or value that is not known, before anything runs.
    """
    sweep = read(name)
    for key in narrowed:
        if key not in (*AXES, *rehearsal.LIMITS):
            raise UsageError(unknown("axis or limit", key, (*AXES, *rehearsal.LIMITS)))
    chosen = {axis: _values(narrowed[axis]) for axis in AXES if axis in narrowed}
    limits = rehearsal.checked({key: value for key, value in narrowed.items() if key not in AXES})
    if sweep["experiment"] == LANGUAGE:
        return _expand(sweep, chosen, str(name), limits)
    if limits:
        raise UsageError(
            f"sweep {name} trains no language model, which {', '.join(limits)} would cut short: leave that out"
        )
    study = STUDIES[sweep["experiment"]]
    _check_keys(sweep, str(name), study.keys)
    return _narrow([study.check(cell) for cell in study.cells(sweep)], chosen)


def _values(given: object) -> list:
    """Of an axis: on the command line 2,8 is a list, too."""
    return given.split(",") if isinstance(given, str) else listed(given)


def kind_of(sweep_or_cell: dict) -> str:
    """The kind of experiment, for the studies a module of `dpzero.studies`."""
    kind, kinds = sweep_or_cell.get("experiment", LANGUAGE), (LANGUAGE, *STUDIES)
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(unknown("kind of experiment", kind, kinds))
    return kind


def complete(spec: object) -> dict:
    """Check a cell given by hand and fill in its defaults. A sweep's own cell comes back as it is.

    Raises UsageError for a key, name or value that is missing or not known.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("settings"), dict):
        raise UsageError(f"a cell is an object of {', '.join(NEEDED)}: `settings` is one, too")
    for key in NEEDED:
        if key not in spec:
            raise UsageError(f"the cell has no {key!r}: it needs {', '.join(NEEDED)}")
    kind = kind_of(spec)
    for key in ("task", "model", "method", "title", "use") if kind == LANGUAGE else ("method",):
        if not isinstance(spec.get(key, ""), str):
            raise UsageError(f"the cell's {key} is {spec[key]!r}, but must be a text")
    if kind != LANGUAGE:
        return STUDIES[kind].check(spec)
    known = {axis: names for axis, names in _known([]).items() if axis != "methods"}
    _check_axes({axis: [spec[axis.removesuffix("s")]] for axis in AXES}, known)
    stanza = {key: spec[key] for key in STANZA if key in spec} | spec["settings"]
    cell = next(_cells(spec, {spec["method"]: stanza}, {}, {}, [spec["epsilon"]], [spec["seed"]]))
    return cell | ({"search": spec["search"]} if "search" in spec else {})


# The file ---------------------------------------------------------------------------------------------------


def read(name: str, before: tuple[str, ...] = ()) -> dict:
    """A sweep file with the one that it extends, and the defaults of its keys.

    The folders under `include`, relative to the file, are included in this process. `before`: the sweeps that
    extend this one.
    """
    where, file = f"sweep {name}", find(str(name))
    if name in before:
        raise UsageError(f"{where} extends itself ({', '.join((*before, name))}): take one `extends` out")
    try:
        sweep = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {where} ({error}): save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    _check_shape(sweep, where)
    sweep = {_new_name(key, where): value for key, value in sweep.items()}
    for folder in listed(sweep.pop("include", None)):
        include.add(file.parent / Path(str(folder)).expanduser(), f"{where}, include")
    base = read(sweep.pop("extends"), (*before, name)) if "extends" in sweep else DEFAULTS
    if sweep.get("methods"):
        sweep["methods"] = sweep["methods"] if "search" in base | sweep else spread_grids(sweep["methods"])
    merged = base | sweep
    if "tuning" not in merged:
        rules = ", ".join(TUNING)
        raise UsageError(f"{where} does not say how its settings were chosen: give `tuning`, one of {rules}")
    merged["tuning"] = _new_name(merged["tuning"], where)
    if merged["tuning"] not in TUNING:
        raise UsageError(f"{where}: " + unknown("rule of choice", merged["tuning"], TUNING))
    _check_overrides(sweep.get("overrides") or {}, merged.get("methods") or {})
    for key in {"settings", "overrides"} & merged.keys():
        merged[key] = (base.get(key) or {}) | (sweep.get(key) or {})
    kind_of(merged)
    if (merged["tuning"] == "search") != ("search" in merged):
        raise UsageError(f"{where}: tuning search and the key search belong together: give both or none")
    return merged


def rule_of_choice(sweep: dict) -> str:
    """How the settings of a sweep (from `read`) were chosen, as the headings of tables say it."""
    return TUNING[sweep["tuning"]].format(**sweep.get("search", {}))


def _new_name(name: str, where: str) -> str:
    """The present name of a key or rule; for an old one, a line says so."""
    if name in RENAMED:
        print(f"dpzero: {where}: {name} is called {RENAMED[name]} now", file=sys.stderr)
    return RENAMED.get(name, name)


OBJECTS = {"settings", "tokens", "search"}
OBJECTS_OF_OBJECTS = {"methods", "overrides", "ranks"}
ROWS = {"series": ("models", "methods", "sizes", "measure"), "published": ("epsilons",)}  # with their lists
TEXTS = {"extends", "experiment", "description", "selection", "tuning", "chosen"}
SEARCH = {
    "tries": Entry("int", allowed=POSITIVE_COUNT),
    "seeds": Entry("int", allowed=SEED, many=True),
}
NUMBERS = {
    "gpus": Entry("int", allowed=POSITIVE_COUNT),
    "gpu_share": Entry("int", allowed=POSITIVE_COUNT),
    "core_seconds": Entry("float", allowed=POSITIVE),
}


def _check_shape(sweep: object, where: str) -> None:
    """Objects, lists, texts and numbers stand where they belong; their content is checked when it is read."""
    if not isinstance(sweep, dict) or not all(isinstance(key, str) for key in sweep):
        raise UsageError(f"{where} is no object of keys and values: see the other files in {FOLDER}")
    for key, value in sweep.items():
        if key in OBJECTS | OBJECTS_OF_OBJECTS:
            inner = value.values() if isinstance(value, dict) and key in OBJECTS_OF_OBJECTS else ()
            if any(item is not None and not isinstance(item, dict) for item in (value, *inner)):
                raise UsageError(f"{where}: {key} must hold {{NAME: value}} pairs, not {value!r}")
        elif key in TEXTS and not isinstance(value, str):
            raise UsageError(f"{where}: {key} is {value!r}, but must be a text")
        elif key in NUMBERS:
            value_of(where, key, value, NUMBERS[key])
        elif key in ("dimensions", "seeds", "include"):
            _check_values(value, f"{where}: {key}")
        elif key in ROWS:
            if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
                raise UsageError(f"{where}: {key} must be a list of {{NAME: value}} objects, not {value!r}")
            for name, item in ((name, item) for row in value for name, item in row.items()):
                _check_values(item if name in ROWS[key] else [item], f"{where}: {name} in {key}")
    for task, tokens in (sweep.get("tokens") or {}).items():
        value_of(where, f"tokens of {task}", tokens, NUMBERS["core_seconds"])


def _check_values(values: object, where: str) -> None:
    """One number or text, or a list of them."""
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, (str, int, float)):
            raise UsageError(f"{where} is {values!r}, but must be a number, a text or a list of them")


def _check_keys(sweep: dict, name: str, own: Iterable[str]) -> None:
    allowed = (*own, *DEFAULTS, "description", "selection", "tuning")
    for key in sweep:
        if key not in allowed:
            raise UsageError(f"sweep {name}: " + unknown("key", key, allowed))


def spread_grids(stanzas: dict[str, dict | None]) -> dict[str, dict | None]:
    """{METHOD: {grid: {clip: [1, 2]}}} -> {METHOD_clip1: {use: METHOD, clip: 1}, METHOD_clip2: ...}"""
    spread: dict[str, dict | None] = {}
    for name, stanza in stanzas.items():
        if not isinstance(stanza, dict) or "grid" not in stanza:
            spread[name] = stanza
            continue
        common = {"use": name} | {key: value for key, value in stanza.items() if key != "grid"}
        for label, point in search.points(name, stanza["grid"]).items():
            spread[f"{name}_{label}"] = common | point
    return spread


def _check_overrides(overrides: dict, methods: Iterable[str]) -> None:
    """A misspelt name would match no run, silently."""
    known = _known(methods)
    for pattern in overrides:
        parts = str(pattern).split("/")
        if len(parts) != 3:
            raise UsageError(f"override {pattern!r}: write it as TASK/MODEL/METHOD, with * for any")
        for axis, part in zip(known, parts, strict=True):
            if part not in ("*", *known[axis]):
                raise UsageError(
                    f"override {pattern!r}: " + unknown(axis.removesuffix("s"), part, known[axis])
                )


# Cells ------------------------------------------------------------------------------------------------------


def _expand(sweep: dict, narrowed: dict[str, list], name: str, limits: rehearsal.Limits) -> dict[str, dict]:
    _check_keys(sweep, name, (*AXES, "settings", "overrides", "search"))
    stanzas = sweep.get("methods") or {}
    axes = {axis: narrowed.get(axis, listed(sweep.get(axis))) for axis in AXES}
    axes["methods"] = narrowed.get("methods", list(stanzas))
    _check_axes(axes, _known(stanzas))
    local_files.check([(task, ALL) for task in axes["tasks"]], axes["models"])
    cells: dict[str, dict] = {}
    for task, model, method in product(axes["tasks"], axes["models"], axes["methods"]):
        place = {"task": task, "model": model, "method": method, "rehearsal": limits}
        settings, overrides = sweep.get("settings") or {}, sweep.get("overrides") or {}
        for cell in _cells(place, stanzas, settings, overrides, axes["epsilons"], axes["seeds"]):
            cells.setdefault(run_id(cell), cell)
    if "search" in sweep:
        cells = _with_tries(cells, stanzas, typed(sweep["search"], SEARCH, f"sweep {name}, search"), name)
    if not cells:
        raise UsageError(f"sweep {name} has no runs: give every axis at least one value")
    draws = {
        (cell["task"], draw._replace(seed=0)): draw
        for cell in cells.values()
        if (draw := draw_of(cell)) != ALL
    }
    local_files.check((task, draw) for (task, _), draw in draws.items())
    return cells


def _with_tries(cells: dict[str, dict], stanzas: Mapping, plan: dict, name: str) -> dict[str, dict]:
    """The cells, each with its search, and the tries: all points of its method's grid on dev."""
    search.check_equal(stanzas, plan, name)
    tries: dict[str, dict] = {}
    grids: dict[tuple[str, ...], dict[str, dict]] = {}  # the same for every reported seed
    for run, cell in cells.items():
        if not (grid := (stanzas[cell["method"]] or {}).get("grid")):
            continue
        if cell["settings"].get("noise_key") == "secret":
            raise UsageError(
                f"sweep {name}: a search with noise_key secret, but dev rows are private and the choice is not "
                "accounted: search on public data with noise_key published"
            )
        if cell["seed"] in plan["seeds"]:
            raise UsageError(f"sweep {name}: seed {cell['seed']} is reported and searched with: give another")
        place = tuple(cell[key] for key in ("task", "model", "method", "epsilon"))
        if place not in grids:
            points = grids[place] = {}
            given = search.points(cell["method"], grid)
            # the cell has the first point: what another point does not name is the stanza's, or the default
            first = next(iter(given.values()))
            rest = {key: value for key, value in cell["settings"].items() if key not in first}
            rest |= {key: stanzas[cell["method"]][key] for key in first if key in stanzas[cell["method"]]}
            for label, point in given.items():
                method = f"{cell['method']}{TRY_MARK}{label}"
                settings = rest | point | {"split": "dev"}
                for seed in plan["seeds"]:
                    attempt = complete(cell | {"method": method, "seed": seed, "settings": settings})
                    tries[run_id(attempt)] = attempt
                    values = defaults(card(cell["use"])) | attempt["settings"]
                    points[label] = {key: values[key] for key in point | first}
        cells[run] = cell | {"search": {"seeds": plan["seeds"], "grid": grids[place]}}
    return cells | tries


def _cells(
    place: Mapping, stanzas: Mapping, settings: dict, overrides: dict, epsilons: Iterable, seeds: Iterable
) -> Iterator[dict]:
    """The cells of a task, model and method (`place`), whose settings depend on neither epsilon nor seed.

    Epsilon and seed stand in the spelling that all runs with the same outcome share.
    """
    task, method = place["task"], place["method"]
    stanza = stanzas[method] or {}
    use = stanza.get("use", method)
    method_card = card(use)

    def for_others(key: str) -> bool:  # a setting shared by all runs may be meant for some methods only
        return any(key in card((own or {}).get("use", name)).settings for name, own in stanzas.items())

    own = {key: value for key, value in stanza.items() if key not in STANZA}
    if "grid" in stanza:  # of a search: any of its points, until the tries have decided
        own |= next(iter(search.points(method, stanza["grid"]).values()))
    shared = {"max_length": tasks.stanza(task)["max_length"]} | settings
    layers = [shared, own, *_matching(overrides, (task, place["model"], method))]
    checked = check_settings(place, method_card, layers, for_others)
    title = stanza.get("title", method_card.title if use == method else f"{method_card.title} ({method})")
    if not isinstance(title, str):
        raise UsageError(f"method {method}: title is {title!r}, but must be a text")
    names = {"task": task, "model": place["model"], "method": method, "use": use, "title": title}
    if place.get("rehearsal"):
        names["rehearsal"] = rehearsal.checked(place["rehearsal"])
        shorter = rehearsal.shorten(checked, names["rehearsal"], task)
        checked = check_settings(place, method_card, [shorter])
    shown = checked.get("demonstrations")
    for epsilon, seed in product(epsilons, seeds):
        if method_card.order is None and not method_card.private:
            epsilon = "inf" if shown else "0"  # without demonstrations it reads no private example
            # a seed changes nothing for what is not trained, unless it draws what is shown or what is scored
            seed = seed if shown or checked.get("train_examples") else 0
        else:
            epsilon = canonical_epsilon(epsilon) if method_card.private else "inf"
        yield names | {"epsilon": epsilon, "seed": int(seed), "settings": dict(checked)}


def _matching(overrides: dict, place: tuple[str, str, str]) -> list[dict]:
    """The overrides that match, the most specific last."""
    patterns = [tuple(pattern.split("/")) for pattern in overrides]
    matching = [p for p in patterns if all(part in ("*", own) for part, own in zip(p, place, strict=True))]
    return [overrides["/".join(p)] or {} for p in sorted(matching, key=lambda p: -p.count("*"))]


def _narrow(cells: list[dict], chosen: dict[str, list]) -> dict[str, dict]:
    """Run id -> cell, of those that have the chosen values."""
    kept = cells
    for axis, values in chosen.items():
        key = axis.removesuffix("s")
        known = list(dict.fromkeys(str(cell[key]) for cell in cells))
        spelt = [canonical_epsilon(value) if key == "epsilon" else str(value) for value in values]
        if not spelt:
            raise UsageError(f"the axis {axis} is empty: give it at least one value")
        for value in spelt:
            if value not in known:
                raise UsageError(unknown(key, value, known))
        kept = [cell for cell in kept if str(cell[key]) in spelt]
    if not kept:
        raise UsageError(f"no run of the sweep has all of {', '.join(chosen)} as given: widen the selection")
    return {run_id(cell): cell for cell in kept}


def _known(methods: Iterable[str]) -> dict[str, list[str]]:
    return {"tasks": tasks.names(), "models": model_catalogue.names(), "methods": list(methods)}


def _check_axes(axes: dict, known: dict[str, list[str]]) -> None:
    for axis, values in axes.items():
        if not values:
            raise UsageError(f"the axis {axis} is empty: give it at least one value")
        for value in values:
            if axis in known and value not in known[axis]:
                hint = include.hint() if axis in ("tasks", "models") else ""
                raise UsageError(unknown(axis.removesuffix("s"), value, known[axis]) + hint)
    for seed in axes["seeds"]:
        try:
            number(seed, int, SEED)
        except ValueError:
            raise UsageError(f"seed {seed!r} is not a whole number {SEED}: write seeds='[0, 1, 2]'") from None
    for method in axes["methods"]:
        if not re.fullmatch(r"[\w+-][\w.+@-]*", str(method)):
            raise UsageError(f"method {method!r} names no file: write it with letters, digits and . _ + -")
