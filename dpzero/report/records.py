"""Record files -> one frame with a row for each run. The only module that knows the shape of a record."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy
import pandas
from numpy.typing import NDArray

from dpzero.errors import UsageError
from dpzero.files import TRY_MARK, run_id

Record = dict[str, Any]
RUN_ID = re.compile(
    r"(?P<task>[^/]+)/(?P<model>[^/]+)/(?P<method>[^/]+)/eps-(?P<epsilon>[^/]+)/seed-(?P<seed>\d+)"
)
STATUSES = ("ok", "oom", "diverged")
METRICS = ("accuracy", "f1")  # the first that a record has is its score

# Columns that always exist, in the order of runs.csv; further keys of a record follow.
SECTIONS = {
    "metrics": "split examples loss selection start_accuracy",
    "privacy": "unit adjacency sampling mechanism dataset_size batch_size steps clip noise_scale delta "
    "epsilon_target epsilon_spent epsilon_spent_rdp gdp_mu accountant noise_arithmetic noise_key "
    "valid_release",
    "memory": "peak_allocated_bytes inference_peak_bytes weights_bytes peak_reserved_bytes "
    "peak_resident_bytes how",
    "time": "wall_seconds train_seconds steps_per_second step_seconds two_forward_seconds",
    "provenance": "git dirty code method_code device python model.name model.sha256 data.name data.sha256",
}
COLUMNS = (
    *("run", "status", "error", "task", "model", "method", "title", "private", "order", "epsilon", "seed"),
    *("metric", "score"),
    *(f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys.split()),
)

NUMERIC = re.compile(  # values that reports compute with; null where they are unknown
    r"metrics\.example(s|_forwards)|privacy\.(epsilon_\w+|dataset_size)|(memory|time)\.\w+_(bytes|seconds|second)"
)
TABLES_OF_RUNS = ("runs.csv", "times.csv")
IN_TABLES = ["task", "model", "rank", "method", "epsilon_value", "seed"]  # the order of the rows of tables
INTERNAL = (
    "curve",
    "rank",
    "epsilon_value",
    "example_forwards",
    "promise",
)  # for drawing and sorting; in no file
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
        record = read_record(path)
        earlier = by_run.setdefault(record["run"], (path, record))[0]
        if earlier != path:
            raise UsageError(f"{earlier} and {path} both hold run {record['run']}: pass one of them")
    return [by_run[run][1] for run in sorted(by_run)]


def to_frame(records: list[Record], expected: Iterable[str] | None = None) -> pandas.DataFrame:
    """One row for each run, in the order of the tables; an expected run without record has status `missing`.

    Columns: `COLUMNS`, then `settings.*`, `provenance.packages.*` and further keys of the records. An absent
    value is None or NaN.
    """
    rows = [_row(record) for record in records]
    methods = {  # a try tells of its method, too
        row["method"].partition(TRY_MARK)[0]: {key: row[key] for key in ("title", "private", "order", "rank")}
        for row in rows
    }
    present = {row["run"] for row in rows}
    rows += [_missing_row(run, methods) for run in sorted(set(expected or ()) - present)]
    extra = sorted({key for row in rows for key in row} - set(COLUMNS) - set(INTERNAL))
    columns = [*COLUMNS, *extra, *INTERNAL]
    frame = pandas.DataFrame(rows, columns=columns, dtype=object)  # values as in the record
    for column in ("score", *(c for c in COLUMNS if c.endswith(("_bytes", "_seconds", "_per_second")))):
        frame[column] = frame[column].astype(float)
    frame["private"] = frame["private"].astype(bool)
    frame["epsilon_value"] = frame["epsilon"].astype(float)
    frame["example_forwards"] = example_forwards(frame)
    frame["promise"] = promises(frame)
    return frame.sort_values(IN_TABLES, kind="stable", ignore_index=True)


def from_tables(folder: Path) -> pandas.DataFrame:
    """The frame of a sweep's runs.csv and times.csv in this folder: that of its records, without learning curves."""
    stable, volatile = (pandas.read_csv(folder / name, dtype={"epsilon": str}) for name in TABLES_OF_RUNS)
    both = volatile.columns.intersection(stable.columns).drop("run")
    frame = stable.merge(volatile.drop(columns=both), on="run", validate="one_to_one")
    absent = [column for column in COLUMNS if column not in frame]
    frame = frame.reindex(columns=[*frame.columns, *absent])
    order = frame["order"].astype(object).where(frame["order"].notna(), None)
    ranks = [rank(private, place) for private, place in zip(frame["private"], order, strict=True)]
    frame = frame.assign(order=order, rank=ranks, epsilon_value=frame["epsilon"].astype(float))
    frame["curve"] = [[] for _ in range(len(frame))]
    frame["example_forwards"] = example_forwards(frame)
    frame["promise"] = promises(frame)
    return frame.sort_values(IN_TABLES, kind="stable", ignore_index=True)


