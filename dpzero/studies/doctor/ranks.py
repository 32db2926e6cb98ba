"""Whether two ranks on two cards, joined by NCCL, take the steps that one rank takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import torch

from .machine import Machine, Skipped

CELL = "toy/tiny-encoder/dpzero/eps-2/seed-0"  # of the sweep `smoke`, on random weights


def rows(machine: Machine) -> Iterator[dict]:
    """One row: whether the weights of one rank and of two have the same digest."""
    count = torch.cuda.device_count() if machine.on_cuda else 0
    if count < 2:
        raise Skipped(
            "this machine has one card" if count else "NCCL joins GPUs, of which this machine has none"
        )
    digests = {}
    for ranks in (1, 2):
        file = machine.out / "runs" / f"{ranks}-ranks.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
        ]
        command += [
            "-m",
            "dpzero",
            "run",
            "--sweep",
            "smoke",
            "--cell",
            CELL,
            "--out",
            str(file),
            "--backend",
            "nccl",
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=max(1.0, machine.seconds_left()),
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        digests[ranks] = json.loads(file.read_text("utf-8"))["transcript"]["weights_sha256"]
    yield {"what": "weights after a run", "ranks": 2, "same": digests[1] == digests[2], "difference": ""}
