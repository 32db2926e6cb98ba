"""The Python part of the Snakefile: the plan of a sweep, the environment of its jobs, and messages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import include
from ..errors import UsageError, let_every_print_pass
from ..plan import rehearsal, search, sweep
from ..plan.settings import POSITIVE_COUNT, listed
from ..report import KINDS, LANDING, figure_files, figure_names, page_sources, table_files, title_of
from ..run import gpu_lock
from . import estimate, options
from .terminal import Terminal

PACKAGE = Path(__file__).parents[1]


class Plan:
    """The runs of a sweep and the files that they leave.

    Args:
        config: Snakemake's configuration; what jobs find in their environment is taken out of it.
        workflow: Snakemake's workflow.
    """

    def __init__(self, config: dict, workflow: Any) -> None:
        self.sweep = take_sweep(config, workflow.rundir)
        plan = sweep.read(self.sweep)
        kind = plan["experiment"]
        self.trains = kind == "language"  # needs weights, data and a GPU
        gpus = export(config, workflow.basedir, workflow.rundir, plan)
        self.gpus = gpus if self.trains else 0
        self.name, self.narrowed = sweep.name_of(self.sweep, config), as_options(config)
        self.cells = sweep.load(self.sweep, **config)
        limits = {key: value for key, value in config.items() if key in rehearsal.LIMITS}
        os.environ["DPZERO_LIMITS"] = " ".join(as_options(limits))  # of rule assets, as $DPZERO_SWEEP
        self.results, self.figures = f"results/{self.name}", f"figures/{self.name}"
        self.records = [f"{self.results}/runs/{run}.json" for run in self.cells]
        self.figure_names = figure_names(kind, self.cells)
        self.first_table = f"{self.results}/tables/{KINDS[kind].tables[0]}.md"
        self.table_paths = [f"{self.results}/tables/{name}" for name in table_files(kind, self.cells)]
        self.figure_paths = [f"{self.figures}/{name}" for name in figure_files(kind, self.cells)]
        self.page_names = list(page_sources(kind, self.cells))
        self.terminal = Terminal(workflow, self)
        self.landing = f"{self.results}/pages/{LANDING}"

    @classmethod
    def load(cls, config: dict, workflow: Any) -> Plan:
        """The plan, announced in the log. A bad value ends the process with one line and status 2."""
        let_every_print_pass()
        try:
            plan = cls(config, workflow)
        except UsageError as error:
            print(f"dpzero: {error}", file=sys.stderr)
            os._exit(2)  # no stack of frames from Snakemake
        if workflow.is_main_process:
            plan.terminal.install()
        return plan

    def inputs(self, run: str, assets: str, ancient: Callable[[str], Any]) -> list[Any]:
        """The inputs of a run: the assets of its task and model, of any age, and the records of its tries."""
        cell = self.cells[run]
        tries = [
            f"{self.results}/runs/{attempt}.json" for ids in search.try_ids(cell).values() for attempt in ids
        ]
        return [ancient(assets.format(**cell)), *tries] if self.trains else []

    @property
    def pages(self) -> list[tuple[str, str, dict[str, str]]]:
        """Path, category and labels of the pages in Snakemake's report."""
        return [
            (
                f"{self.results}/pages/{name}.html",
                "Privacy and provenance" if name in ("privacy_statement", "provenance") else "Tables",
                {"page": title_of(name)},
            )
            for name in self.page_names
        ]

    def figure_labels(self, name: str) -> dict[str, str]:
        """What Snakemake's report says of a figure beside its name: the tasks and epsilons in it."""
        tasks = dict.fromkeys(cell["task"] for cell in self.cells.values())
        epsilons = dict.fromkeys(cell["epsilon"] for cell in self.cells.values())
        return {
            "figure": title_of(name),
            "task": ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks",
            "epsilon": ", ".join(epsilon for epsilon in epsilons if epsilon not in ("0", "inf")),
        }

    @cached_property
    def estimator(self) -> estimate.Estimator:
        return estimate.Estimator.choose(self.sweep, list(self.cells.values()))

    def minutes(self, run: str) -> int:
        return estimate.minutes(self.estimator, self.cells[run])

    def host_megabytes(self, run: str) -> int:
        return estimate.host_megabytes(self.cells[run])

    def print_results(self) -> None:
        """At the end: the first table, and where everything is."""
        self.terminal.close()
        if (table := Path(self.first_table)).exists():
            print(f"\n{table.read_text('utf-8')}\nTables:  {self.results}/tables")
            print("\n".join(f"Figure:  {path}" for path in self.figure_paths if path.endswith(".png")))

    def print_incomplete(self) -> None:
        self.terminal.close()
        print(
            f"\nSome runs are missing (their logs: {self.results}/logs): the same command runs them. "
            "For tables of what exists, add `partial` to the command. "
            "If snakemake was killed: `snakemake --unlock` first, then --rerun-incomplete."
        )


def take_sweep(config: dict, working_folder: str) -> str:
    """Take the sweep and the folders to include out of Snakemake's configuration; paths become absolute.

    The folders are included in this process and its jobs.
    """
    folders = config.pop("include", [])
    for folder in folders if isinstance(folders, list) else [folders]:
        include.add(Path(working_folder, Path(str(folder)).expanduser()), "include")
    name = str(config.pop("sweep", "quick"))
    if sweep.is_path(name):
        name = str(Path(working_folder, Path(name).expanduser()))
    # of rule assets, which runs need at any age: were it a parameter, Snakemake would make the assets again if it
    # changed, and then overlook that the cells of the runs have changed, too
    os.environ["DPZERO_SWEEP"] = name
    return name


def export(config: dict, code: str, working_folder: str, plan: Mapping[str, Any]) -> int:
    """Move settings from Snakemake's configuration into the environment of the jobs.

    Args:
        config: the configuration, changed in place.
        code: folder of the Snakefile, whose code the jobs run.
        working_folder: folder of the command, to which paths are relative.
        plan: the sweep, whose `gpus` and `gpu_share` hold unless the configuration says otherwise.

    Returns:
        How many GPUs a run is to have.
    """
    paths = (str(Path(code).absolute()), os.environ.get("PYTHONPATH"))
    os.environ["DPZERO_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    named = ",".join(map(str, listed(config.pop("device", []))))
    device = _convert(options.device, named, "device") or ""
    count = options.number_type(int, POSITIVE_COUNT)
    gpus = int(_convert(count, str(config.pop("gpus", plan["gpus"])), "gpus"))
    os.environ["DPZERO_DEVICE"], os.environ["DPZERO_GPUS"] = device, str(gpus)
    os.environ[gpu_lock.SHARE] = str(config.pop("gpu_share", plan["gpu_share"]))
    gpu_lock.share()
    for key, name in options.FOLDER_VARIABLES.items():
        if key in config:
            path = Path(working_folder, Path(str(config.pop(key))).expanduser())
            # a job that reads the Snakefile in another folder has the variable already
            if path.is_dir() or name not in os.environ:
                _convert(options.folder_to_read, str(path), key)
                os.environ[name] = str(path)
    return device.count("cuda") if device else gpus


def _convert(convert: Callable[[str], Any], text: str, key: str) -> Any:
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{key}: {error}") from None


def as_options(narrowed: dict) -> list[str]:
    """The options of the verb `cells` that narrow a sweep as Snakemake's configuration does."""
    return [
        word
        for key, value in narrowed.items()
        for word in (options.flag(key), *map(str, value if isinstance(value, list) else [value]))
    ]
