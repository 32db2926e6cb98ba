"""Figures of the runs that fine-tune a model: one function each, listed in `dpzero.report.FIGURES`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from textwrap import fill

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from dpzero.report import drawing, style, tables
from dpzero.report.drawing import NOT_PRIVATE
from dpzero.report.statistics import summarise
from dpzero.report.table import MIB

WIDE_RANGE = 20  # highest / lowest value from which an axis is logarithmic
LONG_RUNS = 8  # longest / shortest run, likewise
SLOT = 0.76  # the methods of one epsilon spread over this part of its slot
PANELS = 3  # in a row: the smallest, a middle and the largest epsilon
BAND = {"color": "#f3f3f3", "zorder": 0, "linewidth": 0}
PEAK = "memory.peak_allocated_bytes"
ALMOST = 0.01  # relative: peaks that differ by less share a point
LABEL_WIDTH = 24  # characters of a line of methods that need the same memory
NO_BREAK = "\u00a0"
LINE_INCHES = 0.135  # of such a label


def accuracy_vs_epsilon(runs: pandas.DataFrame) -> Figure:
    """Score of the methods at each epsilon, in slots of one width, and of those without privacy in the last."""
    figure, axes = _one_panel_a_task(runs, height=2.6)
    for axis, (title, rows) in zip(axes, drawing.panels(runs), strict=True):
        slots = [(label.removeprefix("ε = "), value) for label, value in drawing.epsilons(rows)]
        slots += [(NOT_PRIVATE, math.inf)] if (~rows["private"]).any() else []
        marks = [one for private in (True, False) for one in _draw_slots(axis, rows, slots, private)]
        drawing.limit_scores(marks, drawing.majority(rows))
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


def memory_by_method(runs: pandas.DataFrame) -> Figure:
    """Peak over the loaded weights, compared with plain inference: one point for methods of (almost) equal peak.

    Tasks whose points are the same share a panel.
    """
    rows = pandas.DataFrame(tables.memory(_with_true_peaks(runs)).rows)
    floors = rows.groupby(["task", "model"])["inference_over_weights_bytes"].transform("median")
    rows = rows.assign(
        floor=floors.astype(float) / MIB, peak=rows["peak_over_weights_bytes"].astype(float) / MIB
    )
    panels: list[tuple[list[str], list[pandas.DataFrame]]] = []
    for (task, model), panel in rows.groupby(["task", "model"], sort=False):
        theirs = runs[(runs["task"] == task) & (runs["model"] == model)]
        name, groups = drawing.title_in_words(theirs, "data", task), _groups_of_equal_peak(panel)
        title = drawing.title_in_words(theirs, "model", model)
        for titles, drawn in panels:
            if titles[-1] == title and _are_alike(groups, drawn):
                titles.insert(-1, name)
                break
        else:
            panels.append(([name, title], groups))
    labels = [[_methods_label(group) for group in groups] for _, groups in panels]
    lines = max(sum(map(_label_lines, texts)) for texts in labels)
    figure, axes = _panels_in_rows(len(panels), 0.75 + LINE_INCHES * lines)
    for axis, (titles, groups), texts in zip(axes, panels, labels, strict=True):
        _draw_memory(axis, groups, texts)
        axis.set_title(f"{_fill(titles[:-1], 28)}\n{fill(titles[-1], 28)}", pad=13)
    return figure


def _with_true_peaks(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Without the peaks that old records gave in-context learning: of a step, which it does not take.

    What it needs is an evaluation, which keeps the keys and values of the demonstrations.
    """
    if "settings.demonstrations" not in runs:
        return runs
    of_a_step = runs["settings.demonstrations"].gt(0) & ~runs["memory.how"].str.contains(
        "an evaluation", na=False
    )
    return runs.assign(**{PEAK: runs[PEAK].mask(of_a_step)})


def _groups_of_equal_peak(panel: pandas.DataFrame) -> list[pandas.DataFrame]:
    """The methods of a panel in groups, each in the order of the tables."""
    groups: list[list[int]] = []
    for place in range(len(panel)):
        row = panel.iloc[place]
        for group in groups:
            if _is_equal(row, panel.iloc[group[0]]):
                group.append(place)
                break
        else:
            groups.append([place])
    return [panel.iloc[group] for group in groups]


