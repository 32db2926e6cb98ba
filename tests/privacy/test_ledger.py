"""The ledger is written before a release is used, append-only, and readable after a kill at any byte."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero.privacy import Event, Ledger, RunKey, ledger_lines
from dpzero.privacy import ledger as ledger_module
from dpzero.privacy.ledger_lines import BLOCK

EVENT = Event("gaussian", "poisson", "add_remove", 240, 16, 1.25, 1, 100, 1e-5)
ONE, TWO = RunKey.published(0).name, RunKey.published(1).name


def opened(path: Path, event: Event = EVENT) -> Ledger:
    """Open a ledger of this file; close those opened before."""
    for ledger in OPEN:
        ledger.close()
    OPEN.append(Ledger(event, path))
    return OPEN[-1]


OPEN: list[Ledger] = []


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "ledger"


def test_every_release_counts(path):
    for ledger in (opened(path), Ledger(EVENT)):
        assert len(ledger) == 0
        for step in range(5):
            ledger.record(step, ONE)
        assert len(ledger) == 5
        assert list(ledger) == [(step, ONE) for step in range(5)]


def test_a_release_is_written_when_it_is_recorded(path):
    ledger = opened(path)
    for step in range(3):
        ledger.record(step, ONE)
        assert path.read_text().endswith(f"\n{step} {ONE}\n")


def test_the_ledger_is_append_only(path):
    ledger, before = opened(path), b""
    for step in range(4):
        ledger.record(step, ONE)
        now = path.read_bytes()
        assert now.startswith(before) and len(now) > len(before)
        before = now
    opened(path).record(9, TWO)
    assert path.read_bytes().startswith(before)


def test_a_repeated_step_under_the_same_key_is_the_same_release(path):
    ledger = opened(path)
    for step in (0, 1, 1, 0):
        ledger.record(step, ONE)
    assert len(ledger) == len(opened(path)) == 2


def test_a_repeated_step_under_another_key_is_a_further_release(path):
    opened(path).record(0, ONE)
    resumed = opened(path)
    resumed.record(0, TWO)
    assert len(resumed) == len(opened(path)) == 2
    assert (0, ONE) in resumed and (0, TWO) in resumed and (1, TWO) not in resumed


@settings(deadline=None, max_examples=40)  # every record waits for the disk
@given(st.data())
def test_a_ledger_survives_being_cut_at_any_byte(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        ledger = opened(path)
        for step in range(data.draw(st.integers(0, 12))):
            ledger.record(step, ONE)
        ledger.close()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        if 0 < cut < whole.index(b"\n"):  # of line one, without which nothing can be told
            with pytest.raises(ValueError, match="is damaged, so epsilon is unknown"):
                opened(path)
            return
        left = max(0, whole[:cut].count(b"\n") - 1)
        torn = not whole[:cut].endswith(b"\n") and cut > whole.index(b"\n")
        again = opened(path)
        assert len(again) == left + torn  # a release that may have been used counts
        assert {(step, ONE) for step in range(left)} <= set(again)
        kept = list(again)
        again.record(100, TWO)
        assert list(opened(path)) == [*kept, (100, TWO)]


@pytest.mark.parametrize("noise_key", ["secret", "published"])
@pytest.mark.parametrize(
    ("torn", "sure"),
    [
        ("2 {name}", True),
        ("2 {name} 0123", True),
        ("2 {name:.5}", False),
        ("2 ", False),
        ("1 {name:.5}", False),  # whose was that? Not the release of the line before
        ("7 {other:.5}", False),
        ("7", False),
        ("7 \0\0\0", False),
        ("\ufffd", False),
    ],
)
def test_a_torn_last_line_counts_as_a_release(path, torn, sure, noise_key):
    """Regression: it was dropped, so epsilon was that of one release too few."""
    event, name = replace(EVENT, noise_key=noise_key), RunKey.secret().name
    lines = [json.dumps(asdict(event)), f"0 {name}", f"1 {name}"]
    path.parent.mkdir()
    path.write_text("\n".join([*lines, torn.format(name=name, other=name[::-1])]))
    entries = set(opened(path, event))
    assert len(entries) == 3 and {(0, name), (1, name)} <= entries
    assert ((2, name) in entries) is sure
    assert set(opened(path, event)) == entries and path.read_bytes().endswith(b"\n")


def test_a_torn_last_line_belongs_to_none_of_two_keys(path):
    opened(path).record(0, ONE)
    opened(path).record(0, TWO)
    OPEN[-1].close()
    path.write_bytes(path.read_bytes() + b"1 ")
    assert len(opened(path)) == 3 and not {(1, ONE), (1, TWO)} & set(OPEN[-1])


def test_a_first_line_without_a_newline_is_accepted(path):
    opened(path).close()
    path.write_bytes(path.read_bytes().rstrip())
    opened(path).record(0, ONE)
    assert len(opened(path)) == 1


@pytest.mark.parametrize(
    ("torn", "epsilon"), [(f"choice {ONE} 0.5 1", 0.5), (f"choice {ONE} 0.5 ", 0.5), (f"choice {ONE} 0.5", None), ("cho", None)]
)  # fmt: skip
def test_a_torn_choice_line_has_spent_its_epsilon(path, torn, epsilon):
    """If its epsilon can be read. What was chosen may be cut, and is then unknown."""
    opened(path).close()
    path.write_bytes(path.read_bytes() + torn.encode())
    if epsilon is None:
        with pytest.raises(ValueError, match="is damaged, so epsilon is unknown"):
            opened(path)
        return
    for _ in range(2):
        assert opened(path).choices == [(ONE, epsilon, None)]


def test_a_partial_write_is_rolled_back(path):
    """The disk is full: nobody used the release, and the next line does not follow half a line."""
    ledger = opened(path)
    ledger.record(0, ONE)
    kept = path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 7, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            ledger.record(1, ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept
    ledger.record(1, ONE)
    assert len(opened(path)) == 2


CHANGES = {name: value * 2 or 0.5 for name, value in asdict(EVENT).items()}


@pytest.mark.parametrize("name", CHANGES)
def test_the_ledger_of_another_setting_is_refused(name, path):
    opened(path).record(0, ONE)
    with pytest.raises(ValueError, match="belongs to another setting: remove its folder"):
        opened(path, replace(EVENT, **{name: CHANGES[name]}))
    assert len(opened(path)) == 1


SECRET, KEY = replace(EVENT, noise_key="secret"), RunKey.published(2).name


@pytest.fixture(autouse=True)
def _other_processes(monkeypatch):
    """Ledgers of one process that continue the same key share their releases; here each is another process's."""
    monkeypatch.setattr(ledger_module, "_lineages", {})


