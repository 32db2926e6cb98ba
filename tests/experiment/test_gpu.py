"""The GPU lease, over pretended GPUs: one GPU, one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dpzero.experiment import gpu

HOLDER = """
import os, sys, time
from dpzero.experiment import gpu
seconds, log = float(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
got = gpu.lease(gpu.visible(), log=lambda line: print(line, flush=True))
assert os.environ["CUDA_VISIBLE_DEVICES"] == got and "torch" not in sys.modules
log.write(f"{got} {os.getpid()} begin\\n")
time.sleep(seconds)
log.write(f"{got} {os.getpid()} end\\n")
"""


@pytest.fixture
def hold(tmp_path):
    """hold(seconds, devices) starts a process that leases one of the devices and keeps it for some seconds."""
    started = []

    def start(seconds: float, devices: str) -> subprocess.Popen:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", HOLDER, str(seconds), str(tmp_path / "log")]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


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
    assert gpu.visible() == expected


def test_without_the_variable_the_device_files_are_counted(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [path.name for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    assert sorted(f"nvidia{name}" for name in gpu.visible()) == sorted(found)


def test_no_gpu_is_no_wait_and_no_change(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.lease(gpu.visible()) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("name", ["0", "GPU-8932f937", "MIG-GPU-8932f937/1/0"])
def test_any_name_can_be_leased(monkeypatch, tmp_path, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpu, "_held", [])
    assert gpu.lease(gpu.visible()) == name
