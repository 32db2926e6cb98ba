"""Whatever stops a run, it goes on to the same bits or says why not, and the ledger has every release."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpzero import __main__ as command_line
from dpzero.errors import UsageError
from dpzero.plan import sweep
from dpzero.privacy import Budget
from dpzero.run import checkpoint, provenance
from dpzero.run.replay import replay_record
from dpzero.run.run import run_cell
from dpzero.zeroth_order import transcript
from tests.forked import forked
from tests.run.stopping import before_each_step, summary

STEPS = 8
SLOW = pytest.mark.slow


def quiet(line: str) -> None: ...


@pytest.fixture
def cell(smoke, cache):
    """cell(noise_key, **settings): a DPZero run of 8 steps."""

    def make(noise_key: str = "published", **settings: object) -> dict:
        planned = smoke("dpzero")
        planned["settings"] |= {"steps": STEPS, "evaluate_every": 3, "noise_key": noise_key, **settings}
        return sweep.complete(planned)

    return make


def uninterrupted(cell: dict, out: Path) -> dict:
    run_cell(cell, out, quiet, "cpu")
    return summary(out)


def in_a_fork(cell: dict, out: Path, before=lambda: None) -> object:
    """The run in a process of its own, in which `before` may arrange for its end."""

    def work(_: int) -> dict:
        before()
        return run_cell(cell, out, quiet, "cpu")

    return forked(work, 1)[0]


def stopped(cell: dict, out: Path, step: int = 5, by: int = signal.SIGKILL) -> Path:
    """The process ends before a step, with a state of the one before. Returns the checkpoint's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0)
        before_each_step(patch, lambda _, number: number == step and os.kill(os.getpid(), by))
        assert in_a_fork(cell, out) == by
    return checkpoint.folder(out)


# --- killed at random


