"""Several ranks as forks of the test's process, which has loaded everything: what torchrun starts, in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(work: Callable[[int], object], ranks: int, seconds: float = 60) -> list[object]:
    """[work(0), work(1), ...], each in a process of its own: what it returned, what it raised, or the signal that ended it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        context = multiprocessing.get_context("fork")
        files = [Path(folder) / str(rank) for rank in range(ranks)]
        processes = [
            context.Process(
                target=_run, args=(work, rank, address | {"RANK": str(rank), "WORLD_SIZE": str(ranks)}, file)
            )
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            process.kill()
            process.join()
        pairs = zip(files, processes, strict=True)
        return [pickle.loads(f.read_bytes()) if f.exists() else -p.exitcode for f, p in pairs]


def _run(work: Callable[[int], object], rank: int, environment: dict[str, str], file: Path) -> None:
    os.environ.update(environment)
    try:
        result = work(rank)
    except BaseException as error:
        traceback.print_exc()
        result = error
    file.with_suffix(".part").write_bytes(pickle.dumps(result))
    file.with_suffix(".part").replace(file)
    os._exit(0)  # what the test's process would do at its end is not for a fork
