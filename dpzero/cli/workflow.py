"""What the Snakefile needs of Python: what its jobs find in their environment, and what is said before they start. Imports no torch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..plan import cost
from ..run import gpu_lock
from . import options

PLACES = ("data_dir", "model_dir")


def hand_on(config: dict, code: str, where: str, share: int) -> str:
    """Take out of Snakemake's configuration what its jobs are to find in their environment; return the device, empty where a run chooses.

    `code`: the folder of the Snakefile, whose code runs whatever lies in the folder of the results. `where`: the folder of the command.
    `share`: how many runs may be on one GPU where the configuration does not say.
    """
    paths = (str(Path(code).absolute()), os.environ.get("PYTHONPATH"))
    os.environ["DPZERO_PYTHON"], os.environ["PYTHONPATH"] = (
        sys.executable,
        os.pathsep.join(filter(None, paths)),
    )
    os.environ["DPZERO_DEVICE"] = _ask(options.device, str(config.pop("device", "")), "device") or ""
    os.environ[gpu_lock.SHARE] = str(config.pop("gpu_share", share))
    gpu_lock.share()
    _export_places(config, where)
    return os.environ["DPZERO_DEVICE"]


def _export_places(config: dict, where: str) -> None:
    """Take the folders out of Snakemake's configuration into the environment of the jobs. `where`: the folder of the command, from which
    they are meant. A job that reads the Snakefile again has them already."""
    for place in PLACES:
        if place in config:
            text, name = str(config.pop(place)), f"DPZERO_{place.upper()}"
            path = Path(where, Path(text).expanduser())
            if path.is_dir() or name not in os.environ:
                _ask(options.folder_to_read, str(path), place)
                os.environ[name] = str(path)


def _ask(convert: Callable, text: str, key: str):
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{key}: {error}") from None


def axes(narrowed: dict) -> list[str]:
    """The options of the verb `cells` that narrow as a configuration of Snakemake does."""
    return [
        word
        for axis, value in narrowed.items()
        for word in (f"--{axis}", *map(str, value if isinstance(value, list) else [value]))
    ]


def say_what_a_lock_means() -> None:
    """Before Snakemake's LockException: the way on, which has two steps."""
    if any(Path(".snakemake/locks").glob("*")):
        print(
            "dpzero: .snakemake/locks is not empty: a snakemake is at work here, or one was killed; if none is at work, give "
            "`snakemake --unlock`, and then the same command with --rerun-incomplete",
            file=sys.stderr,
        )


class Announcement(logging.Handler):
    """A handler of Snakemake's log. The event before its table of jobs is the first at which the plan is made, in a dry run, too."""

    def __init__(self, workflow, sweep: str, cells: dict[str, dict]) -> None:
        super().__init__()
        self.workflow, self.sweep, self.cells, self.said = workflow, sweep, cells, False

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if self.said or getattr(event, "name", "") != "RUN_INFO":
            return
        self.said = True
        jobs = (job for job in self.workflow.dag.needrun_jobs() if job.rule.name == "run")
        new = [self.cells[job.wildcards.run] for job in jobs]
        takes = cost.estimate(self.sweep, new, self.workflow.resource_settings.cores)
        print(f"{self.sweep}: {len(self.cells)} runs, {len(new)} of them to be run{takes}", file=sys.stderr)
