"""Report of the study `benchmark`: one table and one figure of a JSON result."""

from __future__ import annotations

from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, provenance, style
from dpzero.report.table import MIB, Table, make_table, number

KEYS = (  # of the CSV file
    *("name", "title", "status", "pairs", "step_seconds_median", "step_seconds_min"),
    *("two_forward_seconds_median", "two_forward_seconds_min", "ratio_median", "ratio_min", "ratio_max"),
    *("ratio_of_minima", "tokens_per_second", "weights_bytes", "inference_peak_bytes", "peak_bytes"),
)
Result = dict[str, Any]


def table(result: Result) -> Table:
    """One row for each method."""
    rows = measured(result).to_dict("records")
    public: Result = next((row for row in rows if row["name"] == "public"), {})
    for row in rows:
        row["_method"] = row["title"] + ("" if row["status"] == "ok" else f" ({row['status']})")
        if pandas.notna(row["ratio_min"]):
            row["_range"] = f"{row['ratio_min']:.2f}, {row['ratio_max']:.2f}"
        if pandas.notna(row["extra_bytes"]):
            excess = row["peak_bytes"] / row["inference_peak_bytes"] - 1
            row["_over_inference"] = f"{number(100 * excess, '+.1f')} %"
        if public and row is not public and pandas.notna(row["step_seconds_median"]):
            slower = public["step_seconds_median"] / row["step_seconds_median"] * row["pairs"]
            larger = public["extra_bytes"] / row["extra_bytes"]
            row["_public"] = f"{slower:.1f}× the time, {larger:.1f}× the memory"
    state = "on" if result["tf32"] else "off"
    return make_table("benchmark", rows, **result, tf32_state=state, setting=setting(result))


def measured(result: Result) -> pandas.DataFrame:
    """The rows with the columns of the CSV file; `extra_bytes`: peak over the loaded weights."""
    rows = pandas.DataFrame(result["rows"], columns=KEYS)
    return rows.assign(extra_bytes=rows["peak_bytes"] - rows["weights_bytes"])


def setting(result: Result) -> str:
    """Model, batch, length, type and device."""
    length = "short sentences" if result["length"] == "short" else f"{result['length']} tokens each"
    device = result["provenance"]["device"]
    return (
        f"{result['model']}, batch of {result['batch_size']}, {length}, {result['compute_dtype']}, {device}"
    )


def figure(result: Result) -> Figure:
    """Time over two forward passes, and memory over the weights: a row a method, both axes logarithmic."""
    rows = measured(result).query("status == 'ok'")[::-1]
    drawn, panels = drawing.canvas(1, 2, 0.2 * len(rows) + 0.7, sharey=True)
    time, size = panels[0]
    median, low, high = (rows[f"ratio_{key}"] for key in ("median", "min", "max"))
    time.hlines(range(len(rows)), low, high, color=style.GREY, linewidth=0.9)
    _points(time, rows, median, ".2f", high)
    sizes = rows["extra_bytes"] / MIB
    _points(size, rows, sizes, ".0f", sizes)
    inference = (rows["inference_peak_bytes"] - rows["weights_bytes"]).iloc[0] / MIB
    for axis, floor, ticks in ((time, 1, (1, 2, 5)), (size, inference, (1, 3))):
        axis.axvline(floor, color=style.BLACK, linestyle=":", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.margins(x=0.18)
        axis.grid(axis="y", color="#dddddd", linewidth=0.4)
        axis.set_axisbelow(True)
        drawing.log_ticks(axis.xaxis, ticks)
    time.set_yticks(range(len(rows)), rows["title"])
    time.set_xlabel("step time / two forward passes")
    size.set_xlabel("peak over the loaded weights (MiB)")
    drawn.suptitle(setting(result), fontsize=8)
    style.footnote(drawn, f"dotted: the forward passes alone · {provenance.short(result['provenance'])}")
    return drawn


def _points(
    axis: Axes, rows: pandas.DataFrame, values: pandas.Series, form: str, ends: pandas.Series
) -> None:
    """A point for each row with its value as text beside `ends`. A variant of MeZO has MeZO's look."""
    for y, (name, value, end) in enumerate(zip(rows["name"], values, ends, strict=True)):
        look = style.look("mezo" if name.startswith("mezo_") else name)
        face = look.colour if name.startswith("dp") else "white"
        axis.plot([value], [y], look.marker, color=look.colour, markerfacecolor=face)
        drawing.write(axis, format(value, form), (end, y), (5, 0), size=6)
