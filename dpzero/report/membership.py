"""Report of the study `membership`: one table and one figure of membership inference attacks."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpzero.report import drawing, provenance, style
from dpzero.report.table import ABSENT, Row, Table, make_table, number

TUNES = {"head": "head", "lora": "LoRA", "full": "all weights"}
ATTACKS = {"loss": "loss against base", "lira": "LiRA"}
LOOKS = {
    "loss": ("s", "white"),
    "lira": ("o", style.BLACK),
}  # marker, face: colours are of methods
CEILINGS = {
    "ceiling": ("allowed by the privacy profile", "-"),
    "ceiling_of_epsilon_delta": ("by (ε, δ) alone", ":"),
}
OFFSETS = {"loss": -0.14, "lira": 0.14}  # of the distance between two methods
FLOOR = 0.004  # of the figure: intervals that reach zero end there
TPR, FPR = "true_positive_rate", "false_positive_rate"
Result = dict[str, Any]


def table(result: Result) -> Table:
    """One row for each method, group of texts and attack; for readers the two attacks share a row.

    If several choices of trainable parameters are compared, readers see one row for each method.
    """
    methods = {method["name"]: method for method in result["methods"]}
    methods["control"] = methods[_control(result)]
    rows, pairs = [], dict[tuple[str, str], Row]()
    for row in result["rows"]:
        method = methods[row["method"]]
        rows.append({**row, **{name: method[name] for name in ("noise_scale", "dev_accuracy")}})
        pair = pairs.setdefault((row["method"], row["texts"]), {"title": row["title"], "texts": row["texts"]})
        pair[row["attack"]] = with_interval(row, TPR) + (", refuted" if row.get("refuted") else "")
        if row["attack"] == "lira":
            pair |= {key: row.get(key) for key in ("auc", *CEILINGS)} | {"fpr": with_interval(row, FPR)}
            pair |= {"fit": method[f"fit_{row['texts']}"], "dev_accuracy": method["dev_accuracy"]}
    values = {"level_of_fpr": f"{100 * result[FPR]:g}", "level": f"{100 * result['confidence']:g} %"}
    valid = "yes" if result["valid_release"] else "no"
    name = "membership_by_tuning" if compares_tunings(result) else "membership"
    table = make_table(name, rows, **result, **values, valid=valid)
    table.readers = list(pairs.values())
    if compares_tunings(result):
        table.readers = [
            _of_method(result, methods, name) for name in dict.fromkeys(r["method"] for r in rows)
        ]
    return table


def compares_tunings(result: Result) -> bool:
    return not isinstance(result["tune"], str)


def _control(result: Result) -> str:
    """The method whose models are the control's; the earliest results do not say it."""
    named = (
        row["trained_as"] for row in result["rows"] if row["method"] == "control" and "trained_as" in row
    )
    return next(named, "mezo")


def _of_method(result: Result, methods: dict[str, Any], name: str) -> Row:
    """What LiRA finds in each group of texts, and the ceilings of the claim."""
    method = methods[name]
    rows = {row["texts"]: row for row in result["rows"] if row["method"] == name and row["attack"] == "lira"}
    whole = rows["all"]
    line: Row = {"title": whole["title"], "tuned": TUNES[whole["tune"]] if method["use"] else ABSENT}
    line |= {group: with_interval(row, TPR) for group, row in rows.items()}
    line |= {"advantage": with_interval(whole, "advantage"), "auc": whole["auc"]}
    line |= {key: whole.get(key) for key in ("ceiling", "advantage_ceiling")}
    line |= {key: method[key] for key in ("fit_natural", "fit_mislabelled", "dev_accuracy")}
    if any(row.get("refuted") for row in result["rows"] if row["method"] == name):
        line["title"] += ", refuted"
    return line


def with_interval(row: Row, name: str) -> str:
    """A rate in per cent, with half the width of its interval."""
    return f"{number(row[name], '.2%')} ± {number(row[f'{name}_high'] - row[name], '.2%')}"


def figure(result: Result) -> Figure:
    """True positive rate of each method and the ceiling of its claim; one panel for each group of texts."""
    rows = [row for row in result["rows"] if row["texts"] != "all"]
    groups = list(dict.fromkeys(row["texts"] for row in rows))
    shape = (len(groups), 1) if compares_tunings(result) else (1, len(groups))
    if compares_tunings(result):
        rows = [row | {"title": _title_with_tuning(row)} for row in rows]
    drawn, panels = drawing.canvas(*shape, 2.9, sharex=True, sharey=True)
    for axis, group in zip(panels.flat, groups, strict=True):
        _panel(axis, [row for row in rows if row["texts"] == group], result[FPR])
        axis.set_title(f"{group} texts")
    for axis in panels[:, 0]:
        axis.set_ylabel(f"true positive rate at {100 * result[FPR]:g} % false positives")
    drawing.place_legend(drawn, panels.flat[-1].get_legend_handles_labels()[0], 5)
    commit, device = provenance.short(result["provenance"]), result["provenance"]["device"]
    style.footnote(drawn, f"membership: {result['runs']} runs a method · {commit} · {device}")
    return drawn


def _title_with_tuning(row: Row) -> str:
    return row["title"] if row["epsilon"] == 0 else f"{row['title']}, {TUNES[row['tune']]}"


def _panel(axis: Axes, rows: list[Row], target: float) -> None:
    titles = list(dict.fromkeys(row["title"] for row in rows))
    axis.axhline(target, color=style.GREY, linestyle="--", linewidth=0.7, zorder=1, label="guessing")
    for name, (label, line) in CEILINGS.items():
        places = {titles.index(row["title"]): row[name] for row in rows if row.get("epsilon") and name in row}
        x = numpy.array(list(places))
        look = {"color": style.BLACK, "linestyle": line, "linewidth": 1.4, "label": label}
        axis.hlines(list(places.values()), x - 0.36, x + 0.36, **look)
    for attack, (marker, face) in LOOKS.items():
        group = [row for row in rows if row["attack"] == attack]
        at = [titles.index(row["title"]) + OFFSETS[attack] for row in group]
        y, low, high = (
            numpy.maximum(FLOOR, [row[f"true_positive_rate{end}"] for row in group])
            for end in ("", "_low", "_high")
        )
        bars = {
            "color": style.BLACK,
            "markerfacecolor": face,
            "elinewidth": 0.9,
            "capsize": 2,
            "linestyle": "",
        }
        axis.errorbar(at, y, [y - low, high - y], marker=marker, label=ATTACKS[attack], **bars)
        cut = [x for x, end in zip(at, low, strict=True) if end <= FLOOR]  # goes on to zero
        axis.plot(
            cut, [FLOOR] * len(cut), "v", color=style.BLACK, markersize=3.5, clip_on=False, in_layout=False
        )
    axis.set_yscale("log")
    axis.set_ylim(FLOOR, 1.25)
    axis.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    labels = [fill(title, 8, break_long_words=False) for title in titles]
    axis.set_xticks(range(len(titles)), labels, fontsize=6)
    axis.grid(axis="y", color="#dddddd", linewidth=0.4, zorder=0)
