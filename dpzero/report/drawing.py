"""Parts that several figures share: panels, points with their seeds, horizontal levels, one legend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

from dpzero.report import style
from dpzero.report.statistics import Summary, summarise

SMALLEST_N_WITH_BAR = 3  # a t-interval of two seeds is wider than any panel
EDGE_STEP = 0.012  # of the width of a panel, between the intervals at its right edge
WIDENED_BY = 0.25  # of the height of a panel with points
LABEL_GAP = 0.065  # of the height of a panel, the least distance between labels of levels


def canvas(
    rows: int, columns: int, height: float, width: float = style.PAGE_INCHES, **shared: bool | str
) -> tuple[Figure, numpy.ndarray]:
    """A figure of this width, and its panels of this height, in inches."""
    figure = Figure(figsize=(width, rows * height + 0.7), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def panels(runs: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The title and the rows of each task and model."""
    for (task, model), rows in runs.groupby(["task", "model"], sort=False):
        yield f"{task} ({model})", rows


def epsilons(runs: pandas.DataFrame) -> list[tuple[str, float]]:
    """Label and value of each epsilon at which a private method ran, ascending."""
    private = runs[runs["private"]].sort_values("epsilon_value").drop_duplicates("epsilon_value")
    return list(zip("ε = " + private["epsilon"], private["epsilon_value"], strict=True))


def scores(rows: pandas.DataFrame) -> numpy.ndarray:
    """The scores of the runs that finished, in per cent."""
    return 100 * rows["score"][rows["status"] == "ok"].to_numpy(dtype=float)


def score_label(rows: pandas.DataFrame, split: str | None = None) -> str:
    """`test accuracy (%)`, from the records."""
    metric = next(iter(rows["metric"].dropna()), "score")
    return f"{split or next(iter(rows['metrics.split'].dropna()), '')} {metric} (%)".strip()


def write(
    axis: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float] = (0, 0),
    coordinates: str | tuple[str, str] = "data",
    **style: Any,
) -> None:
    """Small text at a place in these coordinates of matplotlib, shifted by so many points."""
    axis.annotate(text, at, shift, coordinates, "offset points", **{"size": 6.5, "va": "center"} | style)


def log_ticks(axis: Axis, digits: tuple[int, ...]) -> None:
    """Ticks at these digits of each decade, written as plain numbers."""
    axis.set(major_locator=LogLocator(subs=digits), minor_locator=NullLocator())
    axis.set(major_formatter=FormatStrFormatter("%g"))


def mark(
    axis: Axes, method: str, x: float | numpy.ndarray, rows: pandas.DataFrame, beside: float = 1.0
) -> Summary:
    """Draw one method's mean at x with 95 % intervals from 3 seeds, and its seeds as faint dots.

    If no seed finished, a cross on the floor of the panel says why.

    Args:
        x: a place, or one value for each seed.
        beside: the dots are at this multiple of x.

    Returns:
        The summary of the scores.
    """
    look, y = style.look(method), scores(rows)
    middle = summarise(y)
    if not middle.n:
        reason = "OOM" if (rows["status"] == "oom").any() else "diverged"
        if (rows["status"] != "missing").any():
            axis.plot([x], [0.03], "x", color=look.colour, transform=axis.get_xaxis_transform())
            text = {"rotation": 90, "ha": "center", "size": 5, "color": look.colour}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            axis.annotate(reason, (x, 0.08), xycoords=("data", "axes fraction"), bbox=box, **text)
        return middle
    places = numpy.broadcast_to(x, y.shape)
    across = summarise(places)
    if middle.n > 1:
        axis.plot(places * beside, y, ".", markersize=3.5, color=look.colour, alpha=0.45, markeredgewidth=0)
    if middle.n >= SMALLEST_N_WITH_BAR:
        half_x = across.high - across.mean if across.std > 0 else None
        bars = {"color": look.colour, "elinewidth": 0.8, "capsize": 1.5}
        axis.errorbar(across.mean, middle.mean, middle.high - middle.mean, half_x, **bars)
    axis.plot([across.mean], [middle.mean], zorder=3, **style.strokes(rows.iloc[0], linestyle=""))
    return middle


