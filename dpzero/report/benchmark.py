"""The benchmark of steps: its JSON files -> a table and a figure each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dpzero.errors import UsageError
from dpzero.report import drawing, style
from dpzero.report.provenance import short
from dpzero.report.table import ABSENT, Table, number

COLOURS = {"public": style.GREY, "sgd": style.GREEN, "adamw": style.ORANGE}
COLOURS |= {"dp_sgd_ghost": style.PURPLE, "dp_sgd_hooks": style.PURPLE}


def write_benchmark(result: Path, tables: Path, figures: Path) -> list[Path]:
    """From the JSON file that the benchmark left: .csv and .md of its name in `tables`, .pdf and .png in `figures`.

    Returns the files; the same bytes for the same results. Raises UsageError for a file that is none.
    """
    try:
        found = json.loads(Path(result).read_text("utf-8"))
        found["rows"][0]["ratio_median"], found["padded_tokens"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{result} is no result of `benchmark` ({error!r}): run that first") from None
    name = Path(result).stem
    for folder in (tables, figures):
        Path(folder).mkdir(parents=True, exist_ok=True)
    made, files = table(found), [Path(tables) / f"{name}.csv", Path(tables) / f"{name}.md"]
    files[0].write_text(made.csv(), "utf-8")
    files[1].write_text(made.markdown(), "utf-8")
    with style.settings():
        return files + style.save(figure(found), Path(figures), name, short(found["provenance"]))


def table(found: dict[str, Any]) -> Table:
    """A line a method."""
    made = Table(f"A step over two plain forward passes: {setting(found)}")
    public = next((row for row in found["rows"] if row["name"] == "public"), {})
    for row in found["rows"]:
        made.values.append({key: row.get(key) for key in _KEYS} | {"extra_bytes": extra(row)})
        made.shown.append(
            {
                "method": row["title"] + ("" if row["status"] == "ok" else f" ({row['status']})"),
                "step / two forwards": number(row.get("ratio_median"), ".2f"),
                "least, most": _range(row),
                "step (s)": number(row.get("step_seconds_median"), ".3f"),
                "least (s)": number(row.get("step_seconds_min"), ".3f"),
                "tokens/s": number(row.get("tokens_per_second"), ".0f"),
                "peak over weights (MiB)": _mebibytes(extra(row)),
                "over that of inference": _over_inference(row),
                "public-style step takes": _times(public, row),
            }
        )
    made.notes = notes(found)
    made.provenance = short(found["provenance"])
    return made


_KEYS = (
    *("name", "title", "status", "pairs", "step_seconds_median", "step_seconds_min"),
    *("two_forward_seconds_median", "two_forward_seconds_min", "ratio_median", "ratio_min", "ratio_max"),
    *("ratio_of_minima", "tokens_per_second", "weights_bytes", "inference_peak_bytes", "peak_bytes"),
)


def extra(row: dict[str, Any]) -> int | None:
    """Peak over the loaded weights, bytes."""
    return None if row.get("peak_bytes") is None else row["peak_bytes"] - row["weights_bytes"]


def setting(found: dict[str, Any]) -> str:
    length = "short sentences" if found["length"] == "short" else f"{found['length']} tokens each"
    device = found["provenance"]["device"]
    return f"{found['model']}, batch of {found['batch_size']}, {length}, {found['compute_dtype']}, {device}"


def notes(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['tokens']} tokens, {found['padded_tokens']} with padding in micro-batches of at most {found['token_budget']}; the "
        f"public-style step pads all to {found['longest']}. Weights {found['weights_dtype']}, random, all trained; matrix products in "
        f"{found['compute_dtype']}.",
        f"Head: {found['head']}. Attention: {found['attention']}. TF32: {'on' if found['tf32'] else 'off'}. Threads: {found['threads']}.",
        f"Median of {found['rounds']} rounds, each a step and two forward passes one after the other in the same process; least and "
        "most of the same. A method of several directions is divided by as many pairs of passes.",
        f"Memory: {found['memory']}, peak of two steps; over inference: peak over that of the same forward pass, weights included.",
    ]


def _range(row: dict[str, Any]) -> str:
    return f"{row['ratio_min']:.2f}, {row['ratio_max']:.2f}" if "ratio_min" in row else ABSENT


def _mebibytes(value: int | None) -> str:
    return ABSENT if value is None else f"{value / 2**20:.0f}"


def _over_inference(row: dict[str, Any]) -> str:
    if row.get("peak_bytes") is None:
        return ABSENT
    return number(100 * (row["peak_bytes"] / row["inference_peak_bytes"] - 1), "+.1f") + " %"


def _times(public: dict[str, Any], row: dict[str, Any]) -> str:
    """What the public-style step takes in units of this one: time, and memory over the weights."""
    if "step_seconds_median" not in public or "step_seconds_median" not in row or row is public:
        return ABSENT
    slower = public["step_seconds_median"] / row["step_seconds_median"] * row["pairs"]
    return f"{slower:.1f}× the time, {extra(public) / extra(row):.1f}× the memory"


def figure(found: dict[str, Any]) -> Figure:
    """Time over two forward passes, and memory over the weights, a bar a method."""
    rows = [row for row in found["rows"] if row["status"] == "ok"][::-1]
    drawn, panels = drawing.canvas(1, 2, 0.26 * len(rows) + 0.9, sharey=True)
    time, size = panels[0]
    _bars(time, rows, [row["ratio_median"] for row in rows], ".2f", [row["ratio_max"] for row in rows])
    time.errorbar(
        [row["ratio_median"] for row in rows],
        range(len(rows)),
        xerr=[
            [row["ratio_median"] - row["ratio_min"] for row in rows],
            [row["ratio_max"] - row["ratio_median"] for row in rows],
        ],
        fmt="none",
        ecolor=style.BLACK,
        elinewidth=0.7,
        capsize=1.5,
    )
    time.axvline(1, color=style.BLACK, linestyle=":", linewidth=0.8)
    time.set_xscale("log")
    time.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.xaxis.set_minor_locator(NullLocator())
    time.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    time.set_xlabel("step time / two forward passes")
    time.set_yticks(range(len(rows)), [row["title"] for row in rows])
    sizes = [extra(row) / 2**20 for row in rows]
    _bars(size, rows, sizes, ".0f", sizes)
    inference = (rows[0]["inference_peak_bytes"] - rows[0]["weights_bytes"]) / 2**20
    size.axvline(inference, color=style.BLACK, linestyle=":", linewidth=0.8)
    size.set_xscale("log")
    size.set_xlabel("peak over the loaded weights (MiB)")
    drawn.suptitle(setting(found), fontsize=8)
    made = found["provenance"]
    note = f"dotted: the forward passes alone · {made['git'][:7]}{'+' if made['dirty'] else ''}"
    drawn.supxlabel(note, x=0.995, ha="right", fontsize=5, color=style.GREY)
    return drawn


def _bars(axis: Axes, rows: list[dict[str, Any]], values: list[float], form: str, ends: list[float]) -> None:
    colours = [COLOURS.get(row["name"], style.VERMILION) for row in rows]
    axis.barh(range(len(rows)), values, color=colours, height=0.65)
    for y, (value, end) in enumerate(zip(values, ends, strict=True)):
        axis.annotate(
            format(value, form), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=6
        )
    axis.margins(x=0.18)
