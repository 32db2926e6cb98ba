"""Report of the sweep `quadratic`: exponents of the dimension with verdicts, gradient norms, two figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, power_law, style
from dpzero.report.power_law import Fit
from dpzero.report.statistics import Summary, summarise
from dpzero.report.table import ABSENT, Row, Table, make_table, notes, number

RANKS = {
    "rank_d": "O(d)",
    "rank_sqrt_d": "O(√d)",
    "rank_log_d": "O(log d)",
    "rank_log_d_one_coordinate": "O(log d), data in one coordinate",
}
METHODS = ("dpzero", "dpgd_0th", "dp_sgd", "mezo", "sgd")  # in this order
PUBLISHED = {  # in words: figures 1 and 2 of the paper have no numbers
    ("dpzero", "rank_d"): "grows with d",
    ("dpzero", "rank_log_d"): "nearly independent of d",
    ("dp_sgd", "rank_d"): "grows with d",
    ("dp_sgd", "rank_log_d"): "nearly independent of d",
    **{("dpgd_0th", rank): "grows strongly with d, the worst" for rank in list(RANKS)[:3]},
}
LABEL_GAP = 0.075  # of the height of a panel
CONVERGED = 1e-8  # of the norm at the start: a smaller norm is rounding and has no exponent
GRIDS = ("steps", "learning_rates", "clips")


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    bests = best(runs)
    return {"exponents": exponents_table(bests), "norms": norms_table(bests)}


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    bests = best(runs)
    return {"quadratic": by_dimension(bests), "quadratic_steps": by_steps(bests)}


def best(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The best setting of each rank law, dimension and method that has a run, in the order of the tables.

    `train` and `test` are its norms, one for each seed; `by_steps` is the least mean norm for each number of steps.
    """
    groups = runs[runs["status"] == "ok"].groupby(["task", "settings.dimension", "method"])
    bests = pandas.DataFrame([_best(rows) for _, rows in groups])
    place = {name: number for number, name in enumerate((*RANKS, *METHODS))}
    return bests.sort_values(
        ["task", "dimension", "method"],
        key=lambda column: column if column.name == "dimension" else column.map(place),
    )


def _best(rows: pandas.DataFrame) -> Row:
    first = rows.iloc[0]
    texts = {name: first.get(f"settings.{name}") for name in GRIDS}
    grids = {name: json.loads(text) for name, text in texts.items() if isinstance(text, str)}
    train, test = (_norms(rows[f"quadratic.{split}"]) for split in ("train", "test"))
    means = train.mean(0)
    places = dict(zip(grids, numpy.unravel_index(means.argmin(), means.shape), strict=False))
    return {key: first[key] for key in ("task", "method", "title", "private")} | {
        "dimension": int(first["settings.dimension"]),
        "start": float(rows["quadratic.start"].mean()),
        "effective_rank": first["quadratic.effective_rank"],
        "train": _with_least_mean(train),
        "test": _with_least_mean(test),
        "setting": {name: grids[name][place] for name, place in places.items()},
        "at_edge": [name for name, place in places.items() if place in (0, len(grids[name]) - 1)],
        "by_steps": dict(zip(grids["steps"], means.min((1, 2)), strict=True)),
    }


def _norms(column: pandas.Series) -> numpy.ndarray:
    """Norms [seeds, steps, learning rates, clips]; infinite if a run diverged."""
    norms = numpy.array([json.loads(text) for text in column], dtype=float)  # null: not a number
    return numpy.where(numpy.isnan(norms), numpy.inf, norms)


def _with_least_mean(norms: numpy.ndarray) -> list[float]:
    """The norms of the seeds at the setting with the least mean."""
    settings = norms.reshape(len(norms), -1)
    return settings[:, settings.mean(0).argmin()].tolist()


def fits(bests: pandas.DataFrame, split: str = "train") -> dict[tuple[str, str], Fit | None]:
    """(rank law, method) -> fit over the dimensions; None for too few, or if one converged to rounding."""
    fitted = {}
    for key, rows in bests.groupby(["task", "method"], sort=False):
        logs = [
            -math.inf if min(norms) <= CONVERGED * start else numpy.log(norms).mean()
            for norms, start in zip(rows[split], rows["start"], strict=True)
        ]
        fitted[key] = power_law.power(dict(zip(rows["dimension"], logs, strict=True)))
    return fitted


def exponents_table(bests: pandas.DataFrame) -> Table:
    """One row for each rank law and method; the verdicts are the first notes."""
    lines = []
    fitted = {split: fits(bests, split) for split in ("train", "test")}
    for (rank, method), rows in bests.groupby(["task", "method"], sort=False):
        ends = {"first": rows.iloc[0], "last": rows.iloc[-1]}
        means = {end: summarise(one["train"]).mean for end, one in ends.items()}
        row: Row = {"task": rank, "method": method, "published": PUBLISHED.get((method, rank), ABSENT)}
        row["seeds"] = len(ends["first"]["train"])
        row |= {f"dimension_{end}": one["dimension"] for end, one in ends.items()}
        row |= {f"norm_{end}": mean for end, mean in means.items()}
        for split, fits_of_split in fitted.items():
            fit = row[f"_{split}"] = fits_of_split[rank, method]
            row |= {f"{split}_{key}": getattr(fit, key, None) for key in ("exponent", "low", "high")}
        row |= {f"_{end}": f"{number(means[end], '.2g')} at {one['dimension']}" for end, one in ends.items()}
        lowest, highest = (one["effective_rank"] for one in ends.values())
        row |= {"_rank": f"{lowest:.3g} to {highest:.4g}", "_title": ends["first"]["title"]}
        row["_task"] = _rank_name(rank)
        lines.append(row)
    verdicts = power_law.verdict(fitted["train"], RANKS, _norm_ratios(bests))
    table = make_table("quadratic_exponents", lines)
    table.notes[:0] = [*verdicts, *notes("quadratic")]
    return table


