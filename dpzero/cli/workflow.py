"""The verb that runs a sweep through Snakemake, in any folder, from a checkout or an installed package."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UsageError
from ..plan import sweep as sweeps
from ..plan.registry import ROOT
from .options import DEVICE, FOLDER_VARIABLES, LOCAL_FILES, option, verb
from .runs import NARROWING, narrowed
from .terminal import SUMMARY


@verb(
    {"name": option("a sweep, or the path of a .yaml file")} | NARROWING | DEVICE | LOCAL_FILES,
    cores=option("CPU cores", "all"),
    dry_run=option(
        "only say how many runs exist and are to be made, and their hours; with --snakemake=--verbose each of them",
        action="store_true",
    ),
    snakemake=option("further options of snakemake, as --snakemake='--quiet rules'", ""),
)
def sweep(options: argparse.Namespace) -> NoReturn:
    """Run a sweep through Snakemake: its records, tables and figures, in results/ and figures/ here."""
    run_snakemake(options.name, options, narrowed(options), shlex.split(options.snakemake))


def run_snakemake(
    name: str, options: argparse.Namespace, narrowing: Mapping[str, Any], further: Sequence[str] = ()
) -> NoReturn:
    """Replace this process by Snakemake, whose exit status is then that of the command.

    Args:
        name: the sweep.
        options: of the verb: cores, dry_run, device and the folders of rows and models.
        narrowing: axis -> its values, or limit of a rehearsal -> number (see `plan.sweep.load`).
        further: options of Snakemake.

    Raises:
        UsageError: a sweep, name or value that is not known, before Snakemake starts.
    """
    sweeps.load(name, **narrowing)
    folders = {key: str(value) for key in ("device", *FOLDER_VARIABLES) if (value := getattr(options, key))}
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile()), "--cores", options.cores]
    command += [*further, *(["--dry-run"] if options.dry_run else [])]
    if options.dry_run and not further:
        os.environ[SUMMARY] = "1"
    pairs = {"sweep": name, **narrowing, **folders}
    command += ["--config", *(f"{key}={value}" for key, value in pairs.items())]
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
