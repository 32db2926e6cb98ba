"""Tables and figures of the sweep `memory`: peaks by model size, batch and length, how they grow, and published figures beside them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpzero.report import drawing, style
from dpzero.report.table import ABSENT, Table, number

GIB, MIB = 2**30, 2**20
CARDS = (24, 48, 80, 141)  # GiB of common GPUs
PUBLISHED = Path(__file__).with_name("published_memory.csv")
LOOKS = {
    "dpzero": style.Look(style.VERMILION, "o", "-"),
    "public": style.Look(style.GREY, "o", "-."),
    "lora": style.Look(style.SKY, "v", "--"),
    "adamw_checkpointing": style.Look(style.ORANGE, "X", ":"),
    "adamw": style.Look(style.ORANGE, "P", "--"),
    "dp_sgd_ghost": style.Look(style.PURPLE, "s", "-"),
    "dp_sgd_hooks": style.Look(style.GREEN, "D", "-"),
}
READING = (
    "Predicted: live storage of fake tensors that run the method's own code; kernels' workspaces, fragments and the CUDA context (some "
    "0.5 to 1 GiB of a GPU) are not counted. Measured: live storage of real tensors on the CPU, nothing else. By formula: at least so much.",
    "Weights float32, the answer read at one position by a head of two words; the whole batch at once. The public-style step asks the "
    "whole vocabulary at every position.",
)
AXES = {  # axis of growth -> what it counts, the unit of its slope, bytes in that unit
    "parameters": ("bytes a parameter, by model size", 1),
    "batch_size": ("MiB an example, by batch", MIB),
    "length": ("MiB a token of length, by length", MIB),
}
# published name -> ours. What a paper calls a method may differ in optimizer, precision and head
OURS = {
    "MeZO": "dpzero",
    "DPZero": "dpzero",
    "zero-shot / MeZO": "dpzero",
    "DPZO (=DPZero)": "dpzero",
    "AdamW": "adamw",
    "FT (Adam full)": "adamw",
    "LoRA": "lora",
    "DP-AdamW (Li et al.)": "dp_sgd_ghost",
}
BASE = (
    "MeZO",
    "zero-shot / MeZO",
    "DPZO (=DPZero)",
    "zero-shot",
)  # what a paper's other methods are divided by
COUNTED = {
    "DPZero": "device memory of one GPU; how it was read is not said",
    "MeZO": "nvidia-smi peak, summed over GPUs",
    "DP-AggZO": "peak; DP-AdamW takes one example at a time",
    "DP-ZOPO": "a figure of the repository; task and batch not given",
}


def arranged(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs with `batch_size` and `length` from their size, in the order of LOOKS."""
    sizes = runs["task"].str.extract(r"^(\d+)x(\d+)$").astype(float)
    runs = runs.assign(batch_size=sizes[0], length=sizes[1])
    for key in ("predicted_peak_bytes", "measured_peak_bytes", "formula_peak_bytes", "parameters"):
        if f"memory.{key}" not in runs:
            runs[f"memory.{key}"] = numpy.nan
        runs[f"memory.{key}"] = runs[f"memory.{key}"].astype(float)
    place = {method: number for number, method in enumerate(LOOKS)}
    runs = runs.assign(place=runs["method"].map(place).fillna(len(place)))
    return runs.sort_values(["model", "place", "batch_size", "length"], kind="stable", ignore_index=True)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    runs = arranged(runs)
    made = {"growth": growth(runs), "peaks": peaks(runs), "published": published(runs)}
    for table in made.values():
        table.notes += READING
    return made


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    runs = arranged(runs)
    return {"memory_by_size": by_size(runs), "memory_by_batch": by_batch(runs)}


