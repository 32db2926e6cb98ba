"""`verify` on results of real runs: a tiny encoder and rows of one's own, trained twice or with one thing changed."""

from __future__ import annotations

import csv
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dpzero import include
from dpzero.__main__ import main
from dpzero.plan import sweep
from dpzero.plan.registry import ROOT
from dpzero.run.run import run_cell
from tests.own_model import write_model, write_rows

SWEEP = """
description: films
tuning: fixed
include: .
tasks: [films]
models: [small]
epsilons: ["2"]
seeds: [0, 1, 2]
settings: {tune: head, batch_size: 8, steps: 6, max_length: 16, evaluate_every: 2, curve_examples: 16, delta: 1.0e-4, token_budget: 1}
methods:
  zero_shot: {}
  dpzero: {learning_rate: 0.1, smoothing: 1.0e-2, clip: 5}
  dp_sgd: {title: DP-SGD, learning_rate: 0.5, clip: 1}
"""
STANZAS = {
    "tasks": "films: {files: rows.csv, text: text, label: label, words: {0: dull, 1: great}}\n",
    "models": "small: {kind: encoder, path: model}\n",
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with rows, a model and a sweep."""
    monkeypatch.setenv(include.VARIABLE, "")
    home = tmp_path / "home"
    home.mkdir()
    write_rows(home / "rows.csv", 300)
    write_model(home / "model")
    for name, text in STANZAS.items():
        (home / f"{name}.yaml").write_text(text)
    (home / "films.yaml").write_text(SWEEP)
    return home


@pytest.fixture
def run(home, tmp_path, cache) -> Callable[..., Path]:
    """run(name, axis=values) -> the result folder of this name, with the runs of the sweep that the axes leave."""

    def results(name: str, **axes: list[str]) -> Path:
        for run, cell in sweep.load(str(home / "films.yaml"), **axes).items():
            run_cell(cell, tmp_path / name / "runs" / f"{run}.json", log=lambda _: None, device="cpu")
        return tmp_path / name

    return results


class Said(NamedTuple):
    status: int
    text: str
    answer: dict


@pytest.fixture
def verify(capsys) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        capsys.readouterr()
        status = main(["verify", *map(str, arguments)])
        *lines, answer = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"reproduced: {json.loads(answer)['reproduced']}"
        return Said(status, "\n".join(lines), json.loads(answer))

    return call


ONE = {"methods": ["dpzero", "dp_sgd"], "seeds": ["0"]}


def test_a_rerun_agrees_bit_for_bit_and_with_a_part_of_it_if_asked(run, verify):
    mine, theirs = run("mine"), run("theirs", **ONE)
    again = verify(theirs, run("again", **ONE))
    assert (again.status, again.answer["reproduced"]) == (0, "yes")
    assert "Bit for bit: 2 of 2 rows, 2 of 2 records." in again.text
    whole = verify(mine, theirs)
    assert (whole.status, whole.answer["reproduced"]) == (1, "no")
    assert "Only mine: 5 records" in whole.text and whole.answer["rows"]["only_mine"] == 1
    part = verify(mine, theirs, "--partial")
    assert (part.status, part.answer["reproduced"]) == (0, "yes")


def test_a_transcript_that_is_not_the_one_of_its_record_is_named(run, verify):
    mine, theirs = run("mine", **ONE), run("theirs", **ONE)
    [file] = theirs.rglob("*.transcript")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = verify(mine, theirs)
    assert (found.status, found.answer["reproduced"]) == (1, "no")
    assert f"{file.with_suffix('.json')} names another transcript than the one beside it" in found.text


def change_a_row(home: Path) -> None:
    rows = [*csv.reader((home / "rows.csv").open())]
    rows[1][0] += " and very"
    csv.writer((home / "rows.csv").open("w")).writerows(rows)


def change_a_weight(home: Path) -> None:
    file = home / "model" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.0.output.dense.weight"][0, 0] += 0.5
    save_file(weights, file, {"format": "pt"})


def change_a_setting(home: Path) -> None:
    (home / "films.yaml").write_text(SWEEP.replace("learning_rate: 0.", "learning_rate: 0.2"))


CHANGES = {
    "rows": (change_a_row, "data.sha256 "),
    "weights": (change_a_weight, "model.sha256 "),
    "settings": (change_a_setting, "settings.learning_rate 0.1, theirs 0.21"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_changed_is_named_and_the_first_step_after_it(run, verify, home, kind):
    change, words = CHANGES[kind]
    mine = run("mine", **ONE)
    change(home)
    said = verify(mine, run("theirs", **ONE))
    assert (said.status, said.answer["reproduced"]) == (1, "no")
    assert said.answer["rows"]["other_inputs"] == 2
    (difference,) = said.answer["differences"]
    assert difference["kinds"] == [kind] and difference["causes"][kind].startswith(words)
    assert difference["first"] == "films/small/dpzero/eps-2/seed-0"
    assert "the transcripts part at step " in difference["parting"] and difference["parting"] in said.text


def test_another_seed_is_named(run, verify):
    said = verify(
        run("mine", methods=["dp_sgd"], seeds=["0"]), run("theirs", methods=["dp_sgd"], seeds=["1"])
    )
    assert said.status == 1
    assert "Only mine: 1 record (films/small/dp_sgd/eps-2/seed-0)" in said.text
    assert "Only theirs: 1 record (films/small/dp_sgd/eps-2/seed-1)" in said.text


def test_other_noise_is_within_the_intervals_and_named(run, verify, home, monkeypatch):
    """The keys are drawn here, so that the outcome is the same each time."""
    monkeypatch.setattr(secrets, "token_bytes", np.random.default_rng(0).bytes)
    (home / "films.yaml").write_text(SWEEP.replace("token_budget: 1", "token_budget: 1, noise_key: secret"))
    said = verify(run("mine"), run("theirs"))
    assert (said.status, said.answer["reproduced"]) == (0, "within intervals"), said.text
    assert said.answer["rows"] == {
        "bit_for_bit": 1,
        "within_the_interval": 2,
        "only_mine": 0,
        "only_theirs": 0,
    }
    assert {tuple(one["kinds"]) for one in said.answer["differences"]} == {("noise",)}
    assert "points at the widest" in said.text


def test_bad_arguments_are_named_in_a_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"dpzero: {tmp_path} holds no records")


def test_verify_loads_no_torch(run):
    folder = run("mine", methods=["zero_shot"])
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dpzero", "verify", folder, folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pandas" in loaded and not {"torch", "transformers", "matplotlib"} & loaded
