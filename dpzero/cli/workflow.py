"""The verb that runs a sweep through Snakemake, in any folder, from a checkout or an installed package."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from ..errors import UsageError
from ..plan import sweep as sweeps
from ..plan.registry import ROOT
from ..plan.sweep import AXES
from .options import DEVICE, FOLDER_VARIABLES, LOCAL_FILES, option, verb
from .runs import axes_options, chosen_axes


@verb(
    {"name": option("a sweep, or the path of a .yaml file")} | axes_options(*AXES) | DEVICE | LOCAL_FILES,
    cores=option("CPU cores", "all"),
    dry_run=option("only say what would be run", action="store_true"),
    snakemake=option("further options of snakemake, as --snakemake='--quiet rules'", ""),
)
def sweep(options: argparse.Namespace) -> None:
    """Run a sweep through Snakemake: its records, tables and figures, in results/ and figures/ here."""
    config: dict[str, object] = dict(chosen_axes(options))
    for key in ("device", *FOLDER_VARIABLES):
        if value := getattr(options, key):
            config[key] = str(value)
    further = [*shlex.split(options.snakemake), *(["--dry-run"] if options.dry_run else [])]
    run_snakemake(options.name, config, options.cores, further)


def run_snakemake(name: str, config: dict[str, object], cores: str, further: list[str]) -> NoReturn:
    """Replace this process by Snakemake; its exit status is then that of the command.

    The included folders stand in the environment.

    Raises:
        UsageError: an unknown sweep or a value that is not known, before Snakemake starts.
    """
    sweeps.load(name, **{axis: value for axis, value in config.items() if axis in AXES})
    pairs = [f"sweep={name}", *(f"{key}={value}" for key, value in config.items())]
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile()), "--cores", cores, *further]
    command += ["--config", *pairs]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def snakefile() -> Path:
    """The Snakefile of a checkout, or the one that was installed with the package."""
    if (file := ROOT / "Snakefile").is_file():
        return file
    try:
        installed = metadata.files("dpzero") or ()
    except metadata.PackageNotFoundError:
        installed = ()
    for entry in installed:
        if entry.name == "Snakefile":
            return Path(str(entry.locate())).resolve()
    raise UsageError(f"there is no Snakefile beside {ROOT} or in the installed package: install dpzero again")