def reopened(path: Path, monkeypatch) -> Ledger:
    monkeypatch.setattr(ledger_module, "_lineages", {})
    return Ledger(SECRET, path)


def test_a_line_on_disk_reserves_the_releases_that_follow_it(path, monkeypatch):
    """The file is forced to the disk once a block, before the first release of the block is written."""
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: forced.append(path.read_bytes().count(b"\n")))
    ledger = Ledger(SECRET, path)
    for step in range(BLOCK + 1):
        ledger.record(step, KEY)
    assert forced == [1, 2, BLOCK + 3]  # the event; a reservation of BLOCK; another
    lines = path.read_text().splitlines()
    assert lines[1].startswith(f"reserved 0 {BLOCK} {KEY} ") and lines[BLOCK + 2].startswith(
        f"reserved {BLOCK} "
    )


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_after_a_loss_of_power_all_reserved_releases_count(path, monkeypatch, kept):
    ledger = Ledger(SECRET, path)
    for step in range(5):
        ledger.record(step, KEY)
    ledger._file.close()  # the process died
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 2 + kept]) + b"\0" * 7)  # what the disk had
    monkeypatch.setattr(ledger_lines, "boot", lambda: "another")
    for _ in range(2):  # they are written down, once
        again = reopened(path, monkeypatch)
        assert list(again) == [(step, KEY) for step in range(BLOCK)]
        again.close()


def test_after_the_death_of_a_process_its_releases_alone_count(path, monkeypatch):
    ledger = Ledger(SECRET, path)
    for step in range(5):
        ledger.record(step, KEY)
    ledger._file.close()
    again = reopened(path, monkeypatch)
    assert len(again) == 5
    again._file.close()
    monkeypatch.setattr(ledger_lines, "boot", lambda: "another")
    assert len(reopened(path, monkeypatch)) == 5


def test_a_closed_ledger_has_nothing_reserved(path, monkeypatch):
    ledger = Ledger(SECRET, path)
    ledger.record(0, KEY)
    ledger.close()
    monkeypatch.setattr(ledger_lines, "boot", lambda: "another")
    assert list(reopened(path, monkeypatch)) == [(0, KEY)]


def test_no_more_is_reserved_than_the_setting_has_steps(path):
    ledger = Ledger(replace(SECRET, steps=3), path)
    for step in range(3):
        ledger.record(step, KEY)
    assert path.read_text().splitlines()[1].startswith(f"reserved 0 3 {KEY} ")
