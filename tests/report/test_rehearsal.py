"""Every table and figure of a rehearsal says what it is, and compares nothing with published numbers."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure

from dpzero.report import FIGURES, TABLES, comparison, overview, redraw, style, training, writing
from dpzero.report.records import from_tables, to_frame

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"steps": 20, "train_examples": 64, "test_examples": 32}
WORDS = "REHEARSAL with at most 20 steps, 64 training rows, 32 scored rows: no result"


@pytest.fixture(scope="module")
def rehearsed(record) -> list[dict]:
    """Records of published cells."""
    names = {"task": "sst2", "model": "roberta-large"}
    cells = [("zero_shot", "0"), ("mezo", "inf"), ("dpzero", "2"), ("dpzero", "6"), ("adamw", "inf")]
    records = [record(method, epsilon, 42, **names) for method, epsilon in cells]
    for one in records:
        one["cell"]["rehearsal"] = LIMITS
        one["cell"]["settings"]["shots"] = 512
    return records


@pytest.fixture(scope="module")
def tables(rehearsed, written, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "tables"
    runs = [one["run"] for one in rehearsed]
    writing.write_tables("language", written(rehearsed), folder, "paper-roberta-rehearsal", runs, "fixed")
    return folder


def test_every_table_is_marked_in_each_of_its_forms(tables):
    names = {path.stem for path in tables.glob("*.tex")}
    assert names == {*TABLES, "published", "discrepancies"}
    for name in names:
        markdown, latex = ((tables / f"{name}.{ending}").read_text() for ending in ("md", "tex"))
        assert markdown.startswith(f"**{WORDS}. ") and f"- {WORDS} of the sweep." in markdown
        assert latex.startswith(f"% {WORDS}. ") and "\\toprule\nrehearsal & " in latex
        frame = pandas.read_csv(tables / f"{name}.csv")
        assert set(frame["rehearsal"]) <= {"yes"} and (len(frame) or name == "order")
    for name in ("runs.csv", "times.csv"):
        assert set(pandas.read_csv(tables / name)["rehearsal.steps"]) == {20}
    assert json.loads((tables / "provenance.json").read_text())["warnings"][0] == f"{WORDS} of the sweep."
    assert f"{WORDS} of the" in (tables / "privacy_statement.md").read_text().replace("\n  ", " ")


def test_published_numbers_stand_beside_ours_without_difference_and_verdict(tables, rehearsed):
    frame = pandas.read_csv(tables / "published.csv")
    assert frame["score_mean"].notna().all() and frame["published"].notna().all()
    fewer = copy.deepcopy(rehearsed)
    for one in fewer:  # as a rehearsal draws them
        one["cell"]["settings"]["shots"] = 32
    assert len(comparison.published(to_frame(fewer)).rows) >= len(frame) > 4
    assert set(frame["verdict"]) == {"not compared: a rehearsal"}
    assert frame[["difference", "difference_low", "difference_high"]].isna().all(axis=None)
    assert "0 of them tested" in (tables / "published.md").read_text()
    ours = copy.deepcopy(rehearsed)
    for one in ours:  # the same numbers of the sweep itself are compared, or told why not
        one["cell"].pop("rehearsal")
    verdicts = {row["verdict"] for row in comparison.published(to_frame(ours)).rows}
    assert verdicts and "not compared: a rehearsal" not in verdicts


def headline_of(figure: Figure) -> str:
    titles = [legend.get_title().get_text() for legend in figure.legends] + [figure.get_suptitle()]
    return " ".join(" ".join(titles).split())


def test_every_figure_has_the_mark_as_its_headline_and_in_its_caption(rehearsed, tmp_path):
    frame = to_frame(rehearsed)
    with style.settings():
        drawn = training.figures(frame)
        heights = {name: figure.get_figheight() for name, figure in drawn.items()}
        writing.save_figures(drawn, frame, tmp_path, "paper-roberta-rehearsal")
    assert set(drawn) == set(FIGURES)
    for name, figure in drawn.items():
        assert headline_of(figure) == WORDS and figure.get_figheight() > heights[name]
        figure.draw_without_rendering()
        boxes = [one.get_window_extent() for one in (*figure.legends, *filter(None, [figure._suptitle]))]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes), (
            name
        )
        assert f"{WORDS}." in (tmp_path / f"{name}.md").read_text()


def test_figures_that_are_drawn_again_from_tables_keep_the_mark(tables):
    frame = from_tables(tables)
    assert not [column for column in frame if column.endswith(("_x", "_y"))]
    with style.settings():
        (figure, *_) = redraw.figures_of("paper-roberta-rehearsal", frame).values()
        writing.save_figures({"accuracy_vs_epsilon": figure}, frame, tables.parent, "again")
    assert headline_of(figure) == WORDS


def test_a_rehearsal_is_no_sweep_of_the_overview(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
    before = overview.all_results(tmp_path)
    shutil.copytree(tmp_path / "quick", tmp_path / "quick-rehearsal")
    assert overview.all_results(tmp_path) == before
