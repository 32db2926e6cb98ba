"""Report of the sweep `guarantees`: claims of public implementations and guarantees of their code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpzero.report import drawing, style
from dpzero.report.table import ABSENT, Table, make_table, number

METHODS = ("dpzero", "dp_aggzo", "dp_zoso", "geo_dpzo", "geo_dpzo_opt")  # in this order, then others
ROW_INCHES = 0.155
MARGIN = {
    1.04: "code\nas it is",
    1.155: "claim if noise\nwere secret",
}  # place right of the panels -> heading

BESIDE = ("axes fraction", "data")
ENDS = ("least", "most")
CLAIM_OF_EPSILON = "guarantee.claimed_epsilon"
CLAIM_OF_INFORMATION = "guarantee.claimed_information_nats"
BOUNDS: dict[Any, str] = {
    "poisson": "PLD",
    "shuffled_epochs": "worst-case pair (lower), PLD over epochs (upper)",
    "full_batch": "smallest pair",
}
WORDS: dict[Any, str] = {  # of the record -> for readers
    "own size, then noise": "actual batch size, before noise",
    "own size, with noise": "actual batch size, with noise",
    "expected size, with noise": "expected batch size",
    "add_remove": "add remove",
    "replace_one": "replace one",
    "zero_out": "zero-out",
}
BETWEEN = {"color": style.GREY, "linewidth": 2.2, "solid_capstyle": "butt", "zorder": 2}
MARKS = {  # label in the legend -> marker, its colour and size
    "claimed": {"marker": "o", "color": style.BLACK, "markersize": 5, "mfc": "white", "zorder": 4},
    "actual if the noise were secret: at least": {"marker": 9, "color": style.GREY, "markersize": 6},
    "at most": {"marker": 8, "color": style.GREY, "markersize": 6},
    "exactly": {"marker": "D", "color": style.GREY, "markersize": 4.5},
}
MARKS = {label: {"linestyle": "", "zorder": 3} | look for label, look in MARKS.items()}
CLAIM, AT_LEAST, AT_MOST, EXACTLY = MARKS.values()


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    return {"guarantees": guarantees(arranged(runs))}


def from_tables(folder: Path) -> pandas.DataFrame:
    """What the figure needs of the runs, from guarantees.csv in this folder."""
    rows = pandas.read_csv(folder / "guarantees.csv", keep_default_na=False, na_values=[""])
    rows = rows.assign(epsilon_at_least=pandas.to_numeric(rows["epsilon_at_least"]))
    settings = {key: f"settings.{key}" for key in ("dataset_size", "batch_size", "steps")}
    same = ("task", "model", "method", "title", "status", "verdict", *settings)
    names = {column: f"guarantee.{column}" for column in rows if column not in same}
    delta, epsilon = rows["claimed_delta"], rows["claimed_epsilon"].fillna(math.inf).map("{:g}".format)
    return rows.rename(columns=names | settings).assign(epsilon=epsilon, **{"settings.delta": delta})


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    return {"guarantees": draw(arranged(runs))}


def arranged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs in the order of METHODS, then of their tasks and claims, with each bound on epsilon as a number."""
    place = {method: number for number, method in enumerate(METHODS)}
    runs = runs.reindex(columns=[*runs.columns, *{CLAIM_OF_EPSILON, CLAIM_OF_INFORMATION} - {*runs.columns}])
    bounds = {
        key: pandas.to_numeric(runs[key]) for key in runs if str(key).startswith("guarantee.epsilon_at_")
    }
    order = runs.assign(**bounds, place=runs["method"].map(place).fillna(len(place)))
    return order.sort_values(["place", CLAIM_OF_INFORMATION], kind="stable").drop(columns="place")


def guarantees(runs: pandas.DataFrame) -> Table:
    """One row for each published setting."""
    lines = []
    for run in runs.to_dict("records"):
        row = {key: run[key] for key in ("task", "model", "method", "title", "status")}
        row |= {key: run.get(f"settings.{key}") for key in ("dataset_size", "batch_size", "steps")}
        assumed = row["assumed_size"] = run.get("settings.assumed_size")
        row |= {key.partition(".")[2]: value for key, value in run.items() if key.startswith("guarantee.")}
        row["verdict"] = verdict(run)
        mistaken = f" (assumed {assumed:.0f})" if pandas.notna(assumed) and assumed else ""
        row["_size"] = number(row["dataset_size"], ".0f") + mistaken
        row |= {"_epsilon": run["epsilon"].replace("inf", ABSENT), "_batches": _batches(run)}
        row |= {f"_{key}": WORDS.get(row.get(key), row.get(key)) for key in ("divisor", "adjacency")}
        row |= {"_information": _information(row), "_bound": BOUNDS.get(row.get("sampling"))}
        unbounded = row.get("epsilon_at_least") == math.inf
        row |= {
            f"_at_{end}": "∞" if unbounded else number(row.get(f"epsilon_at_{end}"), ".2f") for end in ENDS
        }
        lines.append(row)
    table = make_table("guarantees", lines)
    table.notes += _noise_sources(runs)
    return table