def peaks(runs: pandas.DataFrame) -> Table:
    """One line a run."""
    table = Table("Peak memory of a step (GiB)")
    for row in runs.to_dict("records"):
        names = {key: row[key] for key in ("model", "method", "title", "batch_size", "length", "status")}
        found = {k.removeprefix("memory."): v for k, v in row.items() if k.startswith("memory.")}
        shown = {"model": row["model"], "batch x length": row["task"], "method": row["title"]}
        for heading, key in (
            ("weights", "weights_bytes"),
            ("inference, predicted", "predicted_inference_peak_bytes"),
            ("peak, predicted", "predicted_peak_bytes"),
            ("at least, by formula", "formula_peak_bytes"),
            ("peak, measured", "measured_peak_bytes"),
        ):
            shown[heading] = _gib(found.get(key))
        phase = found.get("predicted_phase")
        out_of_memory = {"peak, measured": "out of memory"} if row["status"] == "oom" else {}
        table.add(names | found, shown | out_of_memory | {"in": phase if isinstance(phase, str) else ABSENT})
    return table


def growth(runs: pandas.DataFrame) -> Table:
    """One line a method: slopes of straight lines through its predicted peaks, one along each axis."""
    table = Table("How the peak of a step grows: slopes of predicted peaks")
    for method, some in runs.groupby("method", sort=False):
        values, shown = {"method": method}, {"method": some["title"].iloc[0]}
        for axis, (heading, unit) in AXES.items():
            slope, miss = line(*along(some, axis))
            values |= {f"{axis}_slope_bytes": slope, f"{axis}_largest_miss": miss}
            shown[heading] = ABSENT if slope is None else f"{number(slope / unit, '.3g')} ({miss:.0%})"
        table.add(values, shown)
    table.notes = [
        "In brackets: the largest distance of a peak from its line, of the peak. Float32 weights take 4 bytes a parameter by themselves. "
        "Model size: OPT, 8 x 512 tokens; batch: RoBERTa-large, 128 tokens; length: RoBERTa-large, 8 texts.",
    ]
    return table


