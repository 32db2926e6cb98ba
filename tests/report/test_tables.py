"""The tables: what a cell says, what the notes say, and that the same records give the same bytes."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.report import table_files
from dpzero.report.writing import write_tables

VOLATILE_FILES = {"times.csv", "time.csv", "time.md", "time.tex"}


@pytest.fixture
def tables(written):
    """Writes the tables of these records; returns the text of each file by name."""

    def build(records: list[dict], expected: list[str] | None = None) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            printed = write_tables("language", written(records), Path(folder), "quick", expected)
            files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}
        assert printed == files["accuracy.md"]
        return files

    return build


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def line(markdown: str, *words: str) -> str:
    """The one line of a Markdown table that has all these words."""
    (match,) = [
        line for line in markdown.splitlines() if line.startswith("|") and all(w in line for w in words)
    ]
    return match


def test_exactly_the_promised_files_are_written(tables, sweep):
    assert set(tables(sweep())) == set(table_files("language"))


def test_a_row_is_mean_deviation_and_interval_over_seeds(tables, record):
    files = tables([record(seed=seed, accuracy=value) for seed, value in enumerate((0.7, 0.8, 0.9))])
    assert "80.0 ± 10.0" in line(files["accuracy.md"], "DPZero")
    assert "[55.2, 104.8]" in line(files["accuracy.md"], "DPZero")
    _, row = rows(files["accuracy.csv"])
    assert (row["score_n"], row["score_mean"], row["score_std"]) == ("3", "0.8", "0.1")


def test_what_training_cost_stands_beside_the_score(tables, record):
    """From the record, or from its settings: two passes a direction, three a gradient, five with ghost norms."""
    records = [record("mezo", "inf"), record("dp_sgd"), record("zero_shot", "0"), record("dp_ghost", "2")]
    records[3]["cell"]["settings"]["clipping"], records[3]["method"]["order"] = "ghost", 1
    records.append(record("dp_aggzo", "2"))
    records[4]["cell"]["settings"]["directions"] = 64
    files = tables(records)
    heading = line(files["accuracy.md"], "example forwards")
    place = heading.split("|").index(next(c for c in heading.split("|") if "example forwards" in c))
    shown = {
        title: line(files["accuracy.md"], f"| {title} ").split("|")[place].strip()
        for title in ("MeZO", "DP-SGD", "Zero-shot", "Dp_Ghost", "Dp_Aggzo")
    }
    assert shown == {
        "MeZO": "4.8 k",
        "DP-SGD": "2.88 k",
        "Zero-shot": "0",
        "Dp_Ghost": "12 k",
        "Dp_Aggzo": "307 k",
    }
    assert "does not hold that number" in files["accuracy.md"]
    for one in records:
        one["metrics"]["example_forwards"] = 1_280_000
    files = tables(records)
    assert " 1.28 M " in line(files["accuracy.md"], "| MeZO ")
    passes = {row["method"]: row["example_forwards"] for row in rows(files["accuracy.csv"])}
    assert set(passes.values()) == {"1280000", ""} and passes["majority"] == ""
    assert "does not hold that number" not in files["accuracy.md"]


def test_headings_say_how_many_seeds(tables, sweep):
    files = tables(sweep(seeds=2))
    assert "mean ± standard deviation over 2 seeds" in files["accuracy.md"].splitlines()[0]
    assert "The order of the methods, 2 seeds" in files["order.md"].splitlines()[0]


def test_one_seed_is_never_printed_as_a_mean(tables, sweep):
    files = tables(sweep(seeds=1))
    table = [row for row in files["accuracy.md"].splitlines() if row.startswith("|")]
    assert not any("±" in row for row in table)
    assert all("(one seed)" in row for row in table[3:]) and "Majority class" in table[2]
    assert "mean" not in files["accuracy.md"].splitlines()[0]
    assert r"\pm" not in files["accuracy.tex"]


def test_the_heading_names_split_and_selection(tables, sweep):
    text = tables(sweep(seeds=1))["accuracy.md"]
    assert "reported: last iterate" in text.splitlines()[0]
    assert "accuracy on 2189 examples of split test" in text
    assert "A seed changes" in text


def test_methods_that_are_scored_differently_are_named(tables, record):
    best = record("adamw", "inf")
    best["metrics"]["selection"] = "best on dev"
    text = tables([best, record()])["accuracy.md"]
    assert "reported: best on dev or last iterate" in text.splitlines()[0]
    assert "reported: best on dev (AdamW)." in text


def test_differences_are_paired_by_seed(tables, record):
    luck = (0.0, 0.05, -0.05)
    ours = [record("dpzero", "2", seed, accuracy=0.8 + x) for seed, x in enumerate(luck)]
    apart = (0.05, 0.06, 0.04)  # of mean 0.05 and standard deviation 0.01
    theirs = [
        record("mezo", "inf", seed, accuracy=0.8 + x + y)
        for seed, (x, y) in enumerate(zip(luck, apart, strict=True))
    ]
    files = tables(ours + theirs)
    assert "−5.0 [−7.5, −2.5]" in line(files["accuracy.md"], "DPZero")
    assert "reference" in line(files["accuracy.md"], "MeZO", "∞")


def test_equal_values_have_no_interval(tables, record):
    ours = [record("dpzero", "2", seed, accuracy=0.8) for seed in range(3)]
    theirs = [record("mezo", "inf", seed, accuracy=0.85) for seed in range(3)]
    table = tables(ours + theirs)["accuracy.md"]
    assert "80.0 ± 0.0" in table and "−5.0 (at each seed)" in table and "[" not in line(table, "DPZero")


def test_running_out_of_memory_is_shown_as_oom(tables, record):
    files = tables([record(), record("dp_sgd", status="oom")])
    assert "OOM" in line(files["accuracy.md"], "DP-SGD")
    assert "OOM" in line(files["memory.md"], "DP-SGD")
    assert "OOM" in line(files["time.md"], "DP-SGD")
    assert [row["status"] for row in rows(files["runs.csv"])] == ["oom", "ok"]


def test_divergence_is_shown(tables, record):
    text = tables([record("dp_adam", seed=seed, status="diverged") for seed in range(2)])["accuracy.md"]
    assert "| diverged " in line(text, "DP-Adam")
    assert "0/2 ok; 2 diverged" in line(text, "DP-Adam")


def test_seeds_that_diverged_are_counted_beside_the_mean_of_the_others(tables, record):
    records = [record(seed=0, accuracy=0.7), record(seed=1, accuracy=0.8), record(seed=2, status="diverged")]
    records[2]["metrics"] = {"accuracy": 0.01, "split": "test", "examples": 2189, "selection": "last iterate"}
    text = tables(records)["accuracy.md"]
    assert "75.0 ± 7.1" in line(text, "DPZero")
    assert "2/3 ok; 1 diverged" in line(text, "DPZero")
    assert "a mean is over the other seeds" in text


def test_a_missing_cell_is_a_dash_and_is_named(tables, record):
    expected = [f"r8/minilm/{method}/eps-2/seed-0" for method in ("dpzero", "dp_sgd")]
    files = tables([record()], expected)
    assert re.search(r"\| dp_sgd +\| 2 \| – ", line(files["accuracy.md"], "dp_sgd"))
    assert "partial: 1 of 2 runs; no record yet of r8/minilm/dp_sgd/eps-2 (1 seed)" in files["accuracy.md"]
    assert json.loads(files["provenance.json"])["missing"] == [expected[1]]
    assert len(rows(files["runs.csv"])) == 1


def test_memory_is_over_the_weights_and_beside_inference(tables, record):
    row = rows(tables([record("dp_sgd")])["memory.csv"])[0]
    assert float(row["inference_over_weights_bytes"]) == 6 * 2**20
    assert float(row["peak_over_weights_bytes"]) == 54 * 2**20
    assert (row["ratio_over_weights"], row["how"]) == ("9", "live storage tracker, CPU, 16 x 32 tokens")


def test_memory_is_of_the_run_that_needed_most(tables, record):
    records = [record(seed=seed) for seed in range(3)]
    records[1]["memory"]["peak_allocated_bytes"] = 100 * 2**20
    assert rows(tables(records)["memory.csv"])[0]["peak_allocated_bytes"] == str(100 * 2**20)


def test_times_of_two_devices_are_not_averaged(tables, record):
    records = [record(seed=0), record(seed=1)]
    records[1]["provenance"]["device"] = "Other GPU"
    files = tables(records)
    assert [row["device"] for row in rows(files["time.csv"])] == ["Example CPU @ 2.0 GHz", "Other GPU"]
    assert "Mixed devices" in files["accuracy.md"]


def test_privacy_has_private_methods_only_and_the_worst_seed(tables, record):
    records = [record(seed=0), record(seed=1), record("mezo", "inf")]
    records[1]["privacy"]["epsilon_spent"] = 1.999
    files = tables(records)
    (row,) = rows(files["privacy.csv"])
    assert (row["method"], row["epsilon_spent"], row["valid_release"]) == ("dpzero", "1.999", "no")
    heading, *_ = files["privacy.md"].splitlines()
    assert "dp-accounting 0.6.0 PLD" in heading
    for words in ("not accounted", "k seeds would compose", "no private release"):
        assert words in files["privacy.md"]


def test_counts_are_written_as_integers(tables, record):
    run = record()
    run["privacy"] |= {"steps": 10_000, "dataset_size": 67_349, "noise_scale": 23.35444, "clip": 10.0}
    (line,) = (line for line in tables([run])["privacy.md"].splitlines() if "DPZero" in line and "|" in line)
    assert {"10000", "67349", "23.35", "10"} <= {part.strip() for part in line.split("|")}


def test_mu_stands_beside_epsilon_and_is_that_of_the_worst_seed(tables, record):
    records = [record(seed=0), record(seed=1)]
    records[1]["privacy"]["gdp_mu"] = 0.5432109
    files = tables(records)
    assert rows(files["privacy.csv"])[0]["gdp_mu"] == "0.5432109"
    heading, cells = (
        [cell.strip() for cell in line(files["privacy.md"], word).split("|")] for word in ("μ", "DPZero")
    )
    assert cells[heading.index("μ")] == "0.5432"


def test_unit_and_arithmetic_are_columns_only_if_they_vary(tables, record):
    same = tables([record(), record("dp_sgd")])
    assert "Unit: example in every row." in same["privacy.md"]
    assert "Noise arithmetic: float in every row." in same["privacy.md"]
    assert "unit" not in same["privacy.md"].splitlines()[2]
    records = [record(), record("dp_sgd")]
    records[0]["privacy"] |= {"unit": "user", "noise_arithmetic": "exact"}
    files = tables(records)
    heading = files["privacy.md"].splitlines()[2]
    assert "unit" in heading and "noise arithmetic" in heading and "in every row" not in files["privacy.md"]
    assert "user" in line(files["privacy.md"], "DPZero") and "exact" in line(files["privacy.md"], "DPZero")
    for written in (same, files):
        assert {"unit", "noise_arithmetic"} <= set(rows(written["privacy.csv"])[0])


def test_the_privacy_statement_is_written_beside_the_tables(tables, record):
    text = tables([record()])["privacy_statement.md"]
    assert text.startswith("# Privacy statement of sweep quick") and "DPZero" in text


def test_each_accountant_is_named_with_its_methods(tables, record):
    pure = record("dp_zo_laplace_pure")
    pure["privacy"]["accountant"] = "closed form"
    text = tables([pure, record()])["privacy.md"]
    assert "closed form; dp-accounting 0.6.0 PLD" in text.splitlines()[0]
    assert "closed form (DP-ZO (Laplace, pure eps))." in text


def test_step_time_is_beside_two_forwards(tables, record):
    timed = record()
    timed["time"] |= {"step_seconds": 0.3, "two_forward_seconds": 0.15, "steps_per_second": 1.0}
    (row,) = rows(tables([timed])["time.csv"])
    assert (row["step_seconds"], row["step_over_two_forwards"]) == ("0.3", "2")
    timed["time"]["step_seconds"] = None
    assert rows(tables([timed])["time.csv"])[0]["step_seconds"] == "1"


def test_a_secret_key_is_not_called_published(tables, record):
    secret = record()
    secret["privacy"] |= {"noise_key": "secret", "valid_release": True}
    text = tables([secret])["privacy.md"]
    assert "yes" in line(text, "DPZero")
    assert "no private release" not in text


def test_without_a_private_method_the_privacy_table_says_so(tables, record):
    files = tables([record("mezo", "inf")])
    assert "No private method" in files["privacy.md"]
    assert rows(files["privacy.csv"]) == []


def test_latex_is_booktabs_with_escaped_text(tables, record):
    odd = record()
    odd["method"]["title"] = "A_B & 100% #1"
    text = tables([odd] + [record("mezo", "inf", seed) for seed in range(2)])["accuracy.tex"]
    assert text.startswith("% ")
    assert r"A\_B \& 100\% \#1" in text
    body = text[text.index(r"\begin{tabular}") :]
    assert r"\toprule" in body and r"$\pm$" in body
    assert body.isascii()


def test_every_table_ends_with_its_provenance(tables, sweep):
    files = tables(sweep(seeds=1))
    for name in ("accuracy", "memory", "time", "privacy"):
        assert "commit abc1234; code c0dec0dec0de" in files[f"{name}.md"]
        assert "torch 2.13.0" in files[f"{name}.tex"]


def test_mixed_versions_are_flagged_in_every_format(tables, record):
    records = [record(seed=0), record(seed=1)]
    records[1]["provenance"]["packages"] = {"torch": "2.12.0", "transformers": "5.23.0"}
    files = tables(records)
    for name in ("accuracy.md", "accuracy.tex", "provenance.json"):
        assert "Mixed versions: torch 2.12.0, 2.13.0." in files[name]


def test_the_order_of_the_records_changes_no_byte(tables, sweep):
    records = sweep(seeds=2)
    shuffled = random.Random(0).sample(records, len(records))
    assert tables(shuffled) == tables(records)


def test_a_rerun_changes_nothing_but_the_files_of_time(tables, sweep):
    first, again = sweep(seeds=2), sweep(seeds=2)
    for record in again:
        record["time"] = {key: 1.7 * (value or 0) for key, value in record["time"].items()}
        record["memory"]["peak_resident_bytes"] += 12345
        record["curve"] = [point | {"train_seconds": 9.9} for point in record["curve"]]
    before, after = tables(first), tables(again)
    assert {name for name in before if before[name] != after[name]} == VOLATILE_FILES


def test_no_stable_file_holds_a_time(tables, sweep):
    files = tables(sweep(seeds=1))
    for name in set(files) - VOLATILE_FILES:
        assert not re.search(r"seconds|resident", files[name])


def test_f1_is_a_score_too(tables, record):
    scored = record()
    scored["metrics"]["f1"] = scored["metrics"].pop("accuracy")
    assert "f1 (%)" in tables([scored])["accuracy.md"]


def test_sparse_records_are_enough(tables, record):
    bare = record()
    for section in ("memory", "time", "privacy", "provenance", "curve"):
        bare[section] = None
    bare["metrics"] = {"accuracy": 0.5}
    assert "50.0 (one seed)" in tables([bare])["accuracy.md"]


def test_a_corrupted_record_stops_the_tables(written, record, tmp_path):
    (path,) = written([record()])
    path.write_text(path.read_text()[:100])
    with pytest.raises(UsageError, match=re.escape(str(path))):
        write_tables("language", [path], tmp_path, "quick")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_subset_of_a_sweep_with_any_failures_can_be_tabulated(tables, sweep, record, data):
    complete = sweep(seeds=2)
    part = data.draw(st.lists(st.sampled_from(range(len(complete))), min_size=1, max_size=8, unique=True))
    status = st.sampled_from(["ok", "ok", "oom", "diverged"])
    chosen = [
        record(cell["method"], cell["epsilon"], cell["seed"], status=data.draw(status))
        for cell in (complete[index]["cell"] for index in part)
    ]
    files = tables(chosen, [one["run"] for one in complete])
    methods = [row for row in rows(files["accuracy.csv"]) if row["method"] != "majority"]
    assert len(methods) == len({one["run"].rpartition("/")[0] for one in complete})
    assert len(rows(files["runs.csv"])) == len(part)
    assert f"partial: {len(part)} of {len(complete)} runs" in files["accuracy.md"]


def test_zero_shot_has_no_seed_and_is_compared_with_every_seed(tables, record):
    start = record("zero_shot", "0", 0, accuracy=0.6)
    runs = [record("mezo", "inf", seed, accuracy=value) for seed, value in enumerate((0.7, 0.8, 0.9))]
    table = tables([start, *runs])["accuracy.md"]
    assert "60.0 (no seed)" in line(table, "Zero-shot", "no seed")
    assert "+20.0 [−4.8, 44.8]" in line(table, "80.0 ± 10.0")
    assert "−20.0 [−44.8, 4.8]" in line(table, "Zero-shot", "no seed")


def test_zero_shot_is_paired_by_seed_if_the_seed_draws_the_scored_rows(tables, record):
    starts = [record("zero_shot", "0", seed, accuracy=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    runs = [record("mezo", "inf", seed, accuracy=value) for seed, value in enumerate((0.6, 0.8, 0.8))]
    for one in (*starts, *runs):
        one["cell"]["settings"]["train_examples"] = 1000
    table = tables([*starts, *runs])["accuracy.md"]
    assert "60.0 ± 10.0" in line(table, "Zero-shot")
    assert "+13.3 [−1.0, 27.7]" in line(table, "MeZO", "73.3")  # of 10, 20 and 10 points
    assert "no seed)" not in table and "ajority class" not in table
    for one in (*starts, *runs):
        one["metrics"]["majority"] = 0.5 + one["cell"]["seed"] / 10
    assert "60.0 ± 10.0" in line(tables([*starts, *runs])["accuracy.md"], "Majority class")


def test_the_majority_class_has_a_row_where_it_is_known(tables, record):
    """Of a built-in task from majority.csv, of a user's from its records; it has no seed, epsilon or interval."""
    mine = record("dpzero", task="mine")
    known = tables([record(seed=seed) for seed in range(3)])
    assert "| Majority class | 0 | 49.5 (no seed) | –     | –" in line(known["accuracy.md"], "Majority class")
    assert "Majority class & 0 & 49.5 (no seed)" in known["accuracy.tex"]
    first, ours = rows(known["accuracy.csv"])
    assert (first["method"], first["score_mean"], first["score_n"]) == (
        "majority",
        f"{1083 / 2189:.10g}",
        "1",
    )
    assert (first["split"], first["examples"], first["vs_mezo_mean"]) == ("test", "2189", "")
    assert ours["method"] == "dpzero" and "always the most frequent label" in known["accuracy.md"]

    assert "ajority class" not in tables([mine])["accuracy.md"]
    mine["metrics"]["majority"] = 0.6
    assert "60.0 (no seed)" in line(tables([mine, record()])["accuracy.md"], "mine", "Majority class")


