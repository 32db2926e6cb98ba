"""Where the numbers come from: the union over the records, one line of it, and what does not fit together."""

from __future__ import annotations

import json
from typing import Any

import pandas

PACKAGE = "provenance.packages."
LABELS = {"oom": "OOM"}


def union(runs: pandas.DataFrame, sweep: str) -> dict[str, Any]:
    """Every distinct value of the provenance of these runs; no time and no date, so reruns leave it alone."""
    made = runs[runs["status"] != "missing"]
    missing = sorted(runs.loc[runs["status"] == "missing", "run"])
    return {
        "sweep": sweep,
        "runs": {
            status: int((runs["status"] == status).sum()) for status in ("ok", "oom", "diverged", "missing")
        },
        "missing": missing,
        "git": distinct(made["provenance.git"]),
        "dirty_runs": _dirty(made),
        "code": distinct(made["provenance.code"]),
        "devices": distinct(made["provenance.device"]),
        "python": distinct(made["provenance.python"]),
        "packages": {
            column.removeprefix(PACKAGE): distinct(made[column]) for column in _package_columns(made)
        },
        "models": _assets(made, "model"),
        "data": _assets(made, "data"),
        "warnings": warnings(runs),
    }


def line(runs: pandas.DataFrame, sweep: str) -> str:
    """The provenance of these runs on one line."""
    made = runs[runs["status"] != "missing"]
    counts = [f"{count} {LABELS.get(status, status)}" for status, count in status_counts(runs).items()]
    packages = [f"{c.removeprefix(PACKAGE)} {_some(made[c])}" for c in _package_columns(made)]
    parts = [
        f"sweep {sweep}: {plural(len(made), 'run')} ({', '.join(counts) or 'none'})",
        f"commit {_some(made['provenance.git'], 7)}" + (" (dirty tree)" if _dirty(made) else ""),
        f"code {_some(made['provenance.code'], 12)}",
        f"device {_some(made['provenance.device'])}",
        f"Python {_some(made['provenance.python'])}",
        *packages,
    ]
    return " ".join("; ".join(parts).split())


def short(made: dict[str, Any]) -> str:
    """The provenance of one result on one line, without times."""
    dirty = " (dirty tree)" if made["dirty"] else ""
    packages = [f"{name} {version}" for name, version in made["packages"].items()]
    parts = [f"commit {made['git'][:7]}{dirty}", f"code {made['code'][:12]}", f"device {made['device']}"]
    return "; ".join([*parts, f"Python {made['python']}", *packages])


def footnote(runs: pandas.DataFrame, sweep: str) -> str:
    """What fits in the corner of a figure: sweep, runs, commit, device."""
    made = runs[runs["status"] != "missing"]
    number = plural(len(made), "run") if len(made) == len(runs) else f"{len(made)} of {len(runs)} runs"
    dirty = "+" if _dirty(made) else ""
    return (
        f"{sweep}: {number} · {_some(made['provenance.git'], 7)}{dirty} · {_some(made['provenance.device'])}"
    )


def warnings(runs: pandas.DataFrame) -> list[str]:
    """One sentence for each reason not to compare these runs with each other, the gravest first."""
    made = runs[runs["status"] != "missing"]
    found = []
    code, commits = distinct(made["provenance.code"]), distinct(made["provenance.git"])
    if len(code) > 1:
        found.append(
            f"Mixed source: these runs come from {len(code)} versions of the source (code {_some(code, 12)}; "
            f"commit {_some(commits, 7)})."
        )
    elif len(commits) > 1:
        same = "of the same source" if code else "and do not say which source they ran"
        found.append(
            f"Mixed commits: these runs come from {len(commits)} git commits {same} ({_some(commits, 7)})."
        )
    if _dirty(made):
        found.append(f"Dirty tree: {_dirty(made)} of {plural(len(made), 'run')} had uncommitted changes.")
    for column in ("provenance.python", *_package_columns(made)):
        if len(distinct(made[column])) > 1:
            name = column.removeprefix(PACKAGE).removeprefix("provenance.")
            found.append(f"Mixed versions: {name} {_some(made[column])}.")
    if len(distinct(made["provenance.device"])) > 1:
        found.append(f"Mixed devices: {_some(made['provenance.device'])}.")
    for column, keys, what in (
        ("provenance.method_code", ["method"], "source of a method"),
        ("provenance.model.sha256", ["model"], "weights"),
        ("provenance.data.sha256", ["task", "seed"], "data"),
        ("settings", ["task", "model", "method", "epsilon"], "settings"),
    ):
        values = _settings(made) if column == "settings" else made[column]
        different = values.groupby([made[key] for key in keys]).nunique()
        names = ["/".join(map(str, key if isinstance(key, tuple) else (key,))) for key in different.index]
        mixed = [name for name, count in zip(names, different, strict=True) if count > 1]
        if mixed:
            found.append(f"Mixed {what}: runs of the same {'/'.join(keys)} differ for {', '.join(mixed)}.")
    if len(made) < len(runs):
        absent = runs[runs["status"] == "missing"]["run"].str.rpartition("/")[0].value_counts(sort=False)
        cells = [f"{cell} ({plural(count, 'seed')})" for cell, count in sorted(absent.items())]
        found.append(f"partial: {len(made)} of {len(runs)} runs; no record yet of {_some(cells)}.")
    return found


def status_counts(runs: pandas.DataFrame) -> dict[str, int]:
    """How many runs have each status that occurs, in a fixed order."""
    counts = runs["status"].value_counts()
    return {
        status: int(counts[status]) for status in ("ok", "oom", "diverged", "missing") if status in counts
    }


def distinct(values: pandas.Series) -> list[str]:
    """The distinct values as text, sorted, without the absent ones."""
    return sorted({str(value) for value in values.dropna()})


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _some(values: pandas.Series | list[str], characters: int | None = None) -> str:
    """The distinct values for a line of text: all up to three, then how many more."""
    names = values if isinstance(values, list) else distinct(values)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:characters] for name in names[:3]) + more or "unknown"


def _dirty(made: pandas.DataFrame) -> int:
    return int(made["provenance.dirty"].eq(True).sum())


def _package_columns(made: pandas.DataFrame) -> list[str]:
    return [column for column in made.columns if column.startswith(PACKAGE)]


def _assets(made: pandas.DataFrame, kind: str) -> list[dict[str, Any]]:
    columns = [f"provenance.{kind}.name", f"provenance.{kind}.sha256"]
    pairs = {
        tuple(None if pandas.isna(value) else value for value in row) for row in made[columns].to_numpy()
    }
    return [{"name": name, "sha256": digest} for name, digest in sorted(pairs, key=str) if name or digest]


def _settings(made: pandas.DataFrame) -> pandas.Series:
    columns = [column for column in made.columns if column.startswith("settings.")]
    rows = (json.dumps([str(value) for value in row]) for row in made[columns].to_numpy())
    return pandas.Series(list(rows), index=made.index, dtype=object)
