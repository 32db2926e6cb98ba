"""The style of figures: a colour, marker and line for each method, sizes for a paper, reproducible files."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

# Before matplotlib, which would write the date into the files.
os.environ.setdefault("SOURCE_DATE_EPOCH", "0")

import matplotlib
from matplotlib.figure import Figure

COLUMN_INCHES, PAGE_INCHES = 3.25, 6.75
GREY = "#666666"
CHARACTERS_AN_INCH, HEADLINE_INCHES = 14, 0.16  # of a headline
STYLE = Path(__file__).with_name("report.mplstyle")

# The hues of Okabe and Ito (2008), darkened until text in them has a contrast of 4.5:1 on white. A private method has
# the colour and marker of the method that it makes private; it is solid and filled.
COLOURS = ("#000000", "#8F6400", "#6A3FA0", "#00694B", "#00508F", "#C24A00", "#A8327A")
BLACK, OCHRE, VIOLET, GREEN, BLUE, VERMILION, PURPLE = COLOURS


class Look(NamedTuple):
    """Colour, marker and line style of one method."""

    colour: str
    marker: str | tuple[int, int, int]
    line: str | tuple[int, tuple[float, ...]]


LOOKS = {
    "zero_shot": Look(BLACK, "*", ":"),
    "in_context": Look(BLACK, "X", "-."),
    "adamw": Look(OCHRE, "P", "--"),
    "adamw_checkpointing": Look(OCHRE, "X", ":"),
    "sgd": Look(GREEN, "s", "--"),
    "mezo": Look(VERMILION, "o", "--"),
    "public": Look(GREY, "8", "-."),
    "dpzero": Look(VERMILION, "o", "-"),
    "dpzero_16": Look(VERMILION, "D", (0, (5, 1))),  # batch 16
    "dp_votezo": Look(PURPLE, "*", "-"),
    "dp_votezo_untuned": Look(PURPLE, "8", (0, (3, 1))),
    "dp_votezo_quarter": Look(PURPLE, (4, 1, 0), (0, (5, 1))),  # of the forward passes
    "dpzero_accounted": Look(VERMILION, "d", (0, (3, 1))),
    "dp_zoso": Look(BLUE, "d", "-"),
    "dp_aggzo": Look(VIOLET, ">", "-"),
    "dp_aggzo_4": Look(VIOLET, ">", (0, (5, 1))),  # directions
    "dp_aggzo_16": Look(VIOLET, "<", (0, (5, 1))),
    "dp_aggzo_64": Look(VIOLET, "X", (0, (5, 1))),
    "geo_dpzo": Look(BLACK, "p", "-"),
    "dp_zo_gaussian": Look(BLUE, "^", "-"),
    "dp_zo_laplace": Look(VIOLET, "v", "-"),
    "dp_zo_laplace_pure": Look(PURPLE, "D", "-"),
    "dpgd_0th": Look(BLUE, "D", "-"),
    "dp_sgd": Look(GREEN, "s", "-"),
    "dp_sgd_ghost": Look(GREEN, "D", (0, (4, 1))),
    "dp_sgd_book_keeping": Look(GREEN, "^", ":"),
    "dp_sgd_per_layer": Look(GREEN, "v", "-."),
    "dp_sgd_hooks": Look(GREEN, "s", "-"),  # DP-SGD by per-sample gradients, which `dp_sgd` is
    "dp_adam": Look(OCHRE, "P", "-"),
    "dp_adamw": Look(OCHRE, "d", "-"),
    "lora": Look(PURPLE, "<", "--"),
    "dp_lora": Look(PURPLE, "<", "-"),
    "dp_lora_ghost": Look(PURPLE, (3, 1, 0), (0, (4, 1))),
    "dp_memarc_side": Look(BLUE, (4, 1, 45), "-"),
    "dp_memarc_side_ghost": Look(BLUE, "d", (0, (4, 1))),
    "dp_memarc_side_pool": Look(BLUE, "p", "-"),
    "dp_memarc_reversible": Look(OCHRE, "X", "-"),
    "dp_memarc_reversible_ghost": Look(OCHRE, "s", (0, (4, 1))),
    # of the sweep `body`
    "mezo_top": Look(VERMILION, "s", ":"),
    "dpzero_top": Look(VERMILION, "P", (0, (5, 1))),
    "dp_sgd_top": Look(GREEN, "p", "-"),
    # of the sweep `related`
    "dpzero_users": Look(VERMILION, "8", "-"),
    "dpzero_group": Look(VERMILION, "D", (0, (3, 1))),
    "dp_sgd_automatic": Look(GREEN, "p", (0, (5, 1))),
    "dp_sgd_users": Look(GREEN, (4, 1, 0), "-"),
    "dp_sgd_group": Look(GREEN, "d", (0, (3, 1))),
    "dp_sgd_replace_one": Look(GREEN, (6, 1, 0), "-."),
    "jft": Look(BLACK, "*", "-"),
    "pazo_mixed": Look(BLUE, "^", (0, (5, 1))),
    "pazo_subspace": Look(BLUE, "v", (0, (5, 1))),
    "pazo_select": Look(BLUE, ">", (0, (3, 1))),
    "pazo_tweets": Look(BLUE, (3, 1, 180), "-."),
    "dp_few_shot": Look(BLACK, "X", "-"),
    "public_rows": Look(GREY, (5, 1, 180), ":"),
    "dp_lora_book_keeping": Look(PURPLE, (3, 1, 90), ":"),
    "dp_lora_automatic": Look(PURPLE, (6, 1, 30), (0, (5, 1))),
    "dp_lora_per_layer": Look(PURPLE, (8, 1, 0), "-."),
    "dp_ffa_lora": Look(VIOLET, (3, 1, 270), "-"),
    "dp_adafest": Look(OCHRE, "P", (0, (5, 1))),
    "dp_sgd_embeddings": Look(GREEN, (5, 0, 180), (0, (4, 1))),
    # of the papers' sweeps
    "linear_probing": Look(GREEN, "v", "--"),
    "prefix": Look(PURPLE, ">", "--"),
    "mezo_lora": Look(VERMILION, "s", "--"),
    "mezo_prefix": Look(VERMILION, "D", "--"),
    "dpzero_as_published": Look(VERMILION, "s", (0, (3, 1))),
    "dpzero_sphere": Look(VERMILION, "^", (0, (3, 1))),
    "dp_aggzo_256": Look(VIOLET, "P", (0, (5, 1))),
    # of the sweep `ablation`
    "dpzero_full": Look(VERMILION, (4, 1, 0), "-"),
    "small_batch": Look(VERMILION, "D", "-"),
    "rademacher": Look(BLUE, "v", "-"),
    "low_rank": Look(BLUE, (3, 1, 0), "-"),
    "shrinkage": Look(OCHRE, "<", "-"),
    "corrected_moment": Look(OCHRE, (3, 1, 270), "-"),
    "second_moment": Look(OCHRE, ">", "-"),
    "joint": Look(VIOLET, "X", "-"),
    "votes": Look(PURPLE, "*", (0, (5, 1))),
    "whole_votes": Look(PURPLE, "P", "-"),
    "single_direction": Look(PURPLE, "d", "-"),
    "no_shrinkage": Look(PURPLE, "p", "-"),
    "many_directions": Look(BLACK, (6, 1, 0), "-"),
    "votes_full": Look(BLACK, "8", "-"),
}
SPARE_MARKERS = tuple("Hh")  # none of the above, so that no new method looks like a known one
OTHER_LINES = ("-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))


def look(method: str) -> Look:
    """The look of a method; a method that is not in `LOOKS` gets one from its name."""
    number = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
    marker = SPARE_MARKERS[number // 7 % len(SPARE_MARKERS)]
    return LOOKS.get(method, Look(COLOURS[number % 7], marker, OTHER_LINES[number // 21 % len(OTHER_LINES)]))


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


def headline(figure: Figure, text: str) -> None:
    """Bold lines above all else: over the legend, if there is one. The figure grows by their height."""
    text = fill(text, int(figure.get_figwidth() * CHARACTERS_AN_INCH))
    figure.set_figheight(figure.get_figheight() + HEADLINE_INCHES * (text.count("\n") + 1))
    look = {"size": 7.5, "weight": "bold"}
    if figure.legends:  # at the same place
        figure.legends[0].set_title(text, look)
    else:
        figure.suptitle(text, **look)


def footnote(figure: Figure, text: str) -> None:
    """A small grey line in the lower right corner."""
    figure.supxlabel(text, x=0.995, ha="right", fontsize=5, color=GREY)


def settings() -> AbstractContextManager[None]:
    """A context in which matplotlib draws in this style, whatever the user's own settings are."""
    own = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **own, "backend": "agg"})
