"""One GPU, one run: a file lock taken before torch is imported, dropped by the kernel on any death of its holder."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

NONE = ("", "-1", "NoDevFiles")
_held = []  # open files: a lock lives as long as its process


def visible() -> list[str]:
    """The GPUs that this process may use, without asking torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = (name.strip() for name in listed.split(","))
        return list(takewhile(lambda name: name not in NONE, names))  # as CUDA reads it
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def lease(gpus: list[str], log: Callable[[str], object] = print) -> str | None:
    """Wait for a free GPU among `gpus` and make it the only visible one; None, at once, where there is none."""
    if not gpus:
        return None
    folder = Path(tempfile.gettempdir()) / f"dpzero-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    waiting = False
    while True:
        for gpu in gpus:
            file = (folder / f"{gpu.replace('/', '-')}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _held.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return gpu
        if not waiting:
            log(f"waiting for one of {len(gpus)} GPUs")
            waiting = True
        time.sleep(0.5)
