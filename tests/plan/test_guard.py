"""A record is that of a planned cell, or the first key that differs is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.__main__ import main
from dpzero.plan import guard, search, sweep
from dpzero.run import record_file

RUN = "toy/tiny-encoder/zero_shot/eps-0/seed-0"
SEARCH = """
extends: smoke
tuning: search
search: {tries: 2, seeds: [100]}
methods: {mezo: {grid: {learning_rate: [1.0e-3, 1.0e-2]}}}
"""


def recorded(cell: dict) -> dict:
    """The cell as its record holds it."""
    record = record_file.make(cell, {}, provenance={}, time={})
    return json.loads(json.dumps(record))["cell"]


@pytest.mark.parametrize("name", ["smoke", "quick", "guarantees", "memory", "quadratic", "paper-roberta"])
def test_a_record_of_a_planned_cell_differs_in_nothing(name):
    for cell in list(sweep.load(name).values())[::7]:
        assert guard.difference(recorded(cell), cell) is None


CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "a number": (lambda cell: cell["settings"].update(clip=7), "settings.clip is 7, but "),
    "a digest": (lambda cell: cell["settings"].update(weights="0" * 64), f"settings.weights is not given, but '{'0' * 64}' is planned"),
    "a version": (lambda cell: cell["settings"].update(version=2), "settings.version is 2, but "),
    "a method file": (lambda cell: cell.update(use="mezo"), "use is 'mezo', but 'dpzero' is planned"),
    "an epsilon": (lambda cell: cell.update(epsilon="3"), "epsilon is '3', but "),
    "one setting more": (lambda cell: cell["settings"].update(shots=8), "settings.shots is 8, but not given is planned"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_the_first_key_that_differs_is_named(case):
    cell = next(cell for cell in sweep.load("smoke").values() if cell["method"] == "dpzero")
    other = copy.deepcopy(cell)
    change, words = CHANGES[case]
    change(other)
    if case == "a digest":  # planned, and not in the record
        cell, other = other, cell
    assert (guard.difference(recorded(other), cell) or "").startswith(words)


def test_a_digest_decides_only_if_the_plan_knows_it():
    cell = next(iter(sweep.load("smoke").values()))
    local = copy.deepcopy(cell)
    local["settings"]["data"] = "1" * 64
    assert guard.difference(recorded(local), cell) is None
    assert "settings.data" in (guard.difference(recorded(cell), local) or "")


def test_a_cell_with_a_search_has_one_of_its_points(write, tmp_path):
    cells = write("searched", SEARCH)
    cell = next(cell for cell in cells.values() if cell.get("search"))
    for label, ids in search.try_ids(cell).items():
        for run in ids:
            score = {"learning_rate0.001": 0.5, "learning_rate0.01": 0.7}[label]
            record_file.write_whole(tmp_path / f"{run}.json", json.dumps({"metrics": {"accuracy": score}}))
    decided = recorded(search.decide(cell, tmp_path))
    assert decided["settings"]["learning_rate"] == 0.01 and guard.difference(decided, cell) is None
    edited = decided | {"settings": decided["settings"] | {"learning_rate": 0.001}}
    assert guard.difference(edited, cell) == "settings.learning_rate is 0.001, but 0.01 is planned"
    fewer = cell | {"search": {**cell["search"], "grid": {"learning_rate0.001": {"learning_rate": 0.001}}}}
    words = "search.chosen is 'learning_rate0.01', but one of learning_rate0.001 is planned"
    assert guard.difference(decided, fewer) == words


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    """A run of the sweep smoke, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    out = Path("results") / "smoke" / "runs" / f"{RUN}.json"
    assert main(["run", "--sweep", "smoke", "--cell", RUN, "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_a_record_of_another_cell_is_in_no_table(record, capsys):
    assert main(["tables", "--sweep", "smoke", "--out", "tables"]) == 0
    content = json.loads(record.read_text())
    length = content["cell"]["settings"]["max_length"]
    content["cell"]["settings"]["max_length"] = length + 1
    record.write_text(json.dumps(content))
    capsys.readouterr()
    for verb, *options in (("tables", "--out", "again"), ("figures", "--out", "again"), ("report",)):
        assert main([verb, "--sweep", "smoke", *options]) == 2
        assert capsys.readouterr().err == (
            f"dpzero: {record} is the record of another cell (settings.max_length is {length + 1}, but {length} is "
            "planned): delete it and run the sweep again, or leave it out by --partial\n"
        )
    assert not Path("again").exists() or not any(Path("again").iterdir())
    assert main(["tables", "--sweep", "smoke", "--out", "again", "--partial"]) == 2  # no record is left
    assert "left out here: delete it and run the sweep again" in capsys.readouterr().err


def test_old_records_are_not_those_of_a_changed_sweep(record, capsys):
    cells = sweep.load("smoke")
    Path("smoke-b.yaml").write_text(
        "extends: smoke\nmethods: {zero_shot: {max_length: 9}, mezo: {learning_rate: 0.1}}\n"
    )
    Path("results/smoke").rename("results/smoke-b")
    assert main(["tables", "--sweep", "smoke-b.yaml", "--out", "tables"]) == 2
    length = cells[RUN]["settings"]["max_length"]
    assert f"(settings.max_length is {length}, but 9 is planned)" in capsys.readouterr().err


def test_runs_beside_the_axes_of_a_sweep_are_named_by_these_axes(record, capsys):
    run = "toy/tiny-encoder/dpzero/eps-3/seed-0"
    Path("cells.txt").write_text(f"{RUN}\n{run}\n")
    assert main(["tables", "--sweep", "smoke", "--cells", "cells.txt", "--out", "tables"]) == 2
    assert f"cells.txt: unknown run of sweep smoke '{run}'" in capsys.readouterr().err
    assert (
        main(["tables", "--sweep", "smoke", "--cells", "cells.txt", "--epsilons", "3", "--out", "tables"])
        == 0
    )
