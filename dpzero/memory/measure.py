"""Measures the peak memory of a step in this process, with random weights and a stand-in batch.

Measure one method in a process: what an earlier one left in an allocator would count for the next.
"""

from __future__ import annotations

import gc
import os
import time

import torch

from ..errors import UsageError
from . import trackers
from .predict import header
from .stand_in_step import Loaded, Workload, build_model, track

OF_SOME = (  # what only a CUDA device has, or only the CPU
    *("reserved_peak_bytes", "device_used_bytes", "load_peak_bytes"),
    *("resident_before_bytes", "resident_peak_bytes"),
)
MEASURED_STEPS = 3  # on CUDA, after those that warm up


def measure(workload: Workload, device: str | None = None) -> dict:
    """Measure the peaks of a step, in bytes; None for those that a device does not have.

    On CUDA `peak_bytes` is the allocator's; `reserved_peak_bytes` and `device_used_bytes` are other
    quantities. On the CPU `peak_bytes` is live tensor storage; the resident memory of the process stands
    beside it.

    Raises:
        UsageError: weights in half precision on the CPU, or a method that refuses the model.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if workload.dtype != "float32" and device == "cpu":
        raise UsageError(
            f"dtype {workload.dtype} is predicted on the CPU, and measured on a GPU alone: leave it out"
        )
    try:
        peaks = _on_cuda(workload, device) if device.startswith("cuda") else _on_cpu(workload)
    except ValueError as error:
        raise UsageError(f"{workload.method} refuses {workload.model}: {error}") from error
    seconds = round(time.perf_counter() - started, 2)
    return header(workload) | dict.fromkeys(OF_SOME) | peaks | {"device": device, "seconds": seconds}


def _on_cpu(workload: Workload) -> dict:
    loaded = Loaded(workload, build_model(workload, "cpu"))
    peaks = track(loaded, trackers.LiveStorage("forward"), trackers.LiveStorage(loaded.rest))
    gc.collect()
    trackers.reset_resident_peak()
    before = trackers.resident_peak_bytes()
    loaded.method.step(loaded.batch) if loaded.method else loaded.forward()
    return peaks | {
        "resident_before_bytes": before,
        "resident_peak_bytes": trackers.resident_peak_bytes(),
        "how": "measured: live tensor storage on the CPU, over two steps of a first-order method and one of "
        "another; resident: VmHWM of one more step, after a reset",
        "settings": {"threads": torch.get_num_threads(), "attention": "sdpa"},
    }


def _on_cuda(workload: Workload, name: str) -> dict:
    device = torch.device(name)
    torch.cuda.set_device(device)
    free_before, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    loaded = Loaded(workload, build_model(workload, name))
    load_peak = torch.cuda.max_memory_allocated(device)
    warm_up = trackers.AllocatorPeaks(device, loaded.rest)
    loaded.steps(warm_up)  # workspaces, optimizer state, compiled kernels
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    peaks = trackers.AllocatorPeaks(device, loaded.rest)
    fields = track(loaded, trackers.AllocatorPeaks(device, "forward"), peaks, MEASURED_STEPS)
    return fields | {
        "reserved_peak_bytes": torch.cuda.max_memory_reserved(device),
        "device_used_bytes": free_before - torch.cuda.mem_get_info(device)[0],
        "load_peak_bytes": load_peak,
        "how": f"measured: CUDA allocator, its peak reset at each phase, {MEASURED_STEPS} steps after warming up; "
        "reserved: over the same steps; device used: free memory before loading the model minus that after "
        "(with context, workspaces, fragments)",
        "settings": {
            "allocator": os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "attention": "sdpa",
        },
    }
