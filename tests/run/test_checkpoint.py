"""A checkpoint belongs to one cell, lies beside no declared output, and survives whatever kills the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpzero.run import checkpoint
from dpzero.run.checkpoint import Checkpoint

CELL = {"task": "toy", "seed": 0, "settings": {"steps": 5}}
STATE = {"method": {"steps_taken": 3, "parameters": [torch.arange(4.0)]}, "curve": [{"step": 0, "x": None}]}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "results" / "smoke" / "runs" / "toy" / "m" / "mezo" / "eps-inf" / "seed-0.json"


@pytest.mark.parametrize(
    "out, folder",
    [
        ("results/s/runs/toy/m/mezo/eps-2/seed-0.json", "results/s/checkpoints/toy/m/mezo/eps-2/seed-0"),
        ("/runs/x/results/s/runs/t/seed-0.json", "/runs/x/results/s/checkpoints/t/seed-0"),
        ("one/record.json", "one/record.checkpoint"),
        ("record.json", "record.checkpoint"),
    ],
)
def test_the_folder_is_outside_the_declared_outputs(out, folder):
    assert checkpoint.folder(Path(out)) == Path(folder)


def test_what_is_saved_is_loaded(out):
    Checkpoint(out, CELL).save(STATE)
    loaded = Checkpoint(out, CELL).load()
    assert torch.equal(loaded["method"]["parameters"][0], torch.arange(4.0))
    assert loaded["method"]["steps_taken"] == 3 and loaded["curve"] == STATE["curve"]


def test_a_new_run_has_none(out):
    assert Checkpoint(out, CELL).load() is None


def test_that_of_another_cell_is_thrown_away_with_its_ledger(out):
    old = Checkpoint(out, CELL)
    old.save(STATE)
    old.ledger.write_text("released\n")
    new = Checkpoint(out, CELL | {"settings": {"steps": 6}})
    assert new.load() is None and not new.ledger.exists()


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_state_is_none_and_keeps_the_ledger(out, damage):
    mine = Checkpoint(out, CELL)
    mine.save(STATE)
    mine.ledger.write_text("released\n")
    state = mine.folder / "state.pt"
    state.write_bytes(state.read_bytes()[:300] if damage is None else damage)
    again = Checkpoint(out, CELL)
    assert again.load() is None and again.ledger.read_text() == "released\n"


def test_it_saves_after_some_seconds_and_asks_for_the_state_only_then(out, monkeypatch):
    mine = Checkpoint(out, CELL)
    monkeypatch.setattr(checkpoint, "SECONDS", 1000)
    mine.maybe_save(lambda: pytest.fail("too early"))
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    mine.maybe_save(lambda: STATE)
    assert Checkpoint(out, CELL).load() is not None


def test_it_is_gone_when_the_record_is_there(out):
    mine = Checkpoint(out, CELL)
    mine.save(STATE)
    mine.remove()
    mine.remove()
    assert not mine.folder.exists()
