"""The command line: python -m dpzero VERB.

Each verb prints one JSON object as the last line of standard output. Bad arguments: one line on standard error, status 2.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from pathlib import Path

from .errors import RankFailure, UsageError, unknown
from .experiment import memory_verbs, privacy_verbs

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of a file


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for place in ("data_dir", "model_dir"):
        if getattr(options, place, None):
            os.environ[f"DPZERO_{place.upper()}"] = str(getattr(options, place).absolute())
    try:
        answer = options.verb(options)
    except UsageError as error:
        print(f"dpzero: {error}", file=sys.stderr)
        return 2
    except RankFailure as error:
        print(f"dpzero: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"dpzero: {error.strerror}: make room and run it again; a run goes on where it was",
            file=sys.stderr,
        )
        return 1
    if answer is None:  # another rank answers
        return 0
    print(json.dumps(answer))
    return 0 if answer.get("match", True) else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dpzero", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="one run: a cell in, a record out")
    run.add_argument("--sweep", help="name of the sweep that holds the cell")
    run.add_argument("--cell", metavar="RUN_ID", help="run id, as `cells` lists them")
    run.add_argument("--spec", help="a cell as a JSON file or as JSON text, in place of --sweep and --cell")
    run.add_argument("--out", required=True, type=Path, help="where the record goes")
    run.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    run.add_argument(
        "--device",
        help="cpu, cuda, cuda:1; cuda:0,cuda:1 spreads the layers (default: a free GPU if there is one)",
    )
    run.add_argument(
        "--backend", choices=("gloo", "nccl"), default="gloo", help="what joins ranks that torchrun starts"
    )
    run.add_argument(
        "--rank-timeout", type=float, default=600, metavar="SECONDS", help="for which a rank is waited for"
    )
    run.set_defaults(verb=_run)

    replay = verbs.add_parser("replay", help="a record's weights again, from base model and transcript")
    replay.add_argument("record", type=Path, help="its transcript lies beside it")
    replay.add_argument("--out", type=Path, help="save the trained tensors by name, as safetensors")
    replay.add_argument("--device", help="cpu, cuda, cuda:1 (default: a free GPU if there is one)")
    replay.set_defaults(verb=_replay)

    cells = verbs.add_parser("cells", help="the run ids that a sweep expands to")
    cells.add_argument("--sweep", default="quick")
    cells.set_defaults(verb=_cells)

    cost = verbs.add_parser(
        "estimate", help="device hours, disk and money of a sweep, from measured step times"
    )
    cost.add_argument("--sweep", default="quick")
    cost.add_argument(
        "--gpu", help="a part of the device's name, as in H100 (default: the device with most cells)"
    )
    cost.add_argument("--price", type=float, default=0.0, help="of a device hour, in any currency")
    cost.add_argument("--results", type=Path, default=Path("results"), help="folder of the measured tables")
    cost.set_defaults(verb=_estimate)

    assets = verbs.add_parser("assets", help="download, verify and convert weights and data, once")
    assets.add_argument("names", nargs="*", help="assets (default: those of the sweep)")
    assets.add_argument("--sweep", default="quick")
    assets.add_argument("--tasks", nargs="+", help="in place of the sweep's")
    assets.add_argument("--models", nargs="+", help="in place of the sweep's")
    assets.add_argument("--out", type=Path, help="write what was found, and its digests, to this file")
    assets.set_defaults(verb=_assets)

    for part in (run, replay, cells, assets):
        part.add_argument("--data-dir", type=Path, help="folder of JSON lines, in place of the hub's rows")
        part.add_argument("--model-dir", type=Path, help="folder of models, in place of the hub's")

    words = {"tables": "tables of the records that exist", "figures": "figures of them"}
    words["report"] = "the privacy statement of a sweep, from its records"
    for name, verb in (("tables", _tables), ("figures", _figures), ("report", _report)):
        part = verbs.add_parser(name, help=words[name])
        part.add_argument("--sweep", default="quick")
        part.add_argument(
            "--cells", type=Path, help="file of run ids, one a line (default: all of the sweep)"
        )
        part.add_argument("--records", type=Path, help="folder of the records (default: results/SWEEP/runs)")
        if name != "report":
            part.add_argument("--out", type=Path, required=True)
        part.set_defaults(verb=verb)

    membership = verbs.add_parser("membership", help="membership inference beside the ceiling of the claims")
    membership.add_argument("--task", default="r8")
    membership.add_argument("--model", default="minilm")
    membership.add_argument("--runs", type=int, default=48, help="of each method")
    membership.add_argument("--steps", type=int, default=1000, help="of each run")
    membership.add_argument("--out", type=Path, default=Path("results/membership/tables"))
    membership.add_argument("--figures", type=Path, default=Path("figures/membership"))
    membership.set_defaults(verb=_membership)
    benchmark = verbs.add_parser(
        "benchmark", help="step time and memory of each method over two forward passes"
    )
    benchmark.add_argument("--model", default="roberta-base", help="a shape; its weights are random")
    benchmark.add_argument("--batch-size", type=int, default=16)
    benchmark.add_argument("--length", default="short", help="tokens of each text, or short (sentences)")
    benchmark.add_argument("--token-budget", type=int, default=256, help="padded tokens of a micro-batch")
    benchmark.add_argument("--rows", nargs="+", help="which methods (default: all)")
    benchmark.add_argument("--rounds", type=int, default=7)
    benchmark.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    benchmark.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    benchmark.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    benchmark.add_argument("--out", type=Path, default=Path("results/benchmark/tables"))
    benchmark.add_argument("--figures", type=Path, default=Path("figures/benchmark"))
    benchmark.set_defaults(verb=_benchmark)
    memory_verbs.add(verbs)
    privacy_verbs.add(verbs)
    return parser


def _run(options: argparse.Namespace) -> dict | None:
    cell = _cell(options)
    _use_threads(options.threads)
    from .experiment import gpu, kinds

    kind, ranks = kinds.kind_of(cell), {}
    if options.device is None and kind == kinds.LANGUAGE:
        gpu.lease(gpu.of_this_rank(), log=_say)
    run_cell = kinds.module_of(kind).run_cell  # torch, from here on
    if kind == kinds.LANGUAGE:
        from .zeroth_order.ranks import joined

        ranks["ranks"] = joined(options.backend, options.rank_timeout)
    try:
        made = run_cell(cell, options.out, log=_say, device=options.device, **ranks)
    except gpu.Crowded:
        _say(f"{options.out}: out of memory on a shared GPU, which is no result: again on one of its own")
        gpu.start_again_alone()
    if made is None:
        return None
    answer = {"run": made["run"], "status": made["status"], "record": str(options.out)}
    return answer | {"accuracy": (made["metrics"] or {}).get("accuracy")}


def _replay(options: argparse.Namespace) -> dict:
    _read(options.record)  # before a GPU is waited for
    if options.device is None:
        from .experiment import gpu

        gpu.lease(gpu.visible(), log=_say)
    from .experiment.replay import replay_record  # torch, from here on

    answer = replay_record(options.record, options.out, options.device)
    if not answer["match"]:
        print(
            f"dpzero: the replayed weights are not those of {options.record}: the record was altered, or this code computes otherwise "
            "than that of its run",
            file=sys.stderr,
        )
    return answer


def _cell(options: argparse.Namespace) -> dict:
    from .experiment import sweep

    if options.spec:
        text = options.spec if options.spec.lstrip().startswith("{") else _read(Path(options.spec))
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


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}): give an existing file") from error


def _cells(options: argparse.Namespace) -> dict:
    from .experiment import sweep

    cells = sweep.load(options.sweep)
    print("\n".join(cells))
    return {"sweep": options.sweep, "cells": len(cells)}


def _estimate(options: argparse.Namespace) -> dict:
    from .experiment import estimate, kinds, sweep

    cells = sweep.load(options.sweep)
    if sweep.kind(options.sweep) != kinds.LANGUAGE:
        raise UsageError(
            f"sweep {options.sweep} trains no language model: snakemake -n says how long it takes"
        )
    if options.price < 0:
        raise UsageError(f"--price is {options.price:g}, but a device hour costs at least 0")
    return {"sweep": options.sweep} | estimate.estimate(
        cells.values(), options.results, options.gpu, options.price
    )


def _assets(options: argparse.Namespace) -> dict:
    from .language import prepare

    if options.names:
        return {"assets": prepare.fetch(options.names, log=_say)}
    from .experiment import data, kinds, sweep

    narrowed = {k: v for k, v in (("tasks", options.tasks), ("models", options.models)) if v}
    cells = [c for c in sweep.load(options.sweep, **narrowed).values() if kinds.kind_of(c) == kinds.LANGUAGE]
    read = {(c["task"], c["model"], c["settings"]["max_length"], data.draw_of(c)) for c in cells}
    found = prepare.prepare(sorted(read), log=_say)
    if options.out:
        from .experiment.record import write_whole

        write_whole(options.out, json.dumps(found, indent=1) + "\n")
    return found


def _tables(options: argparse.Namespace) -> dict:
    from .experiment import sweep
    from .report.writing import write_tables

    records, runs = _records(options)
    chosen, kind = sweep.chosen(options.sweep), sweep.kind(options.sweep)
    print(write_tables(kind, records, options.out, options.sweep, runs, chosen))
    return {"tables": str(options.out), "records": len(records), "runs": len(runs)}


def _figures(options: argparse.Namespace) -> dict:
    from .experiment import sweep
    from .report.writing import write_figures

    records, runs = _records(options)
    files = write_figures(sweep.kind(options.sweep), records, options.out, options.sweep, runs)
    return {"figures": [str(file) for file in files], "records": len(records), "runs": len(runs)}


def _report(options: argparse.Namespace) -> dict:
    from .experiment import kinds, sweep
    from .report.statement import statement

    if sweep.kind(options.sweep) != kinds.LANGUAGE:
        raise UsageError(
            f"sweep {options.sweep} trains nothing, so it has no privacy statement: see its tables"
        )
    records, runs = _records(options)
    print(statement(records, options.sweep, runs))
    return {"sweep": options.sweep, "records": len(records), "runs": len(runs)}


def _records(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The record files that exist, of the runs that there should be: an explicit list, never what lies in a folder."""
    from .experiment import sweep

    runs = _read(options.cells).split() if options.cells else list(sweep.load(options.sweep))
    folder = options.records or Path("results") / options.sweep / "runs"
    records = [path for run in runs if (path := folder / f"{run}.json").exists()]
    if not records:
        raise UsageError(
            f"none of the {len(runs)} runs of sweep {options.sweep} has a record in {folder}: run it first"
        )
    return records, runs