def levels(axis: Axes, rows: pandas.DataFrame, named: bool = True, room: float = WIDENED_BY) -> None:
    """A line at each method's mean score, its interval and name at the right edge; called last.

    room: the fraction of its height by which an interval may widen the panel.
    """
    lines = [
        (group["title"].iloc[0], style.look(method), mean)
        for method, group in rows.groupby("method", sort=False)
        if (mean := summarise(scores(group))).n
    ]
    for _, look, mean in lines:
        axis.axhline(mean.mean, color=look.colour, linestyle=look.line, linewidth=0.9, zorder=1)
    barred = [(look, mean) for _, look, mean in lines if named and mean.n >= SMALLEST_N_WITH_BAR]
    low, high = axis.get_ylim()
    far = room * (high - low)
    ends = [end for _, mean in barred for end in (mean.low, mean.high)]
    near = [end for end in ends if low - far <= end <= high + far]  # a far end would compress the panel
    low, high = min([low, *near]), max([high, *near])
    axis.set_ylim(low, high)
    for place, (look, mean) in enumerate(barred):
        _interval_at_the_edge(axis, 1 + EDGE_STEP * place, mean, look.colour)
    heights = spread([(mean.mean - low) / (high - low) for *_, mean in lines], LABEL_GAP)
    for (title, look, _), height in zip(lines if named else (), heights, strict=False):
        at = (1 + EDGE_STEP * len(lines), height)
        write(axis, title, at, (2, 0), "axes fraction", color=look.colour, annotation_clip=False)


def _interval_at_the_edge(axis: Axes, edge: float, interval: Summary, colour: str) -> None:
    """A bar beside the panel, cut at its ends, with an arrowhead if the interval continues."""
    low, high = axis.get_ylim()
    stroke = {"color": colour, "clip_on": False, "transform": axis.get_yaxis_transform()}
    ends = max(interval.low, low), min(interval.high, high)
    axis.plot([edge, edge], ends, linewidth=1.2, solid_capstyle="butt", **stroke)
    for end, cut, arrow in zip(ends, (interval.low < low, interval.high > high), "v^", strict=True):
        if cut:
            axis.plot([edge], [end], arrow, markersize=3, **stroke)


def mark_if_empty(axis: Axes, rows: pandas.DataFrame) -> None:
    """Write `no finished run` into a panel without results, and remove its scale."""
    if not len(scores(rows)):
        if len(axis.get_shared_y_axes().get_siblings(axis)) == 1:
            axis.set_yticks([])
        axis.annotate("no finished run", (0.5, 0.5), xycoords="axes fraction", ha="center", color=style.GREY)


def spread(places: list[float], gap: float) -> list[float]:
    """The same places in the same order, moved as little as possible so that neighbours are `gap` apart."""
    order = numpy.argsort(places, kind="stable")
    steps = gap * numpy.arange(len(places))
    moved = numpy.empty(len(places))
    moved[order] = isotonic_regression(numpy.array(places)[order] - steps).x + steps
    return moved.tolist()


def legend(figure: Figure, runs: pandas.DataFrame, lines: bool = True) -> None:
    """One legend for the whole figure, above it."""
    more = {} if lines else {"linestyle": ""}
    methods = runs.drop_duplicates("method").to_dict("records")
    handles = [Line2D([], [], **style.strokes(row, **more)) for row in methods]
    if handles:
        wide = figure.get_figwidth() > style.COLUMN_INCHES
        columns = min(len(handles), 5 if wide else 2)
        figure.legend(
            handles=handles, loc="outside upper center", ncols=columns, handlelength=2.4, columnspacing=1.2
        )
