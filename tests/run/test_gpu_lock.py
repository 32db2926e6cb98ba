"""The GPU lease, over pretended GPUs: one GPU, one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.run import gpu_lock
from tests.project_copy import ProjectCopy

HOLDER = """
import os, sys, time
from dpzero.run import gpu_lock
seconds, log, count = float(sys.argv[1]), open(sys.argv[2], "a", buffering=1), int(sys.argv[3])
got = gpu_lock.lease(gpu_lock.visible(), lambda line: print(line, flush=True), count)
assert os.environ["CUDA_VISIBLE_DEVICES"] == got and "torch" not in sys.modules
log.write(f"{got} {os.getpid()} begin\\n")
time.sleep(seconds)
log.write(f"{got} {os.getpid()} end\\n")
"""


@pytest.fixture(autouse=True)
def _four_gpus(tmp_path, monkeypatch) -> None:
    """As a driver would show them."""
    (tmp_path / "dev").mkdir()
    for number in range(4):
        (tmp_path / "dev" / f"nvidia{number}").touch()
    monkeypatch.setenv(gpu_lock.DEVICE_FILES, str(tmp_path / "dev"))


@pytest.fixture
def hold(tmp_path):
    """hold(seconds, devices, count) starts a process that leases so many of the devices and keeps them for some seconds."""
    started = []

    def start(seconds: float, devices: str, count: int = 1, **further: str) -> subprocess.Popen:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices, "TMPDIR": str(tmp_path), **further}
        command = [sys.executable, "-c", HOLDER, str(seconds), str(tmp_path / "log"), str(count)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def card(tmp_path) -> Callable[[int], dict[str, str]]:
    """card(free) -> the environment of a machine whose every GPU has so much of 80,000 MiB free."""

    def make(free: int) -> dict[str, str]:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{free}, 80000'\n")
        program.chmod(0o755)
        return {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    return make


def lines(folder: Path) -> list[list[str]]:
    log = folder / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def test_racing_processes_never_share_a_gpu(hold, tmp_path):
    processes = [hold(0.3, "0,1") for _ in range(5)]
    assert [process.wait(60) for process in processes] == [0] * 5
    holder = {"0": None, "1": None}
    for name, process, what in lines(tmp_path):
        assert holder[name] == (None if what == "begin" else process)
        holder[name] = process if what == "begin" else None
    assert {name for name, *_ in lines(tmp_path)} == {"0", "1"} and len(lines(tmp_path)) == 10


def test_a_killed_holder_frees_its_gpu(hold, tmp_path):
    first = hold(1000, "3")
    wait_for(lambda: lines(tmp_path))
    second = hold(0, "3")
    assert second.stdout.readline() == "waiting for one of 1 GPUs\n"
    assert len(lines(tmp_path)) == 1
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait(60) == 0
    assert [line[1:] for line in lines(tmp_path)[1:]] == [[str(second.pid), w] for w in ("begin", "end")]


# --- several GPUs for one run


def test_racing_processes_that_want_several_gpus_each_never_share_one(hold, tmp_path):
    processes = [hold(0.3, "0,1,2", count) for count in (2, 1, 2, 3, 2)]
    assert [process.wait(60) for process in processes] == [0] * 5
    held: set[str] = set()
    for names, _, what in lines(tmp_path):
        gpus = set(names.split(","))
        assert held.isdisjoint(gpus) if what == "begin" else gpus <= held
        held ^= gpus
    counts = [len(names.split(",")) for names, _, what in lines(tmp_path) if what == "begin"]
    assert sorted(counts) == [1, 2, 2, 2, 3]


def test_a_run_on_several_gpus_has_them_to_itself_whatever_may_be_shared(hold, card, tmp_path):
    both = hold(1000, "0,1", 2, **card(70_000), **{gpu_lock.SHARE: "3"})
    assert both.stdout.readline() == "on GPU 0,1\n"
    other = hold(0, "0,1", **card(70_000), **{gpu_lock.SHARE: "3"})
    assert other.stdout.readline() == "waiting for one of 2 GPUs\n"


def test_a_process_that_waits_for_several_gpus_holds_none_of_them(hold, tmp_path):
    hold(1000, "1")
    wait_for(lambda: lines(tmp_path))
    assert hold(1000, "0,1", 2).stdout.readline() == "waiting for 2 of 2 GPUs\n"
    assert hold(0, "0").wait(60) == 0


def test_more_gpus_than_there_are_are_refused_and_none_is_the_cpu(monkeypatch):
    with pytest.raises(
        UsageError, match="2 GPUs a run are asked for, but this process may use 1: give gpus=1"
    ):
        gpu_lock.lease(["0"], count=2)
    assert gpu_lock.lease([], count=2) is None and gpu_lock.devices(None) is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert gpu_lock.devices("5,7") == "cuda:0,cuda:1" and gpu_lock.devices("5") is None


# --- several runs on one GPU


def most_at_once(folder: Path) -> dict[str, int]:
    """GPU -> how many held it at the same time."""
    now, most = Counter(), Counter()
    for name, _, what in lines(folder):
        now[name] += 1 if what == "begin" else -1
        most[name] = max(most[name], now[name])
    return dict(most)


def test_no_more_runs_share_a_gpu_than_may_and_the_emptiest_is_taken_first(hold, card, tmp_path):
    machine = card(70_000) | {gpu_lock.SHARE: "2"}
    first = hold(1000, "0,1", **machine)
    wait_for(lambda: lines(tmp_path))
    hold(1000, "0,1", **machine)
    wait_for(lambda: len(lines(tmp_path)) == 2)
    assert most_at_once(tmp_path) == {"0": 1, "1": 1}
    racing = [hold(0.3, "0,1", **machine) for _ in range(4)]
    assert [process.wait(60) for process in racing] == [0] * 4
    assert most_at_once(tmp_path) == {"0": 2, "1": 2}
    assert first.stdout.readline() == "on GPU 0, which up to 2 runs share\n"


def test_a_run_that_wants_a_gpu_alone_waits_for_all_who_share_it_and_keeps_them_out(hold, card, tmp_path):
    shares = card(70_000) | {gpu_lock.SHARE: "3"}
    sharing = [hold(1000, "0", **shares) for _ in range(2)]
    wait_for(lambda: len(lines(tmp_path)) == 2)
    alone = hold(1000, "0")
    assert alone.stdout.readline() == "waiting for one of 1 GPUs\n"
    sharing[0].kill()
    time.sleep(0.8)
    assert len(lines(tmp_path)) == 2
    sharing[1].kill()
    wait_for(lambda: len(lines(tmp_path)) == 3)
    assert hold(0, "0", **shares).stdout.readline() == "waiting for one of 1 GPUs\n"


def test_a_gpu_is_not_entered_while_its_memory_is_taken(hold, card, tmp_path):
    waiting = hold(0, "0", **card(39_999), **{gpu_lock.SHARE: "2"})
    assert waiting.stdout.readline() == "waiting for one of 1 GPUs\n"
    time.sleep(0.8)
    assert not lines(tmp_path)
    card(40_000)
    assert waiting.wait(60) == 0


def test_where_memory_cannot_be_asked_for_no_gpu_is_shared(hold, tmp_path):
    processes = [hold(0.3, "0", PATH="/nowhere", **{gpu_lock.SHARE: "4"}) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3
    assert most_at_once(tmp_path) == {"0": 1}
    assert "no GPU is shared" in processes[0].stdout.readline()


def test_the_same_number_in_two_jobs_of_a_batch_system_is_two_gpus(hold, tmp_path):
    for job in ("17", "18"):
        hold(1000, "0", SLURM_JOB_ID=job)
    wait_for(lambda: len(lines(tmp_path)) == 2)
    assert hold(0, "0", SLURM_JOB_ID="17").stdout.readline() == "waiting for one of 1 GPUs\n"


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "two", ""])
def test_a_share_that_is_no_number_of_runs_is_refused(monkeypatch, asked):
    monkeypatch.setenv(gpu_lock.SHARE, asked)
    with pytest.raises(UsageError, match="must be a whole number of at least 1"):
        gpu_lock.share()


GREEDY = """
import os

