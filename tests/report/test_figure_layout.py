"""What a reader needs of every figure of the committed results: text that stands alone, contrast, one look a method."""

from __future__ import annotations

import json
from functools import cache
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose

from dpzero.files import is_try
from dpzero.report import FIGURES, figures, redraw, style
from dpzero.report.writing import module_of

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(path.parents[1].name for path in (ROOT / "results").glob("*/tables/times.csv"))
STUDIES = [
    *(
        (study, path)
        for study in redraw.STUDIES
        for path in sorted((ROOT / f"results/{study}/tables").glob("*.json"))
    ),
]
LEAST_CONTRAST = 4.5  # WCAG 2.1, 1.4.3: text
TITLES = {
    "rte": "RTE",
    "minilm": "all-MiniLM-L6-v2 (22.7M)",
    "smollm2-135m": "SmolLM2-135M-Instruct (dequantised)",
}
HAIR = 1.0  # pixel, at 100 in an inch


@cache
def drawn(folder: str) -> dict[str, Figure]:
    """Every figure that a folder's committed tables can draw, by FOLDER/NAME."""
    with style.settings():
        if folder in redraw.STUDIES:
            results = [path for study, path in STUDIES if study == folder]
            found = {
                path.stem: module_of(folder).figure(json.loads(path.read_text("utf-8"))) for path in results
            }
        else:
            found = redraw.figures_of(folder, redraw.runs_of(ROOT / "results" / folder / "tables", TITLES))
    return {f"{folder}/{name}": figure for name, figure in found.items()}


def figure_of(name: str) -> Figure:
    return drawn(name.partition("/")[0])[name]


def slow_unless_first(values: list[str]) -> list:
    """Figures of the first screen's sweep in each run of the tests, all others in the slow ones."""
    return [
        value if value.startswith("quick") else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]


def texts(figure: Figure) -> list[Text]:
    """The texts that matplotlib draws: of ticks, those within the limits of their axis."""
    shown: list[Text] = []
    draw = Text.draw

    def draw_and_note(text: Text, renderer: RendererBase) -> None:
        if text.get_visible() and text.get_text().strip():
            shown.append(text)
        draw(text, renderer)

    with style.settings(), patch.object(Text, "draw", draw_and_note):
        figure.draw_without_rendering()
    return shown


