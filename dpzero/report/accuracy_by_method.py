"""The figure of a sweep with many methods at one epsilon: a line for each, under headings of what may be compared."""

from __future__ import annotations

import math

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, formatting, majority, style
from dpzero.report.statistics import Summary, summarise

LINE_INCHES = 0.15
PASSES_POINTS = 30  # from the right edge to the end of a number of forward passes
COVERS = {"": "", "user": " per user", "selective": " for the private words"}  # a promise in words


def accuracy_by_method(runs: pandas.DataFrame) -> Figure:
    """Score of each method with its seeds, the best of a heading first; a panel for each task and model.

    A heading says what is trained, what the epsilon covers, and whether public rows are read.
    """
    panels = [(title, rows, _lines(rows)) for title, rows in drawing.panels(runs)]
    height = LINE_INCHES * max(len(lines) for *_, lines in panels) + 0.6
    figure, axes = drawing.canvas(len(panels), 1, height)
    for axis, (title, rows, lines) in zip(axes[:, 0], panels, strict=True):
        share = majority.share(rows)
        if share is not None:
            axis.axvline(100 * share, zorder=1, **drawing.MAJORITY)
            look = {"color": style.GREY, "ha": "center", "va": "bottom"}
            drawing.write(axis, "majority class", (100 * share, 1), (0, 2), ("data", "axes fraction"), **look)
        for place, (_, group) in enumerate(lines):
            if group is not None:
                _draw_method(axis, group, place)
        axis.set(title=title, xlabel=drawing.score_label(rows), ylim=(len(lines) - 0.3, -0.7))
        axis.set_yticks(range(len(lines)), [words for words, _ in lines])
        for label, (_, group) in zip(axis.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if group is None else "normal")
        axis.tick_params(axis="y", length=0)
        drawing.write(
            axis, "forward passes", (1, 1), (PASSES_POINTS, 4), "axes fraction", ha="right", va="bottom"
        )
        drawing.mark_if_empty(axis, rows)
    return figure


def _lines(rows: pandas.DataFrame) -> list[tuple[str, pandas.DataFrame | None]]:
    """The words of each line from the top, with the runs of the method; a heading has none."""
    headings: dict[tuple[bool, bool, str], list[pandas.DataFrame]] = {}
    for _, group in rows.groupby("method", sort=False):
        headings.setdefault(_heading(group), []).append(group)
    lines: list[tuple[str, pandas.DataFrame | None]] = []
    for heading in sorted(headings):
        lines.append((heading[-1], None))
        best_first = sorted(headings[heading], key=_mean_or_nothing, reverse=True)
        lines += [(group["title"].iloc[0], group) for group in best_first]
    return lines


def _heading(rows: pandas.DataFrame) -> tuple[bool, bool, str]:
    """Whether a method trains the body, whether it is private, and both in words."""
    run = rows.sort_values("status", key=lambda status: status != "ok", kind="stable").iloc[0]
    body = not formatting.trains_head_alone(run)
    privacy = f"ε = {run['epsilon']}{COVERS[run['promise']]}" if run["private"] else drawing.NOT_PRIVATE
    public = ", reads public rows" if formatting.reads_public_rows(run) else ""
    return body, bool(run["private"]), f"{'through the body' if body else 'head'}, {privacy}{public}"


def _summary(rows: pandas.DataFrame) -> Summary:
    return summarise(drawing.scores(rows))


def _mean_or_nothing(rows: pandas.DataFrame) -> float:
    summary = _summary(rows)
    return summary.mean if summary.n else -math.inf


def _draw_method(axis: Axes, rows: pandas.DataFrame, place: float) -> None:
    """The mean with its 95 % interval, the seeds as dots, and at the right edge what training cost."""
    colour, summary = style.look(rows["method"].iloc[0]).colour, _summary(rows)
    if not summary.n:
        drawing.write(
            axis, formatting.failure(rows["status"].iloc[0]), (0.01, place), (0, 0), ("axes fraction", "data")
        )
        return
    scores = drawing.scores(rows)
    if summary.n > 1:
        axis.plot(
            scores, [place] * len(scores), ".", markersize=4, color=colour, alpha=0.45, markeredgewidth=0
        )
    if summary.n >= drawing.SMALLEST_N_WITH_BAR:
        half = summary.high - summary.mean
        axis.errorbar(summary.mean, place, xerr=half, color=colour, elinewidth=0.8, capsize=1.5)
    axis.plot([summary.mean], [place], zorder=3, **style.strokes(rows.iloc[0], marker="o", linestyle=""))
    passes = formatting.count(rows["example_forwards"].max())
    drawing.write(axis, passes, (1, place), (PASSES_POINTS, 0), ("axes fraction", "data"), ha="right")
