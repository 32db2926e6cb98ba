"""Membership inference: the result of the experiment -> a table and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpzero.errors import UsageError
from dpzero.report import drawing, provenance, style
from dpzero.report.table import Table, number

ATTACKS = {"loss": "loss against base", "lira": "LiRA"}
LOOKS = {
    "loss": (style.BLUE, "s", "white"),
    "lira": (style.VERMILION, "o", style.VERMILION),
}  # colour, marker, face
CEILINGS = {
    "ceiling": ("allowed by the privacy profile", "-"),
    "ceiling_of_epsilon_delta": ("by (ε, δ) alone", ":"),
}
BESIDE = {"loss": -0.14, "lira": 0.14}  # of the distance between two methods
FLOOR = 0.004  # of the figure: intervals that reach zero end there


def write_membership(result: Path, tables: Path, figures: Path) -> list[Path]:
    """From the JSON file that the experiment left: membership.csv and .md in `tables`, .pdf and .png in `figures`.

    Returns the files; the same bytes for the same results. Raises UsageError for a file that is none.
    """
    try:
        found = json.loads(Path(result).read_text("utf-8"))
        found["rows"][0]["true_positive_rate"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{result} is no result of `membership` ({error!r}): run that first") from None
    for folder in (tables, figures):
        Path(folder).mkdir(parents=True, exist_ok=True)
    made, files = table(found), [Path(tables) / "membership.csv", Path(tables) / "membership.md"]
    files[0].write_text(made.csv(), "utf-8")
    files[1].write_text(made.markdown(), "utf-8")
    with style.settings():
        return files + style.save(
            figure(found), Path(figures), "membership", provenance.short(found["provenance"])
        )


def table(found: dict[str, Any]) -> Table:
    """Numbers: a line for each method, group of texts and attack. Text: the two attacks side by side."""
    rate = f"{100 * found['false_positive_rate']:g} %"
    made = Table(
        f"Membership inference on {found['task']} ({found['model']}, head trained): true positives at {rate} false ones; "
        "last iterate; settings set by first trials on the same pool (not accounted)"
    )
    learnt = {method["name"]: method for method in found["methods"]}
    learnt["control"] = learnt["mezo"]
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["rows"]:
        method = learnt[row["method"]]
        made.values.append({**row, **{name: method[name] for name in ("noise_scale", "dev_accuracy")}})
        line = pairs.setdefault(
            (row["method"], row["texts"]), {"method": row["title"], "texts": row["texts"]}
        )
        line[f"TPR, {ATTACKS[row['attack']]}"] = with_interval(row, "true_positive_rate") + (
            ", refuted" if row.get("refuted") else ""
        )
        if row["attack"] == "lira":
            line["its FPR"] = with_interval(row, "false_positive_rate")
            line["its AUC"] = number(row["auc"], ".3f")
            line["ceiling"] = number(row.get("ceiling"), ".2%")
            line["ceiling of (ε, δ) alone"] = number(row.get("ceiling_of_epsilon_delta"), ".2%")
            line["labels learnt"] = number(method[f"fit_{row['texts']}"], ".1%")
            line["dev accuracy"] = number(method["dev_accuracy"], ".1%")
    made.shown = list(pairs.values())
    made.notes = notes(found)
    made.provenance = provenance.short(found["provenance"])
    return made


def with_interval(row: dict[str, Any], name: str) -> str:
    """A rate in per cent, with half its interval."""
    return f"{number(row[name], '.2%')} ± {number(row[f'{name}_high'] - row[name], '.2%')}"


def notes(found: dict[str, Any]) -> list[str]:
    """How it was played and how to read it."""
    pool, runs, level = found["pool"], found["runs"], f"{100 * found['confidence']:g} %"
    return [
        f"Pool of {pool} distinct training texts, {found['mislabelled']} of them under a wrong label; each of {runs} runs of a method "
        f"trains on a random half, {found['steps']} steps, a member being in a batch with probability {found['rate']:g}.",
        f"The attacker {found['attacker']}. Thresholds come from the other runs' non-members.",
        f"±: {level} t-interval over runs, which share the pool. It says nothing of other pools.",
        "Ceiling: min over e of exp(e) FPR + δ(e), δ(e) from the run's accounted privacy loss distribution "
        f"({found['accountant']}, δ = {found['delta']:g}); beside it exp(ε) FPR + δ, which (ε, δ) alone allows. A claim is called "
        "refuted where the whole interval lies above the ceiling at the upper end of the measured FPR, for either attack taken alone.",
        "Members redrawn: the same models, asked for members that nobody trained on. An attack that finds more than 1 % there cheats.",
        "Labels learnt: members to which the trained model gives the label it was trained with. The control's are MeZO's.",
        "Steps, step sizes and clip were set by first trials on the same pool with other draws, MeZO's so that it memorises; not accounted.",
        "That an attack finds little proves nothing: stronger attackers (of the transcript, or with chosen texts) exist.",
        f"Keys are {found['noise_key']} and the data {found['data']}: valid release: {'yes' if found['valid_release'] else 'no'}.",
    ]


def figure(found: dict[str, Any]) -> Figure:
    """True positive rate of each method, a panel for each group of texts, with what its claim allows."""
    rows = [row for row in found["rows"] if row["texts"] != "all"]
    groups = list(dict.fromkeys(row["texts"] for row in rows))
    drawn, panels = drawing.canvas(1, len(groups), 2.9, sharey=True)
    for axis, group in zip(panels[0], groups, strict=True):
        _panel(axis, [row for row in rows if row["texts"] == group], found["false_positive_rate"])
        axis.set_title(f"{group} texts")
    panels[0][0].set_ylabel(f"true positive rate at {100 * found['false_positive_rate']:g} % false positives")
    drawn.legend(
        *panels[0][-1].get_legend_handles_labels(), loc="outside upper center", ncols=5, columnspacing=1.2
    )
    made = found["provenance"]
    note = f"membership: {found['runs']} runs a method · {made['git'][:7]}{'+' if made['dirty'] else ''} · {made['device']}"
    drawn.supxlabel(note, x=0.995, ha="right", fontsize=5, color=style.GREY)
    return drawn


def _panel(axis: Axes, rows: list[dict[str, Any]], target: float) -> None:
    titles = list(dict.fromkeys(row["title"] for row in rows))
    axis.axhline(target, color=style.GREY, linestyle="--", linewidth=0.7, zorder=1, label="guessing")
    for name, (label, line) in CEILINGS.items():
        places = {titles.index(row["title"]): row[name] for row in rows if row.get("epsilon") and name in row}
        x, y = numpy.array(list(places)), list(places.values())
        axis.hlines(y, x - 0.36, x + 0.36, color=style.BLACK, linestyle=line, linewidth=1.4, label=label)
    for attack, (colour, marker, face) in LOOKS.items():
        some = [row for row in rows if row["attack"] == attack]
        x = [titles.index(row["title"]) + BESIDE[attack] for row in some]
        y, low, high = (
            numpy.maximum(FLOOR, [row[f"true_positive_rate{end}"] for row in some])
            for end in ("", "_low", "_high")
        )
        bars = {"color": colour, "markerfacecolor": face, "elinewidth": 0.9, "capsize": 2, "linestyle": ""}
        axis.errorbar(x, y, [y - low, high - y], marker=marker, label=ATTACKS[attack], **bars)
    axis.set_yscale("log")
    axis.set_ylim(FLOOR, 1.25)
    axis.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(
        range(len(titles)), [fill(title, 8, break_long_words=False) for title in titles], fontsize=6
    )
    axis.grid(axis="y", color="#dddddd", linewidth=0.4, zorder=0)
