"""Report of the study `benchmark`: one table and one figure of a JSON result."""

from __future__ import annotations

from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, provenance, style
from dpzero.report.table import MIB, Table, make_table, number

COLOURS = {
    "public": style.GREY,
    "sgd": style.GREEN,
    "adamw": style.ORANGE,
    "dp_sgd_ghost": style.PURPLE,
    "dp_sgd_hooks": style.PURPLE,
}
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
    """Time over two forward passes, and memory over the weights, a bar a method."""
    rows = measured(result).query("status == 'ok'")[::-1]
    drawn, panels = drawing.canvas(1, 2, 0.26 * len(rows) + 0.9, sharey=True)
    time, size = panels[0]
    median, low, high = (rows[f"ratio_{key}"] for key in ("median", "min", "max"))
    _bars(time, rows, median, ".2f", high)
    whiskers = {"fmt": "none", "ecolor": style.BLACK, "elinewidth": 0.7, "capsize": 1.5}
    time.errorbar(median, range(len(rows)), xerr=[median - low, high - median], **whiskers)
    sizes = rows["extra_bytes"] / MIB
    _bars(size, rows, sizes, ".0f", sizes)
    inference = (rows["inference_peak_bytes"] - rows["weights_bytes"]).iloc[0] / MIB
    for axis, floor in ((time, 1), (size, inference)):
        axis.axvline(floor, color=style.BLACK, linestyle=":", linewidth=0.8)
        axis.set_xscale("log")
    drawing.log_ticks(time.xaxis, (1, 2, 5))
    time.set_yticks(range(len(rows)), rows["title"])
    time.set_xlabel("step time / two forward passes")
    size.set_xlabel("peak over the loaded weights (MiB)")
    drawn.suptitle(setting(result), fontsize=8)
    style.footnote(drawn, f"dotted: the forward passes alone · {provenance.short(result['provenance'])}")
    return drawn


def _bars(axis: Axes, rows: pandas.DataFrame, values: pandas.Series, form: str, ends: pandas.Series) -> None:
    """A bar for each row with its value as text beside `ends`."""
    colours = rows["name"].map(COLOURS).fillna(style.VERMILION)
    axis.barh(range(len(rows)), values, color=colours, height=0.65)
    for y, (value, end) in enumerate(zip(values, ends, strict=True)):
        drawing.write(axis, format(value, form), (end, y), (4, 0), size=6)
    axis.margins(x=0.18)
