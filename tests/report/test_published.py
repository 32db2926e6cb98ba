"""Published numbers: what the file holds, to which cell each belongs, and in what a run may differ from it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dpzero.report import published

DPZERO = "sst2/roberta-large/dpzero/eps-2"
REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "published"
FIGURE = "repo figure roberta-acc.png"


def raw(file: Path = published.FILE) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def number(run: str, paper: str, table: str, **columns) -> published.Published:
    (match,) = [
        n
        for n in published.for_run(run)
        if (n.paper, n.table) == (paper, table) and all(getattr(n, k) == v for k, v in columns.items())
    ]
    return match


def test_every_published_number_has_its_source():
    rows = raw()
    assert len(rows) == 659
    assert all(row["paper"] and row["table"] for row in rows)
    assert {row["paper"] for row in rows if not row["arxiv"]} == {"DP-AggZO"}  # USENIX Security 2025


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no {REFERENCE}")
@pytest.mark.parametrize("name", ["published.csv", "published_memory.csv"])
def test_the_facts_are_those_of_the_reference(name):
    """Behind them only ratios that an abstract claims, without bytes."""
    facts, rows = raw(REFERENCE / name), raw(published.FILE.with_name(name))
    assert [{key: row[key] for key in facts[0]} for row in rows[: len(facts)]] == facts
    assert all(row["left_out"] == "a ratio alone" for row in rows[len(facts) :])


def test_each_number_has_a_cell_or_a_reason_to_be_left_out():
    rows = raw()
    assert all(bool(row["cell"]) != bool(row["left_out"]) for row in rows)
    assert all(row["slack"] and row["spread_kind"] and row["iterate_rule"] for row in rows if row["cell"])
    assert len(published.read()) == sum(bool(row["cell"]) for row in rows) == 518


def test_facts_stand_in_columns_of_their_own_and_in_no_sentence():
    """What is compared is one of a few values, or a number; only `notes`, misprints and reasons are prose."""
    rows = [row for row in raw() if row["cell"]]
    kinds = {"standard error", "standard deviation", "one seed", "one value, seeds not said", "digitised"}
    assert {row["spread_kind"] for row in rows} == kinds
    iterates = {*published.ITERATES, "nothing is trained", "not said"}
    assert {row["iterate_rule"] for row in rows} == iterates
    assert {row["settings_rule"] for row in rows if row["iterate_rule"] == "nothing is trained"} == {""}
    for name in ("n_seeds", "steps", "train_rows", "test_rows"):
        assert all(row[name] == "" or row[name].isdigit() for row in rows)
    nothing = {
        n.iterate_rule for n in published.read() if n.cell.split("/")[2] in ("zero_shot", "in_context")
    }
    assert nothing == {"nothing is trained"}


def test_no_fact_is_taken_from_the_notes(monkeypatch, tmp_path):
    rows = [row | {"notes": "seeds {1}; T=7; last iterate"} for row in raw()]
    with (tmp_path / "published.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    expected = published.read()
    monkeypatch.setattr(published, "FILE", tmp_path / "published.csv")
    assert published.read.__wrapped__() == expected


def test_the_reasons_are_those_of_the_rows():
    def reason(words: str) -> list[dict[str, str]]:
        rows = [row for row in raw() if row["left_out"].startswith(words)]
        assert rows
        return rows

    assert reason("no value") == [row for row in raw() if not row["value"]]
    assert not {row["metric"] for row in reason("no accuracy")} & {"accuracy", "f1"}
    table_18 = {
        (row["method"], row["task"], row["value"])
        for row in raw()
        if (row["paper"], row["table"]) == ("MeZO", "18")
    }
    for row in reason("repeats table 18"):
        assert (row["method"].partition(" ")[0], row["task"], row["value"]) in table_18


@pytest.mark.parametrize(
    "run, paper, table, shown",
    [
        (DPZERO, "DPZero", "2", "91.8 ± 0.1 (standard error, 3 seeds)"),
        ("trec/roberta-large/dpzero/eps-6", "DPZero", "2", "87.6 ± 0.9 (standard error, 3 seeds)"),
        ("drop/opt-6.7b/dpzero/eps-2", "DPZero", "5", "27.6 ± 0.7 (standard error, 3 seeds)"),
        ("rte/roberta-large/zero_shot/eps-0", "DPZero", "2", "51.4 (one value, seeds not said)"),
        ("sst2/roberta-large/dpzero_sphere/eps-6", "DPZero", "7", "91.8 ± 0.1 (standard error, 3 seeds)"),
        ("trec/roberta-large/dpzero/eps-2", "DP-AggZO", "1", "83.8 (one seed)"),
        ("sst2/roberta-large/dpzero/eps-4", "DP-ZOPO", "repo figure roberta-acc.png", "93.1 (digitised)"),
    ],
)
def test_a_number_names_its_spread(run, paper, table, shown):
    assert str(number(run, paper, table)) == shown


def test_mezos_deviations_are_of_five_seeds():
    few = number("sst2/roberta-large/mezo/eps-inf", "MeZO", "18", shots=16)
    assert str(few) == "90.5 ± 1.2 (standard deviation, 5 seeds)" and few.steps == 100_000
    assert few.standard_error == pytest.approx(1.2 / 5**0.5)


def test_a_number_copied_by_a_later_paper_appears_once():
    """DP-AggZO's DPZO rows are DPZero's, but for TREC at epsilon 2."""
    papers = {
        task: {n.paper for n in published.for_run(f"{task}/roberta-large/dpzero/eps-2")}
        for task in ("sst2", "rte", "trec")
    }
    assert papers == {
        "sst2": {"DPZero", "DP-ZOPO"},
        "rte": {"DPZero"},
        "trec": {"DPZero", "DP-AggZO", "DP-ZOPO"},
    }
    assert [n.table for n in published.for_run(DPZERO) if n.paper == "DPZero"] == ["2"]


def test_a_run_of_public_code_is_compared_with_the_same_numbers():
    assert published.for_run(DPZERO.replace("dpzero", "dpzero_as_published")) == published.for_run(DPZERO)


def test_embedded_data_has_no_published_number():
    assert published.for_run("r8/minilm/dpzero/eps-2/seed-0") == []
    assert not published.any_published(["r8/minilm/dpzero/eps-2/seed-0"])
    assert published.any_published(["r8/minilm/dpzero/eps-2/seed-0", f"{DPZERO}/seed-5"])


# --- differences


SAME = {"settings.tune": "full", "settings.shots": 512, "settings.steps": 10000, "metric": "accuracy"}
SAME |= {"metrics.split": "test", "privacy.delta": 1e-5, "memory.weights_bytes": 4 * 355e6}
SAME |= {"settings.batch_size": 64, "settings.smoothing": 1e-3, "settings.learning_rate": 1e-6}
SAME |= {"privacy.dataset_size": 1024, "metrics.examples": 872, "settings.tie_embeddings": False}
SELECTED = "dev checkpoint of the highest accuracy (published practice, not accounted)"


@pytest.mark.parametrize(
    "changed, words",
    [
        ({}, []),
        ({"settings.direction_law": "gaussian"}, []),
        ({"settings.shots": None}, ["shots not set, theirs 512"]),
        ({"settings.tune": "lora"}, ["tune lora, theirs full"]),
        ({"settings.tie_embeddings": None}, ["tie embeddings not set, theirs False"]),
        ({"metrics.selection": "last iterate"}, []),
        (
            {"settings.iterate": "best_dev_accuracy", "metrics.selection": SELECTED},
            [f"{SELECTED}, theirs last iterate"],
        ),
        ({"settings.direction_law": "sphere"}, ["direction law sphere, theirs gaussian"]),
        ({"settings.steps": 500.0}, ["steps 500.0, theirs 10000"]),
        ({"metrics.split": "dev"}, ["split dev, theirs test"]),
        ({"privacy.delta": 1e-4}, ["δ 0.0001, theirs 1e-05"]),
        ({"settings.batch_size": 1}, ["batch size 1, theirs 64"]),
        ({"settings.learning_rate": 1.0}, ["learning rate 1.0, theirs 1e-06"]),
        ({"settings.smoothing": 0.01}, ["smoothing 0.01, theirs 0.001"]),
        ({"privacy.dataset_size": 48}, ["training rows 48, theirs 1024"]),
        ({"metrics.examples": 48}, ["test rows 48, theirs 872"]),
        ({"settings.iterate": "best_dev"}, ["best_dev, theirs last iterate"]),
        (
            {"settings.iterate": "accounted", "metrics.selection": "dev checkpoint"},
            ["dev checkpoint, theirs last iterate"],
        ),
        (
            {"provenance.data.departure": "whole sentences, theirs GLUE's phrases"},
            ["rows: whole sentences, theirs GLUE's phrases"],
        ),
        ({"memory.weights_bytes": float("nan")}, []),
        ({"memory.weights_bytes": 4e5}, ["a stand-in of 0.1 M parameters, theirs 355 M"]),
    ],
)
def test_different_settings_are_named(changed, words):
    assert published.differences(SAME | changed, number(DPZERO, "DPZero", "2")) == words


def test_an_epsilon_at_another_delta_is_not_the_same_epsilon():
    digitised = number(DPZERO, "DP-ZOPO", "repo figure roberta-acc.png")
    assert published.differences(SAME, digitised) == ["δ 1e-05, theirs not printed"]


LORA = {"settings.tune": "lora", "settings.lora_head": "trained", "settings.shots": 512}
LORA |= {"settings.steps": 100_000, "metric": "accuracy", "metrics.split": "test", "metrics.examples": 872}
LORA |= {"settings.iterate": "best_dev_accuracy", "settings.weight_decay": 0.1}
LORA |= {"metrics.selection": SELECTED, "metrics.selection_examples": 1024.0, "metrics.dev_examples": 1024.0}
BY_LOSS = SELECTED.replace("dev checkpoint of the highest accuracy", "best dev checkpoint")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({}, []),
        ({"settings.lora_head": None}, ["lora head not set, theirs trained"]),
        (
            {"settings.iterate": "best_dev", "metrics.selection": BY_LOSS},
            [f"{BY_LOSS}, theirs dev checkpoint of the highest accuracy"],
        ),
        ({"metrics.selection_examples": 256.0}, ["checkpoint by 256 of 1024 dev rows, theirs by all"]),
    ],
)
def test_mezos_lora_on_roberta_has_a_trained_head_and_the_checkpoint_of_the_highest_accuracy(changed, words):
    number_of_512 = number("sst2/roberta-large/mezo_lora/eps-inf", "MeZO", "18", shots=512)
    assert published.differences(LORA | changed, number_of_512) == words


def test_every_number_of_public_code_on_roberta_is_of_an_untied_model():
    """But for DP-AggZO's first-order rows, whose script is not public."""
    for n in published.read():
        full = "/roberta-large/" in n.cell and n.settings.get("tune") == "full"
        unknown = n.paper == "DP-AggZO" and n.cell.split("/")[2] in ("adamw", "dp_adamw")
        assert n.settings.get("tie_embeddings") == (False if full and not unknown else None)


