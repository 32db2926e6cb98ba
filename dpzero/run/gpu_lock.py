"""File locks on GPUs, taken before torch is imported. The operating system drops them when their holder dies.

A run that has a GPU, or several, to itself holds their locks alone. Runs that share a GPU hold its lock together, and
a slot each. Inside the job of a batch system the locks are that job's: GPUs of other jobs may have the same
numbers.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import UsageError

NONE = ("", "-1", "NoDevFiles")
DEVICE_FILES = "DPZERO_DEVICE_FILES"  # folder of the device files; for tests
SHARE = "DPZERO_GPU_SHARE"  # how many runs may be on one GPU
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")  # a batch system's number of this job
_held: list[list[BinaryIO]] = []  # open files: a lock lives as long as its process
_environment: dict[str, str] = {}  # as it was before the lease


class Crowded(Exception):
    """Out of memory on a GPU that other runs share: no result of this run."""


def visible() -> list[str]:
    """The GPUs that this process may use, without asking torch: CUDA_VISIBLE_DEVICES, if any."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = Path(os.environ.get(DEVICE_FILES, "/dev"))
    there = sorted(path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    if listed is None or not there:
        return there
    names = (name.strip() for name in listed.split(","))
    return list(takewhile(lambda name: name not in NONE, names))  # as CUDA reads it


def check(device: str) -> None:
    """Raise UsageError for a device that this machine does not have. Imports torch."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for one in device.split(","):
        kind, _, number = one.partition(":")
        if kind == "cuda" and int(number or 0) >= count:
            raise UsageError(
                f"device {one} is asked for, but this machine has {count or 'no'} usable GPUs: give another, "
                "or --device cpu"
            )


def share() -> int:
    """How many runs may share one GPU, from the environment; 1 by default. Raises UsageError."""
    asked = os.environ.get(SHARE, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise UsageError(
            f"gpu_share is {asked!r}, but must be a whole number of at least 1: how many runs may be on one "
            "GPU"
        )
    return int(asked)


def of_this_rank() -> list[str]:
    """The GPUs to choose from. Of several ranks each has its own, by torchrun's number on this machine."""
    gpus, ranks = visible(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not gpus or ranks == 1:
        return gpus
    if ranks > len(gpus):
        raise UsageError(
            f"{ranks} ranks on a machine with {len(gpus)} GPUs: start one for each GPU, or give --device cpu"
        )
    os.environ[SHARE] = "1"  # a rank that waits for the others must not leave its GPU for another run
    return [gpus[int(os.environ["LOCAL_RANK"])]]


def lease(gpus: list[str], log: Callable[[str], object] = print, count: int = 1) -> str | None:
    """Wait for a place on `count` of the `gpus`, make them the only visible ones, and return them; None without GPUs.

    The emptiest GPU is taken first. A shared one is entered only while its `share`-th part of memory is free.
    If nvidia-smi does not say how much is free, no GPU is shared. A run that wants a GPU to itself, as one on several
    GPUs does, waits until no other run is on it.

    Raises UsageError if there are GPUs, but fewer than `count`.
    """
    if not gpus:
        return None
    if len(gpus) < count:
        raise UsageError(
            f"{count} GPUs a run are asked for, but this process may use {len(gpus)}: give gpus={len(gpus)}"
        )
    places, folder = share() if count == 1 else 1, _folder()
    if places > 1 and _free_part(gpus[0]) is None:
        log("nvidia-smi does not say how much memory is free: no GPU is shared")
        places = 1

    def enter() -> str | None:
        entered: dict[str, list[BinaryIO]] = {}
        for slot, gpu in product(range(places), gpus):
            files = _lock(folder / gpu.replace("/", "-"), slot, places)
            if files and (places == 1 or (_free_part(gpu) or 0) >= 1 / places):
                entered[gpu] = files
                if len(entered) == count:
                    _held.extend(entered.values())
                    return ",".join(entered)
            else:
                _close(files)
        for files in entered.values():  # fewer than are needed: for others
            _close(files)
        return None

    words = f"one of {len(gpus)} GPUs" if count == 1 else f"{count} of {len(gpus)} GPUs"
    gpu = _wait(enter, f"waiting for {words}", log)
    _environment.update(os.environ)
    os.environ["CUDA_VISIBLE_DEVICES"], os.environ[SHARE] = gpu, str(places)
    log(f"on GPU {gpu}" + (f", which up to {places} runs share" if places > 1 else ""))
    return gpu


def devices(leased: str | None) -> str | None:
    """cuda:0,cuda:1 of two leased GPUs; None for one or none, which torch finds itself. Imports torch."""
    import torch

    count = len((leased or "").split(","))
    return (
        ",".join(f"cuda:{number}" for number in range(count))
        if count > 1 and torch.cuda.is_available()
        else None
    )


def lease_all(device: str, log: Callable[[str], object] = print) -> None:
    """Wait until each GPU of a list (cuda:0,cuda:1) is this process's alone; one order avoids deadlock."""
    gpus = visible()
    numbers = sorted({int(one.partition(":")[2] or 0) for one in device.split(",") if one.startswith("cuda")})
    for name in sorted(gpus[number] for number in numbers if number < len(gpus)):
        file = _folder() / name.replace("/", "-")
        _held.append(_wait(partial(_lock, file, 0, 1), f"waiting for GPU {name}", log))


def _wait(attempt: Callable[[], Any], words: str, log: Callable[[str], object]) -> Any:
    """What `attempt` returns once it is true; `words` are logged if that is not at once."""
    if not (got := attempt()):
        log(words)
    while not got:
        time.sleep(0.5)
        got = attempt()
    return got


def shared() -> bool:
    """Whether other runs may be on this process's GPU."""
    return bool(_held) and share() > 1


def start_again_alone() -> NoReturn:
    """Start this command again on a GPU of its own. The locks are dropped; the checkpoint stays."""
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, {**_environment, SHARE: "1"})


def _folder() -> Path:
    job = next((os.environ[name] for name in JOBS if os.environ.get(name)), None)
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, (f"dpzero-gpus-{os.getuid()}", job)))
    folder.mkdir(exist_ok=True)
    return folder


def _lock(gpu: Path, slot: int, places: int) -> list[BinaryIO]:
    """The two open files that hold this slot; none if one of them is taken."""
    files: list[BinaryIO] = []
    kinds = {".lock": fcntl.LOCK_EX if places == 1 else fcntl.LOCK_SH, f".{slot}.lock": fcntl.LOCK_EX}
    for ending, kind in kinds.items():
        files.append(gpu.with_name(gpu.name + ending).open("wb"))
        try:
            fcntl.flock(files[-1], kind | fcntl.LOCK_NB)
        except BlockingIOError:
            _close(files)
            return []
    return files


def _close(files: list[BinaryIO]) -> None:
    for file in files:
        file.close()


def _free_part(gpu: str) -> float | None:
    """The part of the GPU's memory that is free, from 0 to 1; None if nvidia-smi does not say."""
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.free,memory.total"]
    command += ["--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=30).stdout
        free, total = (float(number) for number in answer.split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return free / total
