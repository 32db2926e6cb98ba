"""The studies whose tables the repository holds: small ones, with the columns of those tables, and where it is cheap with their rows."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path

import pytest

from dpzero import __main__ as command_line
from dpzero.cli import studies
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.studies import batch_invariance, calibration, linear_probe, precision, quadratic_residual

ROOT = Path(__file__).resolve().parents[2]


def committed(study: str) -> list[dict[str, str]]:
    with (ROOT / "results" / studies.STUDIES[study][1]).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_residuals_of_the_quadratic_equal_the_table(monkeypatch):
    """Of DPZero at d = 20; MeZO ends there at rounding errors, which another machine need not share."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(quadratic_residual, "DIMENSIONS", (20,))
    monkeypatch.setattr(quadratic_residual, "METHODS", ("dpzero",))
    rows = [{key: str(value) for key, value in row.items()} for row in quadratic_residual.rows()]
    known = [row for row in committed("quadratic-residual") if row["dimension"] == "20"]
    assert rows == [row for row in known if row["method"] == "dpzero"] and len(rows) == 2


def test_a_calibration_equals_its_row_in_the_table():
    """But for the time that they took."""
    for row, known in zip(islice(calibration.rows(), 1), committed("calibration"), strict=False):
        assert row.keys() == known.keys()
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in known.items() if k != "seconds"
        }


def test_bfloat16_moves_the_projected_gradient_of_a_small_model(cache, monkeypatch):
    monkeypatch.setattr(precision, "CASES", [("toy", "tiny-encoder")])
    rows = list(precision.rows())
    assert [row["smoothing"] for row in rows] == [1e-3, 1e-2]
    assert all(row.keys() == committed("precision")[0].keys() for row in rows)
    assert all(row["rms_float32"] > row["rms_error_bfloat16"] > 0 for row in rows)


def test_a_linear_probe_learns_separable_features(cache, tmp_path, monkeypatch):
    (tmp_path / "rte").mkdir()
    pair = {"sentence1": "it is so", "sentence2": "it is", "label": 0}
    other = {"sentence1": "not at all", "sentence2": "never so", "label": 1}
    for name in ("train", "validation"):
        lines = [json.dumps(row) for row in (pair, other) * 20]
        (tmp_path / "rte" / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    rows = list(linear_probe.rows("tiny-encoder"))
    assert [row["features"] for row in rows] == [row["features"] for row in committed("linear-probe")]
    assert all(row.keys() == committed("linear-probe")[0].keys() for row in rows)
    assert all(row["accuracy_test"] == 1 and row["test_rows"] == 40 for row in rows)


@pytest.mark.parametrize("size", [2, 64])
def test_batch_invariance_measures_the_missing_rows(cache, tmp_path, monkeypatch, size):
    table = tmp_path / "results" / studies.STUDIES["batch-invariance"][1]
    table.parent.mkdir(parents=True)
    table.write_text("model,compute,batch_size\ntiny,float32,1\n")
    toy = tasks.load("toy")
    tiny = (
        text_classifier.load("tiny-encoder", toy, "bias"),
        encoding.encode(toy, "tiny-encoder", 24)["train"],
    )
    for name, value in (("MODELS", ("tiny",)), ("SIZES", (1, size)), ("ROUNDS", 2)):
        monkeypatch.setattr(batch_invariance, name, value)
    monkeypatch.setattr(batch_invariance, "load", lambda name: tiny)
    monkeypatch.setattr(losses, "COMPUTE", ("float32",))
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["study", "batch-invariance"]) == 0
    with table.open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["batch_size"], second["batch_size"]) == ("1", str(size))
    assert second["others_move_over_clip_text"] == "0"
    assert (second.get("ratio_median") is not None) == (size == 64)
