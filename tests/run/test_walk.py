"""The way from the command line to a kernel is short: measured on a run of the smoke sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dpzero.plan import sweep

ROOT = Path(__file__).resolve().parents[2]
FRAMES_ABOVE_A_STEP = 4  # main, the verb, run_cell, train
FRAMES, FILES = (
    12,
    76,
)  # functions of the house on the stack of a kernel; files of which a run calls a function

WALK = """
import json, os, sys
from dpzero.__main__ import main

house = tuple(os.path.join(sys.argv[1], room) for room in ("dpzero", "baselines"))
files, deepest = set(), []


def profile(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_flags & 1 or not code.co_filename.startswith(house):  # 1: a function, no class or module
        return
    files.add(code.co_filename)
    if code.co_filename.endswith("dispatch.py") and not code.co_name.startswith("<"):
        stack = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(house):
                stack.append(frame.f_code.co_name)
            frame = frame.f_back
        if "train" in stack and "measure" not in stack:
            deepest[:] = max(deepest, stack[::-1], key=len)


sys.setprofile(profile)
status = main(["run", "--spec", sys.argv[2], "--out", sys.argv[3], "--device", "cpu", "--threads", "1"])
sys.setprofile(None)
print(json.dumps({"status": status, "files": len(files), "stack": deepest}))
"""


def test_a_kernel_is_few_frames_and_files_away_from_the_command(smoke, cache, tmp_path):
    spec = json.dumps(sweep.complete(smoke("dpzero", steps=2)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DPZERO_CACHE": str(cache)}
    for out in ("first.json", "second.json"):  # the second finds its tokens and its memory in the cache
        command = [sys.executable, "-c", WALK, str(ROOT), spec, str(tmp_path / out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    assert found["stack"].index("step") <= FRAMES_ABOVE_A_STEP, found["stack"]
    assert len(found["stack"]) <= FRAMES, found["stack"]
    assert found["files"] <= FILES
