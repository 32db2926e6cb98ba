"""The sweep `memory`: the peak of a step by method, model, batch size and length, predicted or measured."""

from __future__ import annotations

from collections.abc import Callable

from ..files import run_id
from ..memory.measure import measure as measure_peaks
from ..memory.predict import Unpredictable, predict
from ..memory.stand_in_step import Workload
from ..memory.trackers import is_out_of_memory
from ..plan.method_variants import variant
from ..plan.registry import card
from ..run import record_file
from ..run.provenance import provenance

SAME = ("parameters", "trained_parameters", "weights_bytes")
MEASURED = (
    *("peak_bytes", "inference_peak_bytes", "resident_before_bytes", "resident_peak_bytes"),
    *("reserved_peak_bytes", "device_used_bytes", "load_peak_bytes", "phase", "how"),
)


def measure(cell: dict, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """The parts of a record: predicted peaks and, if the cell says so, measured ones."""
    status, error = "ok", None
    batch_size, length = map(int, cell["task"].split("x"))
    types = {key: cell["settings"][key] for key in ("dtype", "compute")}
    workload = Workload(cell["model"], cell["method"], batch_size, length, **types)
    log(f"{run_id(cell)}: predicting")
    memory = _predict(workload)
    if cell["settings"]["measure"]:
        log(f"{run_id(cell)}: measuring")
        try:
            measured = measure_peaks(workload, device)
            memory |= {f"measured_{key}": measured[key] for key in MEASURED}
        except (MemoryError, RuntimeError) as failure:
            if not is_out_of_memory(failure):
                raise
            status, error = "oom", record_file.OUT_OF_MEMORY
    method = variant(cell["method"])
    method_card = card("mezo" if method.method == "public" else method.method)
    return {
        "method": {"title": method.title, "private": method_card.private, "order": method_card.order},
        "status": status,
        "error": error,
        "memory": memory,
        "provenance": provenance(method_card.file, device or "cpu"),
    }


def _predict(workload: Workload) -> dict:
    try:
        prediction, kind = predict(workload), "predicted"
    except Unpredictable as error:
        prediction, kind = error.analytic, "formula"
    same = {key: prediction[key] for key in SAME}
    peaks = {f"{kind}_{key}": prediction[key] or None for key in ("peak_bytes", "inference_peak_bytes")}
    return same | peaks | {f"{kind}_{key}": prediction[key] for key in ("phase", "operation", "how")}
