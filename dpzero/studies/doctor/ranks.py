"""Whether two ranks on two cards, joined by NCCL, take the steps that one rank takes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from .machine import Machine, Skipped

# on random weights, and without an accountant, which a bare machine lacks
RUN = ["run", "--sweep", "smoke", "--cell", "toy/tiny-encoder/mezo/eps-inf/seed-0"]


def rows(machine: Machine) -> Iterator[dict]:
    """One row: whether the weights of one rank and of two have the same digest."""
    count = torch.cuda.device_count() if machine.on_cuda else 0
    if count < 2:
        raise Skipped(
            "this machine has one card" if count else "NCCL joins GPUs, of which this machine has none"
        )
    yield compare(machine, "nccl")


def compare(machine: Machine, backend: str) -> dict:
    """Whether the weights after a run of one rank and of two have the same digest."""
    digests = {}
    for ranks in (1, 2):
        file = machine.out / "runs" / f"{ranks}-ranks.json"
        file.unlink(missing_ok=True)  # of an earlier examination
        launcher = f"torch.distributed.run --standalone --nproc-per-node {ranks}"
        _, error = machine.ask(*RUN, "--backend", backend, "--out", file, launcher=launcher)
        if error:
            raise RuntimeError(error)
        digests[ranks] = json.loads(file.read_text("utf-8"))["transcript"]["weights_sha256"]
    same = digests[1] == digests[2]
    return {
        "what": "weights after a run",
        "ranks": 2,
        "same": same,
        "difference": "" if same else f"{digests}",
    }
