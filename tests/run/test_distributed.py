"""One run on several ranks: the record of one, whatever their number and whichever of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpzero.errors import RankFailure, UsageError
from dpzero.plan import sweep
from dpzero.run import checkpoint
from dpzero.run.replay import replay_record
from dpzero.run.run import run_cell
from dpzero.run.setup import Setup
from dpzero.zeroth_order import TwoPoint, two_point
from dpzero.zeroth_order.distributed import Ranks, join_ranks
from tests import slow_line
from tests.forked import forked
from tests.run.stopping import before_each_step, summary

STEPS, SLOW = 12, pytest.mark.slow
SECONDS = 30


@pytest.fixture
def cell(smoke, cache):
    """cell(method, **settings): 12 steps in micro-batches of some examples each."""

    def make(method: str, **settings: object) -> dict:
        several = {"dp_aggzo": "DP-AggZO", "dp_votezo": "DP-VoteZO"}
        planned = smoke("dpzero" if method in several else method)
        if method in several:
            planned |= {"method": method, "use": method, "title": several[method]}
            planned["settings"]["directions"] = 3
        planned["settings"].pop("noise_arithmetic", None)  # by the key
        planned["settings"] |= {"token_budget": 32, "steps": STEPS, "batch_size": 16, **settings}
        return sweep.complete(planned)

    return make


def on(ranks: int, cell: dict, out: Path, log=lambda line: None, at_step=None, device: str = "cpu") -> list:
    """What became of the ranks; at_step(setup, step) happens before each step."""

    def work(rank: int) -> dict | None:
        with pytest.MonkeyPatch.context() as patch:
            if at_step:
                before_each_step(patch, at_step)
            joined = join_ranks(timeout_seconds=SECONDS) if ranks > 1 else Ranks()
            return run_cell(cell, out if rank == 0 else Path("/nowhere/a.json"), log, device, joined)

    return forked(work, ranks)


@pytest.mark.parametrize(
    "method, settings",
    [
        ("dpzero", {}),
        ("mezo", {"tune": "full"}),
        pytest.param("dpzero", {"noise_arithmetic": "exact", "second_moment": 0.9}, marks=SLOW),
        pytest.param("dp_zo_laplace", {"perturb": "on_read"}, marks=SLOW),
        pytest.param("dp_aggzo", {}, marks=SLOW),
        pytest.param("dp_votezo", {}, marks=SLOW),
    ],
)
def test_any_number_of_ranks_leaves_the_same_record(cell, tmp_path, method, settings):
    mine = cell(method, steps=6, evaluate_every=3, **settings)
    run_cell(mine, tmp_path / "1.json", lambda line: None, "cpu")
    for ranks in (2, 4) if (method, settings) == ("dpzero", {}) else (3,):
        out = tmp_path / f"{ranks}.json"
        first, *others = on(ranks, mine, out)
        assert first["status"] == "ok" and others == [None] * (ranks - 1)
        assert summary(out) == summary(tmp_path / "1.json")
        described = first["provenance"]["ranks"]
        scalars = mine["settings"].get("directions", 1)
        assert described["count"] == ranks and described["backend"] == "gloo"
        assert 8 + 24 * scalars <= described["bytes_a_step_from_each"] < 8 + 24 * scalars + 10
        assert described["bytes_a_step_to_each"] == 8 + 8 * scalars
    assert {f.name for f in tmp_path.iterdir()} >= {"1.json", "1.transcript"} and not Path(
        "/nowhere"
    ).exists()


def test_a_release_of_several_ranks_is_one_release_a_step(cell, tmp_path):
    lines, out = [], tmp_path / "a.json"
    first, *_ = on(3, cell("dpzero", noise_key="secret"), out, lines.append)
    assert first["privacy"]["steps"] == STEPS and first["privacy"]["valid_release"]
    assert replay_record(out, device="cpu")["match"] is True


@pytest.mark.parametrize(
    "noise_key, victim, left",
    [
        ("secret", 2, 1),
        pytest.param("published", 1, 4, marks=SLOW),
        pytest.param("published", 0, 2, marks=SLOW),
    ],
)
def test_a_killed_rank_ends_the_run_which_goes_on_with_those_that_are_left(
    cell, tmp_path, noise_key, victim, left
):
    mine, out = cell("dpzero", noise_key=noise_key), tmp_path / "a.json"
    run_cell(mine, tmp_path / "whole.json", lambda line: None, "cpu")

    def die(setup, step):
        if (setup.ranks.rank, step) == (victim, 7):
            os.kill(os.getpid(), signal.SIGKILL)

    outcomes = on(3, mine, out, at_step=die)
    assert outcomes[victim] == signal.SIGKILL and not out.exists()
    if victim:
        assert isinstance(outcomes[0], RankFailure) and f"rank {victim} is gone" in str(outcomes[0])
    record, *_ = on(left, mine, out)
    lost = STEPS - record["transcript"]["steps"]  # a release that was spent and not used
    assert record["privacy"]["steps"] == STEPS and 0 <= lost <= (noise_key == "secret")
    assert replay_record(out, device="cpu")["match"] is True
    if noise_key == "published":
        assert summary(out) == summary(tmp_path / "whole.json")


def test_a_run_whose_budget_ends_early_leaves_no_rank_waiting(cell, tmp_path, monkeypatch):
    """Rank 0 knew of a release that was lost, the others waited for the step that it had paid with until their time was out."""
    mine, out = cell("dpzero", noise_key="secret"), tmp_path / "a.json"
    monkeypatch.setattr(checkpoint, "SECONDS", 0)

    def die(setup: Setup, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    assert on(1, mine, out, at_step=die) == [signal.SIGKILL]
    with (checkpoint.folder(out) / "ledger").open("a") as ledger:
        ledger.write(f"5 {'0' * 16}\n")  # released, and killed before the step was taken
    first, second = on(2, mine, out)
    assert second is None
    assert first["privacy"]["steps"] == STEPS == first["transcript"]["steps"] + 1


@pytest.mark.parametrize(
    "method, settings",
    [
        ("dpzero", {"noise_key": "published"}),
        ("dpzero", {"noise_key": "secret"}),
        pytest.param("mezo", {}, marks=SLOW),
    ],
)
def test_a_rank_whose_weights_went_wrong_ends_the_run(cell, tmp_path, monkeypatch, method, settings):
    mine, out = cell(method, **settings), tmp_path / "a.json"
    released = settings.get("noise_key") == "secret"
    monkeypatch.setattr(two_point, "CHECK_EVERY", 5)

    with monkeypatch.context() as patch:
        step = TwoPoint.step

        def flip(self, batch, users=None):
            if (self.ranks.rank, self.steps_taken) == (1, 6):
                self.parameters[0].data[0] += 1e-6
            return step(self, batch, users)

        patch.setattr(TwoPoint, "step", flip)
        first, *_ = on(2, mine, out)
    assert isinstance(first, RankFailure) and not out.exists()
    assert "weights of rank 1 are not those of rank 0 after step 10, as they were after step 5" in str(first)
    assert ("and count" if released else "It will go on from step 5") in str(first)
    record, *_ = on(3, mine, out)
    assert record["transcript"]["steps"] == STEPS and replay_record(out, device="cpu")["match"] is True
    if record["privacy"]:
        assert record["privacy"]["steps"] == STEPS
    if not released:  # as if nothing had happened
        run_cell(mine, tmp_path / "b.json", lambda line: None, "cpu")
        assert summary(out) == summary(tmp_path / "b.json")


def test_ranks_of_other_settings_are_told_so(cell, tmp_path):
    mine = cell("dpzero")

    def work(rank):
        other = cell("dpzero", learning_rate=2e-3 if rank else 1e-3)
        return run_cell(
            other, tmp_path / f"{rank}.json", lambda line: None, "cpu", join_ranks(timeout_seconds=SECONDS)
        )

    first, second = forked(work, 2)
    assert mine and isinstance(first, RankFailure) and isinstance(second, UsageError)
    assert "rank 1 is not set up as rank 0 is" in str(second)


def test_a_run_that_diverges_is_a_record_and_no_rank_fails(cell, tmp_path):
    out = tmp_path / "a.json"
    mine = cell("mezo", evaluate_every=2)
    mine["settings"]["learning_rate"] = 1e30  # which planning refuses
    first, *others = on(3, mine, out)
    assert first["status"] == "diverged" and others == [None, None]
    assert json.loads(out.read_text())["transcript"]["steps"] < STEPS


@pytest.mark.parametrize(
    "method, settings, words",
    [("adamw", {}, "exchanges more than scalars"), ("dpzero", {"as_published": True}, "size of a batch")],
)
def test_what_several_ranks_cannot_run_is_refused(cell, tmp_path, method, settings, words):
    two = Ranks()
    two.size = 2
    with pytest.raises(UsageError, match=words):
        run_cell(cell(method, **settings), tmp_path / "a.json", lambda line: None, "cpu", two)


def test_a_slow_rank_is_waited_for(cell, tmp_path):
    mine = cell("dpzero")

    def wait(setup, step):
        if (setup.ranks.rank, step) == (1, 3):
            time.sleep(1)

    on(2, mine, tmp_path / "a.json", at_step=wait)
    run_cell(mine, tmp_path / "b.json", lambda line: None, "cpu")
    assert summary(tmp_path / "a.json") == summary(tmp_path / "b.json")


@SLOW
def test_across_a_line_that_is_slow_and_loses_packets_the_run_is_the_same(cell, tmp_path):
    mine, out = cell("dpzero"), tmp_path / "a.json"
    run_cell(mine, tmp_path / "b.json", lambda line: None, "cpu")
    try:
        with slow_line.line(delay_seconds=0.01, loss=0.05) as sides:

            def work(rank: int) -> dict | None:
                slow_line.enter(sides[rank])
                os.environ["MASTER_ADDR"] = slow_line.ADDRESSES[0]
                return run_cell(mine, out, lambda line: None, "cpu", join_ranks(timeout_seconds=SECONDS))

            first, second = forked(work, 2)
    except OSError as error:
        pytest.skip(f"no network namespaces on this machine: {error}")
    assert first["status"] == "ok" and second is None and summary(out) == summary(tmp_path / "b.json")


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(cell, tmp_path):
    """The command itself: one of its two ranks is killed, both are started again, and the record is that of one process."""
    mine, out = cell("dpzero", steps=150, evaluate_every=0), tmp_path / "a.json"
    run_cell(mine, tmp_path / "b.json", lambda line: None, "cpu")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "-m", "dpzero", "run", "--spec", json.dumps(mine), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kept = checkpoint.folder(out) / "transcript"
    while not kept.exists() or kept.stat().st_size < 1500:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(_rank_1_of(process.pid), signal.SIGKILL)
    answer, log = process.communicate(timeout=120)
    assert process.returncode == 0 and log.count("2 ranks, by gloo") == 2 and "resumed at step" in log
    assert answer.count('"status": "ok"') == 1 and summary(out) == summary(tmp_path / "b.json")


def _rank_1_of(launcher: int) -> int:
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise AssertionError("torchrun has no rank 1")