def test_a_reference_that_was_not_run_has_no_column_for_readers(tables, record):
    alone = tables([record(seed=seed) for seed in range(2)])
    assert "vs" not in alone["accuracy.md"].split("\n- ")[0] and "vs_mezo_mean" in alone["accuracy.csv"]
    assert "| vs MeZO" in tables([record(), record("mezo", "inf")])["accuracy.md"]


def test_public_rows_have_a_column_if_a_method_reads_some(tables, record):
    private, reads, other = record("dpzero"), record("pazo"), record("pazo_tweets")
    reads["cell"]["settings"] |= {"public_examples": 64, "public_task": ""}
    other["cell"]["settings"] |= {"public_examples": 32, "public_task": "tweets"}
    files = tables([private, reads, other])
    for name in ("accuracy.md", "privacy.md"):
        heading, _, *body = [text for text in files[name].splitlines() if text.startswith("|")]
        at = [cell.strip() for cell in heading.split("|")].index("public rows")
        shown = {text.split("|")[3].strip(): text.split("|")[at].strip() for text in body}
        assert (shown["DPZero"], shown["Pazo"], shown["Pazo_Tweets"]) == ("–", "64", "32 of tweets")
        assert "no epsilon protects them" in files[name]
    assert "public rows" not in tables([private])["accuracy.md"].lower()
