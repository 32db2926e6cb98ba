"""The sweep `memory`: peak of a step by method, model, batch and length; predicted, and where the cell says so measured as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..plan.cell import run_id
from ..plan.method_variants import VARIANTS, variant
from ..run import record
from ..run.provenance import provenance


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Predict, and measure where the cell says so; write the record to `out` and return it."""
    from ..memory.trackers import is_out_of_memory
    from ..memory.workload import Workload

    started, run, status, error = time.perf_counter(), run_id(cell), "ok", None
    batch_size, length = map(int, cell["task"].split("x"))
    kinds = {key: cell["settings"][key] for key in ("dtype", "compute")}
    workload = Workload(cell["model"], cell["method"], batch_size, length, **kinds)
    log(f"{run}: predicting")
    found = _predicted(workload)
    if cell["settings"]["measure"]:
        from ..memory.measure import measure

        log(f"{run}: measuring")
        try:
            found |= _measured(measure(workload, device))
        except (MemoryError, RuntimeError) as failure:
            if not is_out_of_memory(failure):
                raise
            status, error = "oom", record.OUT_OF_MEMORY
    made = {
        "version": record.VERSION,
        "run": run,
        "cell": cell,
        "method": {"title": variant(cell["method"]).title, **_kind(cell["method"])},
        "status": status,
        "error": error,
        "metrics": None,
        "memory": found,
        "time": {"wall_seconds": time.perf_counter() - started},
        "provenance": provenance(_file(cell["method"]), device or "cpu"),
    }
    record.write(out, made)
    return made


_SAME = ("parameters", "trained_parameters", "weights_bytes")


def _predicted(workload) -> dict:
    from ..memory.predict import Unpredictable, predict

    try:
        found, kind = predict(workload), "predicted"
    except Unpredictable as error:
        found, kind = error.analytic, "formula"
    same = {key: found[key] for key in _SAME}
    peaks = {f"{kind}_{key}": found[key] or None for key in ("peak_bytes", "inference_peak_bytes")}
    return same | peaks | {f"{kind}_{key}": found[key] for key in ("phase", "operation", "how")}


def _measured(found: dict) -> dict:
    keys = ("peak_bytes", "inference_peak_bytes", "resident_before_bytes", "resident_peak_bytes")
    keys = (*keys, "reserved_peak_bytes", "device_used_bytes", "load_peak_bytes", "phase", "how")
    return {f"measured_{key}": found[key] for key in keys}


def _file(method: str) -> str:
    return "mezo" if VARIANTS[method].method == "public" else VARIANTS[method].method


def _kind(method: str) -> dict:
    from ..plan.registry import card

    found = card(_file(method))
    return {"private": found.private, "order": found.order}
