"""Tables of the runs that fine-tune a model: one function each, listed in `dpzero.report.TABLES`."""

from __future__ import annotations

import math

import pandas

from dpzero.report import formatting, provenance
from dpzero.report.statistics import paired_difference, summarise
from dpzero.report.table import ABSENT, MIB, NAMES, Column, Table, notes, number

METHOD = ["task", "model", "method"]
CELL = [*METHOD, "epsilon"]
REFERENCES = {"zero_shot": "zero-shot", "mezo": "MeZO"}  # each row is compared with these, seed by seed
EPSILON = Column("ε", "epsilon", formatting.epsilon)

PROMISES = {  # heading of the privacy table -> key in the record
    **{"mechanism": "mechanism", "unit": "unit", "adjacency": "adjacency", "sampling": "sampling"},
    **{"n": "dataset_size", "batch": "batch_size", "steps": "steps", "clip": "clip"},
    **{"noise scale": "noise_scale", "δ": "delta", "ε target": "epsilon_target"},
    **{"ε spent": "epsilon_spent", "μ": "gdp_mu", "ε by RDP": "epsilon_spent_rdp"},
    **{"noise arithmetic": "noise_arithmetic", "noise key": "noise_key", "valid release": "valid_release"},
}
SPENT = ("epsilon_spent", "gdp_mu", "epsilon_spent_rdp")
NOTE_IF_EQUAL = ("unit", "noise arithmetic")  # a column only if the rows differ

TIMES = (
    Column("seconds per step", "_step_seconds"),
    Column("two forwards (s)", "two_forward_seconds", ".4f"),
    Column("step / two forwards", "step_over_two_forwards", ".2f"),
    Column("train (s)", "train_seconds", ".1f"),
    Column("wall (s)", "wall_seconds", ".1f"),
)


def accuracy(runs: pandas.DataFrame) -> Table:
    """Score of each method and epsilon over its seeds, with its paired difference to each reference."""
    metrics = provenance.distinct(runs["metric"])
    metric = metrics[0] if len(metrics) == 1 else "score"
    columns = [*NAMES, EPSILON, Column(f"{metric} (%)", "_score"), Column("seeds", "_finished")]
    columns.append(Column("95 % interval", "_interval"))
    columns += [Column(f"vs {title}", f"_vs_{reference}") for reference, title in REFERENCES.items()]
    table = Table("", columns)
    by_method = dict(list(runs.groupby(METHOD, sort=False)))
    for (task, model, method, epsilon), rows in runs.groupby(CELL, sort=False):
        score = summarise(formatting.by_seed(rows).values())
        row = formatting.identity(rows)
        row |= {"epsilon": epsilon, "metric": formatting.common(rows["metric"], "")}
        row |= {
            key: formatting.common(rows[f"metrics.{key}"], ".0f")
            for key in ("split", "examples", "selection")
        }
        row |= score.columns("score")
        row["_score"] = formatting.score(score, row["status"], formatting.without_seed(rows))
        row["_interval"] = formatting.interval(score)
        for reference in REFERENCES:
            is_itself = reference == method
            theirs = runs[:0] if is_itself else by_method.get((task, model, reference), runs[:0])
            difference = paired_difference(formatting.by_seed(rows, theirs), formatting.by_seed(theirs, rows))
            row |= difference.columns(f"vs_{reference}")
            row[f"_vs_{reference}"] = "reference" if is_itself else formatting.difference(difference)
        table.rows.append(row)
    several = any(row["score_n"] > 1 for row in table.rows)
    seeds = "mean ± standard deviation over seeds" if several else "one seed"
    table.title = f"{metric.capitalize()} in per cent, {seeds}"
    table.notes = [*_scoring(runs), *notes("accuracy")]
    if runs["status"].isin(["oom", "diverged"]).any():
        table.notes += notes("accuracy_with_failures")
    return table


def memory(runs: pandas.DataFrame) -> Table:
    """Peak memory of each method compared with plain inference, in the run that needed most."""
    columns = (
        *NAMES,
        Column("weights (MiB)", "weights_bytes", ".2f", MIB),
        Column("inference over weights (MiB)", "inference_over_weights_bytes", ".2f", MIB),
        Column("method over weights (MiB)", "_peak"),
        Column("ratio over weights", "ratio_over_weights", ".2f"),
        Column("ratio with weights", "ratio_with_weights", ".2f"),
        Column("runs", "_finished"),
        Column("how", "how"),
    )
    table = Table("Peak memory compared with plain inference", columns)
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
        row["_peak"] = (
            number(peak - weights, ".2f", MIB) if len(highest) else formatting.failure(row["status"])
        )
        table.rows.append(row)
    table.notes = notes("memory")
    return table