def test_a_misprint_or_a_doubt_is_named_and_is_of_few_numbers():
    misprinted = [n for n in published.read() if n.misprint]
    assert [(n.cell, n.value) for n in misprinted] == [
        ("trec/roberta-large/mezo_lora/eps-inf", 95.0),
        ("copa/opt-13b/mezo_lora/eps-inf", 84.0),
        ("copa/opt-13b/mezo_prefix/eps-inf", 87.0),
        ("mnli/roberta-large/zero_shot/eps-0", 51.4),
    ]
    (copa,) = published.for_run("copa/opt-13b/mezo_lora/eps-inf")
    assert copa.misprint in published.differences({}, copa) and "issue 28" in copa.misprint


@pytest.mark.parametrize(
    "cell, changed, words",
    [
        ("squad/opt-13b/mezo/eps-inf", "batch_loss", "batch loss not set, theirs mean_of_tokens"),
        ("squad/opt-6.7b/mezo/eps-inf", "batch_loss", "batch loss not set, theirs mean_of_tokens"),
        (
            "rte/opt-13b/in_context/eps-inf",
            "demonstrations_for",
            "demonstrations for not set, theirs each_row",
        ),
        ("rte/opt-66b/in_context/eps-inf", "leading_blanks", "leading blanks not set, theirs stripped"),
        ("snli/roberta-large/dp_lora/eps-6", "dropout", "dropout not set, theirs True"),
        ("snli/roberta-large/prefix/eps-inf", "dropout", "dropout not set, theirs True"),
        ("boolq/opt-13b/adamw/eps-inf", "dropout", "dropout not set, theirs True"),
        ("cb/opt-13b/adamw/eps-inf", "decay_steps", "decay steps not set, theirs 95"),
        ("snli/roberta-large/prefix/eps-inf", "decay_steps", "decay steps not set, theirs 1000"),
    ],
)
def test_a_run_without_a_setting_of_the_papers_code_gets_no_verdict(cell, changed, words):
    theirs, *_ = published.for_run(cell)
    same = {f"settings.{key}": value for key, value in theirs.settings.items()}
    assert words not in published.differences(same, theirs)
    assert words in published.differences(same | {f"settings.{changed}": None}, theirs)
