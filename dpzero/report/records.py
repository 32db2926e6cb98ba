"""Record files -> one frame with a row for each run. The only module that knows the shape of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas

from dpzero.errors import UsageError

Record = dict[str, Any]
STATUSES = ("ok", "oom", "diverged")
METRICS = ("accuracy", "f1")  # the first that a record has is its score

# Columns that exist whether or not a record fills them, in the order of runs.csv; further keys of a record follow.
SECTIONS = {
    "metrics": "split examples loss selection start_accuracy",
    "privacy": "unit adjacency sampling mechanism dataset_size batch_size steps clip noise_scale delta epsilon_target "
    "epsilon_spent epsilon_spent_rdp gdp_mu accountant noise_arithmetic noise_key valid_release",
    "memory": "peak_allocated_bytes inference_peak_bytes weights_bytes peak_reserved_bytes peak_resident_bytes how",
    "time": "wall_seconds train_seconds steps_per_second step_seconds two_forward_seconds",
    "provenance": "git dirty code method_code device python model.name model.sha256 data.name data.sha256",
}
COLUMNS = (
    *("run", "status", "error", "task", "model", "method", "title", "private", "order", "epsilon", "seed"),
    *("metric", "score"),
    *(f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys.split()),
)

INTERNAL = ("curve", "rank", "epsilon_value")  # for drawing and sorting; in no file
LAST = 5  # rank of a method without known order


def load(paths: Iterable[Path], expected: Iterable[str] | None = None) -> pandas.DataFrame:
    """`to_frame` of `read_records`. Raises UsageError without any record."""
    runs = to_frame(read_records(paths), expected)
    if runs.empty:
        raise UsageError("there is no record to report on: run a cell of the sweep first")
    return runs


def read_records(paths: Iterable[Path]) -> list[Record]:
    """The validated records of these files, ordered by run id whatever the order of the files.

    Raises UsageError, one line naming the file, for a file that is missing, is no JSON or is no record of
    version 1, and for two files that hold the same run.
    """
    by_run: dict[str, tuple[Path, Record]] = {}
    for path in map(Path, paths):
        record = _read(path)
        earlier = by_run.setdefault(record["run"], (path, record))[0]
        if earlier != path:
            raise UsageError(f"{earlier} and {path} both hold run {record['run']}: pass one of them")
    return [by_run[run][1] for run in sorted(by_run)]


def to_frame(records: list[Record], expected: Iterable[str] | None = None) -> pandas.DataFrame:
    """One row a run, in the order of the tables; an expected run without record is a row of status `missing`.

    Columns: `COLUMNS`, then `settings.*`, `provenance.packages.*` and whatever else the records hold. A value that
    a record does not have is None or NaN.
    """
    rows = [_row(record) for record in records]
    methods = {row["method"]: {key: row[key] for key in ("title", "private", "order")} for row in rows}
    present = {row["run"] for row in rows}
    rows += [_missing_row(run, methods) for run in sorted(set(expected or ()) - present)]
    extra = sorted({key for row in rows for key in row} - set(COLUMNS) - set(INTERNAL))
    frame = pandas.DataFrame(
        rows, columns=[*COLUMNS, *extra, *INTERNAL], dtype=object
    )  # values as in the record
    for column in ("score", *(c for c in COLUMNS if c.endswith(("_bytes", "_seconds", "_per_second")))):
        frame[column] = frame[column].astype(float)
    frame["private"] = frame["private"].astype(bool)
    frame["epsilon_value"] = frame["epsilon"].astype(float)
    order = ["task", "model", "rank", "method", "epsilon_value", "seed"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def rank(private: bool, order: int | None) -> int:
    """Place in a table: zero-shot, non-private first order, zeroth order, private zeroth order, first order."""
    ranks = {(False, None): 0, (False, 1): 1, (False, 0): 2, (True, 0): 3, (True, 1): 4}
    return ranks.get((private, order), LAST)


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): run its cell first") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is no JSON ({reason}): delete it and run its cell again") from None
    if fault := _fault(record):
        raise UsageError(f"{path} is no valid record ({fault}): delete it and run its cell again")
    return record


def _fault(record: Any) -> str | None:
    """The first fault of a record in a few words; None for a valid one."""
    if not isinstance(record, dict):
        return "not a JSON object"
    return next((fault(record) for is_valid, fault in CHECKS if not is_valid(record)), None)


def _is_ok_with_score(record: Record) -> bool:
    language = (
        record["cell"].get("experiment", "language") == "language"
    )  # other kinds have results of their own
    return record["status"] != "ok" or not language or _score(record)[0] is not None


def _are(kind: type, values: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(values.get(key), kind) for key in keys)


# Each check relies on those above it: (what a valid record fulfils, the fault of one that does not).
CHECKS: tuple[tuple[Callable[[Record], bool], Callable[[Record], str]], ...] = (
    (lambda r: r.get("version") == 1, lambda r: f"version is {r.get('version')!r}, not 1"),
    (
        lambda r: r.get("status") in STATUSES,
        lambda r: f"status is {r.get('status')!r}, not one of {', '.join(STATUSES)}",
    ),
    *(
        (lambda r, key=key: _are(dict, r, key), lambda r, key=key: f"{key} is missing")
        for key in ("cell", "method")
    ),
    *(
        (lambda r, key=key: isinstance(r.get(key) or {}, dict), lambda r, key=key: f"{key} is no object")
        for key in SECTIONS
    ),
    (
        lambda r: _are(str, r["cell"], "task", "model", "method", "epsilon"),
        lambda r: "cell needs task, model, method and epsilon as text",
    ),
    (lambda r: type(r["cell"].get("seed")) is int, lambda r: "cell needs an integer seed"),
    (
        lambda r: r.get("run") == run_id(r["cell"]),
        lambda r: f"run is {r.get('run')!r} but its cell is {run_id(r['cell'])}",
    ),
    (
        lambda r: _is_number(r["cell"]["epsilon"]),
        lambda r: f"epsilon is {r['cell']['epsilon']!r}, not a number",
    ),
    (
        lambda r: _are(str, r["method"], "title") and _are(bool, r["method"], "private"),
        lambda r: "method needs a title and private: true or false",
    ),
    (
        lambda r: r["method"].get("order") in (0, 1, None),
        lambda r: f"method order is {r['method']['order']!r}, not 0, 1 or null",
    ),
    (_is_ok_with_score, lambda r: f"status is ok but metrics has no finite {' or '.join(METRICS)}"),
    (lambda r: isinstance(r.get("curve") or [], list), lambda r: "curve is no list"),
)


def run_id(cell: dict[str, Any]) -> str:
    """TASK/MODEL/METHOD/eps-E/seed-S."""
    return "{task}/{model}/{method}/eps-{epsilon}/seed-{seed}".format(**cell)


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _score(record: Record) -> tuple[str | None, float | None]:
    metrics = record.get("metrics") or {}
    for name in METRICS:
        value = metrics.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return name, float(value)
    return None, None


def _row(record: Record) -> Record:
    cell, method = record["cell"], record["method"]
    row = {"run": record["run"], "status": record["status"], "error": record.get("error")}
    row |= {key: cell[key] for key in ("task", "model", "method", "epsilon", "seed")}
    row |= {"title": method["title"], "private": method["private"], "order": method.get("order")}
    row["rank"] = rank(row["private"], row["order"])
    row["metric"], row["score"] = _score(record)
    row["curve"] = record.get("curve") or []
    row |= _flatten("settings", cell.get("settings") or {})
    for section in (*SECTIONS, "guarantee", "quadratic"):
        row |= _flatten(section, record.get(section) or {})
    for name in METRICS:
        row.pop(f"metrics.{name}", None)  # already there as metric and score
    return row


def _missing_row(run: str, methods: dict[str, dict[str, Any]]) -> Record:
    """The row of a run without record; title and order come from other runs of the method."""
    try:
        task, model, method, epsilon, seed = run.split("/")
        row: Record = {"task": task, "model": model, "method": method}
        row |= {"epsilon": epsilon.removeprefix("eps-"), "seed": int(seed.removeprefix("seed-"))}
        if run != run_id(row) or not _is_number(row["epsilon"]):
            raise ValueError
    except ValueError:
        raise UsageError(f"{run!r} is no run id: write TASK/MODEL/METHOD/eps-E/seed-S") from None
    unknown = {"title": method, "private": row["epsilon"] not in ("0", "inf"), "order": None}
    row |= methods.get(method, unknown)
    known = method in methods or row["epsilon"] == "0"
    place = rank(row["private"], row["order"]) if known else LAST
    return row | {"run": run, "status": "missing", "curve": [], "rank": place}


def _flatten(prefix: str, section: dict[str, Any]) -> Record:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            flat |= _flatten(name, value)
        else:
            flat[name] = json.dumps(value, sort_keys=True) if isinstance(value, list) else value
    return flat
