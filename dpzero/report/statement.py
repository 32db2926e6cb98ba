"""The privacy statement of a sweep, from its records and the text of templates/statement.md.jinja.

The headings follow the reporting list of "How to DP-fy ML" (Ponomareva et al. 2023, arXiv 2303.00654, section
5.3.3). An answer that all runs share appears once; otherwise each answer names its methods. Markdown; equal
results give equal bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import pandas

from dpzero.report import provenance
from dpzero.report.formatting import render
from dpzero.report.table import ABSENT

WIDTH = 100  # characters of a line
CELL = ["task", "model", "method", "epsilon"]
PROMISE = [
    "settings.steps",
    *(f"privacy.{key}" for key in ("mechanism", "unit", "adjacency", "sampling", "dataset_size")),
    *(f"privacy.{key}" for key in ("batch_size", "clip", "noise_scale", "delta")),
    *(f"privacy.{key}" for key in ("noise_arithmetic", "noise_key")),
]
RELEASED = {  # by the order of the method
    0: "in each step one noisy scalar a direction, the sum of the clipped contributions of the batch's "
    "units. The directions are public",
    1: "in each step the noisy sum of the clipped gradients of the batch's units, as long as the trainable "
    "parameters",
}
CONSTRUCTION = (
    "the sampler that is accounted is the one that draws; each unit is clipped by itself; a sum is divided "
    "by the batch size of the settings, never by the actual one; noise and public directions are drawn "
    "independently."
)
PUBLIC_CODE = (
    "sampler, noise factor and divisor are those of public code, reproduced for comparison and marked as no "
    "valid release; the bound holds for them."
)
ENDS = {"ok": "finished", "oom": "ran out of memory", "diverged": "diverged"}
Run = dict[str, Any]  # one row of the frame of records, without absent values


def statement(runs: pandas.DataFrame, sweep: str) -> str:
    """The statement on the private runs of this frame (`records.to_frame`), Markdown."""
    private = [_known(row) for row in runs[runs["private"]].to_dict("records")]
    released = [run for run in private if run.get("privacy.steps")]
    without_choice = [run for run in released if "privacy.choice.epsilon" not in run]
    recorded = provenance.with_record(runs[runs["private"]])
    notes = [*provenance.warnings(runs[runs["private"]]), f"Provenance: {provenance.line(recorded, sweep)}."]
    values: dict[str, Any] = {
        "sweep": sweep,
        "opening": _opening(private, released),
        "released": released,
        "what_is_released": _released,
        "what_is_covered": _covered,
        "sizes": _sizes,
        "construction": _construction,
        "promises": "\n".join(_promises(released)),
        "chosen_with_noise": len(without_choice) < len(released),
        "chosen_on_dev": any("dev" in run.get("metrics.selection", "") for run in without_choice),
        "composition": "\n".join(_composition(released)),
        "without_noise": _without_noise(runs),
        "notes": notes if len(recorded) else [],
    }
    values |= {"wrapped": _wrapped, "bullet": _bullet}
    values |= {"by_key": partial(_by_key, released), "shared": partial(_shared, released)}
    return render("statement", values).rstrip("\n") + "\n"


def _known(row: dict[str, Any]) -> Run:
    return {
        key: value
        for key, value in row.items()
        if not (pandas.api.types.is_scalar(value) and pandas.isna(value))
    }


def _opening(private: list[Run], released: list[Run]) -> Iterator[str]:
    if not private:
        yield "No private method in these runs: no guarantee."
        return
    counts = {
        "ended before the first release and spent nothing": [r.get("privacy.steps") == 0 for r in private],
        "planned without a record yet": [r["status"] == "missing" for r in private],
        "whose record does not say what was spent": [
            "privacy.steps" not in r and r["status"] != "missing" for r in private
        ],
    }
    valid = sum(run.get("privacy.valid_release") is True for run in released)
    yield (
        f"{_count(released, 'private run')}, {valid} of them valid as a private release. Every ε is computed "
        "from the run's ledger, which records each release before it is used. An empty batch, a repeated "
        "step and a run that stopped early count for what they released."
    )
    for what, which in counts.items():
        if any(which):
            yield f"{provenance.plural(sum(which), 'further run')} {what}."


# -- answers that runs may share -------------------------------------------------------------------


def _by_key(runs: list[Run], label: str, key: str, meanings: dict[str, str]) -> str:
    def answer(run: Run) -> str:
        value: str = run.get(f"privacy.{key}", "not in the record")
        return meanings.get(value, value) + "."

    return _shared(runs, label, answer)


def _shared(runs: list[Run], label: str, answer: Callable[[Run], str]) -> str:
    """One bullet for each answer; several answers name their runs as briefly as distinguishes them."""
    answers: dict[str, list[Run]] = {}
    for run in runs:
        answers.setdefault(answer(run), []).append(run)
    if len(answers) == 1:
        return _bullet(f"{label}: {next(iter(answers))}")
    for name in _NAMES:
        groups = [dict.fromkeys(map(name, group)) for group in answers.values()]
        if len({n for group in groups for n in group}) == sum(map(len, groups)):
            break
    parts = zip(groups, answers, strict=True)
    return "\n".join(_bullet(f"{label} ({', '.join(group)}): {text}") for group, text in parts)


_NAMES: tuple[Callable[[Run], str], ...] = (
    lambda run: run["title"],
    lambda run: f"{run['title']}, ε = {run['epsilon']}",
    lambda run: f"{run['title']}, ε = {run['epsilon']}, {run['task']} with {run['model']}",
    lambda run: run["run"],
)


def _released(run: Run) -> str:
    text = RELEASED.get(run.get("order", 2), "the noisy sums of its steps")
    if "privacy.choice.epsilon" in run:
        text += "; and which checkpoint is reported, by a private selection"
    others = "Everything else, including the weights of every step and the final model"
    return f"{text}. {others}, is post-processing of these releases."


def _covered(run: Run) -> str:
    text, split = "every access of one training run to its training data.", run.get("settings.split", "test")
    if "privacy.choice.epsilon" in run:
        text += (
            " And the selection of the reported checkpoint on dev examples, by "
            f"{run['privacy.choice.mechanism']}, {_text(run['privacy.choice.epsilon'])}-DP for each of them."
        )
    if split == "test":
        return text
    return f"{text} Not covered: the score on {split}, a part of the same data, reported without noise."


def _sizes(run: Run) -> str:
    n, batch, delta = (run.get(f"privacy.{key}") for key in ("dataset_size", "batch_size", "delta"))
    rate = _text(batch / n) if n and batch else ABSENT
    mass = (delta or 0) * (n or 0)
    alarm = ", too large to protect every unit" if mass >= 1 else ""
    leak = f"δ = {_text(delta)}, δ n = {_text(mass)}{alarm}" if mass else "δ = 0"
    return f"n = {_text(n)}, batch size {_text(batch)}, rate {rate}, {leak}."


def _construction(run: Run) -> str:
    published = run.get("settings.as_published") or run.get("privacy.sampling") == "shuffled_epochs"
    return PUBLIC_CODE if published else CONSTRUCTION


# -- what each run promises ------------------------------------------------------------------------


def _promises(released: list[Run]) -> Iterator[str]:
    """A block for each method and epsilon; seeds with other settings have their own."""
    for (task, model, _, epsilon, *_), rows in _groups(released, [*CELL, *PROMISE]):
        yield _bullet(f"**{rows[0]['title']}, ε = {epsilon}** ({task} with {model}): {_promise(rows)}")
        yield from (_bullet(line, 2) for line in (_noise(rows[0]), *_composed(rows), *_odd_lengths(rows)))


def _groups(runs: list[Run], keys: list[str]) -> Iterator[tuple[tuple, list[Run]]]:
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(key) for key in keys), []).append(run)
    yield from groups.items()


def _promise(rows: list[Run]) -> str:
    secret = rows[0].get("privacy.noise_key") == "secret"
    who = "each run is" if secret else "under a secret key each run would be"
    spent, delta = _highest(rows, "epsilon_spent"), rows[0].get("privacy.delta")
    if spent == ABSENT:
        return f"{who} without a bound."
    mu, renyi = _highest(rows, "gdp_mu"), _highest(rows, "epsilon_spent_rdp")
    others = [f"μ = {mu}"] if mu != ABSENT else []
    others += [f"by the looser Rényi bound ε = {renyi}"] if renyi != ABSENT else []
    return f"{who} {'; '.join([f'({spent}, {_text(delta)})-DP', *others])}."


def _noise(run: Run) -> str:
    mechanism = str(run.get("privacy.mechanism", "unknown")).capitalize()
    scale, clip, steps = run.get("privacy.noise_scale"), run.get("privacy.clip"), run.get("settings.steps")
    directions = int(run.get("settings.directions") or run.get("privacy.directions") or 1)
    each = f" of {directions} directions" if directions > 1 else ""
    noise = f"{mechanism} noise of {_text(scale)} clip on each sum"
    return f"{noise}, clip {_text(clip)}, {_text(steps)} steps{each}."


def _composed(rows: list[Run]) -> list[str]:
    return [f"{_count(rows, 'seed')}: together at most {_sum(rows)}."] if len(rows) > 1 else []


def _odd_lengths(rows: list[Run]) -> Iterator[str]:
    """Runs that released less than planned, or more, or did not finish."""
    for run in rows:
        steps = int(run["privacy.steps"])
        planned: int = run.get("settings.steps", steps)
        if steps == planned and run["status"] == "ok":
            continue
        why = str(ENDS.get(run["status"], run["status"]))
        if steps > planned:
            why += "; it was interrupted, and the repeated releases had new noise and count again"
        spent = _highest([run], "epsilon_spent")
        yield f"Seed {run['seed']}: {steps} releases of {planned} planned ({why}); spent ε = {spent}."


def _composition(released: list[Run]) -> Iterator[str]:
    yield _bullet(
        "An ε above holds for one run. Runs on the same private data compose: seeds, methods and epsilons "
        "alike. Basic composition, as if every key were secret:"
    )
    for (task, *neighbours), rows in _groups(released, ["task", "privacy.unit", "privacy.adjacency"]):
        counts = ", ".join((_count(rows, "run"), _count({run["seed"] for run in rows}, "seed")))
        yield _bullet(f"{task} ({', '.join(filter(None, neighbours))}), {counts}: {_sum(rows)}.", 2)


def _without_noise(runs: pandas.DataFrame) -> str:
    """On the runs without noise, which may have read the same data; empty without any."""
    others = runs[~runs["private"] & runs["epsilon"].ne("0") & (runs["status"] != "missing")]
    names = ", ".join(dict.fromkeys(others["title"]))
    return names and (
        f"{_count(others, 'run')} of this sweep without noise ({names}): their scores and records have no "
        "guarantee, and on private data they would void the others."
    )


# -- numbers and lines -----------------------------------------------------------------------------


def _highest(rows: list[Run], key: str) -> str:
    values = [run[f"privacy.{key}"] for run in rows if f"privacy.{key}" in run]
    return _upper(max(values)) if values else ABSENT


def _sum(rows: list[Run]) -> str:
    known = [run for run in rows if "privacy.epsilon_spent" in run]
    if len(known) < len(rows):
        return "unbounded: not every run has a bound"
    spent, delta = (math.fsum(run[f"privacy.{key}"] for run in known) for key in ("epsilon_spent", "delta"))
    return f"({_upper(spent)}, {_text(delta)})-DP"


def _count(things: Sized, noun: str) -> str:
    return provenance.plural(len(things), noun)


def _upper(value: float) -> str:
    """Four decimals, rounded up, so that a bound stays one; within 1e-9 of a shorter number, that number."""
    return f"{math.ceil(round(value * 1e4, 5)) / 1e4:.10g}"


def _text(value: Any) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _wrapped(text: str, first: str = "", indent: str = "") -> str:
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    text = " ".join(text.split())
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=indent, **whole)


def _bullet(text: str, depth: int = 0) -> str:
    return _wrapped(text, " " * depth + "- ", " " * depth + "  ")
