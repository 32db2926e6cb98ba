"""The verbs list, new task and compare."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpzero import include
from dpzero.__main__ import main
from dpzero.cli import workflow
from dpzero.cli.compare import spread
from dpzero.plan import sweep
from dpzero.plan.registry import ROOT


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """A table of 200 reviews."""
    monkeypatch.setenv(include.VARIABLE, "")
    file = tmp_path / "rows.csv"
    lines = [f'{i},"a {("dull", "great")[i % 2]} film, number {i}",{1 + 3 * (i % 2)}' for i in range(200)]
    file.write_text("\n".join(["id,review,stars", *lines]) + "\n", "utf-8")
    return file


@pytest.mark.parametrize("kind", ["tasks", "models", "methods", "sweeps"])
def test_everything_that_a_sweep_can_name_is_listed_in_a_line(kind, capsys):
    assert main(["list", kind]) == 0
    *lines, answer = capsys.readouterr().out.splitlines()
    assert json.loads(answer) == {kind: len(lines)}
    assert all(len(line.split("  ", 1)) == 2 for line in lines)
    names = [line.split()[0] for line in lines]
    assert {"tasks": "r8", "models": "minilm", "methods": "dpzero", "sweeps": "quick"}[kind] in names


def test_a_new_task_is_a_stanza_that_can_be_used_as_it_stands(rows, tmp_path, capsys):
    assert main(["new", "task", "films", "--from", str(rows), "--out", str(tmp_path / "mine")]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out) == {
        "task": "films",
        "file": str(tmp_path / "mine" / "tasks.yaml"),
        "labels": 2,
    }
    assert (
        "task films: its labels are described by the numbers 1, 4, which tell a model nothing" in written.err
    )
    assert main(["list", "tasks", "--include", str(tmp_path / "mine")]) == 0
    assert re.search(
        r"^films +films: 2 classes, rows of mine/tasks.yaml$", capsys.readouterr().out, re.MULTILINE
    )
    assert main(["new", "task", "films", "--from", str(rows), "--out", str(tmp_path / "mine")]) == 2
    assert "there is a task films already" in capsys.readouterr().err


REFUSED = {
    "an empty label": ([], "rows.csv has 1 rows with an empty stars: fill it, or leave these rows out"),
    "unknown column": (["--label", "star"], "unknown column 'star': did you mean 'stars'?"),
    "labels that are no classes": (["--label", "review"], "column review has 200 different values, but labels are 2 to 200"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_makes_no_task_is_refused(rows, tmp_path, capsys, case):
    options, message = REFUSED[case]
    lines = [*rows.read_text("utf-8").splitlines(), f"200,one more text,{'' if 'empty' in case else 4}"]
    rows.write_text("\n".join(lines), "utf-8")
    message = message.replace("has 200", "has 201")
    assert main(["new", "task", "films", "--from", str(rows), "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that would have replaced this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    return commands


def compare(rows: Path, folder: Path, *options: str) -> int:
    command = ["compare", "--data", str(rows), "--model", "tiny-encoder", "--out", str(folder), *options]
    return main(command)


def test_a_comparison_is_a_sweep_with_equal_tries(rows, tmp_path, started):
    folder = tmp_path / "films"
    assert (
        compare(rows, folder, "--words", "1=a bad film", "4=a good one", "--epsilon", "1", "--seeds", "5")
        == 0
    )
    assert yaml.safe_load((folder / "tasks.yaml").read_text("utf-8"))["films"]["words"] == {
        "1": "a bad film",
        "4": "a good one",
    }
    (command,) = started
    assert command[command.index("-s") + 1] == str(workflow.snakefile())
    assert f"sweep={folder / 'films.yaml'}" in command
    cells = sweep.load(str(folder / "films.yaml"))
    assert [run for run in cells if "@" not in run] == [
        "films/tiny-encoder/zero_shot/eps-0/seed-0",
        "films/tiny-encoder/dpzero/eps-1/seed-5",
        "films/tiny-encoder/dp_sgd/eps-1/seed-5",
    ]
    assert sum("@" in run for run in cells) == 2 * 6
    assert cells["films/tiny-encoder/dpzero/eps-1/seed-5"]["settings"]["delta"] == 1e-3  # below 1 / 200


def test_sizes_delta_and_tries_of_a_comparison_may_be_given(rows, tmp_path, started):
    sizes = ("--batch-size", "16", "--steps", "40", "--delta", "1e-4", "--tries", "2", "--seeds", "5", "6")
    assert compare(rows, tmp_path / "films", *sizes, "--epsilon", "1") == 0
    cells = sweep.load(str(tmp_path / "films" / "films.yaml"))
    settings = cells["films/tiny-encoder/dpzero/eps-1/seed-6"]["settings"]
    assert [settings[key] for key in ("batch_size", "steps", "delta")] == [16, 40, 1e-4]
    assert cells["films/tiny-encoder/dp_sgd/eps-1/seed-6"]["settings"]["steps"] == 4
    tries = {run.split("/")[2] for run in cells if "@" in run}
    assert tries == {
        "dpzero@clip3_learning_rate0.0003",
        "dpzero@clip10_learning_rate0.0003",
        "dp_sgd@clip0.3_learning_rate0.3",
        "dp_sgd@clip1_learning_rate0.3",
    }


@pytest.mark.parametrize("tries", range(1, 7))
def test_tries_are_different_points_of_the_grid(tries):
    grid = {"clip": [1, 2], "learning_rate": [1, 2, 3]}
    chosen = {tuple(point.values()) for point in spread("dpzero", grid, tries)}
    assert len(chosen) == tries


@pytest.mark.parametrize("tune", ["head", "bias", "full"])
def test_every_method_of_a_comparison_can_be_planned(rows, tmp_path, started, tune):
    methods = ["zero_shot", "adamw", "mezo", "dpzero", "dp_zo", "dp_aggzo", "dp_sgd", "dp_adam"]
    assert compare(rows, tmp_path / "films", "--tune", tune, "--methods", *methods) == 0
    assert {
        cell["method"].partition("@")[0] for cell in sweep.load(str(tmp_path / "films/films.yaml")).values()
    } == set(methods)


def test_what_cannot_be_compared_is_refused(rows, tmp_path, started, capsys):
    assert compare(rows, tmp_path / "a", "--methods", "dpzer") == 2
    assert "unknown method of a comparison 'dpzer': did you mean 'dpzero'?" in capsys.readouterr().err
    assert compare(rows, tmp_path / "b", "--words", "2=fine") == 2
    assert "unknown label '2': known are 1, 4" in capsys.readouterr().err
    assert compare(rows, tmp_path / "c", "--words", "1=fine") == 2
    assert "--words says nothing of the labels 4" in capsys.readouterr().err
    assert compare(rows, tmp_path / "d", "--model", "Tiny-Encoder") == 2
    assert "unknown model 'Tiny-Encoder': did you mean 'tiny-encoder'?" in capsys.readouterr().err
    assert compare(rows, tmp_path / "e", "--model", "./nowhere") == 2
    assert "there is no folder ./nowhere" in capsys.readouterr().err
    assert compare(rows, tmp_path / "e", "--model", str(rows)) == 2
    assert "rows.csv is a file: give the folder that save_pretrained wrote" in capsys.readouterr().err
    assert compare(rows, tmp_path / "e", "--methods", "dp_zoso") == 2
    assert "compare knows no settings to try for method dp_zoso: write a sweep" in capsys.readouterr().err
    assert compare(tmp_path / "no.csv", tmp_path / "f") == 2
    assert "no.csv: correct --data" in capsys.readouterr().err
    assert compare(rows, tmp_path / "quick") == 2
    assert "the name quick is built in: choose another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare(rows, tmp_path / "g", "--tries", "7")
    assert "argument --tries: '7' is not a whole number, from 1 to 6" in capsys.readouterr().err
    assert not started


METHOD = """
from dpzero.private_two_point import PrivateTwoPoint