def _is_equal(row: pandas.Series, other: pandas.Series) -> bool:
    """Whether two methods share a point: the same peak and the same inference, or no peak for the same reason."""
    if not (row["peak"] > 0 and other["peak"] > 0):
        return not (row["peak"] > 0 or other["peak"] > 0) and row["status"] == other["status"]
    keys = ("peak_over_weights_bytes", "inference_over_weights_bytes")
    return all(math.isclose(row[key], other[key], rel_tol=ALMOST) for key in keys)


def _are_alike(groups: list[pandas.DataFrame], others: list[pandas.DataFrame]) -> bool:
    """Whether two panels have the same points for the same methods."""
    methods = ([list(group["method"]) for group in panel] for panel in (groups, others))
    first, second = methods
    return first == second and all(
        _is_equal(group.iloc[0], other.iloc[0]) for group, other in zip(groups, others, strict=True)
    )


def _memory_text(row: pandas.Series) -> str:
    """`33.0 (1.0×)`: the peak in MiB and its ratio to inference on the same batch; without a peak, the reason."""
    if not row["peak"] > 0:
        return {"oom": "OOM", "diverged": "diverged", "ok": "not measured"}.get(row["status"], "no record")
    ratio = row["ratio_over_weights"]
    return _legible(row["peak"]) + (f" ({ratio:.1f}×{_own_inference(row)})" if ratio > 0 else "")


def _own_inference(row: pandas.Series) -> str:
    """What its ratio refers to, for a method whose batches are not those of the panel's inference."""
    own = row["inference_over_weights_bytes"] / MIB
    return "" if math.isclose(own, row["floor"], rel_tol=ALMOST) else f" of {_legible(own)}"


def _legible(mebibytes: float) -> str:
    """Three digits, whole numbers in full."""
    return f"{mebibytes:.{max(0, 2 - math.floor(math.log10(mebibytes)))}f}"


def _methods_label(group: pandas.DataFrame) -> str:
    """The methods of one point; for a method with other batches, which."""
    label = _fill(group["title"], LABEL_WIDTH)
    first = group.iloc[0]
    size = re.search(r"(\d+) (?:x|stand-in texts of) (\d+) tokens", str(first["how"]))
    if size and first["floor"] > 0 and _own_inference(first):
        return f"{label}\n({size[1]} × {size[2]} tokens)"
    return label


def _fill(names: Iterable[str], width: int) -> str:
    """These names with commas, in lines that end between two names."""
    whole = ", ".join(name.replace(" ", NO_BREAK) for name in names)
    return fill(whole, width, break_long_words=False, break_on_hyphens=False).replace(NO_BREAK, " ")


def _label_lines(label: str) -> float:
    return label.count("\n") + 1.7


def _draw_memory(axis: Axes, groups: list[pandas.DataFrame], labels: list[str]) -> None:
    """A point for each group of methods with its value; the dotted line is plain inference."""
    heights = numpy.array([_label_lines(label) for label in labels])
    places = numpy.cumsum(heights) - heights / 2
    peaks = [float(group["peak"].iloc[0]) for group in groups]
    known = [peak for peak in peaks if peak > 0]
    floor = float(groups[0]["floor"].iloc[0])
    lowest, highest = min([*known, floor], default=1), max(known, default=1)
    if lowest > 0 and highest / lowest > WIDE_RANGE:
        axis.set_xscale("log")
        axis.set_xlim(lowest / 2, highest * (highest / lowest) ** 0.9)
        drawing.log_ticks(axis.xaxis, (1, 3) if highest / lowest < 100 else (1,))
    else:
        axis.set_xlim(0, 2.3 * highest)  # the room is for the texts
        axis.xaxis.set_major_locator(MaxNLocator(3))
    for place, peak, group in zip(places, peaks, groups, strict=True):
        row = group.iloc[0]
        look = {"color": style.BLACK, "marker": "."} if len(group) > 1 else style.strokes(row, linestyle="")
        if peak > 0:
            axis.plot([peak], [place], clip_on=False, **look)
        drawing.write(axis, _memory_text(row), (peak if peak > 0 else axis.get_xlim()[0], place), (5, 0))
    if floor > 0:
        axis.axvline(floor, color=style.GREY, linestyle=":", linewidth=0.9, zorder=0)
        text, above = f"inference, {_legible(floor)}", ("data", "axes fraction")
        drawing.write(axis, text, (floor, 1), (0, 2), above, va="baseline", ha="center", color=style.GREY)
    axis.set_yticks(places, labels)
    axis.set(xlabel="peak over the weights (MiB)", ylim=(heights.sum(), 0))
    axis.grid(axis="y", color="#dddddd", linewidth=0.4, zorder=0)


