"""Figures of the runs that fine-tune a model: one function each, listed in `dpzero.report.FIGURES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from textwrap import fill

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from pandas.core.groupby.generic import SeriesGroupBy

from dpzero.report import drawing, majority, style
from dpzero.report.drawing import NOT_PRIVATE, WIDE_RANGE
from dpzero.report.memory_by_method import memory_by_method as memory_by_method
from dpzero.report.statistics import summarise

LONG_RUNS = 8  # longest / shortest run from which an axis is logarithmic
SLOT = 0.76  # the methods of one epsilon spread over this part of its slot
PANELS = 3  # in a row: the smallest, a middle and the largest epsilon
BESIDE = 1.17  # factor between the markers of methods of equal cost
BAND = {"color": "#f3f3f3", "zorder": 0, "linewidth": 0}


def accuracy_vs_epsilon(runs: pandas.DataFrame) -> Figure:
    """Score of the methods at each epsilon, in slots of one width, and of those without privacy in the last."""
    figure, axes = _one_panel_a_task(runs, height=2.6)
    for axis, (title, rows) in zip(axes, drawing.panels(runs), strict=True):
        slots = [(label.removeprefix("ε = "), value) for label, value in drawing.epsilons(rows)]
        slots += [(NOT_PRIVATE, math.inf)] if (~rows["private"]).any() else []
        marks = [one for private in (True, False) for one in _draw_slots(axis, rows, slots, private)]
        drawing.limit_scores(marks, majority.share(rows))
        axis.set(title=title, ylabel=drawing.score_label(rows), xlim=(-0.5, len(slots) - 0.5))
        for odd in range(1, len(slots), 2):
            axis.axvspan(odd - 0.5, odd + 0.5, **BAND)
        axis.set_xticks(range(len(slots)), [fill(label, 8) for label, _ in slots])
        axis.tick_params(axis="x", length=0)
        axis.set_xlabel("privacy budget ε" if rows["private"].any() else "")
        drawing.mark_if_empty(axis, rows)
    drawing.legend(figure, runs[runs["status"] != "missing"], majority=_any_majority(runs))
    return figure


def _draw_slots(
    axis: Axes, rows: pandas.DataFrame, slots: list[tuple[str, float]], private: bool
) -> list[drawing.Mark]:
    """The methods side by side in each slot; a private method's slots are joined, a public one has a level."""
    groups = list(rows[rows["private"] == private].groupby("method", sort=False))
    step, middle, marks = SLOT / max(len(groups), 1), (len(groups) - 1) / 2, []
    for place, (method, group) in enumerate(groups):
        look, shift = style.look(method), step * (place - middle)
        drawn = []
        for slot, (label, value) in enumerate(slots):
            cell = group[group["epsilon_value"] == value] if private else group
            if len(cell) and private == (label != NOT_PRIVATE):
                drawn.append(drawing.mark(axis, cell, slot + shift, slot + shift + 0.3 * step))
        thin = {"color": look.colour, "linestyle": look.line, "linewidth": 0.8, "alpha": 0.6, "zorder": 1}
        if private:
            axis.plot([one.x for one in drawn], [one.summary.mean for one in drawn], **thin)
        elif drawn and drawn[0].summary.n:
            axis.axhline(drawn[0].summary.mean, **thin)
        marks += drawn
    return marks


def accuracy_vs_time(runs: pandas.DataFrame) -> Figure:
    """Score against training time, panels for up to three epsilons; methods without privacy are in each."""
    seconds = "time.train_seconds"
    figure, axes, trained = _score_against(runs, seconds, "training time (s)", PANELS, _mark_at_times)
    _time_axis(axes[0, 0], trained[seconds])
    return figure