class Mine(PrivateTwoPoint):
    title = "Mine"
    contract_settings = {{"learning_rate": 0.01, "clip": 1.0}}

    def projected_gradient(self, difference):
        return {sum} / self.batch_size
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("total", "sound"),
    [("self.noisy_sum(difference.sign())", True), ("float(difference.sign().sum())", False)],
)
def test_a_method_of_ones_own_is_checked_by_the_contract(tmp_path, total, sound):
    (tmp_path / "my_zo.py").write_text(METHOD.format(sum=total), "utf-8")
    command = [sys.executable, "-m", "dpzero", "check-method", "my_zo.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=900
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["method"], answer["match"], done.returncode) == ("Mine", sound, 0 if sound else 1)
    assert ("test_the_ledger_has_every_step" in done.stdout) is not sound


CHECKED = {
    "no file": (None, "there is no file .*my_zo.py"),
    "no method": ("x = 1", "my_zo.py holds no method"),
    "a fault": ("class A(", "my_zo.py cannot be read"),
}


@pytest.mark.parametrize("case", CHECKED)
def test_a_file_that_holds_no_sound_method_is_named(tmp_path, monkeypatch, capsys, case):
    monkeypatch.setenv(include.VARIABLE, "")
    source, message = CHECKED[case]
    if source:
        (tmp_path / "my_zo.py").write_text(source, "utf-8")
    assert main(["check-method", str(tmp_path / "my_zo.py")]) == 2
    assert re.search(message, capsys.readouterr().err)
