"""The sweep `memory`: peak of a step by method, model, batch and length; predicted, and where the cell says so measured as well.

settings: {SETTING: value}                                  of every run
series: [{models, methods, sizes: [BATCHxLENGTH], measure: [model]}]      each product of the three is a run; in it, sizes are the tasks
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UsageError
from ..memory.variants import VARIANTS, canonical, variant
from ..plan import sweep
from ..plan.ranges import COUNT
from ..plan.setting_table import Entry
from ..plan.settings import complete
from ..run import record
from ..run.provenance import provenance

KEYS = ("series", "settings")
AXES = ("models", "methods", "sizes")
SETTINGS = {
    "dtype": Entry("str", "float32", ("float32", "bfloat16", "float16"), "of the stored weights"),
    "compute": Entry("str", "float32", ("float32", "bfloat16"), "type of matrix products"),
    "measure": Entry("bool", False, None, "measure, too"),
    "version": Entry("int", 1, COUNT, "raise it to make the records anew"),
}


def cells(found: dict) -> Iterator[dict]:
    """Of a sweep file; a run that several series name is what the first says."""
    seen = set()
    for series in found.get("series") or []:
        for key in AXES:
            if not series.get(key):
                raise UsageError(f"a series has no {key!r}: give it {', '.join(AXES)}")
        for model in sweep.listed(series["models"]):
            for method in sweep.listed(series["methods"]):
                for size in sweep.listed(series["sizes"]):
                    measure = model in sweep.listed(series.get("measure"))
                    settings = (found.get("settings") or {}) | {"measure": measure}
                    cell = {"task": size, "model": model, "method": method, "settings": settings}
                    if (size, model, method) not in seen:
                        seen.add((size, model, method))
                        yield check(cell | {"epsilon": "0", "seed": 0, "experiment": "memory"})


def check(cell: dict) -> dict:
    """The cell with its settings complete. Raises UsageError for one that is not known or not of its type."""
    method = canonical(cell["method"])
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(cell["task"])):
        raise UsageError(f"the size {cell['task']!r} is no BATCHxLENGTH: write it as 8x512")
    settings = complete(f"method {method}", cell["settings"], SETTINGS)
    names = {"task": str(cell["task"]), "model": str(cell["model"]), "method": method}
    return {**names, "epsilon": "0", "seed": 0, "settings": settings, "experiment": "memory"}


def run_cell(cell: dict, out: Path, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """Predict, and measure where the cell says so; write the record to `out` and return it."""
    from ..memory.trackers import is_out_of_memory
    from ..memory.workload import Workload

    started, run, status, error = time.perf_counter(), sweep.run_id(cell), "ok", None
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
