"""Ours beside published: differences, intervals and verdicts worked out by hand, from records with made-up scores."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from scipy import stats

from dpzero.report import COMPARED, comparison, published, table_files
from dpzero.report.statistics import summarise
from dpzero.report.writing import write_tables

RULE = "published settings (chosen there, not accounted)"
PAPERS = ("DPZero", "MeZO", "DP-AggZO", "DP-ZOPO")


@pytest.fixture
def paper(record):
    """paper(seed, accuracy, ...) -> the record of a run of DPZero's own setting; `settings` and sections are changed as asked."""

    def make(seed=0, accuracy=0.918, method="dpzero", epsilon="2", task="sst2", **settings) -> dict:
        run = record(method, epsilon, seed, task, "roberta-large", accuracy=accuracy)
        run["cell"]["settings"] |= {"tune": "full", "shots": 512, "steps": 10000, "batch_size": 64}
        run["cell"]["settings"] |= {"smoothing": 1e-3, "learning_rate": 1e-6}
        run["cell"]["settings"] |= {"tie_embeddings": False, **settings}
        run["metrics"]["examples"] = 872
        if run["privacy"]:
            run["privacy"]["dataset_size"] = 1024
        run["memory"]["weights_bytes"] = 4 * 355_000_000
        return run

    return make


@pytest.fixture
def tables(written, tmp_path):
    def build(records: list[dict], expected: list[str] | None = None) -> dict[str, str]:
        write_tables("language", written(records), tmp_path / "tables", "paper-roberta", expected, RULE)
        return {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "tables").iterdir()}

    return build


def rows(files: dict[str, str], **columns: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(files["published.csv"]))
    return [row for row in reader if all(row[key] == value for key, value in columns.items())]


def number(value=91.8, spread=0.1, kind="standard error", seeds=3, slack=0.0) -> published.Published:
    (one,) = (n for n in published.for_run("sst2/roberta-large/dpzero/eps-2") if n.table == "2")
    return dataclasses.replace(one, value=value, spread=spread, spread_kind=kind, n_seeds=seeds, slack=slack)


# --- the tests, by hand


def test_two_means_are_compared_by_welch():
    """90, 91, 92: standard error 1 / sqrt 3. As much on the other side: 4 degrees of freedom, t = 2.776, half of it 2.776 sqrt(2/3)."""
    result = comparison.compare(summarise([0.90, 0.91, 0.92]), number(88.5, 3**-0.5))
    assert (result.test, result.verdict) == ("Welch", "higher")
    assert result.difference == pytest.approx(2.5)
    assert result.difference - result.difference_low == pytest.approx(2.776445 * (2 / 3) ** 0.5, abs=1e-5)
    assert (
        comparison.compare(summarise([0.90, 0.91, 0.92]), number(89, 3**-0.5)).verdict
        == "no difference shown"
    )
    assert comparison.compare(summarise([0.90, 0.91, 0.92]), number(93.5, 3**-0.5)).verdict == "lower"


@pytest.mark.parametrize("kind, spread, seeds", [("standard error", 0.4, 3), ("standard deviation", 1.2, 5)])
def test_welch_is_that_of_a_standard_library(kind, spread, seeds):
    ours = summarise([0.903, 0.921, 0.915, 0.899])
    theirs = number(92.0, spread, kind, seeds)
    deviation = spread * seeds**0.5 if kind == "standard error" else spread
    result = comparison.compare(ours, theirs)
    for edge in (result.difference_low, result.difference_high):
        sides = (result.difference - edge, 100 * ours.std, ours.n, 0, deviation, seeds)
        assert stats.ttest_ind_from_stats(*sides, equal_var=False).pvalue == pytest.approx(0.05, rel=1e-9)


def test_a_single_published_run_is_compared_with_a_prediction_interval_of_ours():
    """90, 91, 92: deviation 1, t = 4.3027 with 2 degrees of freedom; one more falls within 4.3027 sqrt(4/3) = 4.968 of 91."""
    ours = summarise([0.90, 0.91, 0.92])
    result = comparison.compare(ours, number(95.9, None, "one seed", 1))
    assert (result.test, result.verdict) == ("one more seed of ours", "no difference shown")
    assert result.difference_high - result.difference == pytest.approx(4.96832, abs=1e-4)
    assert comparison.compare(ours, number(96.0, None, "one seed", 1)).verdict == "lower"


