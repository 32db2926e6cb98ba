"""Parts that several figures share: panels, points with their seeds, limits of a score, one legend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

from dpzero.report import MOST_IN_LEGEND, style
from dpzero.report.statistics import Summary, summarise

SMALLEST_N_WITH_BAR = 3  # a t-interval of two seeds is wider than any panel
WIDENED_BY = 0.25  # of the range of the seeds: an interval that is longer is cut, and an arrowhead says so
MARGIN = 0.06  # of the height of a panel, above and below its points
MAJORITY = {"color": style.GREY, "linestyle": "-", "linewidth": 0.9, "label": "majority class"}  # no marker
LEGEND_LINE = 0.16  # inch
WIDE_RANGE = 20  # highest / lowest value from which an axis is logarithmic
NOT_PRIVATE = "not private"


class Mark(NamedTuple):
    """What `mark` drew at x: the summary of the scores, and the scores of the seeds."""

    axis: Axes
    x: float
    summary: Summary
    scores: numpy.ndarray
    colour: str


def canvas(
    rows: int, columns: int, height: float, width: float = style.PAGE_INCHES, **shared: bool | str
) -> tuple[Figure, numpy.ndarray]:
    """A figure of this width, and its panels of this height, in inches."""
    figure = Figure(figsize=(width, rows * height + 0.4), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def needs_wide_legend(runs: pandas.DataFrame) -> bool:
    """Whether the legend of these methods is too long for a column of text."""
    return runs["method"].nunique() > MOST_IN_LEGEND


def panels_in_rows(
    count: int, height: float, width_of_one: float = style.COLUMN_INCHES
) -> tuple[Figure, list[Axes]]:
    """So many panels, two in a row; a single one is by default as wide as a column of text."""
    columns, width = (2, style.PAGE_INCHES) if count > 1 else (1, width_of_one)
    figure, axes = canvas(math.ceil(count / columns), columns, height, width)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def panels(runs: pandas.DataFrame, width: int = 40) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The title and the rows of each task and model. A line of a title has at most `width` characters."""
    for (task, model), rows in runs.groupby(["task", "model"], sort=False):
        titles = (title_in_words(rows, "data", task), title_in_words(rows, "model", model))
        yield "\n".join(fill(title, width) for title in titles), rows


def title_in_words(rows: pandas.DataFrame, kind: str, name: str) -> str:
    """The title of a task (kind `data`) or model in words, from its records; its name if they have none."""
    titles = rows.get(f"provenance.{kind}.title", pandas.Series(dtype=object)).dropna()
    return str(titles.iloc[0]) if len(titles) else name


def epsilons(runs: pandas.DataFrame, at_most: int | None = None) -> list[tuple[str, float]]:
    """Label and value of each epsilon at which a private method ran, ascending; evenly spread if too many."""
    private = runs[runs["private"]].sort_values("epsilon_value").drop_duplicates("epsilon_value")
    found = list(zip("ε = " + private["epsilon"], private["epsilon_value"], strict=True))
    if at_most is None or len(found) <= at_most:
        return found
    return [found[round(place)] for place in numpy.linspace(0, len(found) - 1, at_most)]


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


def mark(axis: Axes, rows: pandas.DataFrame, x: float, seeds_at: float | numpy.ndarray) -> Mark:
    """Draw one method's mean at x with its 95 % interval from 3 seeds, and its seeds as faint dots.

    If no seed finished, a cross on the floor of the panel says why.

    Args:
        seeds_at: place of the dots, or one place for each seed.
    """
    row, y = rows.iloc[0], scores(rows)
    colour, middle = style.look(row["method"]).colour, summarise(y)
    if not middle.n:
        _mark_failure(axis, rows, x, colour)
        return Mark(axis, x, middle, y, colour)
    if middle.n > 1:
        dots = {"markersize": 3.5, "color": colour, "alpha": 0.45, "markeredgewidth": 0}
        axis.plot(numpy.broadcast_to(seeds_at, y.shape), y, ".", **dots)
    if middle.n >= SMALLEST_N_WITH_BAR:
        half = middle.high - middle.mean
        axis.errorbar(x, middle.mean, half, color=colour, elinewidth=0.8, capsize=1.5)
    axis.plot([x], [middle.mean], zorder=3, **style.strokes(row, linestyle=""))
    return Mark(axis, x, middle, y, colour)