def promises(runs: pandas.DataFrame) -> pandas.Series:
    """What each run's epsilon is about, which no two may share a column with: "" (an example), user, or selective."""
    words = pandas.Series("", runs.index)
    for column, word in (("settings.unit", "user"), ("privacy.definition", "selective")):
        if column in runs:
            words = words.mask(runs[column].eq(word), word)
    return words.groupby(runs["method"]).transform(
        "max"
    )  # a run without a record is like its method's others


FORWARDS = "metrics.example_forwards"


def example_forwards(runs: pandas.DataFrame) -> pandas.Series:
    """Forward passes of single examples in the training of each run; a backward pass counts two.

    From the records; for records that do not say it, from their settings: steps x batch size x the passes of a step
    for each example (two for each direction, three for a gradient, five if ghost clipping takes another).
    """
    said = runs[FORWARDS].astype(float) if FORWARDS in runs else pandas.Series(math.nan, runs.index)

    def setting(name: str, default: float) -> pandas.Series:
        column = f"settings.{name}"
        known = pandas.to_numeric(runs[column], errors="coerce") if column in runs else said * math.nan
        return known.astype(float).fillna(default)

    ghost = runs["settings.clipping"].eq("ghost") if "settings.clipping" in runs else False
    each = (2 * setting("directions", 1)).where(runs["order"] == 0, 3.0 + 2.0 * ghost)
    size = setting("batch_size", math.nan).clip(upper=runs["privacy.dataset_size"].astype(float))
    trained = setting("steps", math.nan) * size * each
    return said.fillna(trained.where(runs["order"].notna(), 0.0))


def correct_rows(runs: pandas.DataFrame) -> dict[int, NDArray[numpy.bool_]]:
    """Seed -> whether each test row was answered correctly, of the runs that finished and say so: bool [rows].

    Raises UsageError if the bits of a run are not those of its accuracy.
    """
    if "metrics.correct" not in runs:
        return {}
    known = runs[(runs["status"] == "ok") & runs["metrics.correct"].notna()]
    return {row["seed"]: _unpacked(row) for row in known.to_dict("records")}


def _unpacked(row: Record) -> NDArray[numpy.bool_]:
    bits = _unpack(row["metrics.correct"], row["metrics.examples"], row["score"])
    if bits is None:
        raise UsageError(f"run {row['run']}: {CONTRADICTION}: delete its record and run it again")
    return bits


CONTRADICTION = "metrics.correct does not have the rows, or not the right answers, of its accuracy"


