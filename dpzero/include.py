"""Folders that hold a user's own tasks, models, methods and sweeps, beside those of the package.

A folder may hold tasks.yaml, models.yaml (and assets.yaml), a file for each method (NAME.py) and sweeps (NAME.yaml). The folders stand in
an environment variable, so that the jobs of a workflow know them, too. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import UsageError

VARIABLE = "DPZERO_INCLUDE"
CATALOGUES = ("tasks.yaml", "models.yaml", "assets.yaml")


def folders() -> tuple[Path, ...]:
    """The included folders, in the order in which they were given."""
    return tuple(Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part)


def add(folder: str | Path, where: str = "include") -> None:
    """Include a folder in this process and those that it starts.

    Raises:
        UsageError: no such folder, or one whose name holds the separator of paths. `where` names the place.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UsageError(f"{where}: {folder} is no folder: give an existing one")
    if os.pathsep in str(path):
        raise UsageError(f"{where}: {folder} has a {os.pathsep!r} in its path: rename it")
    if path not in folders():
        os.environ[VARIABLE] = os.pathsep.join(map(str, (*folders(), path)))


def methods() -> dict[str, Path]:
    """File name without ending -> file, of the Python files in the included folders.

    Raises:
        UsageError: two files of one name.
    """
    return _by_stem(f for folder in folders() for f in folder.glob("*.py") if not f.stem.startswith("_"))


def sweeps() -> dict[str, Path]:
    """Name -> file, of the sweeps in the included folders.

    Raises:
        UsageError: two files of one name.
    """
    return _by_stem(f for folder in folders() for f in folder.glob("*.yaml") if f.name not in CATALOGUES)


def hint() -> str:
    """The end of an error about a name that is not known, while no folder is included."""
    return (
        ""
        if folders()
        else " (one of your own needs its folder as --include, or under `include` in the sweep)"
    )


def refuse_built_in(name: str, file: Path, built_in: object) -> None:
    """Raises UsageError if a user's name is one of the package's, which it would hide."""
    if name in built_in:  # type: ignore[operator]
        raise UsageError(f"{file}: the name {name} is built in: choose another")


def _by_stem(files: Iterator[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(files):
        if found.setdefault(file.stem, file) != file:
            raise UsageError(f"{found[file.stem]} and {file} have one name: rename one of them")
    return found
