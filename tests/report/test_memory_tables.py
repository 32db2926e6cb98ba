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


def memory_record(method="dpzero", model="opt-125m", task="8x512", peak=None, measured=None, **more) -> dict:
    """Of 4 (DPZero) or 16 bytes a parameter and 1 MiB an example and a quarter a token of length, both sixfold for AdamW."""
    adamw = method == "adamw"
    size, length = map(int, task.split("x"))
    parameters = SIZES.get(model, LARGE)
    each = 2**20 * (6 if adamw else 1)
    peak = peak or (16 if adamw else 4) * parameters + each * size + each * length / 4
    cell = {"task": task, "model": model, "method": method, "epsilon": "0", "seed": 0}
    settings = {"dtype": "float32", "measure": measured is not None or more.get("status") == "oom"}
    memory = {
        "parameters": int(parameters),
        "weights_bytes": int(4 * parameters),
        "predicted_peak_bytes": int(peak),
    }
    memory |= {"measured_peak_bytes": measured} if measured else {}
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
        "memory": memory,
        "time": {"wall_seconds": 1.0},
        "provenance": {"git": "abc1234", "dirty": False, "device": "A CPU", "packages": {"torch": "2"}},
    } | more


def all_records() -> list[dict]:
    sizes = ("4x128", "8x128", "64x128", "8x64", "8x512")
    records = [memory_record(m, model) for m in ("dpzero", "adamw") for model in SIZES]
    records += [memory_record(m, "roberta-large", size) for m in ("dpzero", "adamw") for size in sizes]
    return [*records[1:], memory_record(measured=int(0.6 * GIB))]


@pytest.fixture
def tables(written, tmp_path):
    def build(records) -> dict[str, str]:
        write_tables("memory", written(records), tmp_path / "tables", "memory")
        return {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}

    return build


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_growth_is_the_slope_of_the_points(tables):
    files = tables(all_records())
    assert set(files) == set(table_files("memory"))
    dpzero, adamw = lines(files["growth.csv"])
    for row, bytes_each, factor in ((dpzero, 4, 1), (adamw, 16, 6)):
        assert float(row["parameters_slope_bytes"]) == pytest.approx(bytes_each, rel=1e-3)
        assert float(row["batch_size_slope_bytes"]) == pytest.approx(factor * 2**20, rel=1e-3)
        assert float(row["length_slope_bytes"]) == pytest.approx(factor * 2**18, rel=1e-3)
        assert float(row["parameters_largest_miss"]) < 1e-3


def test_no_line_is_drawn_through_two_points(tables):
    (row,) = lines(tables([memory_record(), memory_record(model="opt-13b")])["growth.csv"])
    assert row["parameters_slope_bytes"] == row["batch_size_slope_bytes"] == ""


def test_a_predicted_peak_is_never_shown_as_measured(tables):
    """A run without a measurement has none, one that ran out of memory says so, a formula has a column of its own."""
    formula = memory_record(model="opt-1.3b")
    formula["memory"] = {"parameters": 1, "weights_bytes": 4, "formula_peak_bytes": 7 * GIB}
    lost = memory_record(model="opt-13b", status="oom", error="out of memory")
    markdown = tables([memory_record(measured=GIB), formula, lost, memory_record(task="4x512")])["peaks.md"]
    rows = [
        [c.strip() for c in row.strip("| ").split("|")]
        for row in markdown.splitlines()
        if row.startswith("|")
    ]
    predicted, by_formula, measured = (
        rows[0].index(name) for name in ("peak, predicted", "at least, by formula", "peak, measured")
    )
    shown = {(row[0], row[1]): (row[predicted], row[by_formula], row[measured]) for row in rows[2:]}
    assert shown["opt-125m", "8x512"][1:] == ("–", "1.000") and shown["opt-125m", "4x512"][2] == "–"
    assert shown["opt-1.3b", "8x512"] == ("–", "7.000", "–")
    assert shown["opt-13b", "8x512"][2] == "out of memory" and shown["opt-13b", "8x512"][0] != "–"


def test_published_peaks_are_compared_as_ratios(tables):
    """DPZero, table 3: AdamW takes 15,820 MiB where DPZero takes 2,668."""
    records = [
        memory_record(m, "roberta-large", "64x128", peak=p)
        for m, p in (("dpzero", 2 * GIB), ("adamw", 16 * GIB))
    ]
    rows = [r for r in lines(tables(records)["published.csv"]) if (r["paper"], r["table"]) == ("DPZero", "3")]
    ratios = {row["method"]: (float(row["ratio"]), row["our_ratio_predicted"]) for row in rows}
    assert ratios["AdamW"][0] == pytest.approx(15820 / 2668, rel=1e-3) and float(ratios["AdamW"][1]) == 8
    assert ratios["DPZero"] == (1, "1") and ratios["DP-LoRA (Li et al.)"][1] == ""
    assert all(row["counted"] for row in rows)


def test_dp_memarc_is_compared_with_dp_sgd_on_the_same_batch(tables):
    """Predicted and measured apart, a lower bound as one, and the ratio of the paper's abstract beside them."""
    peaks = {"dp_memarc_side": 2 * GIB, "dp_sgd_ghost": 8 * GIB, "dpzero": GIB}
    records = [memory_record(m, "minilm", "16x128", peak=p, measured=p // 2) for m, p in peaks.items()]
    hooks = memory_record("dp_sgd_hooks", "minilm", "16x128")
    hooks["memory"] = {"parameters": 1, "weights_bytes": 4, "formula_peak_bytes": 12 * GIB}
    files = tables([*records, hooks, memory_record("dp_sgd_ghost", "minilm", "1x128")])
    assert set(files) == set(table_files("memory", [record["run"] for record in records]))
    (row,) = lines(files["ratios.csv"])
    assert (row["ghost_predicted"], row["ghost_measured"], row["dpzero_predicted"]) == ("4", "4", "0.5")
    assert (row["hooks_predicted"], row["hooks_at_least"], row["hooks_measured"]) == ("", "6", "")
    assert row["published"] == "2.5" and "≥ 6.00×" in files["ratios.md"] and "lora_predicted" not in row


def test_figures_are_drawn(written, tmp_path):
    records = [*all_records(), memory_record("adamw", status="oom", error="out of memory", task="16x512")]
    files = write_figures("memory", written(records), tmp_path, "memory")
    assert [file.name for file in files] == list(figure_files("memory"))
    assert min(Image.open(files[1]).size) > 400
