"""The records of a sweep as one file, records.tar.xz, for a repository that keeps tables and figures alone.

`verify` reads it where a folder has no records, and a sweep whose archive is unpacked goes on where it stopped.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from dpzero.errors import UsageError

NAME = "records.tar.xz"
RUNS = "runs"


def pack(results: Path) -> Path:
    """Write results/SWEEP/records.tar.xz from the records of results/SWEEP/runs; equal records give equal bytes.

    Transcripts, logs and checkpoints stay outside.

    Raises:
        UsageError: the folder has no records.
    """
    records = sorted((results / RUNS).rglob("*.json"))
    if not records:
        raise UsageError(f"{results} has no records to pack: give results/SWEEP, with its folder {RUNS}")
    target = results / NAME
    with tempfile.NamedTemporaryFile(dir=results, delete=False) as whole:
        with tarfile.open(fileobj=whole, mode="w:xz", format=tarfile.USTAR_FORMAT) as archive:
            for record in records:
                entry = tarfile.TarInfo(record.relative_to(results).as_posix())  # no owner, no time
                entry.size = record.stat().st_size
                with record.open("rb") as content:
                    archive.addfile(entry, content)
        temporary = Path(whole.name)
    temporary.chmod(0o644)
    return temporary.replace(target)


def unpack(results: Path, folder: Path) -> int:
    """Write the records of results/SWEEP/records.tar.xz to folder/runs, where those that exist stay; returns how many were written.

    Raises:
        UsageError: there is no archive, or the file is none.
    """
    try:
        with tarfile.open(results / NAME) as archive:
            entries = [entry for entry in archive if entry.isfile() and not (folder / entry.name).exists()]
            for entry in entries:
                archive.extract(entry, folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"{results / NAME} cannot be unpacked ({error}): give results/SWEEP with that file"
        ) from None
    return len(entries)
