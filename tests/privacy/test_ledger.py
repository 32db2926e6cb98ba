"""The ledger: on disk before a release is used, only ever longer, readable after a kill at any byte."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero.privacy import Event, Ledger, RunKey

EVENT = Event("gaussian", "poisson", "add_remove", 240, 16, 1.25, 1, 100, 1e-5)
ONE, TWO = RunKey.published(0).name, RunKey.published(1).name


def opened(path: Path, event: Event = EVENT) -> Ledger:
    """A ledger of this file, in turn with others."""
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


def test_a_release_is_on_disk_when_it_is_recorded(path):
    ledger = opened(path)
    for step in range(3):
        ledger.record(step, ONE)
        assert path.read_text().endswith(f"\n{step} {ONE}\n")


def test_what_stands_in_the_ledger_stays(path):
    ledger, before = opened(path), b""
    for step in range(4):
        ledger.record(step, ONE)
        now = path.read_bytes()
        assert now.startswith(before) and len(now) > len(before)
        before = now
    opened(path).record(9, TWO)
    assert path.read_bytes().startswith(before)


def test_a_step_again_under_the_same_key_is_the_same_release(path):
    ledger = opened(path)
    for step in (0, 1, 1, 0):
        ledger.record(step, ONE)
    assert len(ledger) == len(opened(path)) == 2


def test_a_step_again_under_another_key_is_a_further_release(path):
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
        left = max(0, whole[:cut].count(b"\n") - 1)  # line one is the setting
        again = opened(path)
        assert list(again) == [(step, ONE) for step in range(left)]
        again.record(100, TWO)
        assert list(opened(path)) == [*((step, ONE) for step in range(left)), (100, TWO)]


CHANGES = {name: value * 2 for name, value in asdict(EVENT).items()}


@pytest.mark.parametrize("name", CHANGES)
def test_the_ledger_of_another_setting_is_refused(name, path):
    opened(path).record(0, ONE)
    with pytest.raises(ValueError, match="is of another setting: remove its folder"):
        opened(path, replace(EVENT, **{name: CHANGES[name]}))
    assert len(opened(path)) == 1
