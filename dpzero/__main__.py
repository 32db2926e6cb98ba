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

from . import __version__
from .cli import invariance, memory, privacy, runs
from .cli.options import Parser, device, folder_to_write, whole
from .cli.runs import read, say, use_cache, use_threads
from .errors import RankFailure, UsageError, let_every_print_pass, one_line
from .plan.settings import POSITIVE_COUNT, Range
from .run.record import plain

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of a file
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
STEPPING = (
    "run",
    "replay",
    "membership",
    "benchmark",
    "audit",
    "measure-memory",
)  # verbs that take steps, with compiled code
NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def main(arguments: list[str] | None = None) -> int:
    let_every_print_pass()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.name is None:
        parser.print_help(sys.stderr)
        return 2
    for place in ("data_dir", "model_dir"):
        if getattr(options, place, None):
            os.environ[f"DPZERO_{place.upper()}"] = str(getattr(options, place).absolute())
    try:
        if options.name in STEPPING:
            use_cache()
        answer = options.verb(options)
        if answer is not None:  # else another rank answers
            print(json.dumps(plain(answer), allow_nan=False), flush=True)
    except UsageError as error:
        return _say(error, 2)
    except RankFailure as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        goes_on = (
            "the same command goes on from the last checkpoint"
            if options.name == "run"
            else "nothing was finished"
        )
        return _say(f"interrupted: {goes_on}", INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(_of_the_system(error), 1 if error.errno in FULL else 2)
    return 0 if answer is None or answer.get("match", True) else 1


def _say(words: object, status: int) -> int:
    print(one_line(f"dpzero: {words}"), file=sys.stderr, flush=True)
    return status


def _of_the_system(error: OSError) -> str:
    """One line for what a user can mend. Raises the error again for anything else: a bug."""
    if error.errno in FULL:
        return f"{error.strerror}: make room and run it again; a run goes on where it was"
    if error.errno in NO_PATH:
        return f"{error.strerror}: {error.filename}: give another path"
    if error.errno in DENIED:
        return f"{error.strerror}: {error.filename}: give a place that you may write, for the cache as $DPZERO_CACHE"
    raise error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dpzero", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"dpzero {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="name")
    runs.add(verbs)
    _add_reports(verbs)
    _add_measurements(verbs)
    memory.add(verbs)
    privacy.add(verbs)
    invariance.add(verbs)
    return parser


def _add_reports(verbs) -> None:
    words = {"tables": "tables of the records that exist", "figures": "figures of them"}
    words["report"] = "the privacy statement of a sweep, from its records"
    for name, verb in (("tables", _tables), ("figures", _figures), ("report", _report)):
        part = verbs.add_parser(name, help=words[name])
        part.add_argument("--sweep", default="quick", help="its name")
        part.add_argument(
            "--cells", type=Path, help="file of run ids, one a line (default: all of the sweep)"
        )
        part.add_argument("--records", type=Path, help="folder of the records (default: results/SWEEP/runs)")
        if name != "report":
            part.add_argument("--out", type=folder_to_write, required=True, help="folder that they go to")
        part.set_defaults(verb=verb)


def _add_measurements(verbs) -> None:
    membership = verbs.add_parser("membership", help="membership inference beside the ceiling of the claims")
    membership.add_argument("--task", default="r8", help="whose rows are members or not")
    membership.add_argument("--model", default="minilm", help="what is trained")
    membership.add_argument("--runs", type=whole(POSITIVE_COUNT), default=48, help="of each method")
    membership.add_argument("--steps", type=whole(POSITIVE_COUNT), default=1000, help="of each run")
    _add_folders(membership, "membership")
    membership.set_defaults(verb=_membership)
    benchmark = verbs.add_parser(
        "benchmark", help="step time and memory of each method over two forward passes"
    )
    benchmark.add_argument("--model", default="roberta-base", help="a shape; its weights are random")
    benchmark.add_argument("--batch-size", type=whole(POSITIVE_COUNT), default=16, help="texts of a step")
    benchmark.add_argument(
        "--length", default="short", help="tokens of each text, or short: those of sentences"
    )
    benchmark.add_argument(
        "--token-budget", type=whole(POSITIVE_COUNT), default=256, help="padded tokens of a micro-batch"
    )
    benchmark.add_argument("--rows", nargs="+", help="which methods (default: all)")
    benchmark.add_argument(
        "--rounds", type=whole(POSITIVE_COUNT), default=7, help="of which the median counts"
    )
    benchmark.add_argument(
        "--compute", choices=("float32", "bfloat16"), default="float32", help="type of matrix products"
    )
    benchmark.add_argument("--threads", type=whole(Range(0, 4096)), default=0, help="CPU threads; 0: all")
    benchmark.add_argument("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    _add_folders(benchmark, "benchmark")
    benchmark.set_defaults(verb=_benchmark)


def _add_folders(part: argparse.ArgumentParser, name: str) -> None:
    tables, figures = f"results/{name}/tables", f"figures/{name}"
    part.add_argument("--out", type=folder_to_write, default=tables, help="folder of the tables")
    part.add_argument("--figures", type=folder_to_write, default=figures, help="folder of the figures")


def _tables(options: argparse.Namespace) -> dict:
    from .plan import sweep
    from .report.writing import write_tables

    records, runs = _records(options)
    chosen, kind = sweep.chosen(options.sweep), sweep.kind(options.sweep)
    print(write_tables(kind, records, options.out, options.sweep, runs, chosen))
    return {"tables": str(options.out), "records": len(records), "runs": len(runs)}


def _figures(options: argparse.Namespace) -> dict:
    from .plan import sweep
    from .report.writing import write_figures

    records, runs = _records(options)
    files = write_figures(sweep.kind(options.sweep), records, options.out, options.sweep, runs)
    return {"figures": [str(file) for file in files], "records": len(records), "runs": len(runs)}


def _report(options: argparse.Namespace) -> dict:
    from .plan import experiment_types, sweep
    from .report.statement import statement

    if sweep.kind(options.sweep) != experiment_types.LANGUAGE:
        raise UsageError(
            f"sweep {options.sweep} trains nothing, so it has no privacy statement: see its tables"
        )
    records, runs = _records(options)
    print(statement(records, options.sweep, runs))
    return {"sweep": options.sweep, "records": len(records), "runs": len(runs)}


def _records(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The record files that exist, of the runs that there should be: an explicit list, never what lies in a folder."""
    from .plan import sweep

    runs = read(options.cells).split() if options.cells else list(sweep.load(options.sweep))
    folder = options.records or Path("results") / options.sweep / "runs"
    records = [path for run in runs if (path := folder / f"{run}.json").exists()]
    if not records:
        raise UsageError(
            f"none of the {len(runs)} runs of sweep {options.sweep} has a record in {folder}: run it first"
        )
    return records, runs


def _membership(options: argparse.Namespace) -> dict:
    from .files import write_whole
    from .report.writing import write_study
    from .studies.membership import membership

    game = {"runs": options.runs, "steps": options.steps}
    found = membership(options.task, options.model, **game, log=say)
    result = options.out / "membership.json"
    write_whole(result, json.dumps(found, indent=1) + "\n")
    files = write_study("membership", result, options.out, options.figures)
    return {"result": str(result), "files": [str(file) for file in files]}


def _benchmark(options: argparse.Namespace) -> dict:
    use_threads(options.threads)
    import torch

    from .files import write_whole
    from .report.writing import write_study
    from .run import gpu_lock
    from .studies.benchmark import ROWS, Benchmark

    gpu_lock.check(options.device or "cpu")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"token_budget": options.token_budget, "compute": options.compute, "rounds": options.rounds}
    name = f"{options.model}-{options.batch_size}x{options.length}-{options.compute}-{device.split(':')[0]}"
    result = options.out / f"{name}.json"
    benchmark = Benchmark(
        options.model, options.batch_size, options.length, **settings, device=device, log=say
    )
    benchmark.run(
        options.rows or list(ROWS), lambda found: write_whole(result, json.dumps(found, indent=1) + "\n")
    )
    files = write_study("benchmark", result, options.out, options.figures)
    return {"result": str(result), "files": [str(file) for file in files]}


if __name__ == "__main__":
    sys.exit(main())
