"""A record is whole or not there; that of a private release holds what is listed and nothing else."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dpzero.errors import UsageError
from dpzero.files import write_whole
from dpzero.run import record_file

RELEASE = {
    "version": 1,
    "status": "ok",
    "error": None,
    "cell": {"task": "toy", "settings": {"noise_key": "secret", "split": "test", "clip": 5.0}},
    "metrics": {"accuracy": 0.5},
    "curve": [],
    "privacy": {"epsilon_spent": 2.0},
    "memory": None,
    "time": {"train_seconds": None},
}


def test_a_record_is_json_without_infinities(tmp_path):
    path = tmp_path / "runs" / "deep" / "seed-0.json"
    record_file.write(
        path, {"loss": float("nan"), "list": [float("inf"), (1, 2.5)], "text": "ε", "none": None}
    )
    assert json.loads(path.read_text()) == {"loss": None, "list": [None, [1, 2.5]], "text": "ε", "none": None}
    assert path.read_text().endswith("}\n")


def test_nothing_lies_beside_a_record(tmp_path):
    record_file.write(tmp_path / "a.json", {"a": 1})
    record_file.write(tmp_path / "a.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}


def test_the_transcript_beside_a_record_is_its_own_or_none(tmp_path):
    out, beside, kept = tmp_path / "a.json", tmp_path / "a.transcript", tmp_path / "kept"
    kept.write_bytes(b"\x00 rows \xff")
    record_file.write(out, {"a": 1}, kept)
    assert beside.read_bytes() == kept.read_bytes()
    record_file.write(out, {"a": 2})
    assert json.loads(out.read_text()) == {"a": 2} and not beside.exists()


def test_whoever_dies_between_transcript_and_record_leaves_no_record_that_another_transcript_lies_beside(
    tmp_path, monkeypatch
):
    out, kept = tmp_path / "a.json", tmp_path / "kept"
    kept.write_bytes(b"old")
    record_file.write(out, {"a": 1}, kept)
    kept.write_bytes(b"new")
    whole = record_file.write_whole

    def dies_before(fatal):
        def write_whole(path, content):
            if path == fatal:
                raise KeyboardInterrupt
            whole(path, content)

        return write_whole

    for fatal in (out, out.with_suffix(".transcript")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(record_file, "write_whole", dies_before(fatal))
            record_file.write(out, {"a": 2}, kept)
        assert not out.exists()


def test_a_release_that_is_refused_leaves_the_old_record_and_its_transcript(tmp_path):
    out, kept = tmp_path / "a.json", tmp_path / "kept"
    kept.write_bytes(b"old")
    record_file.write(out, RELEASE, kept)
    kept.write_bytes(b"new")
    with pytest.raises(RuntimeError, match="train_loss"):
        record_file.write(out, RELEASE | {"train_loss": 0.7}, kept)
    assert json.loads(out.read_text()) == RELEASE and out.with_suffix(".transcript").read_bytes() == b"old"


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    record_file.write(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        record_file.write(tmp_path / "a.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.json", "x" * 100_000 + "\ud800")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_whoever_reads_while_the_writer_is_killed_reads_a_whole_record(tmp_path):
    path = tmp_path / "a.json"
    writer = (
        "import sys, itertools; from pathlib import Path; from dpzero.run import record_file\n"
        "for n in itertools.count(): record_file.write(Path(sys.argv[1]), {'n': n, 'again': [n] * 20_000})"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(20):
        content = json.loads(path.read_text())
        assert content["again"] == [content["n"]] * 20_000
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    content = json.loads(path.read_text())
    assert content["again"] == [content["n"]] * 20_000


# --- what a private release may hold


def changed(path: str, value: object, noise_key: str = "secret") -> dict:
    """RELEASE with this value at this path."""
    record = copy.deepcopy(RELEASE)
    record["cell"]["settings"]["noise_key"] = noise_key
    *sections, key = path.split(".")
    inside = record
    for section in sections:
        inside = inside[section]
    inside[key] = value
    return record


PLANTED = [
    ("train_loss", 0.7),
    ("privacy.batch_sizes", [7, 9]),
    ("privacy.epsilon_spent", [2.0]),  # a list where a number is listed
    ("metrics.dev_accuracy", 0.5),
    ("curve", [{"step": 0}]),
    ("curve", [None, None]),  # how many there are says something, too
    ("time.train_seconds", 1.5),  # withheld: null and nothing else
    ("time", 1.5),
    ("memory", {"peak_resident_bytes": 5}),
    ("cell.batch_size", 5),
    ("method", {"title": "DPZero", "clipped": 0.3}),
]


@pytest.mark.parametrize("path, value", PLANTED)
def test_what_is_not_listed_is_refused_and_nothing_is_written(tmp_path, path, value):
    with pytest.raises(RuntimeError, match=path.replace(".", r"\.")):
        record_file.write(tmp_path / "a.json", changed(path, value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path, value", PLANTED)
def test_a_benchmark_may_hold_it(tmp_path, path, value):
    record_file.write(tmp_path / "a.json", changed(path, value, noise_key="published"))
    assert (tmp_path / "a.json").exists()


def test_what_is_listed_is_written(tmp_path):
    record_file.write(tmp_path / "a.json", RELEASE)
    assert json.loads((tmp_path / "a.json").read_text()) == RELEASE


@pytest.mark.parametrize(
    "error, passes",
    [
        ("out of memory", True),
        ("a parameter is not finite after step 12", True),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("out of memory for 17 examples", False),
        ("a parameter is not finite after step 12 with loss 0.7", False),
    ],
)
def test_an_error_is_told_in_fixed_words(tmp_path, error, passes):
    if passes:
        record_file.write(tmp_path / "a.json", changed("error", error))
    else:
        with pytest.raises(RuntimeError, match="ERRORS_IN_A_RELEASE"):
            record_file.write(tmp_path / "a.json", changed("error", error))
    assert (tmp_path / "a.json").exists() == passes


def test_times_resident_memory_and_the_digest_of_the_data_are_withheld():
    whole = changed("time", {"wall_seconds": 3.0, "train_seconds": 2.0})
    whole["memory"] = {"peak_resident_bytes": 5, "peak_allocated_bytes": 6}
    whole["provenance"] = {"data": {"name": "toy", "sha256": "ab"}, "model": {"sha256": "cd"}}
    told = record_file.withhold(whole)
    assert told["time"] == {"wall_seconds": None, "train_seconds": None}
    assert told["memory"] == {"peak_resident_bytes": None, "peak_allocated_bytes": 6}
    assert told["provenance"] == {"data": {"name": "toy", "sha256": None}, "model": {"sha256": "cd"}}
    benchmark = whole | {"cell": {"settings": {"noise_key": "published"}}}
    assert record_file.withhold(benchmark) == benchmark


def test_a_method_that_adds_no_noise_has_no_list():
    assert not record_file.is_release({"settings": {"steps": 5}})


def test_a_score_on_private_examples_is_refused():
    for key, split, refused in (
        ("secret", "dev", True),
        ("secret", "test", False),
        ("published", "dev", False),
    ):
        cell = {"settings": {"noise_key": key, "split": split}}
        if refused:
            with pytest.raises(UsageError, match="noise_key secret with split dev"):
                record_file.refuse_private_scores(cell)
        else:
            record_file.refuse_private_scores(cell)


def test_every_listed_key_has_a_reason_and_none_is_withheld_as_well():
    listed = (
        record_file.ALLOWED_IN_A_RELEASE
        | record_file.ALLOWED_IN_A_CHECKPOINT
        | record_file.ALLOWED_IN_A_TRANSCRIPT
    )
    assert all(len(reason) > 10 for reason in (listed | record_file.WITHHELD_FROM_A_RELEASE).values())
    assert not record_file.ALLOWED_IN_A_RELEASE.keys() & record_file.WITHHELD_FROM_A_RELEASE.keys()
