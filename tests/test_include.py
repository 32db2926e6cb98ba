"""A user's own tasks, models, methods and sweeps, from a folder outside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from datasets import Dataset

from dpzero import include
from dpzero.__main__ import main
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import model_catalogue
from dpzero.plan import registry, sweep
from dpzero.run import provenance

REVIEWS = [
    (f"the {word} number {i} was\nwatched, twice", str(1 + i % 2))
    for i in range(40)
    for word in ("film", "play")
]
TASK = """
reviews:
  files: rows.csv
  text: review
  label: stars
  words: {1: terrible, 2: great}
"""
METHOD = """
from dpzero.private_two_point import PrivateTwoPoint
from baselines import dp_zo


class SignZO(PrivateTwoPoint):
    title = "Sign-ZO"

    def projected_gradient(self, difference):
        return self.noisy_sum(difference.sign()) / self.batch_size
"""
SWEEP = """
tuning: fixed
include: ["."]
tasks: [reviews]
models: [small]
epsilons: [2]
seeds: [0]
settings: {steps: 2, learning_rate: 0.01, clip: 1, delta: 1.0e-3}
methods: {sign_zo: {}, dpzero: {}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a task, a model, a method and a sweep of the user's own."""
    monkeypatch.setenv(include.VARIABLE, "")
    folder = tmp_path / "my things"
    folder.mkdir()
    (folder / "tasks.yaml").write_text(TASK, "utf-8")
    config = model_catalogue.stanza("tiny-encoder")["config"]
    (folder / "models.yaml").write_text(json.dumps({"small": {"kind": "encoder", "config": config}}), "utf-8")
    (folder / "sign_zo.py").write_text(METHOD, "utf-8")
    (folder / "mine.yaml").write_text(SWEEP, "utf-8")
    write_csv(folder / "rows.csv", REVIEWS)
    return folder


def write_csv(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> None:
    quoted = ['"review"' + delimiter + '"stars"', *(f'"{text}"{delimiter}{label}' for text, label in rows)]
    path.write_text("\ufeff" + "\n".join(quoted) + "\n", "utf-8")


def read_splits() -> dict[str, list[tuple[str, int]]]:
    return {
        split: [(row.text, row.label) for row in rows] for split, rows in tasks.load("reviews").splits.items()
    }


def test_rows_are_the_same_in_every_format(folder):
    include.add(folder)
    expected = read_splits()
    rows = [row for split in expected.values() for row in split]
    assert len(rows) == len(REVIEWS) and all(expected.values())
    assert dict(rows)[REVIEWS[3][0]] == int(REVIEWS[3][1]) - 1
    fields = [{"review": text, "stars": int(label)} for text, label in REVIEWS]
    write_csv(folder / "rows.tsv", REVIEWS, "\t")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, fields)), "utf-8")
    Dataset.from_list([{**row, "stars": float(row["stars"])} for row in fields]).to_parquet(
        folder / "rows.parquet"
    )
    for name in ("rows.tsv", "rows.jsonl", "rows.parquet"):
        (folder / "tasks.yaml").write_text(TASK.replace("rows.csv", name), "utf-8")
        assert read_splits() == expected


def test_the_column_without_a_name_that_pandas_writes_is_no_fault(folder):
    include.add(folder)
    before = read_splits()
    pandas.read_csv(folder / "rows.csv").to_csv(folder / "rows.csv")
    assert (folder / "rows.csv").read_text("utf-8").startswith(",review,stars")
    assert read_splits() == before


def test_a_name_of_ones_own_asks_for_its_folder(folder):
    with pytest.raises(
        UsageError, match=r"unknown task 'reviews': .*one of your own needs its folder as --include"
    ):
        tasks.stanza("reviews")
    with pytest.raises(
        UsageError, match=r"unknown sweep 'mine': .*one of your own needs its folder as --include"
    ):
        sweep.load("mine")
    include.add(folder)
    with pytest.raises(UsageError) as error:
        tasks.stanza("review")
    assert str(error.value) == "unknown task 'review': did you mean 'reviews'?"


def test_each_split_may_have_its_own_file(folder):
    write_csv(folder / "held_out.csv", [("one more film", "2")])
    files = "files: {train: rows.csv, test: held_out.csv}"
    (folder / "tasks.yaml").write_text(TASK.replace("files: rows.csv", files), "utf-8")
    include.add(folder)
    splits = read_splits()
    assert splits["test"] == [("one more film", 1)]
    assert len(splits["train"]) + len(splits["dev"]) == len(REVIEWS) and splits["dev"]