def test_a_single_run_of_ours_is_compared_with_a_prediction_interval_of_theirs():
    """Standard error 0.1 of 3: deviation 0.1732, within 4.3027 * 0.1732 * sqrt(4/3) = 0.8605."""
    result = comparison.compare(summarise([0.910]), number(91.8, 0.1))
    assert (result.test, result.verdict) == ("one more seed of theirs", "no difference shown")
    assert result.difference_high - result.difference == pytest.approx(0.86054, abs=1e-4)
    assert comparison.compare(summarise([0.909]), number(91.8, 0.1)).verdict == "lower"


def test_two_single_values_are_not_tested():
    result = comparison.compare(summarise([0.5]), number(91.8, None, "one seed", 1))
    assert (result.test, result.verdict) == ("none: one value each", "no test")
    assert result.difference == pytest.approx(-41.8)


def test_a_single_published_run_is_not_tested_against_values_without_spread():
    result = comparison.compare(summarise([0.9, 0.9, 0.9]), number(91.8, None, "one seed", 1))
    assert (result.test, result.verdict) == ("none: ours is the same at each seed", "no test")
    assert (
        comparison.compare(summarise([0.9, 0.9, 0.9]), number(91.8)).verdict == "lower"
    )  # theirs has spread


def test_uncertainty_of_the_published_number_widens_the_interval():
    narrow, wide = (
        comparison.compare(summarise([0.90, 0.91, 0.92]), number(91, slack=slack)) for slack in (0, 0.2)
    )
    assert (
        narrow.difference_low - wide.difference_low,
        wide.difference_high - narrow.difference_high,
    ) == pytest.approx((0.2, 0.2))


def test_equal_scores_without_any_spread_show_no_difference():
    result = comparison.compare(summarise([0.918] * 3), number(91.8, 0.0, slack=0.05))
    assert result.verdict == "no difference shown" and result.difference_low == pytest.approx(-0.05)


# --- the table


def test_a_row_has_our_result_and_the_published_one(tables, paper):
    files = tables([paper(seed, score) for seed, score in enumerate((0.90, 0.91, 0.92))])
    (row,) = rows(files, source="DPZero, table 2")
    assert float(row["score_mean"]) == 91 and float(row["published"]) == 91.8
    assert float(row["difference"]) == pytest.approx(-0.8)
    # its standard error is 0.1: 2.12 degrees of freedom
    assert float(row["difference_high"]) == pytest.approx(
        -0.8 + 4.088 * (1 / 3 + 0.01) ** 0.5 + 0.05, abs=0.01
    )
    assert row["verdict"] == "no difference shown" and row["rule"].startswith("last iterate")
    text = files["published.md"]
    assert "91.0 ± 1.0" in text and "91.8 ± 0.1 (standard error, 3 seeds)" in text
    assert f"reported: last iterate; {RULE}" in text.splitlines()[0]


def test_every_heading_names_the_rules_of_iterate_and_settings(tables, paper):
    files = tables([paper()])
    headings = [
        text.splitlines()[0]
        for name, text in files.items()
        if name.endswith(".md") and "statement" not in name
    ]
    assert len(headings) == 7
    assert all(heading.endswith(f"; reported: last iterate; {RULE}**") for heading in headings)


def test_another_setting_is_named_in_place_of_a_verdict(tables, paper):
    files = tables([paper(seed, 0.9, steps=500) for seed in range(3)])
    (row,) = rows(files, source="DPZero, table 2")
    assert row["verdict"] == "not compared: steps 500, theirs 10000" and row["difference_low"] == ""


def test_another_iterate_is_named_in_place_of_a_verdict(tables, paper):
    records = [paper(seed, iterate="best_dev") for seed in range(3)]
    for run in records:
        run["metrics"]["selection"] = "best dev checkpoint (published practice, not accounted)"
    (row,) = rows(tables(records), source="DPZero, table 2")
    assert row["verdict"] == f"not compared: {run['metrics']['selection']}, theirs last iterate"


def test_a_stand_in_for_the_model_is_never_compared(tables, paper):
    records = [paper(seed) for seed in range(3)]
    for run in records:
        run["memory"]["weights_bytes"] = 4 * 10_000
    (row,) = rows(tables(records), source="DPZero, table 2")
    assert row["verdict"] == "not compared: a stand-in of 0.01 M parameters, theirs 355 M"


def test_numbers_for_other_shots_are_left_out(tables, paper):
    files = tables([paper(seed, method="mezo", epsilon="inf", shots=16, steps=100_000) for seed in range(3)])
    assert {row["published_kind"] for row in rows(files)} == {"standard deviation"}
    assert [row["published"] for row in rows(files)] == ["90.5"]


