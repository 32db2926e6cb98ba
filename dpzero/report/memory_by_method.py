"""The figure of peak memory, in which methods of equal peak share a point."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from textwrap import fill

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpzero.report import drawing, style, tables
from dpzero.report.drawing import WIDE_RANGE
from dpzero.report.table import MIB

PEAK = "memory.peak_allocated_bytes"
ALMOST = 0.01  # relative: peaks that differ by less share a point
LABEL_WIDTH = 24  # characters of a line of methods that need the same memory
LONG_NAME = 32  # characters from which a name is broken, too, after an underscore: that of a point of a grid
MOST_NAMES, SHOWN_NAMES = 12, 3  # of more methods the first are named
NO_BREAK = "\u00a0"
LINE_INCHES = 0.135  # of such a label


def memory_by_method(runs: pandas.DataFrame) -> Figure:
    """Peak over the loaded weights, compared with plain inference: one point for methods of (almost) equal peak.

    Tasks whose points are the same share a panel.
    """
    rows = pandas.DataFrame(tables.memory(_with_true_peaks(runs)).rows)
    floors = rows.groupby(["task", "model"])["inference_over_weights_bytes"].transform(_most_common)
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
    figure, axes = drawing.panels_in_rows(len(panels), 0.75 + LINE_INCHES * lines)
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


def _most_common(values: pandas.Series) -> float:
    """The value that most methods have: where batches differ, a mean or median may be that of none."""
    known = values.mode()
    return known.iloc[0] if len(known) else math.nan


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
    titles = list(group["title"])
    if len(titles) > MOST_NAMES:
        titles[SHOWN_NAMES:] = [f"{len(titles) - SHOWN_NAMES} more"]
    label = _fill(titles, LABEL_WIDTH)
    first = group.iloc[0]
    size = re.search(r"(\d+) (?:x|stand-in texts of) (\d+) tokens", str(first["how"]))
    if size and first["floor"] > 0 and _own_inference(first):
        return f"{label}\n({size[1]} × {size[2]} tokens)"
    return label


def _fill(names: Iterable[str], width: int) -> str:
    """These names with commas, in lines that end between two names, or within a long one."""
    whole = ", ".join(
        name.replace(" ", NO_BREAK) if len(name) < LONG_NAME else name.replace("_", "_ ") for name in names
    )
    text = fill(whole, width, break_long_words=False, break_on_hyphens=False)
    return text.replace(NO_BREAK, " ").replace("_ ", "_")


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
        axis.set_xlim(0, 2.5 * highest)  # the room is for the texts
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
