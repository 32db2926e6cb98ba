"""The verb that compares methods on rows and a model of one's own: it writes a sweep from compare.yaml and runs it."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import UsageError, unknown
from ..files import write_whole
from ..language.data import new_task
from ..language.models import model_catalogue
from ..plan import registry, search
from ..plan.settings import DELTA, Range
from .catalogues import as_yaml
from .options import DEVICE, LOCAL_FILES, folder_to_write, number_type, option, positive, verb
from .process_setup import log
from .workflow import run_snakemake

TRIES = Range(1, 6)


@verb(
    LOCAL_FILES | DEVICE,
    data=option("file of labelled rows: CSV, TSV, JSON lines or Parquet", type=Path, required=True),
    text=option("text columns (default: the one with the longest texts)", nargs="+"),
    label=option("label column (default: the one with the fewest different values)", ""),
    words=option("description of each label, as VALUE=WORDS (default: the values)", nargs="+"),
    model=option(
        "a folder that save_pretrained wrote, a name on the hub, or one that is listed", required=True
    ),
    epsilon=option("privacy budgets", ("2", "8"), nargs="+"),
    methods=option("methods", ("zero_shot", "dpzero", "dp_sgd"), nargs="+"),
    tune=option("what is trained", "head", choices=("head", "bias", "full")),
    steps=positive("steps of a zeroth-order method; first order takes a tenth", 2000),
    batch_size=positive("expected batch size", 32),
    delta=option(
        "of (epsilon, delta) (default: the largest power of ten below 1 / rows)",
        type=number_type(float, DELTA),
    ),
    tries=option(
        "settings tried for each method and epsilon, spread over a grid of six",
        TRIES.most,
        type=number_type(int, TRIES),
    ),
    seeds=option("reported seeds", ("0", "1", "2"), nargs="+"),
    out=option(
        "folder for the sweep; its name is that of the results", Path("comparison"), type=folder_to_write
    ),
    cores=option("CPU cores", "all"),
    dry_run=option(
        "write the sweep, and only say how many runs it has and what they cost", action="store_true"
    ),
)
def compare(options: argparse.Namespace) -> NoReturn:
    """Compare methods on rows and a model of your own: writes a sweep and runs it."""
    folder = options.out
    if not options.data.is_file():
        raise UsageError(f"there is no file {options.data}: correct --data")
    stanza, rows = new_task.stanza_from(options.data, options.text or (), options.label)
    stanza["words"] |= _words(options.words or (), stanza["words"])
    write_whole(folder / "tasks.yaml", as_yaml({folder.name: stanza}))
    model, listed = options.model, model_catalogue.names()
    if model.lower() in listed and model not in listed:
        raise UsageError(unknown("model", model, listed))
    if model not in listed:
        model = Path(options.model).name
        place = str(path.absolute()) if (path := Path(options.model).expanduser()).is_dir() else options.model
        models = {model: {"kind": _kind_of(place, listed), "path": place, "title": model}}
        write_whole(folder / "models.yaml", as_yaml(models))
    sweep = _comparison(options, model, folder.name, rows)
    write_whole(folder / f"{folder.name}.yaml", as_yaml(sweep))
    log(f"dpzero: {folder / folder.name}.yaml is the sweep, to edit and to run again: python -m dpzero sweep")
    run_snakemake(str(folder / f"{folder.name}.yaml"), options, {})


def _kind_of(place: str, listed: Sequence[str]) -> str:
    """As which kind a model is read. Raises UsageError, with a listed name that is near, for one that cannot be read."""
    try:
        return model_catalogue.kind_of(place)
    except UsageError as error:
        near = difflib.get_close_matches(place, listed, n=1, cutoff=0.8)
        raise UsageError(
            f"{error}" + (f"; did you mean {near[0]!r}, which is listed?" if near else "")
        ) from None


def _words(given: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """VALUE=WORDS -> {value: words}."""
    words = dict(text.partition("=")[::2] for text in given)
    for value, description in words.items():
        if value not in known or not description:
            raise UsageError(f"--words {value}={description}: {unknown('label', value, known)}")
    if missing := [value for value in known if words and value not in words]:
        raise UsageError(
            f"--words says nothing of the labels {', '.join(missing)}: describe each label, or none"
        )
    return words


def _comparison(options: argparse.Namespace, model: str, task: str, rows: int) -> dict[str, Any]:
    """The sweep: compare.yaml narrowed to these methods, with their tries and a delta below 1 / rows."""
    plan = yaml.safe_load(Path(__file__).with_name("compare.yaml").read_text("utf-8"))
    grids, known = plan.pop("grids")[options.tune], plan["methods"]
    methods = {}
    for name in options.methods:
        if name not in known and name in registry.cards():
            raise UsageError(
                f"compare knows no settings to try for method {name}: write a sweep with its grid"
            )
        if name not in known:
            raise UsageError(unknown("method of a comparison", name, known))
        stanza = dict(known[name])
        order = stanza.pop("order", None)
        steps = {None: 0, 0: options.steps, 1: max(1, options.steps // 10)}[order]
        stanza |= {"steps": steps, "evaluate_every": max(1, steps // 4)} if steps else {}
        methods[name] = stanza | ({"grid": spread(name, grids[name], options.tries)} if name in grids else {})
    delta = options.delta if options.delta is not None else 10.0 ** math.floor(-math.log10(rows) - 1e-9)
    settings = {"tune": options.tune, "steps": options.steps, "learning_rate": 1e-3, "delta": delta}
    settings |= plan["settings"] | {"batch_size": options.batch_size}
    plan["search"]["tries"] = options.tries
    plan["selection"] = plan["selection"].format(tries=options.tries)
    axes = {
        "tasks": [task],
        "models": [model],
        "epsilons": list(options.epsilon),
        "seeds": [int(s) for s in options.seeds],
    }
    return plan | {"include": ["."], **axes, "settings": settings, "methods": methods}


def spread(method: str, grid: object, tries: int) -> list[dict[str, Any]]:
    """So many points of a grid, evenly spread over their order."""
    points = list(search.points(method, grid).values())
    return [points[(2 * i + 1) * len(points) // (2 * tries)] for i in range(tries)]
