"""Peak memory of a step and of its phases: of the CUDA allocator, or of live tensor storage.

Both count what tensors hold, in blocks of 512 bytes, but neither the interpreter nor the workspaces of
kernels. The batch is a stand-in of the expected size and the full length, so a peak reveals nothing about
private data and is reproducible.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK = 512  # bytes: the rounding of the CUDA caching allocator


class Phases:
    """Peak bytes of each phase of a step, by name. `rest`: the phase of whatever is in no other."""

    def __init__(self, rest: str = "") -> None:
        self.current = rest
        self.peaks: dict[str, int] = {}

    @property
    def phase_of_peak(self) -> str:
        return max(self.peaks, key=self.peaks.__getitem__, default="")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.mark()
        outer, self.current = self.current, name
        try:
            self.mark()
            yield
            self.mark()
        finally:
            self.current = outer

    def mark(self) -> None:
        """End one phase and begin another."""
        raise NotImplementedError

    def note(self, size: int) -> None:
        self.peaks[self.current] = max(self.peaks.get(self.current, 0), size)


class AllocatorPeaks(Phases):
    """Peaks of CUDA's caching allocator, read and reset at each mark."""

    def __init__(self, device: torch.device, rest: str = "") -> None:
        super().__init__(rest)
        self.device, self.operation = device, ""

    def __enter__(self) -> AllocatorPeaks:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.mark()

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def mark(self) -> None:
        torch.cuda.synchronize(self.device)
        self.note(torch.cuda.max_memory_allocated(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)


class LiveStorage(TorchDispatchMode, Phases):
    """Counts the bytes of every storage that the dispatcher sees, from its creation until it is freed."""

    def __init__(self, rest: str = "") -> None:
        TorchDispatchMode.__init__(self)
        Phases.__init__(self, rest)
        self.live = self.peak = 0
        self.operation = ""  # the one whose result made the peak
        self._known: dict[int, weakref.ref] = {}

    def add(self, tensor: torch.Tensor, operation: object = "") -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or tensor.device.type == "meta":
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def gone(_: object) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        if self.live > self.peak:
            self.peak, self.operation = self.live, str(operation)
        self.mark()

    def add_model(self, model: torch.nn.Module) -> None:
        for tensor in [*model.parameters(), *model.buffers()]:
            self.add(tensor)

    def mark(self) -> None:
        self.note(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor, func)
        return out


def peak_bytes(model: torch.nn.Module, work: Callable[[], object]) -> int:
    """Peak of allocated bytes while `work` runs, including the model's weights."""
    if devices := _cuda_devices(model):
        for device in devices:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        work()
        for device in devices:
            torch.cuda.synchronize(device)
        return sum(map(torch.cuda.max_memory_allocated, devices))
    tracker = LiveStorage()
    tracker.add_model(model)
    with tracker:
        work()
    return tracker.peak


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the interpreter ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))


def how(model: torch.nn.Module) -> str:
    """How `peak_bytes` measures this model."""
    on_cuda = next(model.parameters()).device.type == "cuda"
    return "CUDA allocator" if on_cuda else "live tensor storage on the CPU"


def reserved_bytes(model: torch.nn.Module) -> int | None:
    """Bytes that the CUDA allocator took from the device, including fragments; None on the CPU."""
    devices = _cuda_devices(model)
    return sum(map(torch.cuda.max_memory_reserved, devices)) if devices else None


def _cuda_devices(model: torch.nn.Module) -> list[torch.device]:
    """The model's CUDA devices. The peaks of several devices are summed, although they may not coincide."""
    return [d for d in dict.fromkeys(p.device for p in model.parameters()) if d.type == "cuda"]


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers in allocator blocks; tied ones count once."""
    storages = {
        s._cdata: s.nbytes() for t in [*model.parameters(), *model.buffers()] for s in [t.untyped_storage()]
    }
    return sum(-(-size // BLOCK) * BLOCK for size in storages.values())


def reset_resident_peak() -> None:
    """Reset the resident peak of the process (Linux only)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_bytes(b"5")


def resident_peak_bytes() -> int:
    """Peak physical memory of this process since the last reset, including interpreter and libraries."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
