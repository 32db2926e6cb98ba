"""The study `doctor`: what a machine offers, whether its kernels give the right bits, what a step costs, and whether it learns.

One command measures everything on the machine at hand in some minutes, the most valuable part first. Each row is written as soon
as it is there, so that what was measured is kept whatever ends the command.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...files import write_whole
from ...run.provenance import provenance
from . import environment, learning, ranks, same_bits, step_costs
from .machine import Machine, Section, Skipped


def sections() -> dict[str, Section]:
    """The parts in their order."""
    return {
        "packages": Section(0, environment.packages),
        "devices": Section(0, environment.devices),
        "same bits": Section(5, same_bits.rows),
        "step costs": Section(15, step_costs.rows),
        "learning": Section(30, learning.rows),
        "ranks": Section(20, ranks.rows),
        "memory": Section(5, step_costs.memory_rows),  # predictions, which need no device
        "largest models": Section(10, step_costs.largest_models),
    }


def examine(machine: Machine) -> dict:
    """All sections in their order, written to OUT/doctor.json after each row; returns what was written.

    A section that fails has status `failed` and its error in a sentence, and the next one begins.
    """
    result: dict[str, Any] = {
        "minutes": machine.minutes,
        "device": machine.device,
        "provenance": provenance("dpzero", machine.device),
        "sections": {},
    }
    for name, section in sections().items():
        result["sections"][name] = part = {"status": "ok", "reason": "", "seconds": 0.0, "rows": []}
        if machine.seconds_left() < section.least_seconds:
            part |= {"status": "skipped", "reason": f"no time was left of {machine.minutes:g} minutes"}
        else:
            _fill(part, name, section, machine, lambda: _write(result, machine.out))
        _write(result, machine.out)
    return result


def _fill(part: dict, name: str, section: Section, machine: Machine, save: Callable[[], object]) -> None:
    machine.log(f"{name}: begins, {machine.seconds_left():.0f} s left")
    begun = time.monotonic()
    try:
        for row in section.rows(machine):
            part["rows"].append(row)
            part["seconds"] = round(time.monotonic() - begun, 1)
            save()
            if machine.seconds_left() < 0:
                part |= {"status": "stopped", "reason": f"no time was left of {machine.minutes:g} minutes"}
                break
    except Skipped as reason:
        part |= {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # one part that fails must not cost the others their time on the device
        machine.log(traceback.format_exc())
        part |= {"status": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())}
        if machine.on_cuda:
            torch.cuda.empty_cache()
    part["seconds"] = round(time.monotonic() - begun, 1)


def _write(result: dict, out: Path) -> None:
    write_whole(out / "doctor.json", json.dumps(result, indent=1) + "\n")
