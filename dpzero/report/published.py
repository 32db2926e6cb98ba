"""Published accuracies (published.csv: facts, each with its paper and table) by the cells that they belong to. Imports nothing heavy.

A published number belongs to the cells of its task, model, method and epsilon. `differences` says in what else such a cell is not
what was published.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")

# Methods: the paper's word -> the method's name in a sweep, and the settings that the paper's method has
FULL, LORA, PREFIX = {"tune": "full"}, {"tune": "lora"}, {"tune": "prefix"}
GAUSSIAN = FULL | {"direction_law": "gaussian"}
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "zero-shot": ("zero_shot", {}),
    "ICL": ("in_context", {"demonstrations": 32}),
    "LP": ("linear_probing", {"tune": "head"}),
    **dict.fromkeys(("AdamW", "AdamW [Li]", "AdamW [Yu]", "FT"), ("adamw", FULL)),
    **dict.fromkeys(("LoRA", "LoRA [Li]", "LoRA [Yu]", "FT (LoRA)"), ("lora", LORA)),
    "FT (prefix)": ("prefix", PREFIX),
    **dict.fromkeys(("DP-AdamW", "DP-AdamW [Li]", "DP-AdamW [Yu]", "DP-AdamW [Bu BK]"), ("dp_adamw", FULL)),
    **dict.fromkeys(("DP-LoRA", "DP-LoRA [Li]", "DP-LoRA [Yu]"), ("dp_lora", LORA)),
    "MeZO": ("mezo", GAUSSIAN),
    "MeZO (LoRA)": ("mezo_lora", LORA),
    "MeZO (prefix)": ("mezo_prefix", PREFIX),
    **dict.fromkeys(
        ("DPZero", "DPZero (Gaussian direction)", "DPZero (K=1)", "DPZO (=DPZero)"), ("dpzero", GAUSSIAN)
    ),
    "DPZero (sphere direction)": ("dpzero_sphere", FULL | {"direction_law": "sphere"}),
    **{f"DP-AggZO K={k}": (f"dp_aggzo_{k}", FULL | {"directions": k}) for k in (16, 64, 256)},
    "DP-ZOSO": ("dp_zoso", FULL),
}
SAME = {"dpzero_as_published": "dpzero"}  # beside the same numbers
TASKS = {"SST-2": "sst2", "SST-5": "sst5"}  # others: in lower case

# What the papers say of the runs behind their numbers: (paper, family of the model) -> settings of every method that trains, and of the
# zeroth-order ones. Elsewhere nothing is stated for a whole table
STATED: dict[tuple[str, str], tuple[dict[str, object], dict[str, object]]] = {
    ("DPZero", "roberta"): ({"batch_size": 64}, {"smoothing": 1e-3, "learning_rate": 1e-6}),
    ("DPZero", "opt"): (
        {"train_examples": 1000},
        {"batch_size": 8, "smoothing": 1e-3, "steps": 20_000},
    ),
    ("MeZO", "opt"): ({"train_examples": 1000}, {"batch_size": 16, "steps": 20_000}),
}
TRAINING_ROWS = {
    "sst2": 1024,
    "sst5": 2560,
    "snli": 1536,
    "mnli": 1536,
    "rte": 1024,
    "trec": 2646,
}  # 512 shots
TRAINING_ROWS_OF_1000 = {"cb": 150, "copa": 300, "wsc": 54}  # small tasks: what is left beside dev
TEST_ROWS = {"sst2": 872, "rte": 277, "trec": 500, "cb": 56, "copa": 100, "wsc": 104, "wic": 638}  # else 1000

# Which iterate a paper reports and how its settings were chosen: (paper, table or *) -> words
ONE_GRID = "settings: best of a grid, by dev or unsaid, not accounted"
ITERATES = ("last iterate", "best dev checkpoint")
RULES = {
    ("DPZero", "*"): f"last iterate; {ONE_GRID}",
    ("DPZero", "4"): f"best dev checkpoint; {ONE_GRID}",
    ("DPZero", "5"): f"best dev checkpoint; {ONE_GRID}",
    ("MeZO", "*"): f"best dev checkpoint; {ONE_GRID}",
    ("MeZO", "20"): f"last iterate; {ONE_GRID}",
    ("DP-AggZO", "*"): "last iterate; settings: best of a grid on one seed, not accounted",
    ("DP-ZOPO", "*"): "not said",
}
SPREADS = {  # words of a note -> what the number in the column `std` is
    r"standard error over (\d+) seeds": "standard error",
    r"standard deviation over (\d+) seeds": "standard deviation",
}
MISPRINTS = {  # (paper, table, method, task), words of the paper -> what is wrong; each has its row in discrepancies.csv
    ("DP-ZOPO", "repo figure roberta-acc.png", "zero-shot", "MNLI"): "a misprint (ZOPO-8): RTE's number",
}
WEIGHT_BYTES = 4  # of a parameter, here always


@dataclass(frozen=True)
class Published:
    """One published number, in per cent. `spread` is its plus-minus, of `kind`, over `seeds` runs; None where there is none."""

    paper: str
    arxiv: str
    table: str
    words: str  # the paper's name of the method
    method: str
    expected: Mapping[str, object]  # settings of the method
    task: str
    model: str
    parameters: float  # millions
    epsilon: str
    delta: float | None
    shots: int
    metric: str
    value: float
    spread: float | None
    kind: str
    seeds: int | None
    slack: float  # points by which the number itself may be off
    steps: int | None
    rule: str
    misprint: str  # what is wrong with the number itself; empty where nothing is known
    training_rows: int | None
    test_rows: int | None

    @property
    def standard_error(self) -> float:
        """Of the mean, in points; NaN where no plus-minus is published."""
        if self.spread is None or not self.seeds:
            return math.nan
        return self.spread if self.kind == "standard error" else self.spread / math.sqrt(self.seeds)

    @property
    def source(self) -> str:
        where = f"table {self.table}" if self.table.isdigit() else self.table
        return f"{self.paper}, {where}"

    @property
    def shown(self) -> str:
        """`91.8 ± 0.1 (standard error, 3 seeds)`."""
        if self.spread is None:
            return f"{self.value:.1f} ({self.kind})"
        return f"{self.value:.1f} ± {self.spread:.1f} ({self.kind}, {self.seeds} seeds)"


def of(run: str) -> list[Published]:
    """What was published for the cell of a run id, or of a run id without its seed: the paper with a spread first."""
    task, model, method, epsilon, *_ = run.split("/")
    return _by_cell().get((task, model, SAME.get(method, method), epsilon.removeprefix("eps-")), [])


def any_of(runs: Iterable[str]) -> bool:
    """Whether anything was published for one of these runs."""
    return any(of(cell) for cell in {run.rpartition("/")[0] for run in runs})


def differences(row: Mapping[str, object], published: Published) -> list[str]:
    """In what a run (a row of `records.to_frame`) is not what was published, beside method and epsilon, in words; a misprint is one."""
    settings = {**published.expected, "shots": published.shots or None, "steps": published.steps}
    found = [published.misprint] if published.misprint else []
    for key, theirs in settings.items():
        ours = _of(row, f"settings.{key}")
        if theirs is not None and ours != theirs and not (key == "direction_law" and ours is None):
            found.append(
                f"{key.replace('_', ' ')} {ours if ours is not None else 'not set'}, theirs {theirs}"
            )
    for name, key, theirs in (
        ("split", "metrics.split", "test"),
        ("metric", "metric", published.metric),
        ("training rows", "privacy.dataset_size", published.training_rows),
        ("test rows", "metrics.examples", published.test_rows),
    ):
        ours = _of(row, key)
        said = ours is not None or name in ("split", "metric")
        if said and theirs is not None and ours != theirs:
            found.append(f"{name} {ours}, theirs {theirs}")
    ours, theirs = _of(row, "metrics.selection"), published.rule.partition(";")[0]
    if ours is not None and theirs in ITERATES and not str(ours).startswith(theirs):
        found.append(f"{ours}, theirs {theirs}")
    if departure := _of(row, "provenance.data.departure"):
        found.append(f"rows: {departure}")
    delta = _of(row, "privacy.delta")
    if delta is not None and delta != published.delta:
        theirs = "not printed" if published.delta is None else f"{published.delta:g}"
        found.append(f"δ {delta:g}, theirs {theirs}")
    weights = _of(row, "memory.weights_bytes")
    if weights is not None and not 0.8 < weights / (WEIGHT_BYTES * 1e6 * published.parameters) < 1.25:
        found.append(
            f"a stand-in of {weights / WEIGHT_BYTES / 1e6:.3g} M parameters, theirs {published.parameters:g} M"
        )
    return found


def _of(row: Mapping[str, object], key: str) -> object:
    value = row.get(key)
    return None if value is None or value != value else value  # NaN is absent


@cache
def _by_cell() -> dict[tuple[str, str, str, str], list[Published]]:
    found: dict[tuple[str, str, str, str], list[Published]] = {}
    for number in read():
        found.setdefault((number.task, number.model, number.method, number.epsilon), []).append(number)
    return {cell: _without_copies(numbers) for cell, numbers in found.items()}


def _without_copies(numbers: list[Published]) -> list[Published]:
    """Those with a spread first; a number that repeats one of them to the digit, for the same shots, is its copy."""
    kept: list[Published] = []
    for number in sorted(numbers, key=lambda n: n.spread is None):
        same = [
            k for k in kept if (k.value, k.shots, k.metric) == (number.value, number.shots, number.metric)
        ]
        if not same:
            kept.append(number)
    return kept


def read() -> list[Published]:
    """The numbers of published.csv whose method this project has. What is left out, and why: tests/report/test_published.py."""
    with FILE.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] in METHODS and row["value"]]
    return [
        _published(row) for row in rows if row["metric"] in ("accuracy", "f1") and row["table"] != "figure 6"
    ]


def _published(row: dict[str, str]) -> Published:
    method, expected = METHODS[row["method"]]
    notes, table = row["notes"], row["table"]
    kind, seeds = _kind(notes)
    spread = float(row["std"]) if row["std"] else None
    if spread is None and seeds != 1:
        kind, seeds = ("digitised" if "DIGITISED" in notes else "one value, seeds not said"), None
    steps = re.search(r"\bT=(\d+)", notes)
    task = TASKS.get(row["task"], row["task"].lower())
    family, trained = row["model"].partition("-")[0], method not in ("zero_shot", "in_context")
    shots = int(row["k_shot"] or 0) if method != "zero_shot" else 0
    always, zeroth_order = STATED.get((row["paper"], family), ({}, {})) if trained else ({}, {})
    stated = always | (zeroth_order if method.startswith(("mezo", "dpzero")) else {})
    rows = TRAINING_ROWS if shots == 512 else TRAINING_ROWS_OF_1000 if family == "opt" and trained else {}
    private = {"zero_shot": "0"}.get(method, "inf")
    return Published(
        paper=row["paper"],
        arxiv=row["arxiv"],
        table=table,
        words=row["method"],
        method=method,
        expected={**expected, **stated},
        task=task,
        model=row["model"],
        parameters=float(row["params_m"] or "nan"),
        epsilon=row["epsilon"] or private,
        delta=float(row["delta"]) if row["delta"] else None,
        shots=shots,
        metric=row["metric"],
        value=float(row["value"]),
        spread=spread,
        kind=kind,
        seeds=seeds,
        slack=0.2 if "DIGITISED" in notes else 0.5 if "approx" in notes else 0.05,
        steps=int(steps[1]) if steps else stated.get("steps"),
        rule="nothing is trained"
        if method == "zero_shot"
        else RULES.get((row["paper"], table), RULES.get((row["paper"], "*"), "not said")),
        misprint=MISPRINTS.get((row["paper"], table, row["method"], row["task"]), ""),
        training_rows=rows.get(task, 1000 if family == "opt" and trained else None),
        test_rows=TEST_ROWS.get(task, 1000),
    )


def _kind(notes: str) -> tuple[str, int | None]:
    for words, kind in SPREADS.items():
        if found := re.search(words, notes):
            return kind, int(found[1])
    return ("one seed", 1) if "single seed" in notes else ("", None)
