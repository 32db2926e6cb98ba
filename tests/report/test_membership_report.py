"""The table and the figure of membership inference say what the result says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.report import style
from dpzero.report.membership import FLOOR, figure, table
from dpzero.report.writing import write_study

METHODS = {
    "base": ("Base model", 0.0),
    "control": ("MeZO, members redrawn", 0.0),
    "mezo": ("MeZO", None),
    "dpzero_2": ("DPZero, ε = 2", 2.0),
}


def row(method: str, texts: str, attack: str, rate: float) -> dict:
    title, epsilon = METHODS[method]
    values = {"method": method, "title": title, "epsilon": epsilon, "texts": texts, "attack": attack}
    values |= {
        "true_positive_rate": rate,
        "true_positive_rate_low": rate - 0.006,
        "true_positive_rate_high": rate + 0.006,
    }
    values |= {
        "false_positive_rate": 0.01,
        "false_positive_rate_low": 0.009,
        "false_positive_rate_high": 0.011,
    }
    values |= {"auc": 0.6, "auc_low": 0.59, "auc_high": 0.61}
    if epsilon is not None:
        values |= {
            "ceiling": 0.01 + epsilon * 0.012,
            "ceiling_of_epsilon_delta": 0.01 + epsilon * 0.03,
            "refuted": False,
        }
    return values


@pytest.fixture
def result(study_provenance) -> dict:
    """Made-up numbers in the shape that the experiment leaves."""
    rates = {"base": 0.01, "control": 0.0, "mezo": 0.2, "dpzero_2": 0.02}
    return {
        "rows": [
            row(method, texts, attack, rate + (0.001 if attack == "lira" else 0))
            for method, rate in rates.items()
            for texts in ("natural", "mislabelled", "all")
            for attack in ("loss", "lira")
        ],
        "methods": [
            {"name": name, "noise_scale": 31.5 if name == "dpzero_2" else None, "dev_accuracy": 0.875}
            | {"fit_natural": 0.9, "fit_mislabelled": 0.25, "fit_all": 0.7}
            for name in ("base", "mezo", "dpzero_2")
        ],
        **{
            "task": "r8",
            "model": "minilm",
            "tune": "head",
            "pool": 400,
            "mislabelled": 100,
            "runs": 48,
            "steps": 1000,
        },
        **{"rate": 0.5, "delta": 1e-5, "false_positive_rate": 0.01, "confidence": 0.95, "accountant": "PLD"},
        "attacker": "sees the final weights",
        **{"noise_key": "published", "valid_release": False, "data": "public", "seconds": 300.0},
        "provenance": study_provenance,
    }


@pytest.fixture
def write(result, tmp_path):
    def build(folder: str) -> dict[str, Path]:
        source = tmp_path / "membership.json"
        source.write_text(json.dumps(result), "utf-8")
        return {
            path.name: path
            for path in write_study("membership", source, tmp_path / folder, tmp_path / folder)
        }

    return build


def test_four_files_are_written_and_writing_again_changes_no_byte(write, result):
    first = write("first")
    result["seconds"] = 1.0
    second = write("second")
    assert sorted(first) == ["membership.csv", "membership.md", "membership.pdf", "membership.png"]
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first)


def test_the_csv_holds_every_row_as_it_is(result):
    lines = list(csv.DictReader(io.StringIO(table(result).csv())))
    assert len(lines) == len(result["rows"]) == 24
    for line, row in zip(lines, result["rows"], strict=True):
        assert [line["method"], line["texts"], line["attack"]] == [
            row["method"],
            row["texts"],
            row["attack"],
        ]
        assert float(line["true_positive_rate_low"]) == pytest.approx(row["true_positive_rate_low"])
        assert line["ceiling"] == ("" if row["method"] == "mezo" else f"{row['ceiling']:.10g}")
        assert line["dev_accuracy"] == "0.875"


def test_the_markdown_shows_both_attacks_of_a_method_side_by_side(result):
    text = table(result).markdown()
    (line,) = (
        line for line in text.splitlines() if line.startswith("| DPZero, ε = 2 ") and "mislabelled" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["2.00% ± 0.60%", "2.10% ± 0.60%"]
    assert cells[6:] == ["3.40%", "7.00%", "25.0%", "87.5%"]
    assert "valid release: no" in text


@pytest.mark.parametrize("attack", [0, 1])
def test_a_refuted_claim_is_called_so_whichever_attack_refutes_it(result, attack):
    assert "%, refuted" not in table(result).markdown()
    next(row for row in result["rows"][attack:] if row["epsilon"] == 2.0)["refuted"] = True
    assert table(result).markdown().count("%, refuted") == 1


def test_the_figure_draws_each_rate_with_its_interval_and_each_ceiling(result):
    with style.settings():
        panels = figure(result).axes
    assert [axis.get_title() for axis in panels] == ["natural texts", "mislabelled texts"]
    for axis in panels:
        loss, lira = axis.containers
        assert loss.lines[0].get_ydata() == pytest.approx(
            [0.01, FLOOR, 0.2, 0.02]
        )  # no attack found: on the floor
        assert lira.lines[0].get_ydata() == pytest.approx([0.011, FLOOR, 0.201, 0.021])
        ends = [segment[:, 1].tolist() for segment in lira.lines[2][0].get_segments()]
        assert ends[2] == pytest.approx([0.195, 0.207]) and ends[1] == pytest.approx([FLOOR, 0.007])
        heights = {
            lines.get_label(): [segment[0][1] for segment in lines.get_segments()]
            for lines in axis.collections
            if lines.get_label() in ("allowed by the privacy profile", "by (ε, δ) alone")
        }
        assert list(heights.values()) == [pytest.approx([0.034]), pytest.approx([0.07])]  # of DPZero alone
        assert [label.get_text().split() for label in axis.get_xticklabels()][3] == ["DPZero,", "ε", "=", "2"]


@pytest.fixture
def compared(result) -> dict:
    """The same numbers as if LoRA had been tuned as well."""
    more = {"advantage": 0.3, "advantage_low": 0.2, "advantage_high": 0.4}
    for line in result["rows"]:
        line |= more | {"tune": "head", "trained_as": line["method"].replace("control", "mezo")}
        line |= {"advantage_ceiling": 0.5} if line["epsilon"] is not None else {}
    lora = [
        line | {"method": f"{line['method']}_lora", "tune": "lora"}
        for line in result["rows"]
        if line["method"] in ("mezo", "dpzero_2")
    ]
    for method in result["methods"]:
        method["use"] = None if method["name"] == "base" else "mezo"
    methods = [method | {"name": f"{method['name']}_lora"} for method in result["methods"][1:]]
    return result | {
        "rows": result["rows"] + lora,
        "methods": result["methods"] + methods,
        **{"tune": ["head", "lora"], "max_length": 16},
    }


def test_tunings_are_compared_in_one_row_a_method(compared):
    made = table(compared)
    assert len(list(csv.DictReader(io.StringIO(made.csv())))) == len(compared["rows"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.markdown_lines()[2:]]
    assert [line[:2] for line in lines] == [
        ["Base model", "–"],
        *(["MeZO, members redrawn", "head"], ["MeZO", "head"], ["DPZero, ε = 2", "head"]),
        *(["MeZO", "LoRA"], ["DPZero, ε = 2", "LoRA"]),
    ]
    assert lines[-1][5:] == ["3.40%", "30.00% ± 10.00%", "50.00%", "0.600", "90.0%", "25.0%", "87.5%"]


def test_a_figure_of_tunings_names_them_and_stacks_its_panels(compared):
    with style.settings():
        panels = figure(compared).axes
    labels = [" ".join(label.get_text().split()) for label in panels[-1].get_xticklabels()]
    assert labels[0] == "Base model" and labels[-2:] == ["MeZO, LoRA", "DPZero, ε = 2, LoRA"]
    assert panels[0].get_position().x0 == pytest.approx(panels[1].get_position().x0)


@pytest.mark.parametrize("content", ["", "{}", '{"rows": []}', "[1]"])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    for file in ("x.json", "absent.json"):
        with pytest.raises(UsageError, match="is no result of `membership`"):
            write_study("membership", tmp_path / file, tmp_path, tmp_path)