def accuracy_vs_forwards(runs: pandas.DataFrame) -> Figure:
    """Score against the example forward passes of training, a line a method: a panel for each epsilon."""
    label = "example forward passes"
    if len(_dev_points(runs)):
        label += "\nmarkers: test at the end; lines: dev during training"
    figure, axes, trained = _score_against(runs, "example_forwards", label, None, _mark_at_forwards)
    if len(trained):
        low, high = trained["example_forwards"].min(), trained["example_forwards"].max()
        before = 10 if len(_dev_points(trained)) else 2
        axes[0, 0].set(xscale="log", xlim=(low / before, high * 2))
        few = 2 * high * before < (30 if axes.shape[1] <= PANELS else 10) * low
        drawing.log_ticks(axes[0, 0].xaxis, (1, 2, 5) if few else (1,))
        axes[0, 0].xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def _score_against(
    runs: pandas.DataFrame,
    cost: str,
    label: str,
    at_most: int | None,
    draw: Callable[[Axes, pandas.DataFrame], list[drawing.Mark]],
) -> tuple[Figure, numpy.ndarray, pandas.DataFrame]:
    """Panels of the score against what training costs, for so many epsilons: figure, panels and drawn runs.

    Args:
        cost: a column of the runs.
        draw: draws the trained methods of one panel.
    """
    columns = drawing.epsilons(runs, at_most) or [(NOT_PRIVATE, math.nan)]
    trained = runs[(runs["rank"] > 0) & (runs["status"] == "ok") & (runs[cost] > 0)]
    untrained = runs[(runs["rank"] == 0) & (runs["status"] == "ok")]
    figure, axes = _grid(runs, columns, 2.1, label, sharex=True)
    for line, (_, rows) in zip(axes, drawing.panels(runs), strict=True):
        marks = []
        for axis, (_, epsilon) in zip(line, columns, strict=True):
            shown = trained.loc[trained.index.intersection(rows.index)]
            shown = shown[~shown["private"] | (shown["epsilon_value"] == epsilon)]
            marks += draw(axis, shown)
            drawing.mark_if_empty(axis, shown)
            for method, group in untrained.loc[untrained.index.intersection(rows.index)].groupby("method"):
                look, mean = style.look(method), drawing.scores(group).mean()
                axis.axhline(mean, color=look.colour, linestyle=look.line, linewidth=1.0, zorder=1)
                marks.append(drawing.Mark(axis, 0, summarise([]), numpy.array([mean]), look.colour))
        drawing.limit_scores(marks, majority.share(rows))
    drawing.legend(figure, pandas.concat([untrained, trained]), majority=_any_majority(runs))
    return figure, axes, trained


def _mark_at_times(axis: Axes, shown: pandas.DataFrame) -> list[drawing.Mark]:
    """Of each method the mean score at the mean time, and the range of the seeds' times."""
    marks = []
    for method, rows in shown.groupby("method", sort=False):
        seconds = rows["time.train_seconds"].to_numpy()
        drawn = drawing.mark(axis, rows, seconds.mean(), seconds)
        look = {"color": drawn.colour, "linewidth": 0.8}
        axis.plot([seconds.min(), seconds.max()], [drawn.summary.mean] * 2, label=f"_{method}", **look)
        marks.append(drawn)
    return marks


def _mark_at_forwards(axis: Axes, shown: pandas.DataFrame) -> list[drawing.Mark]:
    """Of each method the mean score at its forward passes, beside those of equal cost, and its dev score before."""
    marks, costs = (
        [],
        shown["example_forwards"].map(lambda passes: float(f"{passes:.2g}")),
    )  # almost equal ones
    equals = shown.groupby(costs)["method"].nunique()
    gaps, sizes = numpy.diff(numpy.log(equals.index.to_numpy(dtype=float))), equals.to_numpy()
    rooms = gaps / (1 + (sizes[1:] + sizes[:-1]) / 2)  # so that groups of equal cost stay apart
    beside = math.exp(rooms.min(initial=math.log(BESIDE)))
    for cost, equal in shown.groupby(costs):
        groups = list(equal.groupby("method", sort=False))
        for place, (_, rows) in enumerate(groups):
            x = cost * beside ** (place - (len(groups) - 1) / 2)
            marks.append(drawing.mark(axis, rows, x, x))
            steps, dev = _dev_scores(rows)
            look = style.strokes(rows.iloc[0], marker="", linewidth=0.8, alpha=0.7, zorder=2)
            if len(dev) and steps.max():
                axis.plot(cost * steps / steps.max(), dev, **look | {"label": f"_{rows['method'].iloc[0]}"})
    return marks


