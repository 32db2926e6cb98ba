"""The tables and figures of the sweep `memory`, from records with made-up numbers that grow along straight lines."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from dpzero.report import figure_files, table_files
from dpzero.report.writing import write_figures, write_tables

GIB = 2**30
SIZES = {"opt-125m": 125e6, "opt-1.3b": 1.3e9, "opt-13b": 13e9}
LARGE = 355e6


def made(method="dpzero", model="opt-125m", task="8x512", peak=None, measured=None, **more) -> dict:
    """Of 4 (DPZero) or 16 bytes a parameter and 1 MiB an example and a quarter a token of length, both sixfold for AdamW."""
    adamw = method == "adamw"
    size, length = map(int, task.split("x"))
    parameters = SIZES.get(model, LARGE)
    each = 2**20 * (6 if adamw else 1)
    peak = peak or (16 if adamw else 4) * parameters + each * size + each * length / 4
    cell = {"task": task, "model": model, "method": method, "epsilon": "0", "seed": 0}
    settings = {"dtype": "float32", "measure": measured is not None or more.get("status") == "oom"}
    found = {
        "parameters": int(parameters),
        "weights_bytes": int(4 * parameters),
        "predicted_peak_bytes": int(peak),
    }
    found |= {"measured_peak_bytes": measured} if measured else {}
    return {
        "version": 1,
        "run": f"{task}/{model}/{method}/eps-0/seed-0",
        "cell": cell | {"settings": settings, "experiment": "memory"},
        "method": {
            "title": {"adamw": "AdamW"}.get(method, "DPZero"),
            "private": not adamw,
            "order": int(adamw),
        },
        "status": "ok",
        "error": None,
        "metrics": None,
        "memory": found,
        "time": {"wall_seconds": 1.0},
        "provenance": {"git": "abc1234", "dirty": False, "device": "A CPU", "packages": {"torch": "2"}},
    } | more


def several() -> list[dict]:
    sizes = ("4x128", "8x128", "64x128", "8x64", "8x512")
    records = [made(m, model) for m in ("dpzero", "adamw") for model in SIZES]
    records += [made(m, "roberta-large", size) for m in ("dpzero", "adamw") for size in sizes]
    return [*records[1:], made(measured=int(0.6 * GIB))]


@pytest.fixture
def tables(written, tmp_path):
    def build(records) -> dict[str, str]:
        write_tables("memory", written(records), tmp_path / "tables", "memory")
        return {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}

    return build


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_growth_is_the_slope_of_the_points(tables):
    files = tables(several())
    assert set(files) == set(table_files("memory"))
    dpzero, adamw = lines(files["growth.csv"])
    for row, bytes_each, factor in ((dpzero, 4, 1), (adamw, 16, 6)):
        assert float(row["parameters_slope_bytes"]) == pytest.approx(bytes_each, rel=1e-3)
        assert float(row["batch_size_slope_bytes"]) == pytest.approx(factor * 2**20, rel=1e-3)
        assert float(row["length_slope_bytes"]) == pytest.approx(factor * 2**18, rel=1e-3)
        assert float(row["parameters_largest_miss"]) < 1e-3


def test_no_line_is_drawn_through_two_points(tables):
    (row,) = lines(tables([made(), made(model="opt-13b")])["growth.csv"])
    assert row["parameters_slope_bytes"] == row["batch_size_slope_bytes"] == ""


def test_what_was_predicted_never_stands_under_measured(tables):
    """A run without a measurement has none, one that ran out of memory says so, a formula has a column of its own."""
    formula = made(model="opt-1.3b")
    formula["memory"] = {"parameters": 1, "weights_bytes": 4, "formula_peak_bytes": 7 * GIB}
    lost = made(model="opt-13b", status="oom", error="out of memory")
    markdown = tables([made(measured=GIB), formula, lost, made(task="4x512")])["peaks.md"]
    rows = [
        [c.strip() for c in row.strip("| ").split("|")]
        for row in markdown.splitlines()
        if row.startswith("|")
    ]
    predicted, by_formula, measured = (
        rows[0].index(name) for name in ("peak, predicted", "at least, by formula", "peak, measured")
    )
    found = {(row[0], row[1]): (row[predicted], row[by_formula], row[measured]) for row in rows[2:]}
    assert found["opt-125m", "8x512"][1:] == ("–", "1.000") and found["opt-125m", "4x512"][2] == "–"
    assert found["opt-1.3b", "8x512"] == ("–", "7.000", "–")
    assert found["opt-13b", "8x512"][2] == "out of memory" and found["opt-13b", "8x512"][0] != "–"


def test_published_figures_stand_beside_ours_as_ratios(tables):
    """DPZero, table 3: AdamW takes 15,820 MiB where DPZero takes 2,668."""
    records = [
        made(m, "roberta-large", "64x128", peak=p) for m, p in (("dpzero", 2 * GIB), ("adamw", 16 * GIB))
    ]
    rows = [r for r in lines(tables(records)["published.csv"]) if (r["paper"], r["table"]) == ("DPZero", "3")]
    ratios = {row["method"]: (float(row["ratio"]), row["our_ratio_predicted"]) for row in rows}
    assert ratios["AdamW"][0] == pytest.approx(15820 / 2668, rel=1e-3) and float(ratios["AdamW"][1]) == 8
    assert ratios["DPZero"] == (1, "1") and ratios["DP-LoRA (Li et al.)"][1] == ""
    assert all(row["counted"] for row in rows)


def test_figures_are_drawn(written, tmp_path):
    records = [*several(), made("adamw", status="oom", error="out of memory", task="16x512")]
    files = write_figures("memory", written(records), tmp_path, "memory")
    assert [file.name for file in files] == list(figure_files("memory"))
    assert min(Image.open(files[1]).size) > 400
