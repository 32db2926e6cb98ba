"""Text of the generated documents: sections, tables and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from dpzero.errors import UsageError
from dpzero.report.table import ABSENT, Column, Row, Table, number


def section(title: str, table: Table, bullets: Iterable[str], below: str = "") -> str:
    lines = [f"## {title}", "", *table.markdown_lines(), "", *(f"* {bullet}" for bullet in bullets)]
    return "\n".join([*lines, *(["", below] if below else [])]) + "\n"


def plain_table(lines: list[Row]) -> Table:
    """A table whose keys are its headings."""
    return Table("", [Column(heading, heading) for heading in lines[0]], lines)


def read_table(path: Path) -> pandas.DataFrame:
    try:
        frame = pandas.read_csv(path, dtype={"epsilon": str})
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): tabulate its sweep first") from None
    return frame.fillna({"epsilon": ""}) if "epsilon" in frame else frame


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def method_title(row: Row | pandas.Series) -> str:
    return f"**{row['title']}**" if row["method"] == "dpzero" else row["title"]


def score(row: Row) -> str:
    if not row["score_n"]:
        return "OOM" if row["status"] == "oom" else str(row["status"])
    mean = f"{100 * row['score_mean']:.1f}"
    if row["score_n"] == 1:
        return f"{mean} ({'no' if row['epsilon'] == '0' else 'one'} seed)"
    return f"{mean} ± {100 * row['score_std']:.1f}"


def interval(row: Row | pandas.Series, key: str, ends: str, factor: float, form: str = ".1f") -> str:
    """`+5.9 [5.2, 6.7]`."""
    low, high = (number(factor * row[f"{ends}_{end}"], form.lstrip("+")) for end in ("low", "high"))
    return f"{number(factor * row[key], form)} [{low}, {high}]"


def exponent(row: Row | pandas.Series) -> str:
    """`0.40 [0.35, 0.46]`; a dash if no power law fits."""
    return (
        ABSENT if pandas.isna(row["train_exponent"]) else interval(row, "train_exponent", "train", 1, ".2f")
    )


def rate(row: Row) -> str:
    mean, high = 100 * row["true_positive_rate"], 100 * row["true_positive_rate_high"]
    return f"{mean:.1f} ± {high - mean:.1f} %"


def origin(source: Row) -> str:
    commits = ", ".join(commit[:7] for commit in source["git"])
    return f"Commit {commits} on {', '.join(source['devices'])}"


def value_range(values: pandas.Series, form: str = ".2f") -> str:
    """`1.00`, or `1.00 to 1.02`."""
    return " to ".join(dict.fromkeys(number(value, form) for value in (values.min(), values.max())))


def join(values: Iterable[Any]) -> str:
    """The distinct values, numbers in ascending order."""
    distinct = list(dict.fromkeys(values))
    distinct = distinct if any(isinstance(value, str) for value in distinct) else sorted(distinct)
    return ", ".join(
        f"{value:,}" if not isinstance(value, str) and value >= 1000 else str(value) for value in distinct
    )