def along(rows: pandas.DataFrame, axis: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """x and predicted peaks in bytes of one method, x ascending: sizes of OPT, or batches or lengths of RoBERTa-large."""
    family = (
        rows["model"].str.startswith("opt-") if axis == "parameters" else rows["model"] == "roberta-large"
    )
    fixed = {"parameters": (8, 512), "batch_size": (None, 128), "length": (8, None)}[axis]
    for key, value in zip(("batch_size", "length"), fixed, strict=True):
        family &= True if value is None else rows[key] == value
    column = "memory.parameters" if axis == "parameters" else axis
    rows = rows[family & rows["memory.predicted_peak_bytes"].notna()].sort_values(column)
    return rows[column].to_numpy(float), rows["memory.predicted_peak_bytes"].to_numpy(float)


def line(x: numpy.ndarray, y: numpy.ndarray) -> tuple[float | None, float | None]:
    """Slope of the least-squares line with errors relative to y, and its largest relative miss; none through two points or fewer."""
    if len(x) < 3:
        return None, None
    if numpy.ptp(y) < 1e-6 * y.max():  # blocks of an allocator, not growth
        return 0.0, 0.0
    slope, offset = numpy.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(numpy.abs((slope * x + offset) / y - 1).max())


def published(runs: pandas.DataFrame) -> Table:
    """One line a published figure of the models that are here, over the paper's own zeroth-order row, and ours so divided."""
    table = Table("Published peaks, and as ratios to the same paper's zeroth-order method beside ours")
    rows = pandas.read_csv(PUBLISHED, dtype={"table": str})
    rows = rows[rows["memory_gb"].notna() & ~rows["notes"].str.contains("EXCESS", na=False)]
    ours = {
        (row["model"], row["task"], row["method"]): row["memory.predicted_peak_bytes"]
        for row in runs.to_dict("records")
    }
    for row in rows.to_dict("records"):
        task = "" if row["notes"].startswith("paper value") else re.split("[;,]", row["notes"])[0]
        same = rows[
            (rows["paper"] == row["paper"])
            & (rows["table"] == row["table"])
            & (rows["model"] == row["model"])
        ]
        same = same[same["notes"].str.startswith(task) & same["method"].isin(BASE)]
        ratio = row["memory_gb"] / same["memory_gb"].iloc[0] if len(same) else None
        size = "64x128" if row["model"] == "roberta-large" else "8x512"
        mine = ours.get((row["model"], size, OURS.get(row["method"])))
        base = ours.get((row["model"], size, "dpzero"))
        own = mine / base if pandas.notna(mine) and pandas.notna(base) else None
        values = {
            key: row[key] for key in ("paper", "arxiv", "table", "method", "model", "batch_size", "memory_gb")
        }
        values |= {
            "ratio": ratio,
            "our_ratio_predicted": own,
            "our_size": size if own else None,
            "counted": _counted(row),
        }
        shown = {"paper": f"{row['paper']}, {row['table']}", "model": row["model"], "method": row["method"]}
        shown |= {
            "task": task or ABSENT,
            "batch": number(row["batch_size"], ".0f"),
            "published (GiB)": number(row["memory_gb"], ".2f"),
        }
        shown |= {"ratio": _times(ratio), "ours, predicted": _times(own), "at": size if own else ABSENT}
        table.add(values, shown | {"counted": _counted(row)})
    table.notes = [
        "Ratio: over MeZO or DPZero in the same table, for the same model and task. Ours: predicted with float32 weights at the size given, "
        "of the nearest method here; papers store OPT in half precision, keep other lengths and count other things, so that only ratios "
        "are to be compared. MeZO's OPT rows hold some 2 bytes a parameter (26 of 13 billion), its Adam rows some 25: about half of that "
        "ratio is precision. Rows that ran out of memory are in the file beside this code, published_memory.csv.",
    ]
    return table


def _counted(row: dict) -> str:
    return COUNTED.get(row["paper"], ABSENT)


def _gib(value: float | None) -> str:
    return number(None if value is None else value / GIB, ".3f")


def _times(value: float | None) -> str:
    return ABSENT if pandas.isna(value) else number(value, ".2f") + "×"


def by_size(runs: pandas.DataFrame) -> Figure:
    """OPT from 125M to 175B, 8 x 512 tokens, both axes logarithmic, and what common cards hold."""
    figure, panels = drawing.canvas(1, 1, 3.4)
    axis = panels[0, 0]
    _draw(axis, runs, "parameters")
    low, high = axis.get_ylim()
    for size in CARDS:
        axis.axhline(size, color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
        place = {"xy": (1.005, size), "xycoords": ("axes fraction", "data"), "annotation_clip": False}
        axis.annotate(f"{size} GiB", va="center", size=6, color=style.GREY, **place)
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
    """A line a method through hollow points, which are predicted; filled ones are measured, crosses ran out of memory."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    for method, some in runs.groupby("method", sort=False):
        x, y = along(some, key)
        look = LOOKS.get(method, style.look(method))
        axis.plot(x, y / GIB, color=look.colour, linestyle=look.line, marker=look.marker, mfc="white")
        if key != "parameters":
            continue
        for row in some[some["settings.measure"].eq(True)].to_dict("records"):
            place = [row["memory.parameters"]]
            if row["status"] == "oom":
                axis.plot(
                    place, [row["memory.predicted_peak_bytes"] / GIB], "x", color=look.colour, markersize=7
                )
            elif row["task"] == "8x512":
                axis.plot(
                    place, [row["memory.measured_peak_bytes"] / GIB], look.marker, color=look.colour, zorder=4
                )


def _legend(figure: Figure, runs: pandas.DataFrame, measured: bool = True) -> None:
    handles = []
    for method, some in sorted(
        runs.groupby("method"), key=lambda pair: list(LOOKS).index(pair[0]) if pair[0] in LOOKS else 99
    ):
        look = LOOKS.get(method, style.look(method))
        strokes = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "mfc": "white"}
        handles.append(Line2D([], [], label=some["title"].iloc[0], **strokes))
    if measured:
        filled = {"color": style.BLACK, "marker": "o", "linestyle": ""}
        handles.append(Line2D([], [], label="filled: measured (CPU)", **filled))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.2)