def contrast(colour: str, ground: str = "white") -> float:
    """Of two colours by WCAG 2.1: 1 for equal ones, 21 for black on white."""
    lights = []
    for name in (colour, ground):
        parts = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(name)
        ]
        lights.append(0.05 + 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return max(lights) / min(lights)


def searched(sweep: str) -> bool:
    """Whether the settings of a sweep were searched for."""
    return (ROOT / "results" / sweep / "tables" / "search.csv").exists()


def names() -> list[str]:
    kinds = {sweep: [name for name in FIGURES if name not in redraw.NEED_RECORDS] for sweep in SWEEPS}
    kinds |= {sweep: [*kinds[sweep], "search"] for sweep in SWEEPS if searched(sweep)}
    kinds |= {"memory": ["memory_by_size", "memory_by_batch"], "guarantees": ["guarantees"]}
    return [f"{sweep}/{name}" for sweep, found in kinds.items() for name in found] + [
        f"{study}/{path.stem}" for study, path in STUDIES
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", slow_unless_first(names()))
def test_no_text_touches_another_or_leaves_the_page(name):
    figure = figure_of(name)
    shown = texts(figure)
    page, boxes = figure.bbox, [(text.get_text(), text.get_window_extent()) for text in shown]
    assert boxes
    assert [
        text
        for text, box in boxes
        if box.x0 < -HAIR or box.y0 < -HAIR or box.x1 > page.x1 + HAIR or box.y1 > page.y1 + HAIR
    ] == []
    assert [
        (text, other)
        for (text, box), (other, its) in combinations(boxes, 2)
        if box.padded(-HAIR).overlaps(its)
    ] == []


@pytest.mark.parametrize("name", slow_unless_first(names()))
def test_text_can_be_read_on_white(name):
    colours = {to_hex(text.get_color()) for text in texts(figure_of(name))}
    assert {colour: contrast(colour) for colour in colours if contrast(colour) < LEAST_CONTRAST} == {}


def test_every_colour_of_a_method_has_the_contrast_of_text():
    assert min(contrast(colour) for colour in (*style.COLOURS, style.GREY)) >= LEAST_CONTRAST


@pytest.mark.parametrize("name", slow_unless_first(names()))
def test_no_bar_stands_on_a_logarithmic_axis(name):
    for axis in figure_of(name).axes:
        bars = [one for one in axis.containers if isinstance(one, BarContainer)]
        assert not bars or "log" not in (axis.get_xscale(), axis.get_yscale())


@pytest.mark.slow
def test_a_method_has_one_colour_and_marker_in_every_figure():
    looks: dict[str, set] = {}
    folders = [*SWEEPS, *redraw.REPORTS, *redraw.STUDIES]
    for name, figure in (item for folder in folders for item in drawn(folder).items()):
        for legend in figure.legends if name.partition("/")[0] not in ("guarantees", "membership") else ():
            for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
                looks.setdefault(text.get_text(), set()).add(
                    (to_hex(handle.get_color()), handle.get_marker())
                )
    assert "DPZero" in looks and "AdamW" in looks
    assert {method: found for method, found in looks.items() if len(found) > 1} == {}


@pytest.mark.parametrize("sweep", slow_unless_first(SWEEPS))
def test_methods_of_a_figure_differ_without_their_colour(sweep):
    runs = redraw.runs_of(ROOT / "results" / sweep / "tables", TITLES)
    methods = runs[~runs["run"].map(is_try)].drop_duplicates("method")
    marks = [(style.look(row.method).marker, bool(row.private)) for row in methods.itertuples()]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("sweep", slow_unless_first(SWEEPS))
def test_every_accuracy_panel_has_the_majority_class(sweep):
    for kind in ("accuracy_vs_epsilon", "accuracy_vs_time"):
        for axis in figure_of(f"{sweep}/{kind}").axes:
            assert "majority class" in [line.get_label() for line in axis.lines]


@pytest.mark.parametrize("sweep", slow_unless_first(SWEEPS))
def test_points_of_one_epsilon_stay_in_its_slot(sweep):
    for axis in figure_of(f"{sweep}/accuracy_vs_epsilon").axes:
        ticks = axis.get_xticks()
        assert len(ticks)
        for line in axis.lines:
            if line.get_marker() not in ("None", "none", "", None) and line.get_linestyle() == "None":
                assert all(min(abs(x - tick) for tick in ticks) < 0.5 for x in line.get_xdata())


@pytest.mark.slow
def test_methods_of_equal_memory_share_a_point():
    (axis,) = figure_of("heads/memory_by_method").axes
    assert len(axis.get_yticks()) == 1
    assert all(method in axis.get_yticklabels()[0].get_text() for method in ("DPZero", "DP-SGD", "AdamW"))
    assert axis.get_title().startswith("RTE, sst2, sst5")


@pytest.mark.slow
def test_in_context_learning_needs_the_same_memory_in_every_figure():
    shown = {}
    for sweep in ("heads-lm", "heads-lm-embedded"):
        (axis,) = figure_of(f"{sweep}/memory_by_method").axes
        heights = {
            tick.get_text().split("\n")[0]: y
            for tick, y in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)
        }
        height = heights["In-context learning"]
        shown[sweep] = next(text.get_text() for text in axis.texts if text.xy[1] == height)
    assert shown == {"heads-lm": "not measured", "heads-lm-embedded": "558 (5.1× of 110)"}  # never 110 MiB


@pytest.mark.slow
def test_titles_are_words_where_they_are_known():
    titles = [axis.get_title() for axis in figure_of("heads/accuracy_vs_epsilon").axes]
    assert titles[0] == f"RTE\n{TITLES['minilm']}"
    assert titles[1] == f"sst2\n{TITLES['minilm']}"  # no title: its name


def test_drawing_from_tables_is_drawing_from_records(record, written, tmp_path):
    from dpzero.report.records import from_tables, load
    from dpzero.report.writing import write_tables

    records = [
        record("zero_shot", "0"),
        *(record("mezo", "inf", seed) for seed in range(3)),
        record("dpzero", "2"),
    ]
    paths = written(records)
    write_tables("language", paths, tmp_path, "quick")
    ours, theirs = load(paths), from_tables(tmp_path)
    for name in (
        "score",
        "epsilon_value",
        "rank",
        "method",
        "time.train_seconds",
        "provenance.git",
        "private",
    ):
        assert ours[name].tolist() == pytest.approx(theirs[name].tolist(), nan_ok=True), name
    with style.settings():
        both = [figures.accuracy_vs_epsilon(runs) for runs in (ours, theirs)]
    lines = [[line.get_xydata() for axis in figure.axes for line in axis.lines] for figure in both]
    for line, other in zip(*lines, strict=True):
        assert_allclose(line, other, rtol=1e-8)


def test_redrawing_writes_what_is_committed(tmp_path):
    """The captions at least: the bytes of a picture follow the version of matplotlib and its fonts."""
    for path in (ROOT / "figures").rglob("*.png"):
        assert path.with_suffix(".md").exists(), f"{path} has no caption"
        assert path.with_suffix(".md").read_text("utf-8").startswith("**")
