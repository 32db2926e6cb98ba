"""Peak memory of a step, measured in this process: random weights of a published shape, the stand-in batch of `workload`.

One method a process: what an earlier one left in an allocator would be in the figures of the next.
"""

from __future__ import annotations

import gc
import os
import time

import torch

from ..errors import UsageError
from . import trackers
from .predict import figures, header
from .workload import Loaded, Workload, counts, tuned_model

MEASURED_STEPS = 3  # on CUDA, after those that warm up


def measure(workload: Workload, device: str | None = None) -> dict:
    """Peaks in bytes, each named by how it was taken; None where a device has no such figure.

    On CUDA the headline is the allocator's; `reserved` and `device_used` are others, never to be mixed with it. On the CPU it is
    live tensor storage, beside it the resident memory of the process.

    Raises UsageError for weights in half precision on the CPU, where no direction is drawn in it, and if the method refuses the model.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if workload.dtype != "float32" and device == "cpu":
        raise UsageError(
            f"dtype {workload.dtype} is predicted on the CPU, and measured on a GPU alone: leave it out"
        )
    try:
        found = _on_cuda(workload, device) if device.startswith("cuda") else _on_cpu(workload)
    except ValueError as error:
        raise UsageError(f"{workload.method} refuses {workload.model}: {error}") from error
    return header(workload) | found | {"device": device, "seconds": round(time.perf_counter() - started, 2)}


def _on_cpu(workload: Workload) -> dict:
    loaded = Loaded(workload, tuned_model(workload, "cpu"))
    made = _figures(loaded, trackers.LiveStorage("forward"), trackers.LiveStorage(loaded.rest))
    gc.collect()
    trackers.reset_resident_peak()
    before = trackers.resident_peak_bytes()
    loaded.method.step(loaded.batch) if loaded.method else loaded.forward()
    return made | {
        "resident_before_bytes": before,
        "resident_peak_bytes": trackers.resident_peak_bytes(),
        "reserved_peak_bytes": None,
        "device_used_bytes": None,
        "load_peak_bytes": None,
        "how": "measured: live tensor storage on the CPU, of two steps of a first-order method and one of another; resident: VmHWM of "
        "one step more, after a reset",
        "settings": {"threads": torch.get_num_threads(), "attention": "sdpa"},
    }


def _on_cuda(workload: Workload, name: str) -> dict:
    device = torch.device(name)
    torch.cuda.set_device(device)
    free_before, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    loaded = Loaded(workload, tuned_model(workload, name))
    load_peak = torch.cuda.max_memory_allocated(device)
    loaded.steps(
        trackers.AllocatorPeaks(device, loaded.rest)
    )  # workspaces, optimizer state, compiled kernels
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    peaks = trackers.AllocatorPeaks(device, loaded.rest)
    made = _figures(loaded, trackers.AllocatorPeaks(device, "forward"), peaks, MEASURED_STEPS)
    return made | {
        "reserved_peak_bytes": torch.cuda.max_memory_reserved(device),
        "device_used_bytes": free_before - torch.cuda.mem_get_info(device)[0],
        "load_peak_bytes": load_peak,
        "resident_before_bytes": None,
        "resident_peak_bytes": None,
        "how": f"measured: CUDA allocator, its peak reset at each phase, {MEASURED_STEPS} steps after warming up; reserved: of the same "
        "steps; device used: free memory before the model was made less that after (context, workspaces and fragments among it)",
        "settings": {
            "allocator": os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "attention": "sdpa",
        },
    }


def _figures(loaded: Loaded, inference, peaks, repeats: int = 1) -> dict:
    """With trackers of storage, or with the allocator's peaks."""
    for tracker in (inference, peaks):
        if isinstance(tracker, trackers.LiveStorage):
            tracker.add_model(loaded.model)
    with inference:
        loaded.forward()
    with peaks:
        for _ in range(repeats):
            loaded.steps(peaks)
    parameters, trained = counts(loaded.model)
    made = figures(trackers.weights_bytes(loaded.model), inference.peak, peaks)
    return made | {"parameters": parameters, "trained_parameters": trained}