def time(runs: pandas.DataFrame) -> Table:
    """Speed of each method on each device, mean over its runs, compared with two forward passes."""
    resident = Column("peak resident (MiB)", "peak_resident_bytes", ".2f", MIB)
    columns = (*NAMES, *TIMES, resident, Column("runs", "_finished"), Column("device", "device"))
    table = Table("Time and resident memory: machine-dependent figures", columns)
    rate, floor = runs["time.steps_per_second"], runs["time.two_forward_seconds"]
    step = runs["time.step_seconds"].fillna(1 / rate.where(rate > 0))
    device = runs["provenance.device"].fillna(runs.groupby(METHOD)["provenance.device"].transform("first"))
    runs = runs.assign(device=device.fillna(ABSENT)).assign(
        **{"time.step_seconds": step, "time.step_over_two_forwards": step / floor.where(floor > 0)}
    )
    keys = ("step_seconds", *(column.key for column in TIMES[1:]))
    for (*_, device), rows in runs.groupby([*METHOD, "device"], sort=False):
        ok = rows[rows["status"] == "ok"]
        row = formatting.identity(rows) | {key: summarise(ok[f"time.{key}"]).mean for key in keys}
        row |= {"peak_resident_bytes": ok["memory.peak_resident_bytes"].max(), "device": device}
        row["_step_seconds"] = (
            number(row["step_seconds"], ".4f") if len(ok) else formatting.failure(row["status"])
        )
        table.rows.append(row)
    table.notes = notes("time")
    return table


def privacy(runs: pandas.DataFrame) -> Table:
    """Guarantee of each private method, what it rests on, and whether the release is valid."""
    private = runs[runs["private"]]
    shared = {
        heading: values
        for heading in NOTE_IF_EQUAL
        if len(values := provenance.distinct(private[f"privacy.{PROMISES[heading]}"])) < 2
    }
    accountants = "; ".join(provenance.distinct(private["privacy.accountant"])) or "none"
    columns = [Column(heading, f"_{key}") for heading, key in PROMISES.items() if heading not in shared]
    table = Table(f"Privacy of each private method; accountant: {accountants}", [*NAMES, EPSILON, *columns])
    table.runs = private if len(private) else None
    for (*_, epsilon), rows in private.groupby(CELL, sort=False):
        row = formatting.identity(rows) | {"epsilon": epsilon}
        for key in (*PROMISES.values(), "accountant"):
            column = rows[f"privacy.{key}"]
            if key in SPENT:
                row[key] = column.astype(float).max()
                row[f"_{key}"] = number(row[key], ".4f")
            else:
                row[key] = formatting.common(column, ".10g")
                row[f"_{key}"] = formatting.common(column, ".4g")
        table.rows.append(row)
    if private.empty:
        table.notes = ["No private method in these runs."]
        return table
    accounted = private.groupby("privacy.accountant", sort=False)["title"].unique()
    table.notes = [
        *(f"Accountant of ε spent: {name} ({', '.join(titles)})." for name, titles in accounted.items()),
        *(f"{heading.capitalize()}: {v} in every row." for heading, values in shared.items() for v in values),
        *notes("privacy"),
    ]
    if "privacy.choice.epsilon" in private and private["privacy.choice.epsilon"].notna().any():
        table.notes += notes("privacy_with_selection")
    table.notes += notes("privacy_of_several_runs")
    if (private["privacy.noise_key"] == "published").any():
        table.notes += notes("privacy_with_published_key")
    return table


def _ratio(over: float, under: float) -> float:
    return over / under if under > 0 else math.nan


def _scoring(runs: pandas.DataFrame) -> list[str]:
    """Metric, split, number of examples and selection rule of each task; by method if these differ."""
    sentences = []
    scored = runs[runs["score"].notna()].fillna({"metrics.split": "unknown", "metrics.selection": "unknown"})
    ways = ["metric", "metrics.split", "metrics.examples", "metrics.selection"]
    for (task, model), rows in scored.groupby(["task", "model"], sort=False):
        several = rows[ways].drop_duplicates().shape[0] > 1
        for (metric, split, examples, selection), some in rows.groupby(ways, sort=False, dropna=False):
            count = "an unknown number of" if pandas.isna(examples) else f"{examples:.0f}"
            methods = f" ({', '.join(dict.fromkeys(some['title']))})" if several else ""
            sentences.append(
                f"{task}, {model}: {metric} on {count} examples of split {split}; "
                f"reported: {selection}{methods}."
            )
    return sentences
