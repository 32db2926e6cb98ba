"""Published accuracies (published.csv) by the cell that each belongs to. Imports nothing heavy.

The first fifteen columns are facts, each with its paper and table. The others say how this project reads them:

* `cell`, `settings`: the run id without its seed, and the settings that the paper states for its run;
* `spread_kind`, `n_seeds`, `slack`: what `std` is, over how many runs, and the possible error in points;
* `steps`, `iterate_rule`, `settings_rule`, `train_rows`, `test_rows`: the published run, which iterate it reports and
  how its settings were chosen; empty if the paper does not say;
* `misprint`: what is wrong with the number, or in doubt; `left_out`: why a number is not compared.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.csv")
SAME_NUMBERS = {"dpzero_as_published": "dpzero"}  # a method that is compared with another method's numbers
ITERATES = {  # the setting `iterate` of a published rule
    "last iterate": "last",
    "best dev checkpoint": "best_dev",  # by the loss
    "dev checkpoint of the highest accuracy": "best_dev_accuracy",
    "a fit without checkpoints": None,  # which no method here is
}
WEIGHT_BYTES = 4  # of a parameter, here always
Setting = int | float | str


@dataclass(frozen=True)
class Published:
    """One published number in per cent, with the run that it describes. None if the paper does not say."""

    paper: str
    arxiv: str
    table: str
    published_method: str  # the paper's name of the method
    cell: str  # TASK/MODEL/METHOD/eps-E
    settings: Mapping[str, Setting]
    parameters: float  # millions
    delta: float | None
    shots: int
    metric: str
    value: float
    spread: float | None
    spread_kind: str
    n_seeds: int | None
    slack: float  # points by which the number itself may be off
    steps: int | None
    iterate_rule: str
    settings_rule: str
    misprint: str
    train_rows: int | None
    test_rows: int | None

    @property
    def standard_error(self) -> float:
        """Standard error of the mean in points; NaN without a published spread."""
        if self.spread is None or not self.n_seeds:
            return math.nan
        return self.spread if self.spread_kind == "standard error" else self.spread / math.sqrt(self.n_seeds)

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"{self.paper}, {'table ' if self.table.isdigit() else ''}{self.table}"

    @property
    def rule(self) -> str:
        """`last iterate; settings: best of a grid on one seed, not accounted`."""
        return "; settings: ".join(filter(None, (self.iterate_rule, self.settings_rule)))

    def __str__(self) -> str:
        """`91.8 ± 0.1 (standard error, 3 seeds)`."""
        if self.spread is None:
            return f"{self.value:.1f} ({self.spread_kind})"
        return f"{self.value:.1f} ± {self.spread:.1f} ({self.spread_kind}, {self.n_seeds} seeds)"


@cache
def read() -> tuple[Published, ...]:
    """The numbers of published.csv that belong to a cell of this project."""
    with FILE.open(encoding="utf-8", newline="") as stream:
        return tuple(_parse(row) for row in csv.DictReader(stream) if not row["left_out"])


def for_run(run: str) -> list[Published]:
    """The numbers published for a run id, with or without its seed; those with a spread come first."""
    task, model, method, epsilon, *_ = run.split("/")
    return _by_cell().get(f"{task}/{model}/{SAME_NUMBERS.get(method, method)}/{epsilon}", [])


def any_published(runs: Iterable[str]) -> bool:
    """Whether a number was published for one of these runs."""
    return any(for_run(cell) for cell in {run.rpartition("/")[0] for run in runs})


def differences(row: Mapping[str, Any], published: Published) -> list[str]:
    """How a run differs from the published run apart from method and epsilon; a misprint counts.

    Args:
        row: one row of `records.to_frame`.
    """
    words = [published.misprint] if published.misprint else []
    stated = {**published.settings, "shots": published.shots or None, "steps": published.steps}
    settings = [
        (key.replace("_", " "), f"settings.{key}", theirs, key != "direction_law")
        for key, theirs in stated.items()
    ]
    for name, key, theirs, required in (
        *settings,
        ("split", "metrics.split", "test", True),
        ("metric", "metric", published.metric, True),
        ("training rows", "privacy.dataset_size", published.train_rows, False),
        ("test rows", "metrics.examples", published.test_rows, False),
    ):
        ours = _value(row, key)
        if theirs is not None and ours != theirs and (required or ours is not None):
            words.append(f"{name} {'not set' if ours is None else ours}, theirs {theirs}")
    iterate = _value(row, "settings.iterate") or "last"
    if iterate != ITERATES.get(published.iterate_rule, iterate):
        words.append(f"{_value(row, 'metrics.selection') or iterate}, theirs {published.iterate_rule}")
    seen, known = (_value(row, f"metrics.{part}_examples") for part in ("selection", "dev"))
    if None not in (seen, known) and seen < known:
        words.append(f"checkpoint by {seen:.0f} of {known:.0f} dev rows, theirs by all")
    if departure := _value(row, "provenance.data.departure"):
        words.append(f"rows: {departure}")
    delta = _value(row, "privacy.delta")
    if delta is not None and delta != published.delta:
        theirs = "not printed" if published.delta is None else f"{published.delta:g}"
        words.append(f"δ {delta:g}, theirs {theirs}")
    weights = _value(row, "memory.weights_bytes")
    if weights is not None and not 0.8 < weights / (WEIGHT_BYTES * 1e6 * published.parameters) < 1.25:
        millions = weights / WEIGHT_BYTES / 1e6
        words.append(f"a stand-in of {millions:.3g} M parameters, theirs {published.parameters:g} M")
    return words


def _value(row: Mapping[str, Any], key: str) -> Any:
    value = row.get(key)
    return None if value is None or value != value else value  # NaN is absent


@cache
def _by_cell() -> dict[str, list[Published]]:
    """Cell -> its numbers; one that repeats a number with a spread to the digit is left out."""
    cells: dict[str, dict[tuple, Published]] = {}
    for number in sorted(read(), key=lambda number: number.spread is None):
        same = (number.value, number.shots, number.metric)
        cells.setdefault(number.cell, {}).setdefault(same, number)
    return {cell: list(numbers.values()) for cell, numbers in cells.items()}


def _parse(row: dict[str, str]) -> Published:
    def optional(name: str, kind: type) -> Any:
        return kind(row[name]) if row[name] else None

    same = (
        "paper",
        "arxiv",
        "table",
        "cell",
        "metric",
        "spread_kind",
        "iterate_rule",
        "settings_rule",
        "misprint",
    )
    values: dict[str, Any] = {name: row[name] for name in same}
    values |= {name: optional(name, int) for name in ("n_seeds", "steps", "train_rows", "test_rows")}
    return Published(
        **values,
        published_method=row["method"],
        settings={key: _setting(text) for key, text in (pair.split("=") for pair in row["settings"].split())},
        parameters=float(row["params_m"] or "nan"),
        delta=optional("delta", float),
        shots=0 if "/zero_shot/" in row["cell"] else int(row["k_shot"] or 0),
        value=float(row["value"]),
        spread=optional("std", float),
        slack=float(row["slack"]),
    )


def _setting(text: str) -> Setting:
    try:
        return json.loads(text)
    except ValueError:
        return text