def test_a_text_may_be_joined_from_several_columns(folder):
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "stars": "1"} for i in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    stanza = TASK.replace("rows.csv", "rows.jsonl").replace("review\n", "[premise, hypothesis]\n")
    (folder / "tasks.yaml").write_text(stanza, "utf-8")
    include.add(folder)
    assert any(("p 7 h 7", 0) in rows for rows in read_splits().values())


def test_another_row_or_another_word_makes_another_cell(folder):
    include.add(folder)
    digests = {tasks.local_digest("reviews")}
    (folder / "tasks.yaml").write_text(TASK.replace("great", "good"), "utf-8")
    digests.add(tasks.local_digest("reviews"))
    write_csv(folder / "rows.csv", REVIEWS[1:])
    digests.add(tasks.local_digest("reviews"))
    assert len(digests) == 3
    (folder / "tasks.yaml").write_text(TASK.replace("great", "good") + "  title: Reviews\n", "utf-8")
    assert tasks.local_digest("reviews") in digests  # a title changes no example


WRONG = {
    "a label without a word": ("files: rows.csv", "files: odd.csv", r"odd.csv, line 2, has stars \"3\": labels of task reviews are 1, 2"),
    "a column that is not there": ("text: review", "text: reviews", "has no column 'reviews': task reviews reads reviews and stars"),
    "a misspelt key": ("label: stars", "lable: stars", "tasks.yaml, task reviews: unknown key 'lable': did you mean 'label'"),
    "a file that is not there": ("rows.csv", "row.csv", "cannot read the rows .*row.csv .No such file"),
    "an unknown format": ("rows.csv", "rows.xlsx", "its name must end in .csv, .tsv"),
    "an unquoted comma": ("rows.csv", "commas.csv", "commas.csv, line 3, has 3 fields for 2 columns: quote texts that hold ','"),
    "semicolons": ("rows.csv", "semicolons.csv", "semicolons.csv, line 1, separates columns by ';': save it with ','"),
    "a file that is no table": ("rows.csv", "rows.parquet", "rows.parquet cannot be read as Parquet"),
    "words that are yes and no": ("{1: terrible, 2: great}", "{1: no, 2: yes}", "words.1 is False"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_in_a_users_task_is_named_with_its_place(folder, case):
    old, new, message = WRONG[case]
    write_csv(folder / "odd.csv", [("a film", "3")])
    (folder / "semicolons.csv").write_text("review;stars\na film;1\n", "utf-8")
    (folder / "rows.xlsx").write_bytes(b"PK")
    (folder / "rows.parquet").write_bytes(b"PAR1")
    (folder / "commas.csv").write_text("review,stars\na film,1\na film, twice,2\n", "utf-8")
    (folder / "tasks.yaml").write_text(TASK.replace(old, new), "utf-8")
    include.add(folder)
    with pytest.raises(UsageError, match=message):
        _ = tasks.load("reviews").splits


def test_a_users_name_never_hides_a_built_in_one(folder):
    include.add(folder)
    for file, text, names in (
        ("tasks.yaml", TASK.replace("reviews:", "r8:"), tasks.names),
        ("models.yaml", "minilm: {kind: encoder, path: .}", model_catalogue.names),
        ("mezo.py", METHOD, registry.cards),
        ("quick.yaml", SWEEP, sweep.names),
    ):
        before = (folder / file).read_text("utf-8") if (folder / file).exists() else None
        (folder / file).write_text(text, "utf-8")
        with pytest.raises(UsageError, match=f"{file}: the name .* is built in: choose another"):
            names()
        (folder / file).unlink() if before is None else (folder / file).write_text(before, "utf-8")


def test_two_included_folders_may_not_share_a_name(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tasks.yaml", "sign_zo.py"):
        (other / name).write_bytes((folder / name).read_bytes())
    include.add(folder)
    include.add(other)
    with pytest.raises(UsageError, match="task reviews stands in another included folder"):
        tasks.names()
    with pytest.raises(UsageError, match=r"sign_zo.py and .*sign_zo.py have one name"):
        registry.cards()


def test_a_model_is_a_folder_or_a_name_on_the_hub(folder):
    (folder / "saved").mkdir()
    (folder / "saved" / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    (folder / "models.yaml").write_text(
        "mine: {kind: encoder, path: saved}\nfar: {kind: causal, path: someone/small-model}\n"
        "gone: {kind: encoder, path: ./nowhere}\n",
        "utf-8",
    )
    include.add(folder)
    assert model_catalogue.source("mine") == str(folder / "saved")
    assert model_catalogue.stanza("far")["hub"] == "someone/small-model"
    with pytest.raises(UsageError, match=r"model gone is not in .*nowhere: .* or correct its path"):
        model_catalogue.source("gone")
    before = model_catalogue.local_digest("mine")
    (folder / "saved" / "config.json").write_text('{"model_type": "roberta"}', "utf-8")
    assert model_catalogue.local_digest("mine") != before


def test_a_method_of_ones_own_is_planned_loaded_and_digested_like_the_others(folder):
    include.add(folder)
    method = registry.card("sign_zo")
    assert method.title == "Sign-ZO" and method.private and "clip" in method.required
    assert method.load().title == "Sign-ZO"
    before = provenance.method_digest("sign_zo")
    (folder / "sign_zo.py").write_text(METHOD + "\n# changed\n", "utf-8")
    assert provenance.method_digest("sign_zo") != before


def test_a_sweep_is_given_by_its_path_and_includes_its_folder(folder):
    cells = sweep.load(str(folder / "mine.yaml"))
    assert list(cells) == ["reviews/small/sign_zo/eps-2/seed-0", "reviews/small/dpzero/eps-2/seed-0"]
    assert include.folders() == (folder,)
    assert sweep.load("mine") == cells
    assert sweep.name_of(str(folder / "mine.yaml")) == "mine"


def test_a_sweep_that_is_not_there_or_has_a_built_in_name_is_refused(folder):
    with pytest.raises(UsageError, match=r"there is no sweep file .*other.yaml: correct its path"):
        sweep.load(str(folder / "other.yaml"))
    (folder / "quick.yaml").write_text(SWEEP, "utf-8")
    with pytest.raises(UsageError, match=r"quick.yaml: the name quick is built in"):
        sweep.load(str(folder / "quick.yaml"))
    with pytest.raises(UsageError, match=r"include: .*nowhere is no folder"):
        (folder / "mine.yaml").write_text(SWEEP.replace('"."', "nowhere"), "utf-8")
        sweep.load(str(folder / "mine.yaml"))


@pytest.mark.slow
def test_a_sweep_of_the_same_name_with_other_words_runs_anew(folder, tmp_path, monkeypatch):
    """Snakemake overlooks changed parameters of a run whose inputs, of any age, are to be made again."""
    monkeypatch.delenv(include.VARIABLE)
    short = SWEEP.replace("learning_rate: 0.01, clip: 1", "max_length: 16")
    short = short.replace("{sign_zo: {}, dpzero: {}}", "{zero_shot: {}}")
    (folder / "mine.yaml").write_text(short, "utf-8")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("mine.yaml", "models.yaml", "rows.csv"):
        (other / name).write_bytes((folder / name).read_bytes())
    (other / "tasks.yaml").write_text(TASK.replace("great", "good"), "utf-8")

    def announced(path: Path, *options: str) -> str:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            str(registry.ROOT / "Snakefile"),
            "--cores",
            "1",
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": str(registry.ROOT)}
        done = subprocess.run(
            [*command, "--config", f"sweep={path / 'mine.yaml'}"], cwd=tmp_path, env=environment, capture_output=True,
            encoding="utf-8", timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        return next((line for line in lines if line.startswith("mine: ")), "nothing to run")

    assert announced(folder).startswith("mine: 1 runs, 0 exist, 1 to be run")
    assert announced(folder, "-n") == "nothing to run"
    assert announced(other, "-n").startswith("mine: 1 runs, 0 exist, 1 to be run")


@pytest.mark.parametrize("verb", ["export", "replay"])
def test_a_record_of_a_users_task_asks_for_its_folder(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setenv(include.VARIABLE, "")
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"cell": {"task": "reviews", "model": "minilm", "use": "dpzero"}}), "utf-8")
    assert main([verb, str(record), "--out", str(tmp_path / "out")]) == 2
    words = "is of the task reviews, which is neither built in nor included: give the folder that has it as --include"
    assert capsys.readouterr().err == f"dpzero: {record} {words}\n"
