"""The verbs that plan and execute runs: run, replay, cells, estimate, assets, settings."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import imports
from ..errors import UsageError, unknown
from ..files import write_whole
from ..language.data import tasks
from ..language.models import model_catalogue
from ..plan import registry, rehearsal, search, sweep
from ..plan.settings import NOT_NEGATIVE, POSITIVE_COUNT, Range, draw_of
from .options import (
    DEVICE,
    LOCAL_FILES,
    SWEEP,
    THREADS,
    Options,
    device,
    file_to_write,
    flag,
    folder_to_write,
    number_type,
    option,
    positive,
    verb,
)
from .process_setup import log, read_text, use_threads

FREE_GPU = "(default: a free GPU if there is one)"


def axes_options(*names: str) -> Options:
    return {f"--{name}": option(f"use these {name} only", nargs="+") for name in names}


LIMITS: Options = {
    flag(limit): option(f"{entry.help} (its results: NAME-rehearsal)", type=number_type(int, POSITIVE_COUNT))
    for limit, entry in rehearsal.LIMITS.items()
}
NARROWING: Options = axes_options(*sweep.AXES) | LIMITS


def narrowed(options: argparse.Namespace) -> dict[str, Any]:
    """Axis -> its values, and limit of a rehearsal -> number, of those that narrow a sweep."""
    keys = (*sweep.AXES, *rehearsal.LIMITS)
    return {key: value for key in keys if (value := getattr(options, key, None))}


@verb(
    THREADS | LOCAL_FILES,
    sweep=option("name of the sweep that holds the cell"),
    cell=option("run id, as `cells` lists them", metavar="RUN_ID"),
    spec=option("a cell as a JSON file or as JSON text, in place of --sweep and --cell"),
    tries=option("folder of the sweep's records, for a cell whose settings its tries decide", type=Path),
    out=option("file of the record", required=True, type=file_to_write),
    device=option(f"cpu, cuda, cuda:1; cuda:0,cuda:1 spreads the layers {FREE_GPU}", type=device),
    gpus=positive(
        "over how many free GPUs the layers are spread, if there are GPUs and no --device is given", 1
    ),
    backend=option("library that joins ranks of torchrun", "gloo", choices=("gloo", "nccl")),
    rank_timeout=option(
        "how long to wait for another rank",
        600,
        type=number_type(float, Range(0, 10**6, above=True)),
        metavar="SECONDS",
    ),
    compiles=True,
)
def run(options: argparse.Namespace) -> dict | None:
    """Execute one run: read a cell, write a record."""
    cell = _read_cell(options)
    use_threads(options.threads)
    from ..run import gpu_lock

    ranks: dict = {}
    leased, trains = None, sweep.kind_of(cell) == sweep.LANGUAGE
    if trains and options.device is None:
        leased = gpu_lock.lease(gpu_lock.of_this_rank(), log, options.gpus)
    elif trains:
        gpu_lock.lease_all(options.device, log=log)
    module = "run.run" if trains else "studies.run"
    with imports.quickly():
        run_cell = import_module(f"dpzero.{module}").run_cell  # imports torch: after the lease
    if options.device:
        gpu_lock.check(options.device)
    if trains:
        from ..zeroth_order.distributed import join_ranks

        ranks["ranks"] = join_ranks(options.backend, options.rank_timeout)
    place = options.device or gpu_lock.devices(leased)
    try:
        record = run_cell(cell, options.out, log=log, device=place, **ranks)
    except gpu_lock.Crowded:
        log(
            f"{options.out}: out of memory on a shared GPU, which is no result: starting again on an unshared one"
        )
        gpu_lock.start_again_alone()
    if record is None:  # rank 0 writes it
        return None
    answer = {"run": record["run"], "status": record["status"], "record": str(options.out)}
    return answer | {"accuracy": (record["metrics"] or {}).get("accuracy")}


def _read_cell(options: argparse.Namespace) -> dict:
    if options.spec:
        text = options.spec if options.spec.lstrip().startswith("{") else read_text(Path(options.spec))
        try:
            return sweep.complete(_decided(json.loads(text), options.tries))
        except json.JSONDecodeError as error:
            raise UsageError(f"--spec is not JSON ({error}): give a cell as a file or as text") from error
    if not (options.sweep and options.cell):
        raise UsageError("run needs --sweep and --cell, or --spec")
    cells = sweep.load(options.sweep)
    if options.cell not in cells:
        raise UsageError(unknown(f"cell of sweep {options.sweep}", options.cell, cells))
    return _decided(cells[options.cell], options.tries)


def _decided(cell: Any, tries: Path | None) -> Any:
    """The cell with the settings that its tries decide for, if it has any."""
    if not isinstance(cell, dict) or not search.try_ids(cell):
        return cell
    if tries is None:
        raise UsageError(
            "the settings of this cell are searched for: give the folder of its tries as --tries"
        )
    return search.decide(cell, tries)


@verb(
    {"record": option("a record; its transcript is in the same folder", type=Path)} | LOCAL_FILES,
    out=option("save the trained tensors by name, as safetensors", type=file_to_write),
    device=option(f"cpu, cuda, cuda:1 {FREE_GPU}", type=device),
    compiles=True,
)
def replay(options: argparse.Namespace) -> dict:
    """Rebuild the final weights of a record from base model and transcript."""
    from ..run import gpu_lock

    _check_names(options.record)  # before waiting for a GPU
    if options.device is None:
        gpu_lock.lease(gpu_lock.visible(), log=log)
    from ..run.replay import replay_record  # imports torch: after the lease

    if options.device is not None:
        gpu_lock.check(options.device)
    answer = replay_record(options.record, options.out, options.device)
    if not answer["match"]:
        log(
            f"dpzero: the replayed weights are not those of {options.record}: the record was altered, or this "
            "code computes otherwise than that of its run"
        )
    return answer


@verb(
    {"record": option("a record of a zeroth-order method; its transcript is in the same folder", type=Path)}
    | DEVICE
    | LOCAL_FILES,
    out=option("new folder for the model", type=folder_to_write, required=True),
    compiles=True,
)
def export(options: argparse.Namespace) -> dict:
    """Write the fine-tuned model of a record as transformers reads it, with a model card."""
    from ..report.model_card import model_card
    from ..run.export import export

    _check_names(options.record)
    exported = export(options.record, options.out, options.device)
    card = model_card(options.record, exported["record"], exported["usage"])
    write_whole(options.out / "README.md", card)
    return {"model": str(options.out), "run": exported["record"]["run"]}


def _check_names(record: Path) -> None:
    """Raise UsageError for a record that is not there, or whose task, model or method is in no included folder."""
    try:
        cell = json.loads(read_text(record))["cell"]
        named = {
            kind: str(cell[key]) for kind, key in (("task", "task"), ("model", "model"), ("method", "use"))
        }
    except (ValueError, LookupError, TypeError):
        return  # who reads the record says what is wrong with it
    known = {"task": tasks.names(), "model": model_catalogue.names(), "method": registry.cards()}
    for kind, name in named.items():
        if name not in known[kind]:
            raise UsageError(
                f"{record} is of the {kind} {name}, which is neither built in nor included: give the folder that has it"
                " as --include"
            )


@verb(
    SWEEP | NARROWING | LOCAL_FILES,
    out=option("file for them (default: standard output)", type=file_to_write),
)
def cells(options: argparse.Namespace) -> dict:
    """List the run ids of a sweep."""
    runs = _load_sweep(options)
    if options.out:
        write_whole(options.out, "\n".join(runs) + "\n")
    else:
        print("\n".join(runs))
    return {"sweep": options.sweep, "cells": len(runs)}


@verb(
    SWEEP,
    gpu=option("a part of the device's name, as in H100 (default: the device with most cells)"),
    price=option("price of a device hour, in any currency", 0.0, type=number_type(float, NOT_NEGATIVE)),
    results=option("folder of the measured tables", Path("results"), type=Path),
)
def estimate(options: argparse.Namespace) -> dict:
    """Estimate device hours, disk and cost of a sweep from measured step times, else from its operations."""
    from . import estimate

    cells = list(sweep.load(options.sweep).values())
    cost = estimate.estimate(options.sweep, cells, options.results, options.gpu, options.price)
    return {"sweep": options.sweep} | cost


@verb(
    {"names": option("names of assets (default: all that the sweep needs)", nargs="*")}
    | SWEEP
    | axes_options("tasks", "models")
    | LIMITS
    | LOCAL_FILES,
    out=option("file for the digests and token counts", type=file_to_write),
)
def assets(options: argparse.Namespace) -> dict:
    """Download, verify and convert weights and data, once."""
    from ..language import prefetch

    if options.names:
        return {"assets": prefetch.fetch(options.names, log=log)}
    cells = [c for c in _load_sweep(options).values() if sweep.kind_of(c) == sweep.LANGUAGE]
    needed = {(c["task"], c["model"], c["settings"]["max_length"], draw_of(c)) for c in cells}
    prepared = prefetch.prefetch(sorted(needed), log=log)
    if options.out:
        write_whole(options.out, json.dumps(prepared, indent=1) + "\n")
    return prepared


def _load_sweep(options: argparse.Namespace) -> dict[str, dict]:
    """The cells of the sweep, narrowed by what was given."""
    return sweep.load(options.sweep, **narrowed(options))


@verb()
def settings(options: argparse.Namespace) -> dict:
    """List every setting of a cell: type, default, allowed values, meaning."""
    from ..plan import settings

    print(settings.markdown())
    return {"settings": len(list(settings.rows()))}
