"""Set-up of a verb's process before torch and numba are imported; reading of files, and progress."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ..errors import UsageError


def use_cache() -> None:
    """Keep numba's compiled code in our cache: an installation may be read-only. To be called before numba.

    Raises:
        UsageError: the cache cannot be written.
    """
    from ..language.data.assets import cache_folder

    folder = cache_folder() / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {cache_folder()} ({error.strerror}): "
            "set $DPZERO_CACHE to a writable folder"
        ) from None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


def use_threads(threads: int) -> None:
    """Set the number of CPU threads; 0: all cores, shared by local ranks. To be called before torch."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    count = threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    # runs on the same cores must not spin against each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def log(line: str) -> None:
    """Report progress on standard error: standard output is for answers."""
    print(line, file=sys.stderr, flush=True)


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}): give an existing file") from error
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {path} (no UTF-8 text): save it as UTF-8") from None
