"""A record is whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dpzero.experiment import record


def test_a_record_is_json_without_infinities(tmp_path):
    path = tmp_path / "runs" / "deep" / "seed-0.json"
    record.write(path, {"loss": float("nan"), "list": [float("inf"), (1, 2.5)], "text": "ε", "none": None})
    assert json.loads(path.read_text()) == {"loss": None, "list": [None, [1, 2.5]], "text": "ε", "none": None}
    assert path.read_text().endswith("}\n")


def test_nothing_lies_beside_a_record(tmp_path):
    record.write(tmp_path / "a.json", {"a": 1})
    record.write(tmp_path / "a.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    record.write(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        record.write(tmp_path / "a.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        record.write_whole(tmp_path / "a.json", "x" * 100_000 + "\ud800")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_whoever_reads_while_the_writer_is_killed_reads_a_whole_record(tmp_path):
    path = tmp_path / "a.json"
    writer = (
        "import sys, itertools; from pathlib import Path; from dpzero.experiment import record\n"
        "for n in itertools.count(): record.write(Path(sys.argv[1]), {'n': n, 'again': [n] * 20_000})"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(20):
        found = json.loads(path.read_text())
        assert found["again"] == [found["n"]] * 20_000
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = json.loads(path.read_text())
    assert found["again"] == [found["n"]] * 20_000
