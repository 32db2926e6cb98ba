"""Tables of the runs that fine-tune a model: one function each, listed in `dpzero.report.TABLES`."""

from __future__ import annotations

import math

import pandas

from dpzero.report import formatting, majority, provenance
from dpzero.report.records import FORWARDS
from dpzero.report.statistics import paired_difference, summarise
from dpzero.report.table import ABSENT, Table, make_table, notes

METHOD = ["task", "model", "method"]
CELL = [*METHOD, "epsilon"]
REFERENCES = {"zero_shot": "zero-shot", "mezo": "MeZO"}  # each row is compared with these, seed by seed
SPENT = ("epsilon_spent", "gdp_mu", "epsilon_spent_rdp")
PROMISES = (  # of the privacy table; those of SPENT are the highest of the seeds
    *("mechanism", "unit", "adjacency", "sampling", "dataset_size", "batch_size", "steps", "clip"),
    *("noise_scale", "delta", "epsilon_target", *SPENT, "noise_arithmetic", "noise_key", "valid_release"),
)
NOTE_IF_EQUAL = ("unit", "noise_arithmetic")  # a column only if the rows differ
TIMES = ("two_forward_seconds", "step_over_two_forwards", "train_seconds", "wall_seconds")


def accuracy(runs: pandas.DataFrame) -> Table:
    """Score of each method and epsilon over its seeds, with its paired difference to each reference."""
    metrics = provenance.distinct(runs["metric"])
    metric = metrics[0] if len(metrics) == 1 else "score"
    lines = []
    by_method = dict(list(runs.groupby(METHOD, sort=False)))
    for (task, model, method, epsilon), rows in runs.groupby(CELL, sort=False):
        score = summarise(formatting.by_seed(rows).values())
        row = formatting.identity(rows) | {"_public": formatting.public_rows(rows)}
        row |= {"epsilon": epsilon, "metric": formatting.common(rows["metric"], "")}
        row |= {
            key: formatting.common(rows[f"metrics.{key}"], ".0f")
            for key in ("split", "examples", "selection")
        }
        row |= {"example_forwards": (passes := rows["example_forwards"].mean())}
        row |= score.columns("score")
        row["_forwards"] = formatting.count(passes)
        row["_score"] = formatting.score(score, row["status"], formatting.without_seed(rows))
        row["_interval"] = formatting.interval(score)
        for reference in REFERENCES:
            is_itself = reference == method
            theirs = runs[:0] if is_itself else by_method.get((task, model, reference), runs[:0])
            difference = paired_difference(formatting.by_seed(rows, theirs), formatting.by_seed(theirs, rows))
            row |= difference.columns(f"vs_{reference}")
            row[f"_vs_{reference}"] = "reference" if is_itself else formatting.difference(difference)
        lines.append(row)
    placed = majority.with_rows(lines, runs)
    several = any(row["score_n"] > 1 for row in lines)
    seeds = f"mean ± standard deviation over {formatting.seeds(runs)} seeds" if several else "one seed"
    table = make_table("accuracy", placed, metric=metric, Metric=metric.capitalize(), seeds=seeds)
    without = {f"_vs_{reference}" for reference in REFERENCES if reference not in set(runs["method"])}
    table.columns = [column for column in table.columns if column.key not in without]
    table.notes[:0] = _scoring(runs)
    _tell_public_rows(table, lines)
    finished = runs[runs["status"] == "ok"]
    if FORWARDS not in runs or finished[FORWARDS].isna().any():
        table.notes += notes("accuracy_of_old_records")
    if len(placed) > len(lines):
        table.notes += notes("accuracy_with_majority")
    if runs["status"].isin(["oom", "diverged"]).any():
        table.notes += notes("accuracy_with_failures")
    return table


def memory(runs: pandas.DataFrame) -> Table:
    """Peak memory of each method compared with plain inference, in the run that needed most."""
    lines = []
    for _, rows in runs.groupby(METHOD, sort=False):
        measured = rows[(rows["status"] != "oom") & rows["memory.peak_allocated_bytes"].notna()]
        highest = measured.nlargest(1, "memory.peak_allocated_bytes")
        weights, inference, peak = (
            highest[f"memory.{key}_bytes"].max() for key in ("weights", "inference_peak", "peak_allocated")
        )
        row = formatting.identity(rows) | {
            "weights_bytes": weights,
            "inference_over_weights_bytes": inference - weights,
            "peak_over_weights_bytes": peak - weights,
            "peak_allocated_bytes": peak,
            "ratio_over_weights": _ratio(peak - weights, inference - weights),
            "ratio_with_weights": _ratio(peak, inference),
            "how": formatting.common(measured["memory.how"], ""),
        }
        row["_peak"] = peak - weights if len(highest) else formatting.failure(row["status"])
        lines.append(row)
    return make_table("memory", lines)