def _membership(options: argparse.Namespace) -> dict:
    from .experiment.membership import membership
    from .experiment.record import write_whole
    from .report.membership import write_membership

    game = {"runs": options.runs, "steps": options.steps}
    found = membership(options.task, options.model, **game, log=_say)
    result = options.out / "membership.json"
    write_whole(result, json.dumps(found, indent=1) + "\n")
    files = write_membership(result, options.out, options.figures)
    return {"result": str(result), "files": [str(file) for file in files]}


def _benchmark(options: argparse.Namespace) -> dict:
    _use_threads(options.threads)
    import torch

    from .experiment.benchmark import ROWS, Benchmark
    from .experiment.record import write_whole
    from .report.benchmark import write_benchmark

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"token_budget": options.token_budget, "compute": options.compute, "rounds": options.rounds}
    name = f"{options.model}-{options.batch_size}x{options.length}-{options.compute}-{device.split(':')[0]}"
    result = options.out / f"{name}.json"
    benchmark = Benchmark(
        options.model, options.batch_size, options.length, **settings, device=device, log=_say
    )
    benchmark.run(
        options.rows or list(ROWS), lambda found: write_whole(result, json.dumps(found, indent=1) + "\n")
    )
    files = write_benchmark(result, options.out, options.figures)
    return {"result": str(result), "files": [str(file) for file in files]}


def _use_threads(threads: int) -> None:
    """Before torch is imported."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    count = threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    # two runs on two cores must not spin against each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
