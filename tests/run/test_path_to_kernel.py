"""The way from the command line to a kernel is short: measured on a run of the smoke sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpzero.plan import sweep

ROOT = Path(__file__).resolve().parents[2]
ABOVE_A_STEP = ["main", "run", "run_cell", "train"]
FRAMES = 10  # functions of the house on the stack when a kernel adds z to the weights
FILES = 61  # files of the house of which the run calls a function, with a cold cache

WALK = """
import json, os, sys
from dpzero.__main__ import main

house = tuple(os.path.join(sys.argv[1], room) for room in ("dpzero", "baselines"))
files, deepest = set(), []


def stack(frame):
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def profile(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_flags & 1 or not code.co_filename.startswith(house):  # 1: a function, no class or module
        return
    if code.co_filename not in files and not any("importlib" in one.co_filename for one in stack(frame)):
        files.add(code.co_filename)
    if code.co_name.startswith("add") and code.co_filename.endswith("dispatch.py"):
        names = [one.co_name for one in stack(frame) if one.co_filename.startswith(house)][::-1]
        if "train" in names and not any(name.startswith("measure") for name in names):
            deepest[:] = max(deepest, names, key=len)


sys.setprofile(profile)
status = main(["run", "--spec", sys.argv[2], "--out", sys.argv[3], "--device", "cpu", "--threads", "1"])
sys.setprofile(None)
print(json.dumps({"status": status, "files": len(files), "stack": deepest}))
"""


@pytest.mark.slow
def test_a_kernel_is_few_frames_and_files_away_from_the_command(smoke, cache, tmp_path):
    spec = json.dumps(sweep.complete(smoke("dpzero", steps=1)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DPZERO_CACHE": str(cache)}
    command = [sys.executable, "-c", WALK, str(ROOT), spec, str(tmp_path / "a.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    walk = json.loads(done.stdout.splitlines()[-1])
    assert walk["stack"][: len(ABOVE_A_STEP) + 1] == [*ABOVE_A_STEP, "step"]
    assert len(walk["stack"]) <= FRAMES, walk["stack"]
    assert walk["files"] <= FILES, walk["files"]
