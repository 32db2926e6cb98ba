"""The style of figures: a colour, marker and line for each method, sizes for a paper, reproducible files."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

# Before matplotlib, which would write the date into the files.
os.environ.setdefault("SOURCE_DATE_EPOCH", "0")

import matplotlib
from matplotlib.figure import Figure

COLUMN_INCHES, PAGE_INCHES = 3.25, 6.75
GREY = "#666666"
STYLE = Path(__file__).with_name("report.mplstyle")

# Okabe-Ito. A private method has the colour of the method it makes private, and solid lines.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = COLOURS


class Look(NamedTuple):
    """Colour, marker and line style of one method."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


LOOKS = {
    "zero_shot": Look(BLACK, "|", ":"),
    "in_context": Look(BLACK, "_", "-."),
    "adamw": Look(ORANGE, "P", "--"),
    "sgd": Look(GREEN, "s", "--"),
    "mezo": Look(VERMILION, "o", "--"),
    "dpzero": Look(VERMILION, "o", "-"),
    "dp_zo_gaussian": Look(BLUE, "^", "-"),
    "dp_zo_laplace": Look(SKY, "v", "-"),
    "dp_zo_laplace_pure": Look(PURPLE, "D", "-"),
    "dpgd_0th": Look(BLUE, "D", "-"),
    "dp_sgd": Look(GREEN, "s", "-"),
    "dp_adam": Look(ORANGE, "P", "-"),
    "dp_adamw": Look(ORANGE, "d", "-"),
    "lora": Look(PURPLE, "v", "--"),
    "dp_lora": Look(PURPLE, "v", "-"),
}
SPARE_MARKERS = tuple("X*h<>p")  # none of the above, so that no new method looks like a known one


def look(method: str) -> Look:
    """The look of a method; a method that is not in `LOOKS` gets one from its name."""
    number = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
    colour = COLOURS[number % 7]
    return LOOKS.get(method, Look(colour, SPARE_MARKERS[number // 7 % len(SPARE_MARKERS)], "-."))


def strokes(row: Any, **more: Any) -> dict[str, Any]:
    """How matplotlib draws the method of this row: filled markers if it is private. `more` goes first."""
    colour, marker, line = look(row["method"])
    face = {"markerfacecolor": colour if row["private"] else "white", "label": row["title"]}
    return {"color": colour, "marker": marker, "linestyle": line} | face | more


def save(figure: Figure, folder: Path, name: str, provenance: str) -> list[Path]:
    """Write NAME.pdf and NAME.png with the provenance in their metadata; equal figures give equal bytes."""
    metadata = {
        "pdf": {"Title": name, "Subject": provenance, "Creator": "dpzero", "CreationDate": None},
        "png": {"Title": name, "Description": provenance, "Software": None},
    }
    paths = []
    for suffix, fields in metadata.items():
        paths.append(Path(folder) / f"{name}.{suffix}")
        figure.savefig(paths[-1], metadata=fields)
    return paths


def footnote(figure: Figure, text: str) -> None:
    """A small grey line in the lower right corner."""
    figure.supxlabel(text, x=0.995, ha="right", fontsize=5, color=GREY)


def settings() -> AbstractContextManager[None]:
    """A context in which matplotlib draws in this style, whatever the user's own settings are."""
    own = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **own, "backend": "agg"})
