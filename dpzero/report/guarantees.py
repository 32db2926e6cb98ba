"""The table and the figure of the sweep `guarantees`: what is claimed, what the public code gives, what this project would add."""

from __future__ import annotations

from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from dpzero.report import style
from dpzero.report.table import ABSENT, Table, number

METHODS = ("dpzero", "dp_aggzo", "dp_zoso")  # in this order
ROW_INCHES = 0.155
COLUMNS = (
    (1.04, "code\nas it is"),
    (1.155, "claim, were\nnoise secret"),
)  # right of the panels: place, heading

BOUNDS = {"poisson": "PLD with the count", "shuffled_epochs": "a bad pair; epochs composed by PLD"}
CLAIM = {"marker": "o", "color": style.BLACK, "mfc": "white", "markersize": 5, "linestyle": "", "zorder": 4}
BETWEEN = {"color": style.BLUE, "linewidth": 2.2, "solid_capstyle": "butt", "zorder": 2}
AT_LEAST = {"marker": 9, "color": style.BLUE, "markersize": 6, "linestyle": "", "zorder": 3}
AT_MOST = {"marker": 8, "color": style.BLUE, "markersize": 6, "linestyle": "", "zorder": 3}
GIVEN = {"marker": "D", "color": style.VERMILION, "markersize": 4.5, "linestyle": "", "zorder": 3}

READING = (
    "Code as it is: none means that no epsilon holds, because who knows the run's public seeds can compute the noise and take it "
    "away.",
    "ε if the noise were secret: at least and at most, at the claim's δ, under the neighbours of that line. Shuffled "
    "epochs: at most is one release on all data an epoch, composed (PLD), no amplification by sampling being proven; at least is "
    "one pair of data sets, seen through one statistic an epoch. Poisson: both are the PLD, the noisy count included.",
    "Verdict on the claim, were the noise secret: held (at most ≤ claim), refuted (at least > claim), open (neither).",
    "Divided by: own size, then noise: the mean over the rows of the batch, then noise made for a full batch (a short last batch "
    "weighs more); own size, with noise: the noisy sum is divided; noisy size: so it is, by the rate times a noisy count.",
    "Neighbours: replace one is the paper's own (and what its factor 2 is for); zero out takes one example's contribution away "
    "with all batches in place, the nearest to add or remove that batches of a fixed size allow.",
    "Noise: standard deviation on the sum of a full batch over the clip bound. Ours: for the same claim with Poisson batches and "
    "one example added or removed, by PLD; replaced: without replacement, one example replaced. Ratio: theirs / ours.",
)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    return {"guarantees": guarantees(arranged(runs))}


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    return {"guarantees": draw(arranged(runs))}


