"""The table and the figure of contextual protection say what the result says, and give a leak no epsilon."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from dpzero.report import style
from dpzero.report.contextual_protection import LEAK_BASELINE, exposure_of_a_guess, figure, table
from dpzero.report.writing import write_study

MEASURED = {"exposure": 9.0, "exposure_of_others": 1.4, "extracted": 0.9, "written": 0.8, "known_gain": 2.0}
MEASURED |= {"auc": 0.95, "true_positive_rate": 0.7, "false_positive_rate": 0.1, "advantage": 0.8}


def row(method: str, prompt: str, epsilon: float | None) -> dict:
    line = {"method": method, "title": method, "prompt": prompt, "asked": prompt, "epsilon": epsilon}
    line |= {"private": bool(epsilon), "noise_scale": 2.0 if epsilon else None}
    for name, value in MEASURED.items():
        line |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    return line | ({"advantage_ceiling": 0.25, "refuted": False} if epsilon is not None else {})


@pytest.fixture
def result(study_provenance) -> dict:
    return {
        "rows": [row("base", "plain", 0.0), row("contextual", "default", None), row("dp_sgd", "plain", 8.0)],
        **{"model": "smollm2-135m", "people": 16, "digits": 3, "runs": 4, "steps": 30, "rate": 0.5},
        **{"delta": 1e-5, "false_positive_rate": 0.1, "confidence": 0.95, "accountant": "PLD"},
        **{"compute": "bfloat16", "noise_key": "published", "valid_release": False, "data": "made up"},
        "provenance": study_provenance,
    }


def test_a_leak_baseline_is_named_so_and_has_no_epsilon(result):
    made = table(result)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.markdown_lines()[2:]]
    assert [line[1] for line in lines] == ["trained on nothing", LEAK_BASELINE, "ε = 8, δ = 1e-05"]
    values = list(csv.DictReader(io.StringIO(made.csv())))
    assert [(line["private"], line["epsilon"]) for line in values] == [
        ("false", "0"),
        ("false", ""),
        ("true", "8"),
    ]
    assert "private: false" in made.markdown() and "valid release: no" in made.markdown()


def test_a_row_has_each_measure_with_its_interval(result):
    (line,) = [line for line in table(result).markdown_lines() if line.startswith("| contextual ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:7] == ["9.0 ± 0.1", "1.4 ± 0.1", "90% ± 10%", "80% ± 10%"]
    assert cells[-2:] == ["–", "2.0 ± 0.1"]


@pytest.mark.parametrize("codes", [10, 1000])
def test_a_guess_has_the_mean_exposure_of_all_ranks(codes):
    ranks = range(1, codes + 1)
    assert exposure_of_a_guess(codes) == pytest.approx(sum(math.log2(codes / rank) for rank in ranks) / codes)


def test_a_refuted_claim_is_called_so(result):
    result["rows"][-1]["refuted"] = True
    assert "ε = 8, δ = 1e-05, refuted" in table(result).markdown()


def test_the_figure_marks_private_methods(result):
    with style.settings():
        panels = figure(result).axes
    for axis in panels:
        faces = [container.lines[0].get_markerfacecolor() for container in axis.containers]
        assert faces == ["white", "white", style.BLACK]
    assert [bar.lines[0].get_xdata()[0] for bar in panels[1].containers] == pytest.approx([90.0] * 3)


def test_the_files_are_written(result, tmp_path):
    source = tmp_path / "contextual-protection.json"
    source.write_text(json.dumps(result), "utf-8")
    names = [
        path.name for path in write_study("contextual-protection", source, tmp_path, tmp_path / "figures")
    ]
    assert names == [f"contextual-protection.{suffix}" for suffix in ("csv", "md", "pdf", "png", "md")]
