"""The tables of runs that fine-tune a model. A table is one function of the runs; `dpzero.report.TABLES` says which are made."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas

from dpzero.report import formatting, provenance
from dpzero.report.statistics import paired_difference, summarise
from dpzero.report.table import ABSENT, Table, mebibytes, number

METHOD = ["task", "model", "method"]
CELL = [*METHOD, "epsilon"]
REFERENCES = {"zero_shot": "zero-shot", "mezo": "MeZO"}  # each row is compared with these, seed by seed

SEED_CHANGES = (
    "A seed changes the batches, the directions, the noise, any random initial weights and the examples that a few-shot "
    "task draws; the scored examples stay the same, but where train_examples draws them, too."
)
COMPOSITION = (
    "An epsilon holds for one run. If the data were private, k seeds would compose, to at most k times that epsilon "
    "and delta, and so would all methods and epsilons that are run on the same data."
)
TUNING = "Tuning: not accounted. Learning rates, clips and steps were chosen outside the stated epsilon."
CHOICE = (
    "Where the reported iterate is a private choice, ε, by RDP too, and μ are the larger of two: of training, for the training examples, and of the "
    "choice (permute and flip), for the dev examples, which are others."
)
PUBLISHED = (
    "Noise key published: anyone can recompute the noise, so these runs are a benchmark, no private release; their records also "
    "hold losses and dev accuracies without noise."
)

# Columns of the privacy table: heading, key in the record.
PROMISES = {"mechanism": "mechanism", "unit": "unit", "adjacency": "adjacency", "sampling": "sampling"}
PROMISES |= {"n": "dataset_size", "batch": "batch_size", "steps": "steps", "clip": "clip"}
PROMISES |= {"noise scale": "noise_scale", "δ": "delta", "ε target": "epsilon_target"}
SPENT = {"ε spent": "epsilon_spent", "μ": "gdp_mu", "ε by RDP": "epsilon_spent_rdp"}
VALIDITY = {"noise arithmetic": "noise_arithmetic", "noise key": "noise_key"}
VALIDITY |= {"valid release": "valid_release", "accountant": "accountant"}

# Of these, readers see a column only where the rows differ, else a note.
ASIDE = {"unit": "unit", "noise arithmetic": "noise_arithmetic"}

# Columns of the time table: column of the frame, heading, format.
SECONDS = (
    ("step_seconds", "seconds per step", ".4f"),
    ("time.two_forward_seconds", "two forwards (s)", ".4f"),
    ("step_over_two_forwards", "step / two forwards", ".2f"),
    ("time.train_seconds", "train (s)", ".1f"),
    ("time.wall_seconds", "wall (s)", ".1f"),
)


def accuracy(runs: pandas.DataFrame) -> Table:
    """Score of each method and epsilon over its seeds, in per cent, and its paired difference to the references."""
    table = Table("")
    metrics = provenance.distinct(runs["metric"])
    metric = metrics[0] if len(metrics) == 1 else "score"
    of_method = dict(list(runs.groupby(METHOD, sort=False)))
    for (task, model, method, epsilon), rows in runs.groupby(CELL, sort=False):
        score = summarise(formatting.by_seed(rows).values())
        values = formatting.identity(rows) | {
            "epsilon": epsilon,
            "metric": formatting.common(rows["metric"], ""),
        }
        values |= {
            k: formatting.common(rows[f"metrics.{k}"], ".0f") for k in ("split", "examples", "selection")
        }
        values |= _flat("score", asdict(score))
        shown = formatting.names(rows) | {
            "ε": formatting.epsilon(rows),
            f"{metric} (%)": formatting.score(score, rows),
        }
        shown |= {"seeds": formatting.finished(rows), "95 % interval": formatting.interval(score)}
        for reference, title in REFERENCES.items():
            theirs = of_method.get((task, model, reference), runs[:0])
            apart = paired_difference(
                formatting.by_seed(rows, theirs),
                {} if reference == method else formatting.by_seed(theirs, rows),
            )
            values |= _flat(f"vs_{reference}", asdict(apart))
            shown[f"vs {title}"] = "reference" if reference == method else formatting.difference(apart)
        table.add(values, shown)
    several = any(row["score_n"] > 1 for row in table.values)
    what = "mean ± standard deviation over seeds" if several else "one seed"
    table.title = f"{metric.capitalize()} in per cent, {what}"
    table.notes = [*_scoring(runs), SEED_CHANGES, "Intervals: 95 % t-intervals of the mean over seeds."]
    table.notes.append(
        "vs: difference in points, paired over the seeds that both methods have; zero-shot has none, unless seeds draw the scored examples."
    )
    if runs["status"].isin(["oom", "diverged"]).any():
        table.notes.append(
            "Running out of memory (OOM) and divergence are results; a mean is over the other seeds."
        )
    return table


def memory(runs: pandas.DataFrame) -> Table:
    """Peak memory of each method beside plain inference, in the run that needed most."""
    table = Table("Peak memory beside plain inference")
    for _, rows in runs.groupby(METHOD, sort=False):
        measured = rows[(rows["status"] != "oom") & rows["memory.peak_allocated_bytes"].notna()]
        highest = measured.nlargest(1, "memory.peak_allocated_bytes")
        weights, inference, peak = (
            highest[f"memory.{key}_bytes"].max() for key in ("weights", "inference_peak", "peak_allocated")
        )
        over_weights = _ratio(peak - weights, inference - weights)
        how = formatting.common(measured["memory.how"], "")
        values = {"weights_bytes": weights, "inference_over_weights_bytes": inference - weights}
        values |= {"peak_over_weights_bytes": peak - weights, "peak_allocated_bytes": peak}
        values |= {
            "ratio_over_weights": over_weights,
            "ratio_with_weights": _ratio(peak, inference),
            "how": how,
        }
        shown = {
            "weights (MiB)": mebibytes(weights),
            "inference over weights (MiB)": mebibytes(inference - weights),
        }
        shown["method over weights (MiB)"] = (
            mebibytes(peak - weights) if len(highest) else formatting.failure(rows)
        )
        shown["ratio over weights"] = number(over_weights, ".2f")
        shown["ratio with weights"] = number(_ratio(peak, inference), ".2f")
        shown |= {"runs": formatting.finished(rows), "how": how}
        table.add(formatting.identity(rows) | values, formatting.names(rows) | shown)
    table.notes = [
        "Over weights: peak allocated minus the loaded weights. Inference: the peak of a plain forward pass in the same run.",
        "Ratios: method / inference, without and with the weights. Each row is the run with the highest peak.",
        "A stand-in batch repeats exactly, so it is measured once on a machine for all runs of equal settings and code.",
    ]
    return table


def time(runs: pandas.DataFrame) -> Table:
    """Speed of each method on each device, mean over its runs, beside the floor of two forward passes."""
    table = Table("Time and resident memory: machine-dependent figures")
    rate, floor = runs["time.steps_per_second"], runs["time.two_forward_seconds"]
    step = runs["time.step_seconds"].fillna(1 / rate.where(rate > 0))
    device = runs["provenance.device"].fillna(runs.groupby(METHOD)["provenance.device"].transform("first"))
    runs = runs.assign(
        device=device.fillna(ABSENT), step_seconds=step, step_over_two_forwards=step / floor.where(floor > 0)
    )
    for (*_, device), rows in runs.groupby([*METHOD, "device"], sort=False):
        ok = rows[rows["status"] == "ok"]
        mean = {column: summarise(ok[column]).mean for column, _, _ in SECONDS}
        resident = ok["memory.peak_resident_bytes"].max()
        values = {column.removeprefix("time."): value for column, value in mean.items()}
        values |= {"peak_resident_bytes": resident, "device": device}
        shown = {heading: number(mean[column], form) for column, heading, form in SECONDS}
        if not len(ok):
            shown["seconds per step"] = formatting.failure(rows)
        shown |= {
            "peak resident (MiB)": mebibytes(resident),
            "runs": formatting.finished(rows),
            "device": device,
        }
        table.add(formatting.identity(rows) | values, formatting.names(rows) | shown)
    table.notes = [
        "These figures depend on the machine and on what else it does; they change with each rerun.",
        "Means over the runs that finished; resident memory is the highest of them, of the whole process.",
        "Two forwards: the floor of a two-point step, timed in the same run beside the steps.",
        "Where the head alone is trained, both begin at features that were made once, before the training that is timed.",
    ]
    return table


def privacy(runs: pandas.DataFrame) -> Table:
    """What each private method promises: the guarantee, what it rests on, and whether it may be relied upon."""
    private = runs[runs["private"]]
    same = {heading: formatting.common(private[f"privacy.{key}"], "") for heading, key in ASIDE.items()}
    same = {heading: value for heading, value in same.items() if " / " not in value}
    accountants = "; ".join(provenance.distinct(private["privacy.accountant"])) or "none"
    table = Table(f"Privacy of each private method; accountant: {accountants}")
    table.of = private if len(private) else None
    for (*_, epsilon), rows in private.groupby(CELL, sort=False):
        values, shown = {"epsilon": epsilon}, {"ε": formatting.epsilon(rows)}
        for heading, key in (PROMISES | SPENT | VALIDITY).items():
            column = rows[f"privacy.{key}"]
            if key in SPENT.values():
                values[key] = column.astype(float).max()
                shown[heading] = number(values[key], ".4f")
            else:
                values[key], shown[heading] = (
                    formatting.common(column, ".10g"),
                    formatting.common(column, ".4g"),
                )
        for heading in ("accountant", *same):  # in the title and in the notes
            del shown[heading]
        table.add(formatting.identity(rows) | values, formatting.names(rows) | shown)
    if private.empty:
        table.notes = ["No private method in these runs."]
        return table
    accounted = private.groupby("privacy.accountant", sort=False)["title"].unique()
    table.notes = [
        f"Accountant of ε spent: {name} ({', '.join(titles)})." for name, titles in accounted.items()
    ]
    table.notes += [
        f"{heading.capitalize()}: {value} in every row." for heading, value in same.items() if value != ABSENT
    ]
    table.notes.append(
        "ε and μ are the highest over the seeds. μ: of the least Gaussian mechanism that loses as much at every ε where the run's δ is "
        "not below the one stated. RDP: the looser Rényi bound, for comparison with older papers."
    )
    if "privacy.choice.epsilon" in private and private["privacy.choice.epsilon"].notna().any():
        table.notes.append(CHOICE)
    table.notes += [
        COMPOSITION,
        TUNING,
        *([PUBLISHED] if (private["privacy.noise_key"] == "published").any() else []),
    ]
    return table


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in values.items()}


def _ratio(over: float, under: float) -> float:
    return over / under if under > 0 else math.nan


def _scoring(runs: pandas.DataFrame) -> list[str]:
    """Of each task and model: metric, split, number of examples, selection rule; by method where these differ."""
    notes = []
    scored = runs[runs["score"].notna()].fillna({"metrics.split": "unknown", "metrics.selection": "unknown"})
    ways = ["metric", "metrics.split", "metrics.examples", "metrics.selection"]
    for (task, model), rows in scored.groupby(["task", "model"], sort=False):
        several = rows[ways].drop_duplicates().shape[0] > 1
        for (metric, split, examples, selection), some in rows.groupby(ways, sort=False, dropna=False):
            count = "an unknown number of" if pandas.isna(examples) else f"{examples:.0f}"
            who = f" ({', '.join(dict.fromkeys(some['title']))})" if several else ""
            notes.append(
                f"{task}, {model}: {metric} on {count} examples of split {split}; reported: {selection}{who}."
            )
    return notes
