"""The figures: every name has its function and caption, every mixture of runs can be drawn, redrawing changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import dpzero.report
from dpzero.plan import sweep as plan
from dpzero.plan.registry import card
from dpzero.report import FIGURES, drawing, figure_files, figures, majority, style
from dpzero.report.records import to_frame
from dpzero.report.writing import write_figures

FOLDER = Path(dpzero.report.__file__).parent
HAIR = 0.02  # inch


@pytest.fixture
def draw(written, tmp_path):
    """Draws the figures of these records; returns the files by name."""

    def build(records: list[dict], expected: list[str] | None = None) -> dict[str, Path]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return {
            path.name: path for path in write_figures("language", written(records), folder, "quick", expected)
        }

    return build


def test_a_figure_is_a_function_a_name_and_a_caption():
    files = ("figures.py", "memory_by_method.py")
    nodes = [node for file in files for node in ast.parse((FOLDER / file).read_text()).body]
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    assert functions == set(FIGURES)
    assert set(FIGURES) <= {path.stem for path in (FOLDER / "captions").glob("*.rst")}


def test_the_names_cost_no_import():
    code = "import sys, dpzero.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "pandas", "torch"} & set(loaded)


def test_redrawing_in_another_order_changes_no_byte(draw, sweep):
    few = ("zero_shot", "mezo", "dpzero", "dp_sgd")
    records = [one for one in sweep(epsilons=("2",)) if one["cell"]["method"] in few]
    first, again = draw(records), draw(records[::-1])
    assert set(first) == set(figure_files("language"))
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes(), name


def test_figures_carry_their_provenance_and_real_fonts(draw, record):
    files = draw([record(), record("mezo", "inf")])
    with Image.open(files["memory_by_method.png"]) as image:
        assert "commit abc1234" in image.info["Description"]
        assert "Software" not in image.info
    pdf = files["memory_by_method.pdf"].read_bytes()
    assert b"/Type3" not in pdf and b"/CreationDate" not in pdf
    assert b"commit abc1234" in pdf


@pytest.mark.filterwarnings("error")
def test_every_kind_of_gap_can_be_drawn(draw, record):
    bare = record("dp_adam", "8", seed=0, task="sst2")
    for section in ("memory", "time", "privacy", "provenance", "curve"):
        bare[section] = None
    slow = record("adamw", "inf", task="sst2")
    slow["time"]["train_seconds"] *= 1000
    slow["memory"]["peak_allocated_bytes"] *= 1000
    slow["curve"] = [point | {"step": 100 * point["step"]} for point in slow["curve"]]
    records = [
        *(
            record("dp_sgd", "2", status="oom"),
            record("dpzero", "2", 1, status="diverged"),
            record("dpzero", "2"),
        ),
        *(record("zero_shot", "0"), record("never_seen"), bare, slow, record("mezo", "inf", task="sst2")),
    ]
    files = draw(records, ["r8/minilm/dp_zo_gaussian/eps-0.5/seed-0"])
    assert all(path.stat().st_size > 2000 for path in files.values() if path.suffix != ".md")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method, epsilon, status", [("mezo", "inf", "ok"), ("dp_sgd", "2", "oom")])
def test_one_record_can_be_drawn(draw, record, method, epsilon, status):
    assert set(draw([record(method, epsilon, status=status)])) == set(figure_files("language"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["accuracy_vs_epsilon", "accuracy_vs_time", "memory_by_method"])
def test_long_names_and_wide_intervals_stay_in_their_places(record, name):
    """Five epsilons beside each other, and a method whose three seeds allow 27 to 108 per cent."""
    cells = [("dpzero", str(epsilon)) for epsilon in (1, 2, 4, 6, 8)] + [
        ("mezo", "inf"),
        ("in_context", "inf"),
    ]
    wide = {"in_context": (0.49, 0.82, 0.72)}
    records = [
        record(method, epsilon, seed, task="sentences", accuracy=wide.get(method, (0.80, 0.82, 0.81))[seed])
        for method, epsilon in cells
        for seed in range(3)
    ]
    for one in records:
        if one["cell"]["method"] == "in_context":
            one["method"]["order"], one["method"]["private"] = None, False
    with style.settings():
        figure = getattr(figures, name)(to_frame(records))
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        titles = [axis.title.get_window_extent() for axis in figure.axes if axis.title.get_text()]
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + HAIR and box.y1 <= height + HAIR
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))
    limits = [axis.get_ylim() for axis in figure.axes]
    assert name == "memory_by_method" or all(low > 40 and high < 100 for low, high in limits)


def test_accuracy_stands_at_the_forward_passes_and_a_line_leads_there(record):
    """Methods of equal cost stand side by side, all of them nearer to their cost than those of another."""
    methods = [("mezo", "inf"), ("dpzero", "2"), ("dp_zo_gaussian", "2"), ("dp_sgd", "2"), ("adamw", "inf")]
    records = [record(*method, seed) for method in methods for seed in range(3)]
    zeroth, first = 150 * 16 * 2, 60 * 16 * 3
    runs = to_frame(records)
    assert set(runs["example_forwards"]) == {zeroth, first}
    with style.settings():
        (axis,) = figures.accuracy_vs_forwards(runs).axes
    places = {line.get_label(): line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "None"}
    between = (zeroth * first) ** 0.5
    assert all(between < places[title] for title in ("MeZO", "DPZero", "DP-ZO (Gaussian)"))
    assert all(places[title] < between for title in ("DP-SGD", "AdamW"))
    assert len({places[title] for title in ("MeZO", "DPZero", "DP-ZO (Gaussian)")}) == 3
    (curve,) = [line for line in axis.lines if line.get_label() == "_dpzero"]
    assert curve.get_xdata()[[0, -1]] == pytest.approx([0, zeroth]) and len(curve.get_xdata()) == 7


def test_a_panel_without_dev_scores_says_so(record):
    run = record("mezo", "inf")
    run["curve"] = [{"step": 0, "train_seconds": 0.0}, {"step": 150, "train_seconds": 1.0}]
    with style.settings():
        (axis,) = figures.learning_curves(to_frame([run])).axes
    assert [text.get_text() for text in axis.texts] == ["no dev scores"]


def test_the_majority_class_of_a_task_of_ones_own_comes_from_its_records(record):
    mine = record("mezo", "inf", task="my_rows")
    assert majority.share(to_frame([mine])) is None
    mine["metrics"]["majority"] = 0.6
    assert majority.share(to_frame([mine])) == pytest.approx(0.6)
    assert majority.share(to_frame([record("mezo", "inf", task="r8")])) == pytest.approx(1083 / 2189)
    with style.settings():
        (axis,) = figures.accuracy_vs_epsilon(to_frame([mine])).axes
    (line,) = [line for line in axis.lines if line.get_label() == "majority class"]
    assert set(line.get_ydata()) == {60} and axis.get_ylim()[0] < 60


def test_known_methods_look_different_and_new_ones_like_none_of_them():
    of_others = {
        method: look for method, look in style.LOOKS.items() if method != "dp_sgd_hooks"
    }  # is dp_sgd
    assert len(set(of_others.values())) == len(of_others)
    assert not set(style.SPARE_MARKERS) & {look.marker for look in style.LOOKS.values()}
    assert style.look("a_new_one") == style.look("a_new_one")
    assert style.look("a_new_one").marker in style.SPARE_MARKERS


PAPERS = [name for name in plan.names() if name.startswith("paper-") and not name.endswith("-grid")]


@pytest.mark.parametrize("name", ["quick", "heads-tuned", "ablation", "related", *PAPERS])
def test_methods_of_a_sweep_differ_without_their_colour(name):
    methods = plan.read(name)["methods"]
    marks = [
        (style.look(method).marker, card((stanza or {}).get("use", method)).private)
        for method, stanza in methods.items()
    ]
    assert len(set(marks)) == len(marks)


def test_the_line_of_inference_is_that_of_most_methods(record):
    """Where batches differ, the median of four may be the inference of none."""
    records = [record(f"m{place}", "2") for place in range(4)]
    for one, mebibytes in zip(records, (6, 6, 12, 14), strict=True):
        one["memory"]["inference_peak_bytes"] = (87 + mebibytes) * 2**20
    with style.settings():
        (axis,) = figures.memory_by_method(to_frame(records)).axes
    assert "inference, 6.00" in [text.get_text() for text in axis.texts]


def test_the_long_names_of_a_grid_stay_inside_the_figure(record):
    points = [f"dp_zo_laplace_pure_learning_rate1e-{i}_clip0.0{i}" for i in range(1, 10)]
    records = [record(point, "2") for point in points]
    for one in records:
        one["method"]["title"] = f"DP-ZO ({one['cell']['method']})"
        one["memory"] = records[0]["memory"]
    records += [record(f"another_{i}", "2") for i in range(4)]
    with style.settings():
        for name in FIGURES:
            figure = getattr(figures, name)(to_frame(records))
            figure.draw_without_rendering()
            legends = [legend.get_window_extent() for legend in figure.legends]
            assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in legends), name
            for axis in figure.axes:
                labels = [text.get_window_extent() for text in axis.get_yticklabels() if text.get_text()]
                assert axis.bbox.width > figure.bbox.width / 4 and min(box.x0 for box in labels) >= 0, name


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.2))
def test_labels_are_apart_and_keep_their_order(places, gap):
    moved = drawing.spread(places, gap)
    ordered = [place for _, place in sorted(zip(places, moved, strict=True))]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(ordered))


@given(st.lists(st.integers(0, 20), max_size=8, unique=True))
def test_labels_that_are_apart_stay_where_they_are(places):
    assert drawing.spread([p / 20 for p in places], 0.04) == pytest.approx([p / 20 for p in places])
