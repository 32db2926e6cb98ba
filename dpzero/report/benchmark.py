"""Report of the study `benchmark`: one table and one figure of a JSON result."""

from __future__ import annotations

from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, provenance, style
from dpzero.report.table import ABSENT, MIB, Table, make_table, number

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


def check(result: Result) -> None:
    """Raise LookupError or TypeError unless this has the shape of a result."""
    result["rows"][0]["ratio_median"], result["padded_tokens"]


def table(result: Result) -> Table:
    """One row for each method."""
    public: Result = next((row for row in result["rows"] if row["name"] == "public"), {})
    rows = [_row(row, public) for row in result["rows"]]
    state = "on" if result["tf32"] else "off"
    return make_table("benchmark", rows, **result, tf32_state=state, setting=setting(result))


def _row(row: Result, public: Result) -> Result:
    extra = extra_bytes(row)
    shown = {
        "_method": row["title"] + ("" if row["status"] == "ok" else f" ({row['status']})"),
        "_range": f"{row['ratio_min']:.2f}, {row['ratio_max']:.2f}" if "ratio_min" in row else ABSENT,
        "_over_inference": ABSENT,
        "_public": ABSENT,
    }
    if extra is not None:
        excess = row["peak_bytes"] / row["inference_peak_bytes"] - 1
        shown["_over_inference"] = f"{number(100 * excess, '+.1f')} %"
    if "step_seconds_median" in public and "step_seconds_median" in row and row is not public:
        slower = public["step_seconds_median"] / row["step_seconds_median"] * row["pairs"]
        shown["_public"] = f"{slower:.1f}× the time, {extra_bytes(public) / extra:.1f}× the memory"
    return {key: row.get(key) for key in KEYS} | {"extra_bytes": extra} | shown


def extra_bytes(row: Result) -> Any:
    """Peak over the loaded weights in bytes; None without a measurement."""
    return None if row.get("peak_bytes") is None else row["peak_bytes"] - row["weights_bytes"]


def setting(result: Result) -> str:
    """Model, batch, length, type and device."""
    length = "short sentences" if result["length"] == "short" else f"{result['length']} tokens each"
    device = result["provenance"]["device"]
    return (
        f"{result['model']}, batch of {result['batch_size']}, {length}, {result['compute_dtype']}, {device}"
    )


def figure(result: Result) -> Figure:
    """Time over two forward passes, and memory over the weights, a bar a method."""
    rows = [row for row in result["rows"] if row["status"] == "ok"][::-1]
    drawn, panels = drawing.canvas(1, 2, 0.26 * len(rows) + 0.9, sharey=True)
    time, size = panels[0]
    median, low, high = (
        numpy.array([row[f"ratio_{key}"] for row in rows]) for key in ("median", "min", "max")
    )
    _bars(time, rows, median, ".2f", high)
    whiskers = {"fmt": "none", "ecolor": style.BLACK, "elinewidth": 0.7, "capsize": 1.5}
    time.errorbar(median, range(len(rows)), xerr=[median - low, high - median], **whiskers)
    time.axvline(1, color=style.BLACK, linestyle=":", linewidth=0.8)
    time.set_xscale("log")
    drawing.log_ticks(time.xaxis, (1, 2, 5))
    time.set_xlabel("step time / two forward passes")
    time.set_yticks(range(len(rows)), [row["title"] for row in rows])
    sizes = [extra_bytes(row) / MIB for row in rows]
    _bars(size, rows, sizes, ".0f", sizes)
    inference = (rows[0]["inference_peak_bytes"] - rows[0]["weights_bytes"]) / MIB
    size.axvline(inference, color=style.BLACK, linestyle=":", linewidth=0.8)
    size.set_xscale("log")
    size.set_xlabel("peak over the loaded weights (MiB)")
    drawn.suptitle(setting(result), fontsize=8)
    style.footnote(drawn, f"dotted: the forward passes alone · {provenance.short(result['provenance'])}")
    return drawn


def _bars(axis: Axes, rows: list[dict[str, Any]], values: Any, form: str, ends: Any) -> None:
    colours = [COLOURS.get(row["name"], style.VERMILION) for row in rows]
    axis.barh(range(len(rows)), values, color=colours, height=0.65)
    for y, (value, end) in enumerate(zip(values, ends, strict=True)):
        drawing.write(axis, format(value, form), (end, y), (4, 0), size=6)
    axis.margins(x=0.18)
