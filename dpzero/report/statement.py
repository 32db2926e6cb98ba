"""The privacy statement of a sweep, from its records and the text of templates/statement.md.jinja.

The headings follow the reporting list of "How to DP-fy ML" (Ponomareva et al. 2023, arXiv 2303.00654, section
5.3.3). An answer that all runs share appears once; otherwise each answer names its methods. Markdown; equal
results give equal bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sized
from typing import Any

import pandas

from dpzero.report import provenance
from dpzero.report.table import ABSENT
from dpzero.report.template import render

WIDTH = 100  # characters of a line
CELL = ["task", "model", "method", "epsilon"]
PROMISE = [
    "settings.steps",
    *(f"privacy.{key}" for key in ("mechanism", "unit", "adjacency", "sampling", "dataset_size")),
    *(f"privacy.{key}" for key in ("batch_size", "clip", "noise_scale", "delta")),
    *(f"privacy.{key}" for key in ("noise_arithmetic", "noise_key")),
]
Run = dict[str, Any]  # one row of the frame of records, without absent values


def statement(runs: pandas.DataFrame, sweep: str) -> str:
    """The statement on the private runs of this frame (`records.to_frame`), Markdown."""
    private = [_known(row) for row in runs[runs["private"]].to_dict("records")]
    released = [run for run in private if run.get("privacy.steps")]
    without_choice = [run for run in released if "privacy.choice.epsilon" not in run]
    recorded = provenance.with_record(runs[runs["private"]])
    others = runs[~runs["private"] & runs["epsilon"].ne("0") & (runs["status"] != "missing")]
    notes = [*provenance.warnings(runs[runs["private"]]), f"Provenance: {provenance.line(recorded, sweep)}."]
    values: dict[str, Any] = {
        "sweep": sweep,
        "private": private,
        "released": released,
        "valid": sum(run.get("privacy.valid_release") is True for run in released),
        "spent_nothing": [run for run in private if run.get("privacy.steps") == 0],
        "planned": [run for run in private if run["status"] == "missing"],
        "unknown": [r for r in private if "privacy.steps" not in r and r["status"] != "missing"],
        "promises": _groups(released, [*CELL, *PROMISE]),
        "chosen_with_noise": len(without_choice) < len(released),
        "chosen_on_dev": any("dev" in run.get("metrics.selection", "") for run in without_choice),
        "same_data": _groups(released, ["task", "privacy.unit", "privacy.adjacency"]),
        "without_noise": others,
        "titles_without_noise": ", ".join(dict.fromkeys(others["title"])),
        "notes": notes if len(recorded) else [],
    }

    def shared(label: str, answer: Callable[[Run], str]) -> str:
        return _shared(released, label, answer)

    def by_key(label: str, key: str, meanings: dict[str, str]) -> str:
        answers = {run["run"]: run.get(f"privacy.{key}", "not in the record") for run in released}
        return shared(label, lambda run: f"{meanings.get(answers[run['run']], answers[run['run']])}.")

    values |= {"wrapped": _wrapped, "bullet": _bullet, "by_key": by_key, "shared": shared}
    values |= {"highest": _highest, "total": _total}
    return render("statement", values, count=_count, text=_text).rstrip("\n") + "\n"


def _known(row: dict[str, Any]) -> Run:
    return {
        key: value
        for key, value in row.items()
        if not (pandas.api.types.is_scalar(value) and pandas.isna(value))
    }


def _shared(runs: list[Run], label: str, answer: Callable[[Run], str]) -> str:
    """One bullet for each answer; several answers name their runs as briefly as distinguishes them."""
    answers: dict[str, list[Run]] = {}
    for run in runs:
        answers.setdefault(answer(run), []).append(run)
    if len(answers) == 1:
        return _bullet(f"{label}: {next(iter(answers))}")
    for name in ("{title}", "{title}, ε = {epsilon}", "{title}, ε = {epsilon}, {task} with {model}", "{run}"):
        groups = [dict.fromkeys(name.format(**run) for run in group) for group in answers.values()]
        if len({n for group in groups for n in group}) == sum(map(len, groups)):
            break
    parts = zip(groups, answers, strict=True)
    return "\n".join(_bullet(f"{label} ({', '.join(group)}): {text}") for group, text in parts)


def _groups(runs: list[Run], keys: list[str]) -> list[list[Run]]:
    """The runs that have the same values of these keys."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(key) for key in keys), []).append(run)
    return list(groups.values())


def _highest(runs: list[Run], key: str) -> str | None:
    values = [run[f"privacy.{key}"] for run in runs if f"privacy.{key}" in run]
    return _upper(max(values)) if values else None


def _total(runs: list[Run]) -> str:
    """The epsilon and delta of these runs together, by basic composition.

    A row that one of them reads as public is not among those that they protect together.
    """
    known = [run for run in runs if "privacy.epsilon_spent" in run]
    if len(known) < len(runs):
        return "unbounded: not every run has a bound"
    spent, delta = (math.fsum(run[f"privacy.{key}"] for run in known) for key in ("epsilon_spent", "delta"))
    read = any(run.get("settings.public_examples") and not run.get("settings.public_task") for run in runs)
    return f"({_upper(spent)}, {_text(delta)})-DP" + (
        ", for rows that none of them reads as public" if read else ""
    )


def _count(things: Sized, noun: str) -> str:
    return provenance.plural(len(things), noun)


def _upper(value: float) -> str:
    """Four decimals, rounded up, so that a bound stays one; within 1e-9 of a shorter number, that number."""
    return f"{math.ceil(round(value * 1e4, 5)) / 1e4:.10g}"


def _text(value: Any) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _wrapped(text: str, first: str = "", indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _bullet(text: str, depth: int = 0) -> str:
    return _wrapped(text, " " * depth + "- ", " " * depth + "  ")
