"""Report of the sweep `memory`: peaks by model size, batch and length, growth, published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpzero.report import drawing, style
from dpzero.report.table import ABSENT, GIB, MIB, Row, Table, make_table, notes, number

CARDS = (24, 48, 80, 141)  # GiB of common GPUs
PUBLISHED = Path(__file__).with_name("published_memory.csv")
METHODS = (
    "dpzero",
    "public",
    "lora",
    "adamw_checkpointing",
    "adamw",
    "dp_memarc_side_pool",
    "dp_memarc_side_ghost",
    "dp_memarc_side",
    "dp_memarc_reversible_ghost",
    "dp_memarc_reversible",
    "dp_lora_ghost",
    "dp_lora",
    "dp_sgd_ghost",
    "dp_sgd_hooks",
)  # in this order
MEMARC = "dp_memarc"  # begins the names of DP-MemArc's variants
RIVALS = {"hooks": "dp_sgd_hooks", "ghost": "dp_sgd_ghost", "lora": "dp_lora", "dpzero": "dpzero"}
PREDICTED = "memory.predicted_peak_bytes"
AXES = {  # axis of growth -> unit of its slope in bytes, the runs along it
    "parameters": (1, "model.str.startswith('opt-') and batch_size == 8 and length == 512"),
    "batch_size": (MIB, "model == 'roberta-large' and length == 128"),
    "length": (MIB, "model == 'roberta-large' and batch_size == 8"),
}


def arranged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs with `batch_size` and `length` from their size, in the order of METHODS."""
    sizes = runs["task"].str.extract(r"^(\d+)x(\d+)$").astype(float)
    keys = ("predicted_peak_bytes", "measured_peak_bytes", "formula_peak_bytes", "parameters")
    columns = [f"memory.{key}" for key in keys]
    runs = runs.reindex(columns=runs.columns.union(columns, sort=False)).astype(dict.fromkeys(columns, float))
    place = {method: number for number, method in enumerate(METHODS)}
    runs = runs.assign(batch_size=sizes[0], length=sizes[1], place=runs["method"].map(place))
    return runs.sort_values(["model", "place", "batch_size", "length"], kind="stable", ignore_index=True)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    """Growth, peaks and published figures; with DP-MemArc among the methods, its ratios."""
    runs = arranged(runs)
    tables = {"growth": growth(runs), "peaks": peaks(runs), "published": published(runs)}
    if runs["method"].str.startswith(MEMARC).any():
        tables["ratios"] = ratios(runs)
    for table in tables.values():
        table.notes += notes("memory_sweep")
    return tables


def from_tables(folder: Path) -> pandas.DataFrame:
    """What the figures need of the runs, from peaks.csv in this folder."""
    peaks = pandas.read_csv(folder / "peaks.csv")
    names = {
        column: f"memory.{column}" for column in peaks if column.endswith("_bytes") or column == "parameters"
    }
    task = peaks["batch_size"].astype(str) + "x" + peaks["length"].astype(str)
    return peaks.rename(columns=names).assign(task=task)


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    """Peaks by model size, and by batch and length."""
    runs = arranged(runs)
    return {"memory_by_size": by_size(runs), "memory_by_batch": by_batch(runs)}


def peaks(runs: pandas.DataFrame) -> Table:
    """One row for each run."""
    lines = []
    for run in runs.to_dict("records"):
        row = {key: run[key] for key in ("model", "method", "title", "batch_size", "length", "status")}
        row |= {k.removeprefix("memory."): v for k, v in run.items() if k.startswith("memory.")}
        measured = "out of memory" if run["status"] == "oom" else row["measured_peak_bytes"]
        lines.append(row | {"_size": run["task"], "_measured": measured})
    return make_table("memory_sweep_peaks", lines)