def time(runs: pandas.DataFrame) -> Table:
    """Speed of each method on each device, mean over its runs, compared with two forward passes."""
    lines = []
    rate, floor = runs["time.steps_per_second"], runs["time.two_forward_seconds"]
    step = runs["time.step_seconds"].fillna(1 / rate.where(rate > 0))
    device = runs["provenance.device"].fillna(runs.groupby(METHOD)["provenance.device"].transform("first"))
    runs = runs.assign(device=device.fillna(ABSENT)).assign(
        **{"time.step_seconds": step, "time.step_over_two_forwards": step / floor.where(floor > 0)}
    )
    for (*_, device), rows in runs.groupby([*METHOD, "device"], sort=False):
        ok = rows[rows["status"] == "ok"]
        row = formatting.identity(rows) | {
            key: summarise(ok[f"time.{key}"]).mean for key in ("step_seconds", *TIMES)
        }
        row |= {"peak_resident_bytes": ok["memory.peak_resident_bytes"].max(), "device": device}
        row["_step_seconds"] = row["step_seconds"] if len(ok) else formatting.failure(row["status"])
        lines.append(row)
    return make_table("time", lines)


def privacy(runs: pandas.DataFrame) -> Table:
    """Guarantee of each private method, what it rests on, and whether the release is valid."""
    private = runs[runs["private"]]
    lines = []
    for (*_, epsilon), rows in private.groupby(CELL, sort=False):
        row = formatting.identity(rows) | {"epsilon": epsilon, "_public": formatting.public_rows(rows)}
        for key in (*PROMISES, "accountant"):
            column = rows[f"privacy.{key}"]
            if key in SPENT:
                row[key] = column.astype(float).max()
            else:
                row |= {key: formatting.common(column, ".10g"), f"_{key}": formatting.common(column, ".4g")}
        if "privacy.selective_epsilon_spent" in rows:
            row["selective_epsilon_spent"] = rows["privacy.selective_epsilon_spent"].astype(float).max()
        lines.append(row)
    accountants = "; ".join(provenance.distinct(private["privacy.accountant"])) or "none"
    table = make_table("privacy", lines, accountants=accountants)
    values = {f"_{key}": provenance.distinct(private[f"privacy.{key}"]) for key in NOTE_IF_EQUAL}
    shared = [column for column in table.columns if len(values.get(column.key, "two")) < 2]
    table.columns = [column for column in table.columns if column not in shared]
    _tell_public_rows(table, lines)
    if private.empty:
        table.notes = ["No private method in these runs."]
        return table
    table.runs = private
    accounted = private.groupby("privacy.accountant", sort=False)["title"].unique()
    table.notes[:0] = [
        *(f"Accountant of ε spent: {name} ({', '.join(titles)})." for name, titles in accounted.items()),
        *(f"{c.heading.capitalize()}: {value} in every row." for c in shared for value in values[c.key]),
    ]
    if "privacy.choice.epsilon" in private and private["privacy.choice.epsilon"].notna().any():
        table.notes += notes("privacy_with_selection")
    table.notes += notes("privacy_of_several_runs")
    if (private["privacy.noise_key"] == "published").any():
        table.notes += notes("privacy_with_published_key")
    return table


def _tell_public_rows(table: Table, lines: list[dict]) -> None:
    """The column and its note stay if a method reads public rows."""
    if any(line.get("_public", ABSENT) != ABSENT for line in lines):
        table.notes += notes("with_public_rows")
    else:
        table.columns = [column for column in table.columns if column.key != "_public"]


def _ratio(over: float, under: float) -> float:
    return over / under if under > 0 else math.nan


def _scoring(runs: pandas.DataFrame) -> list[str]:
    """Metric, split, number of examples and selection rule of each task; by method if these differ."""
    sentences = []
    scored = runs[runs["score"].notna()].fillna({"metrics.split": "unknown", "metrics.selection": "unknown"})
    ways = ["metric", "metrics.split", "metrics.examples", "metrics.selection"]
    for (task, model), rows in scored.groupby(["task", "model"], sort=False):
        several = rows[ways].drop_duplicates().shape[0] > 1
        for (metric, split, examples, selection), group in rows.groupby(ways, sort=False, dropna=False):
            count = "an unknown number of" if pandas.isna(examples) else f"{examples:.0f}"
            methods = f" ({', '.join(dict.fromkeys(group['title']))})" if several else ""
            sentences.append(
                f"{task}, {model}: {metric} on {count} examples of split {split}; "
                f"reported: {selection}{methods}."
            )
    return sentences