def learning_curves(runs: pandas.DataFrame) -> Figure:
    """Development score at the steps where it was taken: without privacy first, then up to three epsilons."""
    trained = runs[runs["rank"] > 0]
    columns = [(NOT_PRIVATE, math.inf)] if (~trained["private"]).any() or trained.empty else []
    columns += drawing.epsilons(runs, PANELS)
    figure, axes = _grid(runs, columns, 2.0, "step", split="dev")
    for line, (_, rows) in zip(axes, drawing.panels(runs), strict=True):
        for axis, (label, epsilon) in zip(line, columns, strict=True):
            private = label != NOT_PRIVATE
            shown = rows[(rows["rank"] > 0) & (rows["private"] == private)]
            shown = shown[shown["epsilon_value"] == epsilon] if private else shown
            curves = [_draw_curve(axis, group) for _, group in shown.groupby("method", sort=False)]
            steps = numpy.concatenate([*curves, numpy.empty(0)])
            _step_axis(axis, steps)
            drawing.mark_if_empty(axis, shown)
            if not len(steps) and len(drawing.scores(shown)):
                drawing.write_empty(axis, "no dev scores")
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
    panels = list(drawing.panels(runs, width=30))
    width = style.PAGE_INCHES if len(columns) > 1 or drawing.needs_wide_legend(runs) else style.COLUMN_INCHES
    figure, axes = drawing.canvas(len(panels), len(columns), height, width, sharey="row", **shared)
    for axis, (label, _) in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(f"{title}\n{drawing.score_label(rows, split)}")
    middle = slice(None) if len(columns) <= PANELS else slice(len(columns) // 2, len(columns) // 2 + 1)
    for axis in axes[-1, middle]:
        axis.set_xlabel(xlabel)
    return figure, axes


def _one_panel_a_task(runs: pandas.DataFrame, height: float) -> tuple[Figure, list[Axes]]:
    count, wide = runs.groupby(["task", "model"]).ngroups, drawing.needs_wide_legend(runs)
    return drawing.panels_in_rows(count, height, style.PAGE_INCHES if wide else style.COLUMN_INCHES)


def _any_majority(runs: pandas.DataFrame) -> bool:
    return any(majority.share(rows) is not None for _, rows in drawing.panels(runs))


def _time_axis(axis: Axes, seconds: pandas.Series) -> None:
    """From zero, or logarithmic if the slowest method takes many times as long as the fastest."""
    if seconds.max() > WIDE_RANGE * seconds.min():
        axis.set_xscale("log")
        drawing.log_ticks(axis.xaxis, (1,) if seconds.max() > 300 * seconds.min() else (1, 3))
    elif len(seconds):
        axis.set_xlim(0, 1.15 * seconds.max())


def _step_axis(axis: Axes, steps: numpy.ndarray) -> None:
    """From zero; logarithmic above the first evaluated step if the runs are of very different length."""
    after = steps[steps > 0]
    if len(after) and after.max() / after.min() > LONG_RUNS:
        axis.set_xscale("symlog", linthresh=after.min(), linscale=0.6)
        decades = [10.0**power for power in range(10) if after.min() <= 10**power <= after.max()]
        axis.set_xticks([0, *decades])
        axis.xaxis.set_minor_locator(NullLocator())


def _draw_curve(axis: Axes, rows: pandas.DataFrame) -> numpy.ndarray:
    """Mean over seeds at each step where it was taken, the seeds' range as a band; returns these steps."""
    scores = _dev_points(rows)
    if not len(scores):
        return numpy.empty(0)
    mean, low, high = scores.mean(), scores.min(), scores.max()
    look = style.strokes(rows.iloc[0], markersize=3, linewidth=0.9)
    if scores.size().max() > 1:
        axis.fill_between(mean.index, low, high, color=look["color"], alpha=0.1, linewidth=0)
    axis.plot(mean.index, mean, markevery=max(1, len(mean) // 20), **look)
    return mean.index.to_numpy(dtype=float)


def _dev_scores(rows: pandas.DataFrame) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The steps at which the dev score was taken, and its mean over seeds there (%)."""
    mean = _dev_points(rows).mean()
    return mean.index.to_numpy(dtype=float), mean.to_numpy(dtype=float)


def _dev_points(rows: pandas.DataFrame) -> SeriesGroupBy:
    """The dev scores (%) of the seeds, by step."""
    points = [
        (point["step"], 100 * point[f"dev_{metric}"])
        for curve, metric in rows.loc[rows["status"] == "ok", ["curve", "metric"]].to_numpy()
        for point in curve
        if point.get(f"dev_{metric}") is not None
    ]
    return pandas.DataFrame(points, columns=["step", "score"]).groupby("step")["score"]