def _mark_failure(axis: Axes, rows: pandas.DataFrame, x: float, colour: str) -> None:
    if (rows["status"] == "missing").all():
        return
    reason = "OOM" if (rows["status"] == "oom").any() else "diverged"
    axis.plot([x], [0.03], "x", color=colour, transform=axis.get_xaxis_transform())
    text = {"rotation": 90, "ha": "center", "size": 5, "color": colour}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.annotate(reason, (x, 0.08), xycoords=("data", "axes fraction"), bbox=box, **text)


def limit_scores(marks: Sequence[Mark], majority: float | None) -> None:
    """Limits of panels that share a score: all seeds, and intervals that are not much longer than their range.

    A grey line is the accuracy of the majority class (its share), if it is known.

    An interval that goes on beyond the panel, or beyond 0 or 100 %, ends in an arrowhead.
    """
    values = numpy.concatenate([one.scores for one in marks]) if marks else numpy.empty(0)
    if not len(values):
        return
    low, high = values.min(), values.max()
    far = WIDENED_BY * max(high - low, 4.0)
    ends = [end for one in marks for end in (one.summary.low, one.summary.high)]
    near = [end for end in ends if max(low - far, 0) <= end <= min(high + far, 100)]
    near += [] if majority is None else [100 * majority]
    low, high = min([low, *near]), max([high, *near])
    room = MARGIN * max(high - low, 1.0)
    low, high = low - room, high + room
    for axis in {id(one.axis): one.axis for one in marks}.values():
        axis.set_ylim(low, high)
        if majority is not None:
            axis.axhline(100 * majority, zorder=1, **MAJORITY)
    for one in marks:
        for end, edge, arrow in ((one.summary.low, low, "v"), (one.summary.high, high, "^")):
            if not math.isnan(end) and not low <= end <= high:
                one.axis.plot([one.x], [edge], arrow, markersize=3, color=one.colour, clip_on=False)


def mark_if_empty(axis: Axes, rows: pandas.DataFrame) -> None:
    """Write `no finished run` into a panel without results, and remove its scale."""
    if not len(scores(rows)):
        write_empty(axis, "no finished run")


def write_empty(axis: Axes, text: str) -> None:
    """Say why a panel is empty, in its middle, and remove its scale unless others share it."""
    if len(axis.get_shared_y_axes().get_siblings(axis)) == 1:
        axis.set_yticks([])
    axis.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", color=style.GREY)


def spread(places: list[float], gap: float) -> list[float]:
    """The same places in the same order, moved as little as possible so that neighbours are `gap` apart."""
    order = numpy.argsort(places, kind="stable")
    steps = gap * numpy.arange(len(places))
    moved = numpy.empty(len(places))
    moved[order] = isotonic_regression(numpy.array(places)[order] - steps).x + steps
    return moved.tolist()


def legend(figure: Figure, runs: pandas.DataFrame, lines: bool = True, majority: bool = False) -> None:
    """One legend for the whole figure, above it: the methods, and the line of the majority class."""
    more = {} if lines else {"linestyle": ""}
    methods = runs.drop_duplicates("method").to_dict("records")
    handles = [Line2D([], [], **style.strokes(row, **more)) for row in methods]
    if majority:
        handles.append(Line2D([], [], **MAJORITY))
    place_legend(figure, handles)


def place_legend(figure: Figure, handles: Sequence[Any], columns: int | None = None, **more: Any) -> None:
    """These handles above the figure, which grows by their height, in as many columns as its width has room for."""
    if not handles:
        return
    wide = figure.get_figwidth() > style.COLUMN_INCHES
    columns = min(len(handles), columns or (4 if wide else 2))
    look = {"handlelength": 2.4, "columnspacing": 1.2} | more
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look)
    while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        columns -= 1
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * math.ceil(len(handles) / columns))