def test_a_misprint_is_named_in_place_of_a_verdict(tables, paper):
    files = tables([paper(seed, 0.488, "zero_shot", "0", "mnli") for seed in range(3)])
    (row,) = rows(files, published="51.4")
    assert row["verdict"].startswith("not compared: a misprint (ZOPO-8)") and row["difference_low"] == ""
    assert "ZOPO-8" in files["discrepancies.csv"]


def test_partial_results_show_published_numbers_without_ours(tables, paper):
    expected = [f"{task}/roberta-large/dpzero/eps-2/seed-0" for task in ("rte", "sst2")]
    files = tables([paper()], expected)
    (waits,) = rows(files, task="rte", source="DPZero, table 2")
    assert (waits["published"], waits["verdict"], waits["score_mean"]) == ("70.4", "no result yet", "")
    assert set(files) == set(table_files("language", expected))


def test_the_discrepancies_are_those_of_the_papers_that_are_compared(tables, paper):
    files = tables([paper()])
    rows_of_csv = list(csv.DictReader(io.StringIO(files["discrepancies.csv"])))
    assert {row["paper"] for row in rows_of_csv} == {"DPZero", "DP-ZOPO"}
    assert all(row["published"] and row["here"] for row in rows_of_csv)


def test_a_discrepancy_says_how_many_published_numbers_it_is_about(tables, paper):
    with comparison.DISCREPANCIES.open(encoding="utf-8", newline="") as stream:
        rows_of_csv = list(csv.DictReader(stream))
    assert all(len(row) == 6 and None not in row.values() for row in rows_of_csv)
    with published.FILE.open(encoding="utf-8", newline="") as stream:
        methods = [(row["paper"], row["method"]) for row in csv.DictReader(stream) if row["cell"]]
    files = tables([paper(seed, method="mezo", epsilon="inf", shots=16, steps=100_000) for seed in range(3)])
    shown = {
        (row["paper"], row["id"]): row["numbers"]
        for row in csv.DictReader(io.StringIO(files["discrepancies.csv"]))
    }
    assert shown["MeZO", "demonstrations"] == str(methods.count(("MeZO", "ICL"))) == "23"
    gradient = [name for name in ("FT", "FT (LoRA)", "FT (prefix)") if ("MeZO", name) in methods]
    assert shown["MeZO", "dropout"] == str(sum(methods.count(("MeZO", name)) for name in gradient))
    assert (shown["MeZO", "COPA"], shown["MeZO", "TREC"], shown["MeZO", "label words"]) == ("2", "2", "")
    assert all(
        int(row["numbers"])
        for row in csv.DictReader(io.StringIO(files["discrepancies.csv"]))
        if row["numbers"]
    )


def test_each_numbered_discrepancy_has_its_row():
    """But for DPZ-16, which is none: a difference of zero is safe to clip."""
    with comparison.DISCREPANCIES.open(encoding="utf-8", newline="") as stream:
        ids = [row["id"] for row in csv.DictReader(stream) if "-" in row["id"]]
    numbered = [f"DPZ-{i}" for i in range(1, 18) if i != 16]
    numbered += [*(f"AGG-{letter}" for letter in "abcdefghi"), *(f"ZOPO-{i}" for i in range(1, 10))]
    assert [name for name in ids if name in numbered] == numbered


@pytest.mark.parametrize(
    "paper, id_, concerns",
    [
        *((name, "tied embeddings", lambda n: "tie_embeddings" in n.settings) for name in PAPERS),
        ("MeZO", "LoRA", lambda n: "lora_head" in n.settings),
        ("MeZO", "Adam schedule", lambda n: "decay_steps" in n.settings),
        ("MeZO", "iterate", lambda n: n.iterate_rule == "dev checkpoint of the highest accuracy"),
        ("MeZO", "linear probing", lambda n: n.iterate_rule == "a fit without checkpoints"),
        ("DP-AggZO", "AGG-i", lambda n: n.iterate_rule == "best dev checkpoint"),
    ],
)
def test_a_discrepancy_tells_how_many_published_numbers_it_concerns(paper, id_, concerns):
    with comparison.DISCREPANCIES.open(encoding="utf-8", newline="") as stream:
        (row,) = (row for row in csv.DictReader(stream) if (row["paper"], row["id"]) == (paper, id_))
    count = sum(n.paper == paper and concerns(n) for n in published.read())
    assert comparison._concerned(row) == str(count) and count


def test_a_sweep_without_published_numbers_has_neither_table(written, record, tmp_path):
    write_tables("language", written([record()]), tmp_path, "quick")
    assert not {f"{name}.md" for name in COMPARED} & {path.name for path in tmp_path.iterdir()}
    assert not set(COMPARED) & {name.partition(".")[0] for name in table_files("language", [record()["run"]])}