def _unpack(correct: Any, examples: Any, score: Any) -> NDArray[numpy.bool_] | None:
    """The bits of test rows: bool [rows]; None if they are not those of this number of rows and this score."""
    try:
        packed, count = numpy.frombuffer(base64.b64decode(correct), numpy.uint8), int(examples)
        bits = numpy.unpackbits(packed, count=count).astype(bool)
        return bits if len(packed) == -(-count // 8) and bits.sum() == round(count * score) else None
    except (TypeError, ValueError, OverflowError):
        return None


def rank(private: bool, order: int | None) -> int:
    """Place in a table: zero-shot, first order, zeroth order, private zeroth order, private first order."""
    ranks = {(False, None): 0, (False, 1): 1, (False, 0): 2, (True, 0): 3, (True, 1): 4}
    return ranks.get((private, order), LAST)


def read_record(path: Path) -> Record:
    """The validated record of a file. Raises UsageError, one line naming the file, if it has none of version 1."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): run its cell first") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is no JSON ({reason}): delete it and run its cell again") from None
    if fault := next(_faults(record), None):
        raise UsageError(f"{path} is no valid record ({fault}): delete it and run its cell again")
    return record


def _faults(record: Any) -> Iterator[str]:
    """The faults of a record in a few words. The first one counts: each check relies on those above it."""
    if not isinstance(record, dict):
        yield "not a JSON object"
    if record.get("version") != 1:
        yield f"version is {record.get('version')!r}, not 1"
    if record.get("status") not in STATUSES:
        yield f"status is {record.get('status')!r}, not one of {', '.join(STATUSES)}"
    yield from (f"{key} is missing" for key in ("cell", "method") if not isinstance(record.get(key), dict))
    yield from (f"{key} is no object" for key in SECTIONS if not isinstance(record.get(key) or {}, dict))
    cell, method = record["cell"], record["method"]
    parts = ("settings", "search")
    yield from (f"cell.{key} is no object" for key in parts if not isinstance(cell.get(key) or {}, dict))
    if not all(isinstance(cell.get(key), str) for key in ("task", "model", "method", "epsilon")):
        yield "cell needs task, model, method and epsilon as text"
    if type(cell.get("seed")) is not int:
        yield "cell needs an integer seed"
    if record.get("run") != run_id(cell):
        yield f"run is {record.get('run')!r} but its cell is {run_id(cell)}"
    if not _is_number(cell["epsilon"]):
        yield f"epsilon is {cell['epsilon']!r}, not a number"
    if not isinstance(method.get("title"), str) or not isinstance(method.get("private"), bool):
        yield "method needs a title and private: true or false"
    if method.get("order") not in (0, 1, None):
        yield f"method order is {method['order']!r}, not 0, 1 or null"
    values = {f"{key}.{name}": value for key in SECTIONS for name, value in (record.get(key) or {}).items()}
    for key, value in values.items():
        if NUMERIC.fullmatch(key) and value is not None and not _is_numeric(value):
            yield f"{key} is {value!r}, not a number"
    trains = cell.get("experiment", "language") == "language"  # other kinds have results of their own
    if record["status"] == "ok" and trains and _score(record)[0] is None:
        yield f"status is ok but metrics has no finite {' or '.join(METRICS)}"
    metrics = record.get("metrics") or {}
    told, examples, score = metrics.get("correct"), metrics.get("examples"), _score(record)[1]
    if told is not None and _unpack(told, examples, score) is None:
        yield CONTRADICTION
    if not isinstance(record.get("curve") or [], list):
        yield "curve is no list"


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _score(record: Record) -> tuple[str | None, float | None]:
    metrics = record.get("metrics") or {}
    for name in METRICS:
        value = metrics.get(name)
        if _is_numeric(value) and math.isfinite(value):
            return name, float(value)
    return None, None


def _is_numeric(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _row(record: Record) -> Record:
    cell, method = record["cell"], record["method"]
    row = {"run": record["run"], "status": record["status"], "error": record.get("error")}
    row |= {key: cell[key] for key in ("task", "model", "method", "epsilon", "seed")}
    row |= {"title": method["title"], "private": method["private"], "order": method.get("order")}
    row["rank"] = rank(row["private"], row["order"])
    row["metric"], row["score"] = _score(record)
    row["curve"] = record.get("curve") or []
    for part in ("settings", "search", "rehearsal"):
        row |= _flatten(part, cell.get(part) or {})
    for section in (*SECTIONS, "guarantee", "quadratic"):
        row |= _flatten(section, record.get(section) or {})
    for name in METRICS:
        row.pop(f"metrics.{name}", None)  # already there as metric and score
    return row


def _missing_row(run: str, methods: dict[str, dict[str, Any]]) -> Record:
    """The row of a run without record; title and order come from other runs of the method."""
    match = RUN_ID.fullmatch(run)
    if not match or not _is_number(match["epsilon"]):
        raise UsageError(f"{run!r} is no run id: write TASK/MODEL/METHOD/eps-E/seed-S")
    row: Record = match.groupdict() | {
        "run": run,
        "seed": int(match["seed"]),
        "status": "missing",
        "curve": [],
    }
    method, epsilon = row["method"], row["epsilon"]
    unknown = {"title": method, "private": epsilon not in ("0", "inf"), "rank": 0 if epsilon == "0" else LAST}
    return row | methods.get(method, unknown)


def _flatten(prefix: str, section: dict[str, Any]) -> Record:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            flat |= _flatten(name, value)
        else:
            flat[name] = json.dumps(value, sort_keys=True) if isinstance(value, list) else value
    return flat
