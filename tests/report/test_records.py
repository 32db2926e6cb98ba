"""Reading records: what is valid, in which order, and one line that names the file where it is not."""

from __future__ import annotations

import json

import pytest

from dpzero.errors import UsageError
from dpzero.report.records import load, rank, read_records, to_frame


def test_records_are_sorted_by_run_id(record, written):
    paths = written([record(seed=2), record("mezo", "inf"), record(seed=0)])
    assert [r["run"] for r in read_records(paths)] == [
        "r8/minilm/dpzero/eps-2/seed-0",
        "r8/minilm/dpzero/eps-2/seed-2",
        "r8/minilm/mezo/eps-inf/seed-0",
    ]


def test_methods_are_ordered_by_privacy_and_order(sweep):
    frame = to_frame(sweep(seeds=1))
    assert list(dict.fromkeys(frame["method"])) == [
        *("in_context", "zero_shot", "adamw", "sgd", "mezo"),
        *("dp_zo_gaussian", "dp_zo_laplace", "dp_zo_laplace_pure", "dpzero", "dp_adam", "dp_sgd"),
    ]


def test_an_unknown_method_finds_its_place(record):
    record = record("a_new_one")
    record["method"] = {"title": "New", "private": True, "order": 0}
    assert to_frame([record])["rank"].item() == rank(True, 0)


def test_epsilons_are_sorted_as_numbers(record):
    frame = to_frame([record(epsilon=e) for e in ("16", "2", "0.5")])
    assert list(frame["epsilon"]) == ["0.5", "2", "16"]


def test_an_expected_run_without_record_is_a_missing_row(record):
    frame = to_frame([record(seed=0)], ["r8/minilm/dpzero/eps-2/seed-0", "r8/minilm/dpzero/eps-2/seed-1"])
    assert list(frame["status"]) == ["ok", "missing"]
    assert list(frame["title"]) == ["DPZero", "DPZero"]


@pytest.mark.parametrize("run", ["r8/minilm", "r8/minilm/dpzero/eps-x/seed-0", "r8/minilm/dpzero/2/0"])
def test_an_expected_run_must_be_a_run_id(record, run):
    with pytest.raises(UsageError, match="is no run id"):
        to_frame([record()], [run])


def broken(record: dict, *path: str, value: object) -> dict:
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("version",), 2, "version is 2"),
        (("status",), "fine", "status is 'fine'"),
        (("run",), "r8/minilm/dpzero/eps-2/seed-9", "its cell is r8/minilm/dpzero/eps-2/seed-0"),
        (("cell",), None, "cell is missing"),
        (("cell", "epsilon"), 2, "as text"),
        (("cell", "seed"), "0", "integer seed"),
        (("method", "private"), "yes", "private"),
        (("method", "order"), 2, "order is 2"),
        (("metrics",), {"accuracy": float("nan")}, "no finite accuracy"),
        (("metrics",), None, "no finite accuracy"),
        (("memory",), [1], "memory is no object"),
        (("metrics", "correct"), "AAAA", "metrics.correct does not have the rows"),
        (("metrics", "examples"), "many", "metrics.examples is 'many', not a number"),
        (("privacy", "epsilon_spent"), "2", "privacy.epsilon_spent is '2', not a number"),
        (("memory", "weights_bytes"), [1], "memory.weights_bytes is [1], not a number"),
        (("cell", "settings"), ["steps"], "cell.settings is no object"),
        (("curve",), {"step": 0}, "curve is no list"),
    ],
)
def test_an_invalid_record_is_named_in_one_line(record, written, path, value, fault):
    files = written([record()])
    files[0].write_text(json.dumps(broken(record(), *path, value=value)))
    with pytest.raises(UsageError) as caught:
        read_records(files)
    assert str(files[0]) in str(caught.value)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", '{"version": 1', "[]", "null", "\x00\x01", "3"])
def test_a_corrupted_file_is_named_in_one_line(written, record, content):
    files = written([record()])
    files[0].write_text(content)
    with pytest.raises(UsageError) as caught:
        read_records(files)
    assert str(files[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone.json cannot be read"):
        read_records([tmp_path / "gone.json"])


def test_two_files_with_the_same_run_are_an_error(record, written):
    with pytest.raises(UsageError, match="both hold run"):
        read_records(written([record()]) + written([record()]))


def test_nothing_to_report_is_an_error():
    with pytest.raises(UsageError, match="no record to report on"):
        load([])
