"""Figures of the runs that fine-tune a model: one function each, listed in `dpzero.report.FIGURES`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dpzero.report import drawing, style, tables

WIDE_RANGE = 20  # highest / lowest value from which an axis is logarithmic
LONG_RUNS = 8  # longest / shortest run, likewise
DODGE = 0.4  # the methods of one epsilon spread over this part of the distance to the next epsilon


def accuracy_vs_epsilon(runs: pandas.DataFrame) -> Figure:
    """Score against epsilon; methods without privacy are dashed lines, not points at infinity."""
    figure, axes = _one_panel_a_task(runs, height=2.5)
    for axis, (title, rows) in zip(axes, drawing.panels(runs), strict=True):
        private = rows[rows["private"]]
        step = _epsilon_axis(axis, drawing.epsilons(rows)) * DODGE / max(private["method"].nunique(), 1)
        middle = (private["method"].nunique() - 1) / 2
        for place, (method, group) in enumerate(private.groupby("method", sort=False)):
            cells = [(x * 2 ** (step * (place - middle)), cell) for x, cell in group.groupby("epsilon_value")]
            means = [drawing.mark(axis, method, x, cell, beside=2 ** (step / 3)).mean for x, cell in cells]
            look = style.look(method)
            axis.plot(
                [x for x, _ in cells], means, color=look.colour, linestyle=look.line, linewidth=0.8, alpha=0.7
            )
        axis.set(title=title, ylabel=drawing.score_label(rows))
        drawing.levels(axis, rows[~rows["private"]], room=drawing.WIDENED_BY if len(private) else math.inf)
        drawing.mark_if_empty(axis, rows)
    drawing.legend(figure, runs[runs["private"] & (runs["status"] != "missing")])
    return figure


def memory_by_method(runs: pandas.DataFrame) -> Figure:
    """Peak over the loaded weights, one bar for each method, compared with plain inference."""
    rows = pandas.DataFrame(tables.memory(runs).rows)
    most = rows.groupby(["task", "model"]).size().max()
    figure, axes = _one_panel_a_task(rows, height=0.6 + 0.2 * most)
    for axis, (title, panel) in zip(axes, drawing.panels(rows), strict=True):
        peaks = panel["peak_over_weights_bytes"].astype(float) / 2**20
        lowest, highest = peaks[peaks > 0].min(), peaks.max()
        logarithmic = highest / lowest > WIDE_RANGE
        left = lowest / 2 if logarithmic else 0
        floor = panel["inference_over_weights_bytes"].astype(float).median() / 2**20
        room = (highest / left) ** 0.35 if logarithmic else 1.35  # for the text beside the longest bar
        axis.set_xscale("log" if logarithmic else "linear")
        axis.set_xlim(left, room * highest if highest > 0 else 1)
        for place, (peak, row) in enumerate(zip(peaks, panel.to_dict("records"), strict=True)):
            _draw_bar(axis, place, left, peak, floor, row)
        if floor > 0:
            axis.axvline(floor, color=style.BLACK, linestyle=":", linewidth=0.9)
            text, above = f"plain inference, {_legible(floor)}", ("data", "axes fraction")
            drawing.write(axis, text, (floor, 1), (0, 2), above, va="baseline")
        axis.set_yticks(range(len(panel)), panel["title"])
        axis.set(xlabel="peak over the loaded weights (MiB)", ylim=(len(panel) - 0.4, -0.6))
        axis.set_title(title, pad=11, loc="left")
    return figure


def accuracy_vs_time(runs: pandas.DataFrame) -> Figure:
    """Score against training time, one panel for each epsilon; methods without privacy are in each."""
    columns = drawing.epsilons(runs) or [("", math.nan)]
    trained = runs[(runs["rank"] > 0) & (runs["status"] == "ok") & (runs["time.train_seconds"] > 0)]
    figure, axes = _grid(runs, columns, 2.3, "training time (s)", sharex=True)
    for line, (_, rows) in zip(axes, drawing.panels(runs), strict=True):
        for axis, (_, epsilon) in zip(line, columns, strict=True):
            shown = trained.loc[trained.index.intersection(rows.index)]
            shown = shown[~shown["private"] | (shown["epsilon_value"] == epsilon)]
            for method, group in shown.groupby("method", sort=False):
                drawing.mark(axis, method, group["time.train_seconds"].to_numpy(), group)
            drawing.mark_if_empty(axis, shown)
        for axis in line:
            drawing.levels(axis, rows[rows["rank"] == 0], named=axis is line[-1])
    _time_axis(axes[0, 0], trained["time.train_seconds"])
    drawing.legend(figure, trained, lines=False)
    return figure


def learning_curves(runs: pandas.DataFrame) -> Figure:
    """Development score against step: methods without privacy first, then one panel for each epsilon."""
    trained = runs[runs["rank"] > 0]
    columns = [("not private", math.inf)] if (~trained["private"]).any() or trained.empty else []
    columns += drawing.epsilons(runs)
    figure, axes = _grid(runs, columns, 2.2, "step", split="dev")
    for line, (_, rows) in zip(axes, drawing.panels(runs), strict=True):
        for axis, (label, epsilon) in zip(line, columns, strict=True):
            private = label != "not private"
            shown = rows[(rows["rank"] > 0) & (rows["private"] == private)]
            shown = shown[shown["epsilon_value"] == epsilon] if private else shown
            lengths = [
                _draw_curve(axis, method, group) for method, group in shown.groupby("method", sort=False)
            ]
            lengths = [length for length in lengths if length > 0]
            if lengths and max(lengths) / min(lengths) > LONG_RUNS:
                axis.set_xscale("symlog", linthresh=min(lengths))
                decades = [10.0**power for power in range(10) if min(lengths) <= 10**power <= max(lengths)]
                axis.set_xticks([0, *decades])
            drawing.mark_if_empty(axis, shown)
    drawing.legend(figure, trained[trained["status"] == "ok"])
    return figure


def _grid(
    runs: pandas.DataFrame,
    columns: list[tuple[str, float]],
    height: float,
    xlabel: str,
    split: str | None = None,
    **shared: bool,
) -> tuple[Figure, numpy.ndarray]:
    """One row of panels for each task and model, one column for each label, with titles and labels."""
    panels = list(drawing.panels(runs))
    figure, axes = drawing.canvas(len(panels), len(columns), height, sharey="row", **shared)
    for axis, (label, _) in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(f"{title}\n{drawing.score_label(rows, split)}")
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    return figure, axes


def _one_panel_a_task(runs: pandas.DataFrame, height: float) -> tuple[Figure, list[Axes]]:
    """One panel for each task and model, two in a row."""
    count = runs.groupby(["task", "model"]).ngroups
    columns, width = (2, style.PAGE_INCHES) if count > 1 else (1, style.COLUMN_INCHES)
    figure, axes = drawing.canvas(math.ceil(count / columns), columns, height, width)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def _draw_bar(axis: Axes, place: int, left: float, peak: float, floor: float, row: dict[str, Any]) -> None:
    """The bar of one method with its value and its ratio to inference; without a value, the reason.

    floor: the memory of inference (MiB) that the panel shows. A method with other batches names its own.
    """
    text = {"oom": "OOM", "diverged": "diverged"}.get(row["status"], "no record")
    if peak > 0:
        colour = style.look(row["method"]).colour
        face = colour if row["private"] else "white"
        axis.barh(place, peak - left, height=0.62, left=left, facecolor=face, edgecolor=colour)
        ratio = row["ratio_over_weights"]
        own = row["inference_over_weights_bytes"] / 2**20
        beside = "" if math.isclose(own, floor, rel_tol=0.01) else f" its own {_legible(own)}"
        text = _legible(peak) + (f"  ({ratio:.2f}×{beside})" if ratio > 0 else "")
    end = peak if peak > 0 else left
    drawing.write(axis, text, (end, place), (3, 0))


def _legible(mebibytes: float) -> str:
    return f"{mebibytes:.{2 if mebibytes < 10 else 1 if mebibytes < 1000 else 0}f}"


def _epsilon_axis(axis: Axes, epsilons: list[tuple[str, float]]) -> float:
    """A tick at each epsilon on an axis in octaves; returns the smallest distance of two, in octaves."""
    values = [value for _, value in epsilons] or [1.0]
    apart = min((math.log2(b / a) for a, b in pairwise(values)), default=1.0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(values if epsilons else [], [label.removeprefix("ε = ") for label, _ in epsilons])
    axis.set(xlabel="ε", xlim=(min(values) * 2 ** (-apart / 2), max(values) * 2 ** (apart / 2)))
    return apart


def _time_axis(axis: Axes, seconds: pandas.Series) -> None:
    """From zero, or logarithmic if the slowest method takes many times as long as the fastest."""
    if seconds.max() > WIDE_RANGE * seconds.min():
        axis.set_xscale("log")
        drawing.log_ticks(axis.xaxis, (1, 3))
    elif len(seconds):
        axis.set_xlim(0, 1.15 * seconds.max())


def _draw_curve(axis: Axes, method: str, rows: pandas.DataFrame) -> float:
    """Mean over seeds at each step, their range as a band; returns the last step, 0 without a curve."""
    look = style.look(method)
    points = [
        (point["step"], 100 * point[f"dev_{metric}"])
        for curve, metric in rows.loc[rows["status"] == "ok", ["curve", "metric"]].to_numpy()
        for point in curve
        if point.get(f"dev_{metric}") is not None
    ]
    if not points:
        return 0
    steps = pandas.DataFrame(points, columns=["step", "score"]).groupby("step")["score"]
    mean, low, high = steps.mean(), steps.min(), steps.max()
    if steps.size().max() > 1:
        axis.fill_between(mean.index, low, high, color=look.colour, alpha=0.12, linewidth=0)
    every = max(1, len(mean) // 4)
    axis.plot(mean.index, mean, markevery=every, markersize=3.5, **style.strokes(rows.iloc[0]))
    return float(mean.index.max())
