"""The verbs of the command line that make runs: run, replay, cells, estimate, assets. torch is imported when one needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError, unknown
from ..plan.settings import NOT_NEGATIVE, Range
from .options import device, file_to_write, folder_to_read, real, whole

AXES = ("tasks", "models", "methods", "epsilons", "seeds")


def add(verbs) -> None:
    """To the subparsers of the command line."""
    for part in (_add_run(verbs), _add_replay(verbs), _add_cells(verbs), _add_assets(verbs)):
        part.add_argument(
            "--data-dir", type=folder_to_read, help="folder of JSON lines, in place of the hub's rows"
        )
        part.add_argument("--model-dir", type=folder_to_read, help="folder of models, in place of the hub's")
    _add_estimate(verbs)
    settings = verbs.add_parser(
        "settings", help="every setting of a cell: type, default, what is allowed, what it does"
    )
    settings.set_defaults(verb=_settings)


def _add_run(verbs) -> argparse.ArgumentParser:
    run = verbs.add_parser("run", help="one run: a cell in, a record out")
    run.add_argument("--sweep", help="name of the sweep that holds the cell")
    run.add_argument("--cell", metavar="RUN_ID", help="run id, as `cells` lists them")
    run.add_argument("--spec", help="a cell as a JSON file or as JSON text, in place of --sweep and --cell")
    run.add_argument("--out", required=True, type=file_to_write, help="where the record goes")
    run.add_argument("--threads", type=whole(Range(0, 4096)), default=0, help="CPU threads; 0: all")
    run.add_argument(
        "--device",
        type=device,
        help="cpu, cuda, cuda:1; cuda:0,cuda:1 spreads the layers (default: a free GPU if there is one)",
    )
    run.add_argument(
        "--backend", choices=("gloo", "nccl"), default="gloo", help="what joins ranks that torchrun starts"
    )
    run.add_argument(
        "--rank-timeout",
        type=real(Range(0, 10**6, above=True)),
        default=600,
        metavar="SECONDS",
        help="for which a rank is waited for",
    )
    run.set_defaults(verb=_run)
    return run


def _add_replay(verbs) -> argparse.ArgumentParser:
    replay = verbs.add_parser("replay", help="a record's weights again, from base model and transcript")
    replay.add_argument("record", type=Path, help="its transcript lies beside it")
    replay.add_argument("--out", type=file_to_write, help="save the trained tensors by name, as safetensors")
    replay.add_argument(
        "--device", type=device, help="cpu, cuda, cuda:1 (default: a free GPU if there is one)"
    )
    replay.set_defaults(verb=_replay)
    return replay


def _add_cells(verbs) -> argparse.ArgumentParser:
    cells = verbs.add_parser("cells", help="the run ids that a sweep expands to")
    cells.add_argument("--sweep", default="quick", help="its name")
    for axis in AXES:
        cells.add_argument(f"--{axis}", nargs="+", help="in place of the sweep's")
    cells.add_argument(
        "--out", type=file_to_write, help="write them to this file (default: to standard output)"
    )
    cells.set_defaults(verb=_cells)
    return cells


def _add_estimate(verbs) -> None:
    cost = verbs.add_parser(
        "estimate", help="device hours, disk and money of a sweep, from measured step times"
    )
    cost.add_argument("--sweep", default="quick", help="its name")
    cost.add_argument(
        "--gpu", help="a part of the device's name, as in H100 (default: the device with most cells)"
    )
    cost.add_argument(
        "--price", type=real(NOT_NEGATIVE), default=0.0, help="of a device hour, in any currency"
    )
    cost.add_argument("--results", type=Path, default=Path("results"), help="folder of the measured tables")
    cost.set_defaults(verb=_estimate)


def _add_assets(verbs) -> argparse.ArgumentParser:
    assets = verbs.add_parser("assets", help="download, verify and convert weights and data, once")
    assets.add_argument("names", nargs="*", help="assets (default: those of the sweep)")
    assets.add_argument("--sweep", default="quick", help="whose tasks and models are wanted")
    assets.add_argument("--tasks", nargs="+", help="in place of the sweep's")
    assets.add_argument("--models", nargs="+", help="in place of the sweep's")
    assets.add_argument(
        "--out", type=file_to_write, help="write what was found, and its digests, to this file"
    )
    assets.set_defaults(verb=_assets)
    return assets


def _run(options: argparse.Namespace) -> dict | None:
    cell = _cell(options)
    use_threads(options.threads)
    from ..plan import experiment_types
    from ..run import gpu_lock

    kind, ranks = experiment_types.kind_of(cell), {}
    if kind == experiment_types.LANGUAGE:
        if options.device is None:
            gpu_lock.lease(gpu_lock.of_this_rank(), log=say)
        else:
            gpu_lock.lease_all(options.device, log=say)
    run_cell = _run_cell(kind)  # torch, from here on
    if options.device:
        gpu_lock.check(options.device)
    if kind == experiment_types.LANGUAGE:
        from ..zeroth_order.distributed import joined

        ranks["ranks"] = joined(options.backend, options.rank_timeout)
    try:
        made = run_cell(cell, options.out, log=say, device=options.device, **ranks)
    except gpu_lock.Crowded:
        say(f"{options.out}: out of memory on a shared GPU, which is no result: again on one of its own")
        gpu_lock.start_again_alone()
    if made is None:
        return None
    answer = {"run": made["run"], "status": made["status"], "record": str(options.out)}
    return answer | {"accuracy": (made["metrics"] or {}).get("accuracy")}


def _run_cell(kind: str) -> Callable[..., dict | None]:
    """The function that runs cells of this kind."""
    if kind == "memory":
        from ..studies.memory import run_cell
    elif kind == "guarantees":
        from ..studies.guarantees import run_cell
    elif kind == "quadratic":
        from ..studies.quadratic import run_cell
    else:
        from ..run.run import run_cell
    return run_cell


def _replay(options: argparse.Namespace) -> dict:
    read(options.record)  # before a GPU is waited for
    if options.device is None:
        from ..run import gpu_lock

        gpu_lock.lease(gpu_lock.visible(), log=say)
    from ..run.replay import replay_record  # torch, from here on

    if options.device is not None:
        from ..run import gpu_lock

        gpu_lock.check(options.device)
    answer = replay_record(options.record, options.out, options.device)
    if not answer["match"]:
        print(
            f"dpzero: the replayed weights are not those of {options.record}: the record was altered, or this code computes otherwise "
            "than that of its run",
            file=sys.stderr,
        )
    return answer


def _cell(options: argparse.Namespace) -> dict:
    from ..plan import sweep

    if options.spec:
        text = options.spec if options.spec.lstrip().startswith("{") else read(Path(options.spec))
        try:
            return sweep.complete(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(f"--spec is not JSON ({error}): give a cell as a file or as text") from error
    if not (options.sweep and options.cell):
        raise UsageError("run needs --sweep and --cell, or --spec")
    cells = sweep.load(options.sweep)
    if options.cell not in cells:
        raise UsageError(unknown(f"cell of sweep {options.sweep}", options.cell, cells))
    return cells[options.cell]


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}): give an existing file") from error
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {path} (no UTF-8 text): save it as UTF-8") from None


def _cells(options: argparse.Namespace) -> dict:
    from ..plan import sweep

    narrowed = {axis: values for axis in AXES if (values := getattr(options, axis))}
    cells = sweep.load(options.sweep, **narrowed)
    if options.out:
        from ..files import write_whole

        write_whole(options.out, "\n".join(cells) + "\n")
    else:
        print("\n".join(cells))
    return {"sweep": options.sweep, "cells": len(cells)}


def _settings(options: argparse.Namespace) -> dict:
    from ..plan import settings

    print(settings.markdown())
    return {"settings": len(list(settings.rows()))}


def _estimate(options: argparse.Namespace) -> dict:
    from ..plan import estimate, experiment_types, sweep

    cells = sweep.load(options.sweep)
    if sweep.kind(options.sweep) != experiment_types.LANGUAGE:
        raise UsageError(
            f"sweep {options.sweep} trains no language model: snakemake -n says how long it takes"
        )
    return {"sweep": options.sweep} | estimate.estimate(
        cells.values(), options.results, options.gpu, options.price
    )


def _assets(options: argparse.Namespace) -> dict:
    from ..language.data import prepare

    if options.names:
        return {"assets": prepare.fetch(options.names, log=say)}
    from ..plan import experiment_types, sweep
    from ..plan.cell import draw_of

    narrowed = {k: v for k, v in (("tasks", options.tasks), ("models", options.models)) if v}
    cells = [
        c
        for c in sweep.load(options.sweep, **narrowed).values()
        if experiment_types.kind_of(c) == experiment_types.LANGUAGE
    ]
    read = {(c["task"], c["model"], c["settings"]["max_length"], draw_of(c)) for c in cells}
    found = prepare.prepare(sorted(read), log=say)
    if options.out:
        from ..files import write_whole

        write_whole(options.out, json.dumps(found, indent=1) + "\n")
    return found


def use_cache() -> None:
    """What numba compiles is kept in our cache, too: an installation may be read-only. Before numba is imported.

    Raises UsageError for a cache that cannot be written.
    """
    from ..language.data.assets import cache_folder

    folder = cache_folder() / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {cache_folder()} ({error.strerror}): set $DPZERO_CACHE to a writable folder"
        ) from None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


def use_threads(threads: int) -> None:
    """Before torch is imported."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    count = threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    # two runs on two cores must not spin against each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def say(line: str) -> None:
    """Progress. Standard output is for answers."""
    print(line, file=sys.stderr, flush=True)
