"""Provenance of the numbers: the union over the records, one line of it, and warnings about mixtures."""

from __future__ import annotations

from typing import Any

import pandas

from dpzero.report.template import sentences

PACKAGE = "provenance.packages."
LIMIT = "rehearsal."  # of a column: a limit of the rehearsal that a run is of
LIMITED = {"steps": "steps", "train_examples": "training rows", "test_examples": "scored rows"}
LABELS = {"oom": "OOM"}
STATUSES = ("ok", "oom", "diverged", "missing")


def rehearsal(runs: pandas.DataFrame) -> str | None:
    """`REHEARSAL with at most 20 steps, 64 training rows: no result`, if one of these runs is of a rehearsal."""
    limits = {name: distinct(runs[LIMIT + name]) for name in LIMITED if LIMIT + name in runs}
    if not any(limits.values()):
        return None
    words = (f"{' or '.join(values)} {LIMITED[name]}" for name, values in limits.items() if values)
    return f"REHEARSAL with at most {', '.join(words)}: no result"


def union(runs: pandas.DataFrame, sweep: str) -> dict[str, Any]:
    """Every distinct value of the provenance of these runs; without times, so that reruns keep it."""
    recorded = with_record(runs)
    missing = sorted(runs.loc[runs["status"] == "missing", "run"])
    return {
        "sweep": sweep,
        "runs": {status: int((runs["status"] == status).sum()) for status in STATUSES},
        "missing": missing,
        "git": distinct(recorded["provenance.git"]),
        "dirty_runs": _dirty(recorded),
        "code": distinct(recorded["provenance.code"]),
        "devices": distinct(recorded["provenance.device"]),
        "python": distinct(recorded["provenance.python"]),
        "packages": {c.removeprefix(PACKAGE): distinct(recorded[c]) for c in _package_columns(recorded)},
        "models": _assets(recorded, "model"),
        "data": _assets(recorded, "data"),
        "warnings": warnings(runs),
    }


def from_union(runs: pandas.DataFrame, union: dict[str, Any]) -> pandas.DataFrame:
    """These runs with the provenance of a provenance.json, which does not say which run has which value."""
    values = {key: union[name] for key, name in (("git", "git"), ("code", "code"), ("device", "devices"))}
    values |= {"python": union["python"]} | {f"packages.{k}": v for k, v in union["packages"].items()}
    columns = {f"provenance.{key}": ", ".join(value) or None for key, value in values.items()}
    return runs.assign(**columns, **{"provenance.dirty": union["dirty_runs"] > 0})


def with_record(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs that have a record."""
    return runs[runs["status"] != "missing"]


def line(runs: pandas.DataFrame, sweep: str) -> str:
    """The provenance of these runs on one line."""
    recorded = with_record(runs)
    counts = [f"{count} {LABELS.get(status, status)}" for status, count in status_counts(runs).items()]
    start = f"sweep {sweep}: {plural(len(recorded), 'run')} ({', '.join(counts) or 'none'})"
    return f"{start}; {source(recorded)}"


def source(recorded: pandas.DataFrame) -> str:
    """The provenance of these results on one line, without times."""
    parts = [
        f"commit {_some(recorded['provenance.git'], 7)}" + (" (dirty tree)" if _dirty(recorded) else ""),
        f"code {_some(recorded['provenance.code'], 12)}",
        f"device {_some(recorded['provenance.device'])}",
        f"Python {_some(recorded['provenance.python'])}",
        *(f"{c.removeprefix(PACKAGE)} {_some(recorded[c])}" for c in _package_columns(recorded)),
    ]
    return " ".join("; ".join(parts).split())


def short(recorded: dict[str, Any]) -> str:
    """The commit of one result, with a plus sign if the tree was dirty."""
    return f"{recorded['git'][:7]}{'+' if recorded['dirty'] else ''}"


def footnote(runs: pandas.DataFrame, sweep: str) -> str:
    """A short provenance for the corner of a figure: sweep, runs, commit, device."""
    recorded = with_record(runs)
    few = len(recorded) < len(runs)
    number = f"{len(recorded)} of {len(runs)} runs" if few else plural(len(recorded), "run")
    commit = _some(recorded["provenance.git"], 7) + ("+" if _dirty(recorded) else "")
    return f"{sweep}: {number} · {commit} · {_some(recorded['provenance.device'])}"


def warnings(runs: pandas.DataFrame) -> list[str]:
    """One sentence for each reason not to compare these runs with each other, the most serious first."""
    recorded = with_record(runs)
    columns = ("provenance.python", *_package_columns(recorded))
    settings = [str(row) for row in recorded.filter(regex=r"^settings\.").to_numpy().tolist()]
    mixed = []
    for column, keys, what in (
        ("provenance.method_code", ["method"], "source of a method"),
        ("provenance.model.sha256", ["model"], "weights"),
        ("provenance.data.sha256", ["task", "seed"], "data"),
        ("settings", ["task", "model", "method", "epsilon"], "settings"),
    ):
        groups = recorded.assign(settings=settings).groupby(keys)[column]
        names = ["/".join(map(str, key)) for key, values in groups if values.nunique() > 1]
        mixed.append((what, keys, names))
    absent = runs[runs["status"] == "missing"]["run"].str.rsplit("/", n=1).str[0].value_counts()
    values = {
        "rehearsal": rehearsal(runs),
        "runs": len(runs),
        "recorded": len(recorded),
        "code": distinct(recorded["provenance.code"]),
        "commits": distinct(recorded["provenance.git"]),
        "devices": distinct(recorded["provenance.device"]),
        "dirty": _dirty(recorded),
        "versions": {
            c.removeprefix(PACKAGE).removeprefix("provenance."): distinct(recorded[c]) for c in columns
        },
        "mixed": mixed,
        "absent": [f"{cell} ({plural(count, 'seed')})" for cell, count in sorted(absent.items())],
    }
    return sentences("warnings", values, some=_some, plural=plural)


def status_counts(runs: pandas.DataFrame) -> dict[str, int]:
    """How many runs have each status that occurs, in a fixed order."""
    counts = runs["status"].value_counts()
    return {status: int(counts[status]) for status in STATUSES if status in counts}


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


def _dirty(recorded: pandas.DataFrame) -> int:
    return int(recorded["provenance.dirty"].eq(True).sum())


def _package_columns(recorded: pandas.DataFrame) -> list[str]:
    return [column for column in recorded.columns if column.startswith(PACKAGE)]


def _assets(recorded: pandas.DataFrame, kind: str) -> list[dict[str, Any]]:
    keys = ["name", "sha256"]
    assets = recorded[[f"provenance.{kind}.{key}" for key in keys]].dropna(how="all").drop_duplicates()
    values = assets.astype(object).where(assets.notna(), None).to_numpy().tolist()
    return [dict(zip(keys, pair, strict=True)) for pair in sorted(values, key=str)]