def _rank_name(rank: str) -> str:
    return RANKS.get(rank, rank)


def _norm_ratios(bests: pandas.DataFrame) -> dict[str, dict[int, float]]:
    """Rank law -> dimension -> MeZO's norm over DPZero's, if both have run."""
    means = bests["train"].map(lambda norms: summarise(norms).mean)
    by_method = bests.assign(mean=means).pivot(index=["task", "dimension"], columns="method", values="mean")
    pairs = by_method.reindex(columns=["mezo", "dpzero"])
    ratios = (pairs["mezo"] / pairs["dpzero"]).dropna()
    return {rank: group.droplevel(0).to_dict() for rank, group in ratios.groupby(level=0)}


def norms_table(bests: pandas.DataFrame) -> Table:
    """One row for each rank law, dimension and method."""
    lines = []
    for one in bests.to_dict("records"):
        train, test = summarise(one["train"]), summarise(one["test"])
        row = {key: one[key] for key in ("task", "dimension", "method", "start")}
        row |= {"train": train.mean, "train_low": train.low, "train_high": train.high, "seeds": train.n}
        row |= {"test": test.mean} | one["setting"] | {"at_edge": " ".join(one["at_edge"])}
        row |= {"_title": one["title"], "_train": _interval(train), "_test": _interval(test)}
        row["_task"] = _rank_name(one["task"])
        for name in GRIDS:
            row[f"_{name}"] = number(one["setting"].get(name), "g") + ("*" if name in one["at_edge"] else "")
        lines.append(row)
    table = make_table("quadratic_norms", lines)
    table.notes += notes("quadratic")
    return table


def _interval(summary: Summary) -> str:
    half = (summary.high - summary.low) / 2
    return number(summary.mean, ".3g") + ("" if math.isnan(half) else f" ± {half:.1g}")


def by_dimension(bests: pandas.DataFrame) -> Figure:
    """Best-of-grid norm against d: a panel for each rank law, the exponent at the end of each line."""
    fitted = fits(bests)

    def draw(axis: Axes, rows: pandas.DataFrame, strokes: dict) -> tuple[float, float, str]:
        seeds = [summarise(norms) for norms in rows["train"]]
        y = numpy.array([summary.mean for summary in seeds])
        up = [
            summary.high - summary.mean if summary.n >= drawing.SMALLEST_N_WITH_BAR else math.nan
            for summary in seeds
        ]
        down = numpy.minimum(up, 0.9 * y)  # the axis has no zero
        axis.errorbar(rows["dimension"], y, [down, up], elinewidth=0.7, capsize=1.5, **strokes)
        fit = fitted[tuple(rows[["task", "method"]].iloc[0])]
        return rows["dimension"].iloc[-1], y[-1], number(fit.exponent, ".2f") if fit else ""

    return _panels(bests, draw, "dimension d (line ends: exponent of d)")


def by_steps(bests: pandas.DataFrame) -> Figure:
    """At the largest d: the norm of the best setting with so many steps."""

    def draw(axis: Axes, rows: pandas.DataFrame, strokes: dict) -> None:
        by_steps = rows["by_steps"].iloc[-1]
        axis.plot(list(by_steps), list(by_steps.values()), **strokes)

    largest = bests["dimension"].max()
    return _panels(bests[bests["dimension"] == largest], draw, f"steps T, at d = {largest}")


def _panels(bests: pandas.DataFrame, draw: Callable, label: str) -> Figure:
    """One panel for each rank law. `draw` draws a method; it may return the end of its line and a text there."""
    panels = list(bests.groupby("task", sort=False))
    columns = min(2, len(panels))
    figure, axes = drawing.canvas(-(-len(panels) // columns), columns, 2.0, sharex=True)
    strokes: dict[str, Any] = {}
    for axis, (rank, group) in zip(axes.flat, panels, strict=False):
        axis.set(xscale="log", yscale="log", title=f"effective rank {_rank_name(rank)}")
        ends = []
        for method in METHODS:
            rows = group[group["method"] == method]
            if len(rows):
                look = style.strokes(rows.iloc[0])
                if end := draw(axis, rows, look):
                    ends.append((*end, look["color"]))
        private = group[group["private"]]  # methods without privacy that converge leave the panel
        norms = [*private["train"].explode(), *private["start"]]
        axis.set_ylim(0.4 * min(norms, default=1e-3), 2 * max(norms, default=1.0))
        _label_ends(axis, ends)
        strokes |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel(label)
    for axis in axes[:, 0]:
        axis.set_ylabel("gradient norm, best of grid")
    drawing.place_legend(figure, list(strokes.values()), len(strokes))
    return figure


def _label_ends(axis: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """The text at the end of each line, moved up or down if two would touch."""
    low, high = numpy.log(axis.get_ylim())
    shown = [end for end in ends if end[2] and low < math.log(end[1]) < high]
    heights = [(math.log(y) - low) / (high - low) for _, y, _, _ in shown]
    for (x, _, text, colour), height in zip(shown, drawing.spread(heights, LABEL_GAP), strict=True):
        drawing.write(axis, text, (x, height), (6, 0), ("data", "axes fraction"), color=colour)