def accuracy_vs_time(runs: pandas.DataFrame) -> Figure:
    """Score against training time, panels for up to three epsilons; methods without privacy are in each."""
    columns = drawing.epsilons(runs, PANELS) or [(NOT_PRIVATE, math.nan)]
    trained = runs[(runs["rank"] > 0) & (runs["status"] == "ok") & (runs["time.train_seconds"] > 0)]
    untrained = runs[(runs["rank"] == 0) & (runs["status"] == "ok")]
    figure, axes = _grid(runs, columns, 2.1, "training time (s)", sharex=True)
    for line, (_, rows) in zip(axes, drawing.panels(runs), strict=True):
        marks = []
        for axis, (_, epsilon) in zip(line, columns, strict=True):
            shown = trained.loc[trained.index.intersection(rows.index)]
            shown = shown[~shown["private"] | (shown["epsilon_value"] == epsilon)]
            for _, group in shown.groupby("method", sort=False):
                marks.append(_mark_at_times(axis, group))
            drawing.mark_if_empty(axis, shown)
            for method, group in untrained.loc[untrained.index.intersection(rows.index)].groupby("method"):
                look, mean = style.look(method), drawing.scores(group).mean()
                axis.axhline(mean, color=look.colour, linestyle=look.line, linewidth=1.0, zorder=1)
                marks.append(drawing.Mark(axis, 0, summarise([]), numpy.array([mean]), look.colour))
        drawing.limit_scores(marks, drawing.majority(rows))
    _time_axis(axes[0, 0], trained["time.train_seconds"])
    drawing.legend(figure, pandas.concat([untrained, trained]), majority=_any_majority(runs))
    return figure


def _mark_at_times(axis: Axes, rows: pandas.DataFrame) -> drawing.Mark:
    """The mean score at the mean time, and the range of the seeds' times."""
    seconds = rows["time.train_seconds"].to_numpy()
    row = rows.iloc[0]
    drawn = drawing.mark(axis, rows, seconds.mean(), seconds)
    look = {"color": drawn.colour, "linewidth": 0.8}
    axis.plot([seconds.min(), seconds.max()], [drawn.summary.mean] * 2, label=f"_{row['method']}", **look)
    return drawn


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
            _step_axis(axis, numpy.concatenate([*curves, numpy.empty(0)]))
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
    panels = list(drawing.panels(runs, width=30))
    width = style.PAGE_INCHES if len(columns) > 1 else style.COLUMN_INCHES
    figure, axes = drawing.canvas(len(panels), len(columns), height, width, sharey="row", **shared)
    for axis, (label, _) in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(f"{title}\n{drawing.score_label(rows, split)}")
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    return figure, axes


def _one_panel_a_task(runs: pandas.DataFrame, height: float) -> tuple[Figure, list[Axes]]:
    return _panels_in_rows(runs.groupby(["task", "model"]).ngroups, height)


def _panels_in_rows(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, two in a row; a single one is as wide as a column of text."""
    columns, width = (2, style.PAGE_INCHES) if count > 1 else (1, style.COLUMN_INCHES)
    figure, axes = drawing.canvas(math.ceil(count / columns), columns, height, width)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def _any_majority(runs: pandas.DataFrame) -> bool:
    return any(drawing.majority(rows) is not None for _, rows in drawing.panels(runs))


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
    points = [
        (point["step"], 100 * point[f"dev_{metric}"])
        for curve, metric in rows.loc[rows["status"] == "ok", ["curve", "metric"]].to_numpy()
        for point in curve
        if point.get(f"dev_{metric}") is not None
    ]
    if not points:
        return numpy.empty(0)
    scores = pandas.DataFrame(points, columns=["step", "score"]).groupby("step")["score"]
    mean, low, high = scores.mean(), scores.min(), scores.max()
    look = style.strokes(rows.iloc[0], markersize=3, linewidth=0.9)
    if scores.size().max() > 1:
        axis.fill_between(mean.index, low, high, color=look["color"], alpha=0.1, linewidth=0)
    axis.plot(mean.index, mean, markevery=max(1, len(mean) // 20), **look)
    return mean.index.to_numpy(dtype=float)
