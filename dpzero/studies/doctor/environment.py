"""What is installed, what is missing and how to get it; the devices, and the kernels that directions use there."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from ...run.provenance import device_name
from ...zeroth_order import dispatch
from .machine import Machine

NEEDED_FOR = {
    "torch": "everything",
    "transformers": "language models",
    "numba": "fast directions on the CPU",
    "triton": "fast directions on a GPU",
    "dp-accounting": "calibration of noise, and epsilon",
    "opacus": "DP-SGD",
    "peft": "LoRA and prefix",
    "datasets": "rows of the hub",
    "gguf": "SmolLM2 from the package index",
    "snakemake": "sweeps",
    "pandas": "tables",
    "matplotlib": "figures",
    "pytest": "tests",
}


def packages(machine: Machine) -> Iterator[dict]:
    """One row for each package: its version or the command that installs it."""
    yield {"name": "python", "version": platform.python_version(), "for": "everything", "advice": ""}
    for name, purpose in NEEDED_FOR.items():
        row: dict[str, str | None]
        try:
            row = {"version": version(name), "advice": ""}
        except PackageNotFoundError:
            needless = name == "triton" and not torch.cuda.is_available()
            row = {
                "version": None,
                "advice": "not needed without a GPU" if needless else f"pip install {name}",
            }
        yield {"name": name, "for": purpose, **row}


def devices(machine: Machine) -> Iterator[dict]:
    """One row for each device: memory, what computes the directions there and why."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kernels = "numba" if importlib.util.find_spec("numba") else "torch"
    reason = "it is installed" if kernels == "numba" else "numba is not installed"
    yield {
        "device": "cpu",
        "name": f"{device_name('cpu')}, {torch.get_num_threads()} threads",
        "memory_bytes": memory,
        "directions": kernels,
        "reason": reason,
        "used": machine.device == "cpu",
    }
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        triton = dispatch.triton_kernels(torch.device("cuda", number)) is not None
        yield {
            "device": f"cuda:{number}",
            "name": f"{properties.name}, capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}",
            "memory_bytes": properties.total_memory,
            "directions": "triton" if triton else "torch",
            "reason": "it is installed" if triton else "triton is not installed",
            "used": machine.device == f"cuda:{number}" or (machine.device == "cuda" and number == 0),
        }