import torch

from dpzero.zeroth_order import TwoPoint


class Greedy(TwoPoint):
    title = "Greedy"
    private = False

    def __init__(self, model, loss, batch_size: int, *, learning_rate: float, seed: int = 0) -> None:
        super().__init__(
            model, loss, batch_size=batch_size, learning_rate=learning_rate, smoothing=1e-3, seed=seed
        )

    def projected_gradient(self, difference):
        if self.steps_taken == 3 and os.environ["DPZERO_GPU_SHARE"] != "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0
"""


@pytest.mark.slow
def test_out_of_memory_beside_others_is_no_result_but_a_reason_to_run_alone(card, tmp_path):
    project = ProjectCopy.build(tmp_path / "project", tmp_path / "cache")
    (project.folder / "baselines" / "greedy.py").write_text(GREEDY)
    project.environment |= card(80_000) | {
        "CUDA_VISIBLE_DEVICES": "0,1",
        gpu_lock.SHARE: "2",
        "TMPDIR": str(tmp_path),
    }
    cell = {"task": "toy", "model": "tiny-encoder", "method": "greedy", "epsilon": "inf", "seed": 0}
    spec = json.dumps(cell | {"settings": {"learning_rate": 1, "steps": 5}})
    done = project.call("-m", "dpzero", "run", "--spec", spec, "--out", "greedy.json", "--threads", 1)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    shared, alone = said.index("on GPU 0, which up to 2 runs share"), said.index("on GPU 0")
    assert shared < alone and "starting again on an unshared one" in done.stderr
    assert json.loads((project.folder / "greedy.json").read_text())["status"] == "ok"


# --- which GPUs there are


@pytest.mark.parametrize(
    "listed, expected",
    [
        ("0", ["0"]),
        ("2,0", ["2", "0"]),
        (" 1 , 3 ", ["1", "3"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),  # CUDA reads the list up to the first that is none
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c,GPU-1", ["GPU-8932f937-d72c", "GPU-1"]),
    ],
)
def test_what_is_visible_is_what_cuda_shows(monkeypatch, listed, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpu_lock.visible() == expected


def test_without_the_variable_the_device_files_are_counted(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_lock.visible() == ["0", "1", "2", "3"]
    monkeypatch.delenv(gpu_lock.DEVICE_FILES)
    names = [path.name for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    assert sorted(f"nvidia{name}" for name in gpu_lock.visible()) == sorted(names)


@pytest.mark.parametrize("listed", ["0", "0,1", "GPU-8932f937-d72c"])
def test_the_variable_alone_makes_no_gpu(monkeypatch, tmp_path, listed):
    """Else runs on the CPU would wait for each other, and say that they are on a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setenv(gpu_lock.DEVICE_FILES, str(tmp_path / "none"))
    said: list[str] = []
    assert (
        gpu_lock.visible() == []
        and gpu_lock.lease(gpu_lock.visible(), log=said.append) is None
        and said == []
    )


def test_a_list_of_gpus_is_held_whole(hold, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpu_lock, "_held", [])
    gpu_lock.lease_all("cpu")
    gpu_lock.lease_all("cuda:0,cuda:1")
    assert hold(0, "2").stdout.readline() == hold(0, "3").stdout.readline() == "waiting for one of 1 GPUs\n"
    assert hold(0, "1").wait(60) == 0


def test_no_gpu_is_no_wait_and_no_change(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_lock.lease(gpu_lock.visible()) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("name", ["0", "GPU-8932f937", "MIG-GPU-8932f937/1/0"])
def test_any_name_can_be_leased(monkeypatch, tmp_path, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpu_lock, "_held", [])
    assert gpu_lock.lease(gpu_lock.visible()) == name
