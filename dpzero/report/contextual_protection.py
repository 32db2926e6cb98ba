"""Report of the study `contextual-protection`: one table and one figure of what can be read out of a model."""

from __future__ import annotations

import math
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from dpzero.report import drawing, provenance, style
from dpzero.report.table import Row, Table, make_table, number

LEAK_BASELINE = "none: leak baseline"
PANELS = {
    "exposure": ("exposure of members' codes (bits)", 1.0),
    "extracted": ("members' codes that are the likeliest (%)", 100.0),
    "auc": ("AUC of membership inference", 1.0),
}
Result = dict[str, Any]


def table(result: Result) -> Table:
    """One row for each method and way to ask. Only what has a claim names an epsilon."""
    rows = [row | {"guarantee": guarantee(row, result["delta"])} for row in result["rows"]]
    valid = "yes" if result["valid_release"] else "no"
    codes = 10 ** result["digits"]
    values = {"level": f"{100 * result['confidence']:g} %", "codes": f"{codes:,}"}
    values |= {"most": f"{math.log2(codes):.2f}", "guess": f"{exposure_of_a_guess(codes):.2f}"}
    values |= {"level_of_fpr": f"{100 * result['false_positive_rate']:g}", "valid": valid}
    made = make_table("contextual_protection", rows, **result, **values)
    made.readers = [_for_readers(row) for row in rows]
    return made


def exposure_of_a_guess(codes: int) -> float:
    """Mean exposure, bits, of a code whose rank among so many is uniform."""
    return math.log2(codes) - math.lgamma(codes + 1) / math.log(2) / codes


def guarantee(row: Row, delta: float) -> str:
    if row["private"]:
        return f"ε = {row['epsilon']:g}, δ = {delta:g}"
    return "trained on nothing" if row["epsilon"] == 0 else LEAK_BASELINE


def _for_readers(row: Row) -> Row:
    line: Row = {key: row[key] for key in ("title", "guarantee", "asked")}
    for key, form in (
        ("exposure", ".1f"),
        ("exposure_of_others", ".1f"),
        ("known_gain", ".1f"),
        ("auc", ".2f"),
    ):
        line[key] = _with_interval(row, key, form)
    for key in ("extracted", "written", "true_positive_rate", "advantage"):
        line[key] = _with_interval(row, key, ".0%")
    line["advantage_ceiling"] = row.get("advantage_ceiling")
    if row.get("refuted"):
        line["guarantee"] += ", refuted"
    return line


def _with_interval(row: Row, name: str, form: str) -> str:
    """A mean, with half the width of its interval."""
    return f"{number(row[name], form)} ± {number(row[f'{name}_high'] - row[name], form)}"


def figure(result: Result) -> Figure:
    """Exposure, extraction and membership of each method and way to ask."""
    rows = result["rows"]
    drawn, panels = drawing.canvas(1, len(PANELS), 3.4, sharey=True)
    labels = [fill(f"{row['title']}: {row['asked']}", 30) for row in rows]
    places = list(range(len(rows)))[::-1]
    for axis, (key, (title, factor)) in zip(panels[0], PANELS.items(), strict=True):
        for place, row in zip(places, rows, strict=True):
            middle = factor * row[key]
            ends = [[middle - factor * row[f"{key}_low"]], [factor * row[f"{key}_high"] - middle]]
            look = {"marker": "o", "markerfacecolor": style.BLACK if row["private"] else "white"}
            axis.errorbar([middle], [place], xerr=ends, color=style.BLACK, capsize=2, elinewidth=0.9, **look)
        axis.set_xlabel(fill(title, 26))
        axis.grid(axis="x", color="#dddddd", linewidth=0.4, zorder=0)
    panels[0][0].set_yticks(places, labels, fontsize=6)
    panels[0][0].axvline(
        exposure_of_a_guess(10 ** result["digits"]), color=style.GREY, linestyle="--", linewidth=0.7, zorder=1
    )
    panels[0][2].axvline(0.5, color=style.GREY, linestyle="--", linewidth=0.7, zorder=1)
    commit, device = provenance.short(result["provenance"]), result["provenance"]["device"]
    style.footnote(drawn, f"contextual-protection: {result['runs']} runs a method · {commit} · {device}")
    return drawn
