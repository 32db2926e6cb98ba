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
def sweep(options: argparse.Namespace) -> NoReturn:
    """Run a sweep through Snakemake: its records, tables and figures, in results/ and figures/ here."""
    axes = chosen_axes(options)
    sweeps.load(options.name, **axes)  # refuses a bad value before Snakemake starts
    folders = {key: str(value) for key in ("device", *FOLDER_VARIABLES) if (value := getattr(options, key))}
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile()), "--cores", options.cores]
    command += [*shlex.split(options.snakemake), *(["--dry-run"] if options.dry_run else [])]
    pairs = {"sweep": options.name} | axes | folders
    command += ["--config", *(f"{key}={value}" for key, value in pairs.items())]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # whose exit status is then that of this command


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
