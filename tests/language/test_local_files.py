"""A user's rows and model folders are checked when their sweep is planned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpzero import include
from dpzero.errors import UsageError
from dpzero.language.data import table_files
from dpzero.plan import sweep
from tests.own_model import write_model, write_rows

TASK = "films: {{files: {files}, text: text, label: label, words: {{0: dull, 1: great}}}}\n"
SWEEP = """
tuning: fixed
include: ["."]
tasks: [films]
models: [mine]
epsilons: [2]
seeds: [0, 1]
settings: {steps: 2, learning_rate: 0.01, clip: 1, delta: 1.0e-3}
methods: {zero_shot: {}, dpzero: {}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, model) -> Path:
    """A folder with rows, a saved model, and a sweep over both."""
    monkeypatch.setenv(include.VARIABLE, "")
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "my"
    shutil.copytree(model, folder / "model")
    write_rows(folder / "rows.csv")
    (folder / "models.yaml").write_text("mine: {kind: encoder, path: model}\n", "utf-8")
    (folder / "tasks.yaml").write_text(TASK.format(files="rows.csv"), "utf-8")
    (folder / "mine.yaml").write_text(SWEEP, "utf-8")
    return folder


def plan(folder: Path) -> dict[str, dict]:
    return sweep.load(str(folder / "mine.yaml"))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        plan(folder)
    return str(error.value)


def test_all_faults_of_rows_and_model_are_told_at_once(folder):
    (folder / "odd.csv").write_text("text,label\na film,1\na play,3\na film,4\na play,3\n", "utf-8")
    (folder / "test.csv").write_text("review,label\na film,1\n", "utf-8")
    (folder / "tasks.yaml").write_text(TASK.format(files="{train: odd.csv, test: test.csv}"), "utf-8")
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "tokenizer_config.json").unlink()
    message = refusal(folder)
    assert message.startswith("2 faults: ")
    for words in (
        'odd.csv, line 3, has label "3": labels of task films are 0, 1: add it to its `words`, or correct the row '
        "(2 such rows)",
        'odd.csv, line 4, has label "4"',
        "test.csv, line 2, has no column 'text': task films reads text and label",
        "my/model, the folder of model mine, lacks a tokenizer: save it there, too",
    ):
        assert words in message


def test_a_file_that_is_not_there_hides_no_other_fault(folder):
    (folder / "rows.csv").unlink()
    (folder / "model" / "config.json").unlink()
    message = refusal(folder)
    assert "cannot read the rows" in message and "model mine is not in" in message


def test_rows_are_read_once_for_each_of_their_versions(folder, monkeypatch):
    reads: list[Path] = []
    read_rows = table_files.read_rows
    monkeypatch.setattr(table_files, "read_rows", lambda path: reads.append(path) or read_rows(path))
    cells = plan(folder)
    assert len(cells) == 3 and plan(folder) == cells and reads == [folder / "rows.csv"]
    with (folder / "rows.csv").open("a", encoding="utf-8") as file:
        file.write("one more play,1\n")
    assert plan(folder) != cells and len(reads) == 2


def test_rows_with_a_fault_are_refused_each_time(folder):
    with (folder / "rows.csv").open("a", encoding="utf-8") as file:
        file.write("one more play,2\n")
    assert refusal(folder) == refusal(folder)


def test_a_split_without_rows_is_named(folder):
    (folder / "rows.csv").write_text("text,label\na film,1\na play,0\n", "utf-8")
    assert "rows.csv has too few rows: a tenth of them is" in refusal(folder)
    (folder / "tasks.yaml").write_text(TASK.format(files="{train: rows.csv, test: rows.csv}"), "utf-8")
    assert "task films has no rows for dev: give more rows" in refusal(folder)


def test_a_draw_of_more_shots_than_rows_is_refused(folder):
    (folder / "mine.yaml").write_text(SWEEP.replace("steps: 2", "steps: 2, shots: 500"), "utf-8")
    assert "task films: no class has 500 training rows" in refusal(folder)


def cut_short(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])


def take_a_part_away(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


BROKEN = {
    "weights cut short": (cut_short, "has model.safetensors damaged or cut short: copy it again"),
    "a missing part": (take_a_part_away, "lacks model-2.safetensors, which model.safetensors.index.json names"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "lacks weights (model.safetensors)"),
    "no JSON": (lambda model: (model / "config.json").write_text("{", "utf-8"), "has a config.json that is no JSON"),
    "no type": (lambda model: (model / "config.json").write_text("{}", "utf-8"), "has a config.json without model_type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_fault_of_a_model_folder_is_named(folder, case):
    damage, words = BROKEN[case]
    damage(folder / "model")
    assert f"my/model, the folder of model mine, {words}" in refusal(folder)


def test_planning_with_local_files_imports_no_torch(folder):
    code = "import sys; from dpzero.plan import sweep; sweep.load(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(folder / "mine.yaml")], check=True, timeout=120)


def test_what_is_odd_in_the_labels_is_said_once(folder, capsys):
    stanza = "films: {files: rows.csv, text: text, label: label, words: {0: '0', 1: '1', 2: '2'}}\n"
    (folder / "tasks.yaml").write_text(stanza, "utf-8")
    plan(folder)
    numbers, absent = capsys.readouterr().err.splitlines()
    assert numbers.startswith(
        "dpzero: task films: its labels are described by the numbers 0, 1, 2, which tell a"
    )
    assert absent == "dpzero: task films: no training row has the label 2, which no model can learn then"
    plan(folder)
    assert not capsys.readouterr().err
