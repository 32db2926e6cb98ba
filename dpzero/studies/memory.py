"""The sweep `memory`: the peak of a step by method, model, batch size and length, predicted or measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..memory.measure import measure
from ..memory.predict import Unpredictable, predict
from ..memory.stand_in_step import Workload
from ..memory.trackers import is_out_of_memory
from ..plan.cell import run_id
from ..plan.method_variants import variant
from ..plan.registry import card
from ..run import record_file
from ..run.provenance import provenance

SAME = ("parameters", "trained_parameters", "weights_bytes")
MEASURED = (
    *("peak_bytes", "inference_peak_bytes", "resident_before_bytes", "resident_peak_bytes"),
    *("reserved_peak_bytes", "device_used_bytes", "load_peak_bytes", "phase", "how"),
)


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Predict, and measure if the cell says so; write the record to `out` and return it."""
    started, run, status, error = time.perf_counter(), run_id(cell), "ok", None
    batch_size, length = map(int, cell["task"].split("x"))
    types = {key: cell["settings"][key] for key in ("dtype", "compute")}
    workload = Workload(cell["model"], cell["method"], batch_size, length, **types)
    log(f"{run}: predicting")
    memory = _predict(workload)
    if cell["settings"]["measure"]:
        log(f"{run}: measuring")
        try:
            measured = measure(workload, device)
            memory |= {f"measured_{key}": measured[key] for key in MEASURED}
        except (MemoryError, RuntimeError) as failure:
            if not is_out_of_memory(failure):
                raise
            status, error = "oom", record_file.OUT_OF_MEMORY
    method = variant(cell["method"])
    method_card = card("mezo" if method.method == "public" else method.method)
    result = record_file.make(
        cell,
        {"title": method.title, "private": method_card.private, "order": method_card.order},
        status=status,
        error=error,
        memory=memory,
        time={"wall_seconds": time.perf_counter() - started},
        provenance=provenance(method_card.file, device or "cpu"),
    )
    record_file.write(out, result)
    return result


def _predict(workload: Workload) -> dict:
    try:
        prediction, kind = predict(workload), "predicted"
    except Unpredictable as error:
        prediction, kind = error.analytic, "formula"
    same = {key: prediction[key] for key in SAME}
    peaks = {f"{kind}_{key}": prediction[key] or None for key in ("peak_bytes", "inference_peak_bytes")}
    return same | peaks | {f"{kind}_{key}": prediction[key] for key in ("phase", "operation", "how")}
