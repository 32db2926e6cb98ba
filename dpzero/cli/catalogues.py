"""The verbs about what a sweep can name: list; new, which begins a task of one's own; croissant."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import yaml

from ..errors import UsageError
from ..files import write_whole
from ..language.data import new_task, tasks
from ..language.models import model_catalogue
from ..plan import registry
from ..plan import sweep as sweeps
from .options import INCLUDE, LOCAL_FILES, SWEEP, folder_to_write, option, verb
from .process_setup import log

KINDS = ("tasks", "models", "methods", "sweeps")
HEADING = """\
# Tasks of your own. `words` describes each label to an encoder, and is a causal model's answer unless `answers` lists others.
# `prompt` is what a causal model reads, with {text} in it; `max_length` is in tokens; `files` may be {train: ..., test: ...}.
"""


@verb({"kind": option("what to list", choices=KINDS)} | INCLUDE)
def list(options: argparse.Namespace) -> dict:
    """List the tasks, models, methods or sweeps that there are, a line each."""
    lines = dict(_lines(options.kind))
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:{width}}  {line}")
    return {options.kind: len(lines)}


def _lines(kind: str) -> Iterator[tuple[str, str]]:
    """(name, what it is) of everything of a kind."""
    if kind == "tasks":
        for name in tasks.names():
            stanza = tasks.CATALOGUE[name]
            classes = f"{len(stanza['words'])} classes" if "words" in stanza else "free answers"
            yield name, f"{stanza['title']}: {classes}, {stanza['source']}"
    elif kind == "models":
        for name in model_catalogue.names():
            stanza = model_catalogue.stanza(name)
            yield name, f"{stanza['title']}: {stanza['kind']}"
    elif kind == "methods":
        for name, card in registry.cards().items():
            private = "private" if card.private else "not private"
            order = {0: "forward passes", 1: "gradients", None: "no training"}[card.order]
            needed = ", ".join(sorted(card.required)) or "nothing"
            yield name, f"{card.title}: {private}, {order}; must be given {needed}"
    else:
        for name in sweeps.names():
            description = str(sweeps.read(name).get("description", "")).strip()
            yield name, description.split(". ")[0].split(": ")[0].rstrip(".")


@verb(
    {
        "kind": option("what to begin", choices=("task",)),
        "name": option("its name"),
        "--from": option(
            "file of labelled rows: CSV, TSV, JSON lines or Parquet",
            type=Path,
            required=True,
            dest="rows",
            metavar="FILE",
        ),
    },
    text=option("text columns (default: the one with the longest texts)", nargs="+"),
    label=option("label column (default: the one with the fewest different values)", ""),
    out=option("folder of tasks.yaml, to include", Path(), type=folder_to_write),
)
def new(options: argparse.Namespace) -> dict:
    """Begin a task of your own: write a stanza to edit, from a file of labelled rows."""
    file = options.out / "tasks.yaml"
    stanza, _ = new_task.stanza_from(options.rows, options.text or (), options.label)
    rows, folder = options.rows.absolute(), options.out.absolute()
    if rows.is_relative_to(folder):  # so that the folder can be moved
        stanza["files"] = str(rows.relative_to(folder))
    before = file.read_text("utf-8") if file.exists() else HEADING
    if options.name in (yaml.safe_load(before) or {}) or options.name in tasks.CATALOGUE.built_in:
        raise UsageError(f"there is a task {options.name} already: give another name")
    write_whole(file, f"{before}\n{as_yaml({options.name: stanza})}")
    if warning := new_task.bare_numbers(stanza["words"]):
        log(f"dpzero: task {options.name}: {warning}")
    return {"task": options.name, "file": str(file), "labels": len(stanza["words"])}


@verb(
    {"task": option("name of the task")} | LOCAL_FILES,
    out=option("folder for the files", type=folder_to_write, required=True),
)
def croissant(options: argparse.Namespace) -> dict:
    """Write the rows of a task as JSON lines with Croissant metadata."""
    from ..language.data import assets
    from . import croissant

    assets.ensure(tasks.assets_of(options.task), log=log)
    return {"task": options.task, "rows": croissant.write(options.task, options.out)}


@verb(
    SWEEP,
    out=option("folder for them: the model_dir of the rehearsal", type=folder_to_write, required=True),
)
def stand_ins(options: argparse.Namespace) -> dict:
    """Write small models with random weights in the place of a sweep's, to rehearse it without a hub."""
    from ..language.models import stand_ins

    models = {cell["model"] for cell in sweeps.load(options.sweep).values() if "use" in cell}
    of_the_hub = {name: hub for name in models if (hub := model_catalogue.stanza(name).get("hub"))}
    if not of_the_hub:
        raise UsageError(f"sweep {options.sweep} has no model of a hub: rehearse it with its own models")
    for name, hub in sorted(of_the_hub.items()):
        stand_ins.write(name, options.out / hub.rpartition("/")[2])
    return {"model_dir": str(options.out), "models": sorted(of_the_hub)}


def as_yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