def growth(runs: pandas.DataFrame) -> Table:
    """One row for each method: slopes of straight lines through its predicted peaks, one along each axis."""
    lines = []
    for method, group in runs.groupby("method", sort=False):
        row = {"method": method, "_title": group["title"].iloc[0]}
        for axis, (unit, _) in AXES.items():
            slope, miss = line(*along(group, axis))
            row |= {f"{axis}_slope_bytes": slope, f"{axis}_largest_miss": miss}
            row[f"_{axis}"] = None if slope is None else f"{number(slope, '.3g', unit)} ({miss:.0%})"
        lines.append(row)
    return make_table("memory_sweep_growth", lines)


def along(rows: pandas.DataFrame, axis: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """x (ascending) and predicted peaks (bytes): sizes of OPT, or batches or lengths of RoBERTa-large."""
    column = "memory.parameters" if axis == "parameters" else axis
    rows = rows.query(AXES[axis][-1], engine="python").dropna(subset=PREDICTED).sort_values(column)
    return rows[column].to_numpy(float), rows[PREDICTED].to_numpy(float)


def line(x: numpy.ndarray, y: numpy.ndarray) -> tuple[float | None, float | None]:
    """Slope of the line of least relative squares and its largest relative miss; None below three points."""
    if len(x) < 3:
        return None, None
    if numpy.ptp(y) < 1e-6 * y.max():  # blocks of an allocator, not growth
        return 0.0, 0.0
    slope, offset = numpy.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(numpy.abs((slope * x + offset) / y - 1).max())


def published(runs: pandas.DataFrame) -> Table:
    """One row for each published figure: its ratio to the paper's zeroth-order method, and our ratio."""
    rows = pandas.read_csv(PUBLISHED, dtype={"table": str})
    rows = rows[rows["left_out"].isna()].fillna({"task": ABSENT})
    same = ["paper", "table", "model", "task"]
    bases = rows[rows["base"] == "yes"].drop_duplicates(same)[[*same, "memory_gb"]]
    rows = rows.merge(bases, "left", same, suffixes=("", "_of_base"))
    floor = runs[PREDICTED].where(runs["method"] == "dpzero")
    floor = floor.groupby([runs["task"], runs["model"]]).transform("max")
    ours = runs.rename(columns={"task": "our_size", "method": "our_method"})
    ours = ours[["our_size", "model", "our_method"]].assign(our_ratio_predicted=runs[PREDICTED] / floor)
    rows = rows.merge(ours, "left")
    rows = rows.assign(
        ratio=rows["memory_gb"] / rows["memory_gb_of_base"],
        our_size=rows["our_size"].where(rows["our_ratio_predicted"].notna()),
        _paper=rows["paper"] + ", " + rows["table"],
        _task=rows["task"],
    )
    keys = ["paper", "arxiv", "table", "method", "model", "batch_size", "memory_gb", "ratio"]
    keys += ["our_ratio_predicted", "our_size", "counted", "_paper", "_task"]
    return make_table("memory_sweep_published", rows[keys].to_dict("records"))


def ratios(runs: pandas.DataFrame) -> Table:
    """One row for each run of DP-MemArc: the peaks of its rivals on the same model and batch, over its own.

    A rival that no fake tensors run has its lower bound by formula, and so a lower bound of the ratio.
    """
    claims = pandas.read_csv(PUBLISHED, index_col="paper")["ratio_to_dp_sgd"]
    lines = []
    for _, group in runs.groupby(["model", "task"], sort=False):
        peaks = group.set_index("method")
        for own in group[group["method"].str.startswith(MEMARC)].to_dict("records"):
            row = {key: own[key] for key in ("model", "method", "title", "batch_size", "length")}
            row |= {"peak_bytes": own[PREDICTED], "_size": own["task"], "published": claims["DP-MemArc"]}
            for name, rival in RIVALS.items():
                if rival in peaks.index:
                    row |= _ratio(name, own, peaks.loc[rival])
            lines.append(row)
    return make_table("memory_sweep_ratios", lines)


def _ratio(name: str, own: Row, rival: pandas.Series) -> Row:
    """The ratios to one rival: predicted, or at least by formula, and measured."""
    measured = rival["memory.measured_peak_bytes"] / own["memory.measured_peak_bytes"]
    predicted = rival[PREDICTED] / own[PREDICTED]
    least = rival["memory.formula_peak_bytes"] / own[PREDICTED]
    words = ABSENT if numpy.isnan(least) else f"≥ {least:.2f}×"
    return {
        f"{name}_predicted": predicted,
        f"{name}_at_least": least,
        f"{name}_measured": measured,
        f"_{name}": words if numpy.isnan(predicted) else f"{predicted:.2f}×",
    }


def by_size(runs: pandas.DataFrame) -> Figure:
    """OPT from 125M to 175B, 8 x 512 tokens, both axes logarithmic, and what common cards hold."""
    figure, panels = drawing.canvas(1, 1, 3.4)
    axis = panels[0, 0]
    _draw(axis, runs, "parameters")
    low, high = axis.get_ylim()
    for size in CARDS:
        axis.axhline(size, color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
        at, grey = (1.005, size), {"size": 6, "color": style.GREY, "annotation_clip": False}
        drawing.write(axis, f"{size} GiB", at, (0, 0), ("axes fraction", "data"), **grey)
    axis.set_ylim(low, high)
    axis.set_xlabel("parameters (OPT, 8 x 512 tokens, float32 weights)")
    axis.set_ylabel("peak of a step (GiB)")
    _legend(figure, runs)
    return figure


def by_batch(runs: pandas.DataFrame) -> Figure:
    """RoBERTa-large: by batch at 128 tokens, by length at 8 texts."""
    figure, panels = drawing.canvas(1, 2, 2.6, sharey=True)
    words = {"batch_size": "batch size (128 tokens each)", "length": "tokens of each text (batch of 8)"}
    points = {"batch_size": (4, 8, 16, 64), "length": (64, 128, 256, 512)}
    for axis, (key, label) in zip(panels[0], words.items(), strict=True):
        _draw(axis, runs, key)
        axis.set_xlabel(label)
        axis.set_xticks(points[key], points[key])
        axis.minorticks_off()
    panels[0, 0].set_ylabel("peak of a step (GiB),\nRoBERTa-large, float32 weights")
    _legend(figure, runs, measured=False)
    return figure


def _draw(axis: Axes, runs: pandas.DataFrame, key: str) -> None:
    """A line for each method. Hollow points are predicted, filled ones measured, crosses out of memory."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    for method, group in runs.groupby("method", sort=False):
        x, y = along(group, key)
        look = style.look(method)
        axis.plot(x, y / GIB, **_strokes(method))
        if key != "parameters":
            continue
        for row in group.to_dict("records"):
            place = row["memory.parameters"]
            predicted, measured = (row[f"memory.{how}_peak_bytes"] / GIB for how in ("predicted", "measured"))
            if row["status"] == "oom":
                axis.plot(place, predicted, "x", color=look.colour, markersize=7)
            elif row["task"] == "8x512":
                axis.plot(place, measured, look.marker, color=look.colour, zorder=4)


def _strokes(method: str) -> dict[str, Any]:
    look = style.look(method)
    return {"color": look.colour, "linestyle": look.line, "marker": look.marker, "markerfacecolor": "white"}


def _legend(figure: Figure, runs: pandas.DataFrame, measured: bool = True) -> None:
    methods = runs.sort_values("place").drop_duplicates("method").to_dict("records")
    handles = [Line2D([], [], label=run["title"], **_strokes(run["method"])) for run in methods]
    if measured:
        filled = {"color": style.BLACK, "marker": "o", "linestyle": ""}
        handles.append(Line2D([], [], label="filled: measured (CPU)", **filled))
    drawing.place_legend(figure, handles)
