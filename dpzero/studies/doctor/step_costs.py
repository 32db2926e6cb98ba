"""What a step costs in time and memory on this machine, beside the floor that its arithmetic and its memory set.

Each measurement runs in a process of its own, so that one that dies, or what it leaves in an allocator, does not harm the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...errors import UsageError
from ...language.models import losses, random_models
from ...memory import trackers
from ...memory.predict import predict
from ...memory.stand_in_step import Workload as Step
from ..benchmark import batch_of
from .machine import Machine

DIRECTION_PASSES = 3  # over the trained weights: to one point, to the other, back with the update
Row = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Workload(NamedTuple):
    """A batch of an architecture: `length` as `benchmark.batch_of` reads it."""

    model: str
    batch_size: int
    length: str
    compute: str
    methods: tuple[str, ...]
    rounds: int
    token_budget: int  # padded tokens of a micro-batch


LAWS = ("dpzero", "dpzero_sphere", "dpzero_signs", "dpzero_low_rank", "dpzero_on_read")
FIRST_ORDER = ("adamw", "dp_sgd_ghost")
ALL = (*LAWS, "mezo", "public", *FIRST_ORDER)
ON_CUDA = (
    Workload("roberta-large", 64, "128", "bfloat16", ALL, 5, 8192),
    Workload("roberta-large", 64, "128", "float32", ("dpzero", "mezo", "public", *FIRST_ORDER), 3, 8192),
    Workload(
        "opt-1.3b", 8, "512", "bfloat16", ("dpzero", "dpzero_low_rank", "public", *FIRST_ORDER), 3, 4096
    ),
    Workload("minilm", 16, "short", "float32", ALL, 9, 2048),
    Workload("smollm2-135m", 16, "short", "bfloat16", ("dpzero", "mezo", "public", *FIRST_ORDER), 5, 2048),
    Workload("opt-1.3b", 8, "512", "float32", ("dpzero", "public"), 3, 4096),
)
ON_CPU = (Workload("minilm", 8, "32", "float32", ("dpzero", "mezo", "public", *FIRST_ORDER), 3, 256),)


def rows(machine: Machine) -> Iterator[dict]:
    """One row for each workload and method: seconds of a step, over two forward passes, and the floor."""
    for work in ON_CUDA if machine.on_cuda else ON_CPU:
        name, file = _name(work, machine), _file(work, machine)
        file.unlink(missing_ok=True)  # of an earlier examination
        options = {"model": work.model, "batch-size": work.batch_size, "length": work.length}
        options |= {"compute": work.compute, "token-budget": work.token_budget, "rounds": work.rounds}
        options |= {"out": file.parent, "figures": machine.figures, "device": machine.device}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        _, error = machine.ask("benchmark", *words, "--rows", *work.methods)
        floor = _floor(work, machine.device)
        for row in _measured(file):
            yield {"workload": name, "compute": work.compute, **row, **_step_floor(floor, row["name"])}
        if error:  # after so many rows
            yield {"workload": name, "compute": work.compute, "status": "failed", "error": error}


def _name(work: Workload, machine: Machine) -> str:
    return f"{work.model}-{work.batch_size}x{work.length}-{work.compute}-{machine.device.split(':')[0]}"


def _file(work: Workload, machine: Machine) -> Path:
    """Where the verb `benchmark` writes the rows of a workload."""
    return machine.out / "tables" / f"{_name(work, machine)}.json"


def _measured(file: Path) -> list[Row]:
    return json.loads(file.read_text("utf-8"))["rows"] if file.exists() else []


def memory_rows(machine: Machine) -> Iterator[dict]:
    """One row for each workload whose texts have one length, and method: the peak of a step, predicted and measured.

    The measured peaks are those of the section before, which yields rows for them.
    """
    for work in ON_CUDA if machine.on_cuda else ON_CPU:
        if not work.length.isdigit():
            continue
        for measured in _measured(_file(work, machine)):
            sizes = (work.model, measured["name"], work.batch_size, int(work.length))
            predicted = _predict(Step(*sizes, compute=work.compute, token_budget=work.token_budget))
            row: Row = {
                "workload": _name(work, machine),
                "title": measured["title"],
                "status": measured["status"],
            }
            for kind, peaks in (("predicted", predicted), ("measured", measured)):
                row |= {f"{kind}_{key}": peaks.get(key) for key in ("peak_bytes", "inference_peak_bytes")}
            yield row | {"weights_bytes": measured.get("weights_bytes"), "error": measured.get("error", "")}


def _predict(step: Step) -> dict:
    """The predicted peaks; none for a method that cannot be predicted, or whose package is missing."""
    try:
        return predict(step)
    except (UsageError, ModuleNotFoundError):
        return {}


def largest_models(machine: Machine) -> Iterator[dict]:
    """The largest OPT whose step fits into this device, by method, as predicted."""
    total = _memory_bytes(machine)
    memory = f"{total // 2**20}MiB"
    answer, error = machine.ask("fits", "--gpu-memory", memory, "--methods", "dpzero", "adamw")
    if error:
        raise RuntimeError(error)
    for row in answer["rows"]:
        yield {"memory_bytes": total, **row}


# -- the floor -----------------------------------------------------------------------------------------------


def _floor(work: Workload, device: str) -> dict:
    """What two forward passes and the passes over the weights need at the rates that were measured here."""
    model = random_models.build(work.model, device=device)
    batch, loss = batch_of(work.batch_size, work.length), losses.CrossEntropy(work.token_budget, work.compute)
    with torch.no_grad():
        loss(model, batch)  # tries the shapes
        with FlopCounterMode(display=False) as counter:
            loss(model, batch)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    rate, bandwidth = _rate(work.compute, device), _bandwidth(device)
    operations, weights = 2 * counter.get_total_flops(), trackers.weights_bytes(model)
    return {
        "two_forward_operations": operations,
        "two_forward_floor_seconds": max(operations / rate, 2 * weights / bandwidth),
        "directions_floor_seconds": DIRECTION_PASSES * 2 * trained / bandwidth,  # read and written
        "operations_per_second": rate,
        "bytes_per_second": bandwidth,
    }


def _step_floor(floor: dict, method: str) -> dict:
    """The floor of a zeroth-order step with dense directions in place; none for other methods."""
    in_place = method in ("dpzero", "dpzero_sphere", "dpzero_signs", "mezo")
    seconds = floor["two_forward_floor_seconds"] + floor["directions_floor_seconds"]
    return {**floor, "step_floor_seconds": seconds if in_place else None}


@cache
def _rate(compute: str, device: str) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.startswith("cuda") else 1024
    one = torch.randn(size, size, dtype=DTYPES[compute], device=device)
    return 2 * size**3 / _seconds(lambda: one @ one, device)


@cache
def _bandwidth(device: str) -> float:
    """Bytes a second that an addition in place reads and writes."""
    values = torch.ones(2**28 if device.startswith("cuda") else 2**25, device=device)
    return 2 * values.numel() * values.element_size() / _seconds(lambda: values.add_(1.0), device)


def _seconds(work: Any, device: str, times: int = 5) -> float:
    """The least of some measurements."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    work()
    least = float("inf")
    for _ in range(times):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        least = min(least, time.perf_counter() - begun)
    return least


def _memory_bytes(machine: Machine) -> int:
    from .environment import devices

    return next(int(row["memory_bytes"]) for row in devices(machine) if row["used"])