def after_calls(count: int) -> None:
    """SIGKILL at the entry to call number `count`, of Python and C functions alike, from here on."""
    left = [count]

    def profile(frame, event, argument):
        if event in ("call", "c_call"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def calls(cell: dict, out: Path) -> int:
    """How many there are in a whole run."""
    seen = [0]

    def profile(frame, event, argument):
        seen[0] += event in ("call", "c_call")

    def work(_: int) -> int:
        sys.setprofile(profile)
        run_cell(cell, out, quiet, "cpu")
        sys.setprofile(None)
        return seen[0]

    return forked(work, 1)[0]


def count_releases(log: Path) -> None:
    """A line for each release that was handed to the method, on its way there."""
    release = Budget.release

    def counted(self, clipped, clip):
        released = release(self, clipped, clip)
        if self.ledger.path:  # no stand-in's
            with log.open("a") as file:
                file.write(f"{self.queue.position - 1} {self.key.name}\n")
        return released

    Budget.release = counted


@pytest.mark.parametrize("points", [3, pytest.param(50, marks=SLOW)])
@pytest.mark.parametrize("noise_key", [pytest.param("published", marks=SLOW), "secret"])
def test_killed_at_random_points_it_goes_on_to_the_same_bits(cell, tmp_path, monkeypatch, noise_key, points):
    mine, draw = cell(noise_key), np.random.default_rng(points)
    expected = uninterrupted(mine, tmp_path / "whole.json")
    total = calls(mine, tmp_path / "counted.json")
    for k, point in enumerate(draw.integers(1, total, points).tolist()):
        out, log = tmp_path / f"{k}.json", tmp_path / f"{k}.log"
        monkeypatch.setattr(
            checkpoint, "SECONDS", (0, 15)[k % 2]
        )  # a state a step, or those of the curve alone
        outcome = in_a_fork(mine, out, lambda log=log, at=point: (count_releases(log), after_calls(at)))
        assert outcome == signal.SIGKILL or (outcome["status"] == "ok" and out.exists())
        in_a_fork(mine, out, lambda log=log: count_releases(log))
        record = json.loads(out.read_text())
        handed_out = set(log.read_text().splitlines())
        lost = STEPS - record["transcript"]["steps"]  # a release that was spent and not used
        assert record["privacy"]["steps"] == STEPS >= len(handed_out) >= STEPS - lost
        assert 0 <= lost <= (noise_key == "secret") and replay_record(out, device="cpu")["match"] is True
        if noise_key == "published":
            assert summary(out) == expected


def test_killed_while_its_checkpoint_is_taken_away_it_releases_nothing_anew(cell, tmp_path):
    """The mark was gone and the record there: the next process took the same steps under another key, and said that it was alone."""
    mine, out, log = cell("secret"), tmp_path / "a.json", tmp_path / "a.log"

    def die_with_the_mark_alone_gone() -> None:
        def remove_one(folder: Path, **how: object) -> None:
            if (folder / "cell.json").exists():
                (folder / "cell.json").unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.shutil.rmtree = remove_one
        count_releases(log)

    assert in_a_fork(mine, out, die_with_the_mark_alone_gone) == signal.SIGKILL
    record = json.loads(out.read_text())
    assert in_a_fork(mine, out, lambda: count_releases(log)) == record
    assert len(log.read_text().splitlines()) == STEPS == record["privacy"]["steps"]


@pytest.mark.parametrize("noise_key", ["published", "secret"])
def test_two_processes_on_one_run_are_one_run(cell, tmp_path, noise_key):
    """An orphan of a killed workflow and its successor took the same steps under two keys, and each said that it was alone."""
    mine, out = cell(noise_key), tmp_path / "a.json"
    first, second = forked(lambda _: run_cell(mine, out, quiet, "cpu"), 2)
    assert first == second and json.loads(out.read_text()) == first
    assert first["privacy"]["steps"] == STEPS and {file.name for file in tmp_path.iterdir()} == {
        "a.json",
        "a.transcript",
    }


@pytest.mark.parametrize("by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_asked_to_end_it_ends_at_once_and_goes_on_later(cell, tmp_path, by):
    mine, out = cell(), tmp_path / "a.json"

    def as_in_the_foreground() -> None:  # a shell's background jobs, this suite perhaps, ignore SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with pytest.MonkeyPatch.context() as patch:
        before_each_step(patch, lambda _, number: number == 5 and os.kill(os.getpid(), by))
        outcome = in_a_fork(mine, out, as_in_the_foreground)
    assert outcome == by or isinstance(outcome, KeyboardInterrupt)
    assert not out.exists() and len(transcript.read(checkpoint.folder(out) / "transcript")[1]) == 5
    assert uninterrupted(mine, out) == uninterrupted(mine, tmp_path / "b.json")


@pytest.mark.parametrize("method", ["adamw", "dp_adam"])
def test_killed_a_run_with_dropout_goes_on_with_the_same_masks(method, smoke, cache, tmp_path):
    planned = smoke(method)
    planned["settings"] |= {"steps": STEPS, "evaluate_every": 0}
    without = sweep.complete(planned)
    mine = sweep.complete(planned | {"settings": planned["settings"] | {"dropout": True}})
    kept = stopped(mine, tmp_path / "killed.json")
    assert torch.load(kept / "state.pt")["method"]["steps_taken"] == 5
    cells = {"killed": mine, "whole": mine, "without": without}
    ends = {name: run_cell(cell, tmp_path / f"{name}.json", quiet, "cpu") for name, cell in cells.items()}
    assert ends["killed"]["metrics"] == ends["whole"]["metrics"] != ends["without"]["metrics"]


# --- no room


# for the cell, the ledger or transcript, a state
@pytest.mark.parametrize("octets", [pytest.param(200, marks=SLOW), 600, pytest.param(3000, marks=SLOW)])
def test_without_room_it_stops_and_goes_on_when_there_is(cell, tmp_path, octets):
    mine, out = cell("published", steps=30, evaluate_every=20), tmp_path / "a.json"

    def work(_: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))
        try:
            run_cell(mine, out, quiet, "cpu")
        except OSError as error:
            return error.errno
        finally:  # for what the fork leaves
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    assert forked(work, 1) == [errno.EFBIG]
    assert not out.exists() and not list(tmp_path.rglob(".state*"))
    assert uninterrupted(mine, out) == uninterrupted(mine, tmp_path / "b.json")


def test_the_command_says_so_in_a_line(monkeypatch, capsys):
    def full(name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sweep, "load", full)
    assert command_line.main(["cells"]) == 1
    assert capsys.readouterr().err == (
        "dpzero: No space left on device: make room and give the same command again; a run resumes\n"
    )


# --- another cell, another version


def test_a_benchmark_of_another_setting_begins_anew(cell, tmp_path):
    out, lines = tmp_path / "a.json", []
    stopped(cell(), out)
    other = cell(clip=2.0)
    run_cell(other, out, lines.append, "cpu")
    assert any("made with another clip: begun anew" in line for line in lines)
    assert summary(out) == uninterrupted(other, tmp_path / "b.json")


def test_so_does_one_of_another_version(cell, tmp_path, monkeypatch):
    out, lines = tmp_path / "a.json", []
    stopped(cell(), out)
    monkeypatch.setattr(provenance, "core_digest", lambda: "of another version")
    run_cell(cell(), out, lines.append, "cpu")
    assert any("made with another version of this code: begun anew" in line for line in lines)
    assert summary(out) == uninterrupted(cell(), tmp_path / "b.json")


@pytest.mark.parametrize(
    "settings, version, words",
    [
        ({"clip": 2.0}, None, "another clip"),
        ({}, "of another version", "another version of this code"),
        ({"noise_key": "published", "learning_rate": 1e-4}, None, "another learning_rate, noise_key"),
    ],
)
def test_but_releases_of_private_data_are_not_thrown_away(
    cell, tmp_path, monkeypatch, settings, version, words
):
    out = tmp_path / "a.json"
    folder = stopped(cell("secret"), out)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        if version:
            patch.setattr(provenance, "core_digest", lambda: version)
        with pytest.raises(UsageError, match=f"holds 5 releases of private data, made with {words}: "):
            run_cell(cell(**({"noise_key": "secret"} | settings)), out, quiet, "cpu")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    run_cell(cell("secret"), out, quiet, "cpu")
    assert json.loads(out.read_text())["privacy"]["steps"] == STEPS


# --- a ledger that would count too little


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda lines: [], "lacks 5 of the 5 releases"),
        (lambda lines: lines[:-2], "lacks 2 of the 5 releases"),
        (lambda lines: lines[:3] + lines[4:], "lacks 1 of the 5 releases"),
        (lambda lines: [*lines[:3], b"\xff" + lines[3], *lines[4:]], "is damaged"),
        (lambda lines: [lines[0][3:], *lines[1:]], "is damaged"),
        (lambda lines: [lines[0].replace(b"gaussian", b"laplace"), *lines[1:]], "belongs to another setting"),
    ],
)
@pytest.mark.parametrize("noise_key", [pytest.param("published", marks=pytest.mark.slow), "secret"])
def test_a_ledger_that_lost_releases_is_refused(cell, tmp_path, noise_key, damage, words):
    mine, out = cell(noise_key), tmp_path / "a.json"
    ledger = stopped(mine, out) / "ledger"
    kept = ledger.read_bytes()
    ledger.write_bytes(b"".join(damage(kept.splitlines(keepends=True))))
    with pytest.raises(UsageError, match=words) as refused:
        run_cell(mine, out, quiet, "cpu")
    assert "\n" not in str(refused.value) and not out.exists()
    ledger.write_bytes(kept)
    run_cell(mine, out, quiet, "cpu")
    assert json.loads(out.read_text())["privacy"]["steps"] == STEPS