def arranged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs in the order of METHODS, then of their tasks and epsilons."""
    place = {method: number for number, method in enumerate(METHODS)}
    return runs.sort_values("method", key=lambda column: column.map(place).fillna(len(place)), kind="stable")


def guarantees(runs: pandas.DataFrame) -> Table:
    """One line a published setting."""
    table = Table("What public implementations claim, and what their code gives")
    for row in runs.to_dict("records"):
        found = {key.partition(".")[2]: value for key, value in row.items() if key.startswith("guarantee.")}
        sizes = {key: row.get(f"settings.{key}") for key in ("dataset_size", "batch_size", "steps")}
        assumed = row.get("settings.assumed_size")
        told = f" (told {assumed:.0f})" if pandas.notna(assumed) and assumed else ""
        size = number(sizes["dataset_size"], ".0f") + told
        names = {key: row[key] for key in ("task", "model", "method", "title", "status")}
        values = names | sizes | {"assumed_size": assumed, **found, "verdict": verdict(row)}
        shown = {"paper": row["title"], "task": row["task"], "model": row["model"], "n": size}
        shown |= {"batch": number(sizes["batch_size"], ".0f"), "steps": number(sizes["steps"], ".0f")}
        shown |= {"claimed ε": row["epsilon"], "δ": number(found.get("claimed_delta"), ".2g")}
        shown |= {"claimed by": _text(found.get("claimed_accountant")), "batches": _batches(row)}
        shown |= {"divided by": _text(found.get("divisor"))}
        shown |= {"noise / clip": number(found.get("noise_scale"), ".3f")}
        shown |= {"code as it is": _text(found.get("as_it_is"))}
        shown |= {"neighbours": _text(found.get("adjacency")).replace("_", " ")}
        shown |= {
            "ε at least": number(found.get("epsilon_at_least"), ".2f"),
            "ε at most": number(found.get("epsilon_at_most"), ".2f"),
            "bounded by": BOUNDS.get(found.get("sampling"), ABSENT),
            "claim": values["verdict"],
            "ours": number(found.get("our_noise_scale"), ".3f"),
            "ratio": number(found.get("ratio"), ".2f"),
            "ours, replaced": number(found.get("our_noise_scale_replace_one"), ".3f"),
            "ratio, replaced": number(found.get("ratio_replace_one"), ".2f"),
        }
        table.add(values, shown)
    table.notes = [*READING, *_noise_sources(runs)]
    return table


def verdict(row: dict[str, Any]) -> str:
    """On a claim, were the noise secret."""
    at_most, at_least = row.get("guarantee.epsilon_at_most"), row.get("guarantee.epsilon_at_least")
    if pandas.isna(at_most):
        return ABSENT
    claim = row["guarantee.claimed_epsilon"]
    return "held" if at_most <= claim else "refuted" if at_least > claim else "open"


def draw(runs: pandas.DataFrame) -> Figure:
    """Claimed against given: one panel a paper, one line a setting; settings that only their task tells apart share one."""
    rows = _merged(runs[runs["status"] == "ok"])
    papers = list(rows.groupby("title", sort=False))
    counts = [len(some) for _, some in papers]
    size = (style.PAGE_INCHES, ROW_INCHES * sum(counts) + 0.32 * len(counts) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(papers), sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axis, (paper, some) in zip(axes, papers, strict=True):
        axis.set_title(paper, loc="left", weight="bold")
        for place, row in enumerate(some.to_dict("records")):
            _draw_row(axis, place, row)
        axis.set_yticks(range(len(some)), some["label"])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(some) - 0.4, -0.6)
        axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[-1].set_xscale("log")
    ticks = {"major_locator": LogLocator(subs=(1, 2, 5)), "minor_locator": NullLocator()}
    axes[-1].xaxis.set(major_formatter=FormatStrFormatter("%g"), **ticks)
    axes[-1].set_xlabel("ε at the claim's δ")
    for x, words in COLUMNS:
        axes[0].annotate(
            words, (x, 1), (0, 4), "axes fraction", "offset points", ha="center", va="bottom", size=6.5
        )
    figure.legend(
        handles=_legend(), loc="outside upper center", ncols=4, handletextpad=0.4, columnspacing=1.2
    )
    return figure


def _draw_row(axis: Axes, place: int, row: dict[str, Any]) -> None:
    claim, low, high = (
        row[f"guarantee.{key}"] for key in ("claimed_epsilon", "epsilon_at_least", "epsilon_at_most")
    )
    if row["guarantee.sampling"] == "poisson":  # the two differ by their rounding alone
        axis.plot([high], [place], **GIVEN)
    else:
        axis.plot([low, high], [place, place], **BETWEEN)
        axis.plot([low], [place], **AT_LEAST)
        axis.plot([high], [place], **AT_MOST)
    axis.plot([claim], [place], **CLAIM)
    for (x, _), words in zip(COLUMNS, (row["guarantee.as_it_is"], verdict(row)), strict=True):
        bold = "bold" if words == "refuted" else "normal"
        axis.annotate(
            words,
            (x, place),
            xycoords=("axes fraction", "data"),
            ha="center",
            va="center",
            size=6.5,
            weight=bold,
        )


def _legend() -> list[Line2D]:
    words = {
        "claimed": CLAIM,
        "given, were the noise secret: at least": AT_LEAST,
        "at most": AT_MOST,
        "exactly": GIVEN,
    }
    return [Line2D([], [], label=label, **{**look, "linestyle": ""}) for label, look in words.items()]


def _merged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Rows that differ in nothing but their task become one, with a label."""
    same = [
        "title",
        "model",
        "epsilon",
        "settings.dataset_size",
        "settings.batch_size",
        "settings.steps",
        "settings.delta",
    ]
    lines = []
    for _, some in runs.groupby(same, sort=False):
        first = some.iloc[0].to_dict()
        tasks = ", ".join(some["task"])
        lines.append(first | {"label": f"{tasks} ({first['model']}), ε = {first['epsilon']}"})
    return pandas.DataFrame(lines)


def _batches(row: dict[str, Any]) -> str:
    sampling = row.get("guarantee.sampling")
    if pandas.isna(sampling):
        return ABSENT
    if sampling == "poisson":
        return "Poisson"
    count, last = row["guarantee.batches_per_epoch"], row["guarantee.last_batch"]
    short = f", the last of {last:.0f}" if last < row["settings.batch_size"] else ""
    return f"shuffled epochs of {count:.0f}{short}"


def _noise_sources(runs: pandas.DataFrame) -> list[str]:
    found = (
        runs[runs["status"] == "ok"]
        .groupby("title", sort=False)[["guarantee.noise_source", "guarantee.source"]]
        .first()
    )
    return [
        f"{title} ({source}): noise {why}."
        for title, (why, source) in zip(found.index, found.to_numpy(), strict=True)
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ABSENT