def verdict(row: dict[str, Any]) -> str:
    """The verdict on a claim if the noise were secret."""
    unit = "" if pandas.isna(row.get(CLAIM_OF_INFORMATION)) else "_nats"
    what = "information" if unit else "epsilon"
    claim: Any = row.get(f"guarantee.claimed_{what}{unit}")
    bounds: list[Any] = [row.get(f"guarantee.{what}_at_{end}{unit}") for end in ENDS]
    at_least, at_most = bounds
    if pandas.isna(at_most):
        return ABSENT
    return "held" if at_most <= claim else "refuted" if at_least > claim else "open"


def _information(row: dict[str, Any]) -> str:
    """`0.000316 to 0.0011`: bounds on a mutual information in nats."""
    bounds = [number(row.get(f"information_at_{end}_nats"), ".3g") for end in ENDS]
    return " to ".join(dict.fromkeys(bounds))


def draw(runs: pandas.DataFrame) -> Figure:
    """Claimed and actual epsilon: a panel for each paper, a line for each setting apart from its task."""
    rows = _merged(runs[(runs["status"] == "ok") & runs[CLAIM_OF_EPSILON].notna()])
    papers = list(rows.groupby("title", sort=False))
    counts = [len(group) for _, group in papers]
    size = (style.PAGE_INCHES, ROW_INCHES * sum(counts) + 0.32 * len(counts) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(papers), sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axis, (paper, group) in zip(axes, papers, strict=True):
        axis.set_title(paper, loc="left", weight="bold")
        for place, row in enumerate(group.to_dict("records")):
            _draw_row(axis, place, row)
        axis.set_yticks(range(len(group)), group["label"])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(group) - 0.4, -0.6)
        axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[-1].set_xscale("log")
    drawing.log_ticks(axes[-1].xaxis, (1, 2, 5))
    axes[-1].set_xlabel("ε at the claim's δ")
    for x, words in MARGIN.items():
        drawing.write(axes[0], words, (x, 1), (0, 4), "axes fraction", ha="center", va="bottom")
    handles = [Line2D([], [], label=label, **look) for label, look in MARKS.items()]
    drawing.place_legend(figure, handles, handletextpad=0.4)
    return figure


def _draw_row(axis: Axes, place: int, row: dict[str, Any]) -> None:
    claim, low, high = (
        row[f"guarantee.{key}"] for key in ("claimed_epsilon", "epsilon_at_least", "epsilon_at_most")
    )
    if row["guarantee.sampling"] == "poisson":  # the two differ by their rounding alone
        axis.plot([high], [place], **EXACTLY)
    else:
        axis.plot([low, high], [place, place], **BETWEEN)
        axis.plot([low], [place], **AT_LEAST)
        axis.plot([high], [place], **AT_MOST)
    axis.plot([claim], [place], **CLAIM)
    for x, words in zip(MARGIN, (row["guarantee.as_it_is"], verdict(row)), strict=True):
        weight = "bold" if words == "refuted" else "normal"
        drawing.write(axis, words, (x, place), (0, 0), BESIDE, ha="center", weight=weight)


def _merged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Merge the rows that differ only in their task, with a label."""
    same = ["title", "model", "epsilon"]
    same += [f"settings.{key}" for key in ("dataset_size", "batch_size", "steps", "delta")]
    tasks = runs.groupby(same, sort=False)["task"].transform(", ".join)
    labels = tasks + " (" + runs["model"] + "), ε = " + runs["epsilon"]
    return runs.assign(label=labels).drop_duplicates(same)


def _batches(row: dict[str, Any]) -> str:
    sampling = row.get("guarantee.sampling")
    if pandas.isna(sampling):
        return ABSENT
    if sampling in ("poisson", "full_batch"):
        return {"poisson": "Poisson", "full_batch": "all rows"}[sampling]
    count, last = row["guarantee.batches_per_epoch"], row["guarantee.last_batch"]
    short = f", the last of {last:.0f}" if last < row["settings.batch_size"] else ""
    return f"shuffled epochs of {count:.0f}{short}"


def _noise_sources(runs: pandas.DataFrame) -> list[str]:
    papers = runs[runs["status"] == "ok"].groupby("title", sort=False).first()
    sources = papers[["guarantee.noise_source", "guarantee.source"]].itertuples(name=None)
    return [f"{title} ({source}): noise {why}." for title, why, source in sources]
