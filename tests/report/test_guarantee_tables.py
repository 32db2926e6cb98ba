"""The table and the figure of the sweep `guarantees`, from records with made-up numbers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

import dpzero.report
from dpzero.report import KINDS, figure_files, guarantees, table_files
from dpzero.report.writing import module_of, write_figures, write_tables

TITLES = {"dpzero": "DPZero", "dp_aggzo": "DP-AggZO", "dp_zoso": "DP-ZOSO, DP-ZOPO"}


def guarantee_record(
    method="dpzero", epsilon="2", task="sst2", low=1.5, high=9.0, size=1024, last=64
) -> dict:
    """A record of the sweep."""
    poisson = method == "dp_aggzo"
    settings = {"dataset_size": size, "assumed_size": 0, "batch_size": 64, "steps": 1000, "delta": 1e-5}
    cell = {"task": task, "model": "roberta-large", "method": method, "epsilon": epsilon, "seed": 0}
    guarantee = {
        "source": f"paper of {method}",
        "claimed_epsilon": float(epsilon),
        "claimed_delta": 1e-5,
        "claimed_accountant": "opacus RDP",
        "sampling": "poisson" if poisson else "shuffled_epochs",
        "batches_per_epoch": 16,
        "last_batch": last,
        "divisor": "own size, then noise",
        "noise_scale": 27.0312,
        "noise_source": "drawn in the open",
        "as_it_is": "none",
        "adjacency": "add_remove" if poisson else "replace_one",
        "epsilon_at_least": low,
        "epsilon_at_most": high,
        "bound": "PLD",
        "our_accountant": "PLD",
        "our_noise_scale": 12.5,
        "ratio": 2.1625,
    }
    if not poisson:
        guarantee |= {"our_noise_scale_replace_one": 25.67, "ratio_replace_one": 1.053}
    return {
        "version": 1,
        "run": f"{task}/roberta-large/{method}/eps-{epsilon}/seed-0",
        "cell": cell | {"settings": settings, "experiment": "guarantees"},
        "method": {"title": TITLES[method], "private": True, "order": 0},
        "status": "ok",
        "error": None,
        "metrics": None,
        "guarantee": guarantee,
        "time": {"wall_seconds": 1.0},
        "provenance": {"git": "abc1234", "dirty": False, "device": "A CPU", "packages": {"opacus": "1.6.0"}},
    }


SEVERAL = [
    guarantee_record(),
    guarantee_record(task="rte"),
    guarantee_record(epsilon="6", low=7.0, high=31.0, size=2646, last=22, task="trec"),
    guarantee_record("dp_aggzo", low=1.775, high=1.776),
    guarantee_record("dp_zoso", "8", low=26.4, high=85.4),
]


def information_record(claim: float, low: float, high: float) -> dict:
    """A record of a claim of mutual information."""
    record = guarantee_record(epsilon="inf")
    record["run"] = f"sst2/roberta-large/paczero_{claim}/eps-inf/seed-0"
    record["cell"] |= {"method": f"paczero_{claim}", "code": "paczero"}
    record["method"]["title"] = "PACZero"
    kept = ("source", "claimed_accountant", "noise_source", "as_it_is")
    record["guarantee"] = {key: record["guarantee"][key] for key in kept} | {
        "claimed_information_nats": claim,
        "sampling": "full_batch",
        "adjacency": "add_remove",
        "epsilon_at_least": "inf",
        "information_at_least_nats": low,
        "information_at_most_nats": high,
    }
    return record


@pytest.fixture
def tables(written, tmp_path):
    """tables(records) -> {file name: content}."""

    def build(records, expected=None) -> dict[str, str]:
        write_tables("guarantees", written(records), tmp_path / "tables", "guarantees", expected)
        return {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}

    return build


def rows(markdown: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split("|") for line in markdown.splitlines() if line.startswith("|")]
    heading, _, *body = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(heading, line, strict=True)) for line in body]


# Kinds ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_tables_figures_and_captions(kind):
    report = module_of(kind)
    assert all(callable(getattr(report, name)) for name in ("tables", "figures"))
    captions = {path.stem for path in (Path(dpzero.report.__file__).parent / "captions").glob("*.rst")}
    assert set(KINDS[kind].figures) <= captions


# Table ------------------------------------------------------------------------------------------------------------------


def test_one_line_a_setting_in_the_order_of_the_papers(tables):
    files = tables(SEVERAL[::-1])
    assert set(files) == set(table_files("guarantees"))
    shown = rows(files["guarantees.md"])
    assert [(row["paper"], row["task"]) for row in shown] == [
        *[("DPZero", "rte"), ("DPZero", "sst2"), ("DPZero", "trec")],
        *[("DP-AggZO", "sst2"), ("DP-ZOSO, DP-ZOPO", "sst2")],
    ]
    assert {row["code as it is"] for row in shown} == {"none"}


def test_the_verdict_compares_the_claim_with_the_bounds(tables):
    verdicts = [row["claim"] for row in rows(tables(SEVERAL)["guarantees.md"])]
    assert verdicts == ["open", "open", "refuted", "held", "refuted"]


def test_a_row_has_the_sampler_and_the_guarantee(tables):
    files = tables([guarantee_record(epsilon="6", low=7.0, high=31.0, size=2646, last=22, task="trec")])
    (row,) = rows(files["guarantees.md"])
    assert row["batches"] == "shuffled epochs of 16, the last of 22" and row["neighbours"] == "replace one"
    assert (row["ε at least"], row["ε at most"], row["noise / clip"]) == ("7.00", "31.00", "27.031")
    assert row["bounded by"] == "worst-case pair (lower), PLD over epochs (upper)"
    assert (row["ours"], row["ratio"], row["ours, replaced"]) == ("12.500", "2.16", "25.670")
    (values,) = csv.DictReader(io.StringIO(files["guarantees.csv"]))
    assert float(values["epsilon_at_least"]) == 7 and values["verdict"] == "refuted"
    assert values["dataset_size"] == "2646" and float(values["ratio"]) == 2.1625


def test_poisson_batches_have_no_epochs_and_no_comparison_under_replacement(tables):
    (row,) = rows(tables([guarantee_record("dp_aggzo", low=1.775, high=1.776)])["guarantees.md"])
    assert row["batches"] == "Poisson" and row["ours, replaced"] == row["ratio, replaced"] == "–"


def test_an_assumed_size_is_shown_with_the_true_size(tables):
    record = guarantee_record()
    record["cell"]["settings"] |= {"dataset_size": 2646, "assumed_size": 3072}
    assert rows(tables([record])["guarantees.md"])[0]["n"] == "2646 (assumed 3072)"


def test_the_notes_say_why_the_noise_is_public(tables):
    text = tables(SEVERAL)["guarantees.md"]
    assert "- DPZero (paper of dpzero): noise drawn in the open." in text
    assert text.count("noise drawn in the open") == 3


def test_a_claim_of_information_has_its_own_column_and_no_claim_of_epsilon(tables):
    records = [information_record(0.33, 0.2, 0.331), information_record(1e-4, 3e-4, 1e-3), *SEVERAL[:1]]
    files = tables([*records, information_record(0.0, 0.0, 0.0)])
    first, *shown = rows(files["guarantees.md"])
    assert (first["claimed ε"], first["claimed nats"], first["nats"], first["ε at least"]) == (
        "2",
        "–",
        "–",
        "1.50",
    )
    assert [(row["claimed nats"], row["nats"], row["claim"]) for row in shown] == [
        ("0", "0", "held"),
        ("0.0001", "0.0003 to 0.001", "refuted"),
        ("0.33", "0.2 to 0.331", "open"),
    ]
    for row in shown:
        assert (row["claimed ε"], row["δ"], row["ours"]) == ("–", "–", "–")
        assert (row["ε at least"], row["ε at most"], row["bounded by"]) == ("∞", "∞", "smallest pair")
        assert row["batches"] == "all rows" and row["code as it is"] == "none"
    values = list(csv.DictReader(io.StringIO(files["guarantees.csv"])))
    assert [row["epsilon_at_least"] for row in values] == ["1.5", "inf", "inf", "inf"]


def test_the_figure_leaves_out_claims_without_an_epsilon(written, tmp_path):
    """Drawn from records, and again from the table."""
    records = [*SEVERAL[:1], information_record(0.33, 0.2, 0.331)]
    drawn = guarantees.draw(guarantees.arranged(dpzero.report.records.to_frame(records)))
    write_tables("guarantees", written(records), tmp_path, "guarantees")
    again = guarantees.draw(guarantees.arranged(guarantees.from_tables(tmp_path)))
    for figure in (drawn, again):
        assert [axis.get_title(loc="left") for axis in figure.axes] == ["DPZero"]


def test_a_missing_run_has_an_empty_row(tables):
    missing = "mnli/roberta-large/dpzero/eps-2/seed-0"
    files = tables(SEVERAL, [*(record["run"] for record in SEVERAL), missing])
    hole = next(row for row in rows(files["guarantees.md"]) if row["task"] == "mnli")
    assert hole["paper"] == "DPZero" and hole["claim"] == hole["ε at most"] == hole["n"] == "–"
    assert "partial: 5 of 6 runs" in files["guarantees.md"]
    assert json.loads(files["provenance.json"])["missing"] == [missing]


def test_the_same_records_make_the_same_bytes(tables):
    assert tables(SEVERAL) == tables(SEVERAL[::-1])


def test_latex_holds_no_raw_symbol(tables):
    body = "\n".join(
        line for line in tables(SEVERAL)["guarantees.tex"].splitlines() if not line.startswith("%")
    )
    assert body.isascii() and r"\toprule" in body


# Figure -----------------------------------------------------------------------------------------------------------------


def test_the_figure_is_drawn_the_same_each_time(written, tmp_path):
    drawn = []
    for name, records in (("a", SEVERAL), ("b", SEVERAL[::-1])):
        files = write_figures("guarantees", written(records), tmp_path / name, "guarantees")
        assert {path.name for path in files} == set(figure_files("guarantees"))
        drawn.append([path.read_bytes() for path in sorted(files)])
    assert drawn[0] == drawn[1]
    width, height = Image.open(tmp_path / "a" / "guarantees.png").size
    assert width > height > 100


def test_settings_that_differ_only_in_task_share_a_line():
    def lines(records) -> list[str]:
        frame = dpzero.report.records.to_frame(records)
        return [label.get_text() for axis in guarantees.draw(frame).axes for label in axis.get_yticklabels()]

    assert lines(SEVERAL[:3]) == ["rte, sst2 (roberta-large), ε = 2", "trec (roberta-large), ε = 6"]
    assert len(lines(SEVERAL)) == 4


def test_claim_bounds_and_words_are_at_their_places():
    (axis,) = guarantees.draw(dpzero.report.records.to_frame([guarantee_record(low=3.0, high=9.0)])).axes
    assert [line.get_xdata().tolist() for line in axis.lines] == [[3.0, 9.0], [3.0], [9.0], [2.0]]
    assert {"none", "refuted"} <= {text.get_text() for text in axis.texts}
    (axis,) = guarantees.draw(
        dpzero.report.records.to_frame([guarantee_record("dp_aggzo", low=1.7, high=1.8)])
    ).axes
    assert [line.get_xdata().tolist() for line in axis.lines] == [[1.8], [2.0]]


def test_a_partial_sweep_can_be_drawn(written, tmp_path):
    missing = "mnli/roberta-large/dp_zoso/eps-2/seed-0"
    files = write_figures(
        "guarantees", written(SEVERAL[:1]), tmp_path, "guarantees", [SEVERAL[0]["run"], missing]
    )
    assert all(path.stat().st_size > 1000 for path in files if path.suffix != ".md")
