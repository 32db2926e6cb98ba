"""The verbs of studies that are no sweeps: doctor, membership, contextual-protection, benchmark, invariance, study."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from ..errors import UsageError
from ..files import write_whole
from ..plan.settings import FACTOR, POSITIVE_COUNT, TUNES, Range
from .options import (
    COMPUTE,
    DEVICE,
    LOCAL_FILES,
    THREADS,
    Options,
    folder_to_read,
    folder_to_write,
    number_type,
    option,
    positive,
    verb,
)
from .process_setup import log, use_threads


def _folders(name: str) -> Options:
    tables, figures = f"results/{name}/tables", f"figures/{name}"
    return {
        "--out": option("folder of the tables", tables, type=folder_to_write),
        "--figures": option("folder of the figures", figures, type=folder_to_write),
    }


@verb(
    DEVICE,
    minutes=option(
        "for the whole; what does not begin in time is left out", 8.0, type=number_type(float, FACTOR)
    ),
    out=option("folder of the results", "results/doctor", type=folder_to_write),
    figures=option("folder of the figures", "figures/doctor", type=folder_to_write),
    pack=option(
        "write all that this verb reads into a folder, for a machine without a package index",
        type=folder_to_write,
    ),
    packed=option("folder that --pack wrote", type=folder_to_read),
    compiles=True,
)
def doctor(options: argparse.Namespace) -> dict:
    """Examine this machine: packages, kernels, step time, memory and learning, in some minutes."""
    if options.pack:
        from ..studies.doctor.pack import pack

        sizes = pack(options.pack, log)
        return {"folder": str(options.pack), "files": len(sizes), "bytes": sum(sizes.values())}
    import torch

    from ..report import doctor as report
    from ..run import gpu_lock
    from ..studies.doctor import study
    from ..studies.doctor.machine import Machine

    gpu_lock.check(options.device or "cpu")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = Machine(device, options.minutes, options.out, options.figures, options.packed, log)
    study.examine(machine)
    files = report.write(options.out / "doctor.json", options.out / "tables")
    print(files[0].read_text("utf-8"))
    return {"result": str(options.out / "doctor.json"), "files": [str(path) for path in files]}


@verb(
    _folders("membership"),
    task=option("task whose texts are members or not", "r8"),
    model=option("model that is trained", "minilm"),
    tune=option("parameters that are trained", ("head",), nargs="+", choices=("head", "lora", "full")),
    methods=option(
        "method files",
        ("mezo", "fine_tuning", "dpzero"),
        nargs="+",
        choices=("mezo", "fine_tuning", "dpzero", "dp_sgd"),
    ),
    epsilon=option(
        "claims of the private methods (default: 6 2 1)", nargs="+", type=number_type(float, FACTOR)
    ),
    pool=positive("texts that may be members", 400),
    runs=positive("runs of each method", 48),
    steps=positive("steps of each run", 1000),
    rate=option("probability that a member is in a batch", 0.5, type=number_type(float, FACTOR)),
    max_length=option("tokens of a text (default: the task's)", type=number_type(int, POSITIVE_COUNT)),
    dev=option("texts of the dev split (default: all)", type=number_type(int, POSITIVE_COUNT)),
    processes=option("processes (default: one a core)", type=number_type(int, POSITIVE_COUNT)),
    name=option("of the result", "membership"),
    compiles=True,
)
def membership(options: argparse.Namespace) -> dict:
    """Compare membership inference attacks with the ceiling of each privacy claim.

    Runs are kept beside the tables, and a study that was interrupted goes on.
    """
    from ..studies.membership import membership

    result = membership(
        options.task,
        options.model,
        tunes=options.tune,
        uses=options.methods,
        pool_size=options.pool,
        runs=options.runs,
        steps=options.steps,
        rate=options.rate,
        epsilons=options.epsilon or (6.0, 2.0, 1.0),
        max_length=options.max_length or 0,
        dev_texts=options.dev or 0,
        processes=options.processes or 0,
        folder=options.out.parent / "runs",
        log=log,
    )
    return _report("membership", [result], options.out / f"{options.name}.json", options.figures)


@verb(
    _folders("contextual-protection"),
    model=option("a causal model of models.yaml", "smollm2-135m"),
    people=option("made-up people, each with a secret code", 16, type=number_type(int, Range(4, 32))),
    digits=option("of a code", 2, type=number_type(int, Range(1, 4))),
    runs=option("runs of each method", 4, type=number_type(int, Range(2, 1000))),
    steps=positive("steps of each run", 30),
    epsilon=option("claims of the private methods (default: 8)", nargs="+", type=number_type(float, FACTOR)),
    compute=option("type of matrix products", "bfloat16", choices=("float32", "bfloat16")),
    compiles=True,
)
def contextual_protection(options: argparse.Namespace) -> dict:
    """Measure what leaks from a model tuned by instructions to hide secrets, beside private training.

    Runs are kept beside the tables, and a study that was interrupted goes on.
    """
    use_threads(1)
    from ..studies.contextual_protection import contextual_protection

    result = contextual_protection(
        options.model,
        count=options.people,
        digits=options.digits,
        runs=options.runs,
        steps=options.steps,
        epsilons=tuple(options.epsilon or (8.0,)),
        compute=options.compute,
        folder=options.out.parent / "runs",
        log=log,
    )
    name = "contextual-protection"
    return _report(name, [result], options.out / f"{name}.json", options.figures)


@verb(
    COMPUTE | THREADS | DEVICE | _folders("benchmark"),
    model=option("an architecture; its weights are random", "roberta-base"),
    batch_size=positive("texts of a step", 16),
    length=option("tokens of each text, or short: those of sentences", "short"),
    token_budget=positive("padded tokens of a micro-batch", 256),
    rows=option("methods to measure (default: all)", nargs="+"),
    rounds=positive("rounds; the median is reported", 7),
    compiles=True,
)
def benchmark(options: argparse.Namespace) -> dict:
    """Measure step time and memory of each method, relative to two forward passes."""
    use_threads(options.threads)
    import torch

    from ..run import gpu_lock
    from ..studies.benchmark import ROWS, Benchmark

    gpu_lock.check(options.device or "cpu")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"token_budget": options.token_budget, "compute": options.compute, "rounds": options.rounds}
    name = f"{options.model}-{options.batch_size}x{options.length}-{options.compute}-{device.split(':')[0]}"
    study = Benchmark(options.model, options.batch_size, options.length, **settings, device=device, log=log)
    results = study.run(options.rows or list(ROWS))
    return _report("benchmark", results, options.out / f"{name}.json", options.figures)


def _report(study: str, results: Iterable[dict], file: Path, figures: Path) -> dict:
    """Write a result, each later one in place of the one before, and then its table and figure."""
    from ..report.writing import write_study

    for result in results:
        write_whole(file, json.dumps(result, indent=1) + "\n")
    files = write_study(study, file, file.parent, figures)
    return {"result": str(file), "files": [str(path) for path in files]}


@verb(
    COMPUTE,
    task=option("task whose first training rows are the batch", "r8"),
    model=option("a name of models.yaml", "minilm"),
    tune=option("parameters that are perturbed", "bias", choices=TUNES),
    batch_size=positive("examples of the batch", 16),
    max_length=positive("tokens at which a text is cut", 64),
    token_budget=positive("padded tokens of a micro-batch", 2048),
    leaving=positive("number of examples that leave, one at a time", 4),
    clip=option("bound of an example's difference", 50.0, type=number_type(float, FACTOR)),
    smoothing=option("distance of the two points from the weights", 1e-3, type=number_type(float, FACTOR)),
)
def invariance(options: argparse.Namespace) -> dict:
    """Measure how one example that leaves a batch changes the losses of the others."""
    import numpy as np

    from ..language.data import tasks
    from ..language.models import encoding, losses, text_classifier
    from ..zeroth_order.leave_one_out import others_move

    task = tasks.load(options.task)
    rows = encoding.encode(task, options.model, options.max_length)["train"]
    if not 2 <= options.batch_size <= len(rows):
        raise UsageError(
            f"--batch-size is {options.batch_size}: give 2 to {len(rows)}, the training rows of "
            f"{options.task}"
        )
    model = text_classifier.load(options.model, task, options.tune)
    loss = losses.make_loss(task, options.model, options.token_budget, options.compute)
    leaving = np.linspace(0, options.batch_size - 1, min(options.leaving, options.batch_size)).astype(int)
    batch = rows[np.arange(options.batch_size)]
    settings = {"clip": options.clip, "smoothing": options.smoothing}
    moved = others_move(loss, model, batch, **settings, leaving=leaving.tolist())
    names = ("task", "model", "compute", "batch_size", "clip", "smoothing")
    return moved | {name: getattr(options, name) for name in names}


STUDIES: dict[str, tuple[str, str, dict]] = {
    "batch-invariance": ("batch_invariance", "benchmark/tables/invariance.csv", {}),
    "calibration": ("calibration", "accounting/tables/calibration.csv", {}),
    "federation": ("federation", "federation/tables/traffic.csv", {}),
    "linear-probe": ("linear_probe", "heads/tables/rte_features.csv", {"model_name": "minilm"}),
    "linear-probe-lm": ("linear_probe", "heads-lm/tables/rte_features.csv", {"model_name": "smollm2-135m"}),
    "precision": ("precision", "benchmark/tables/precision.csv", {}),
    "quadratic-residual": ("quadratic_residual", "quadratic/tables/unfinished.csv", {}),
}
"""Name -> module of dpzero/studies, its table under results/, arguments of its `rows`."""


@verb({"name": option("one of them", choices=tuple(STUDIES)), **LOCAL_FILES}, compiles=True)
def study(options: argparse.Namespace) -> dict:
    """Make the table of a study that belongs to no sweep, row by row as they are measured."""
    import pandas

    module, table, settings = STUDIES[options.name]
    path, rows = Path("results") / table, []
    if module == "batch_invariance":
        settings = {"table": path}
    for row in import_module(f"dpzero.studies.{module}").rows(**settings):
        rows.append({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()})
        log(" ".join(map(str, rows[-1].values())))
        write_whole(path, pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n"))
    return {"table": str(path), "rows": len(rows)}
