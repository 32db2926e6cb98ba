"""Records that should not stand in one table are said to, in one sentence each."""

from __future__ import annotations

import pytest

from dpzero.report import provenance
from dpzero.report.records import to_frame


@pytest.fixture
def pair(record):
    """Two runs of one cell, the second with something else in its provenance."""

    def build(**changes):
        first, second = record(seed=0), record(seed=1)
        second["provenance"] |= changes
        return to_frame([first, second])

    return build


def test_equal_provenance_gives_no_warning(pair, sweep):
    assert provenance.warnings(pair()) == []
    assert provenance.warnings(to_frame(sweep())) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"code": "f" * 64}, "Mixed source"),
        ({"method_code": "f" * 64}, "Mixed source of a method: runs of the same method differ for dpzero"),
        ({"git": "9999999"}, "Mixed commits"),
        ({"dirty": True}, "Dirty tree: 1 of 2 runs"),
        ({"packages": {"torch": "2.12.0", "transformers": "5.23.0"}}, "Mixed versions: torch 2.12.0, 2.13.0"),
        ({"python": "3.12.1"}, "Mixed versions: python 3.11.7, 3.12.1"),
        ({"device": "Other GPU"}, "Mixed devices: Example CPU @ 2.0 GHz, Other GPU"),
        ({"model": {"name": "minilm", "sha256": "00"}}, "Mixed weights"),
    ],
)
def test_a_mixture_is_flagged(pair, changes, sentence):
    (warning,) = provenance.warnings(pair(**changes))
    assert warning.startswith(sentence)


def test_another_source_and_another_commit_are_one_sentence_with_both(pair):
    (warning,) = provenance.warnings(pair(code="f" * 64, git="9999999aaaa"))
    assert "ffffffffffff" in warning and "9999999" in warning


def test_another_commit_of_the_same_source_is_named_as_such(pair):
    (warning,) = provenance.warnings(pair(git="9999999"))
    assert "of the same source" in warning


def test_data_may_differ_between_seeds_but_not_between_methods(record):
    def runs(*digests):
        records = [record("mezo", "inf", 0), record("dpzero", "2", 0), record("dpzero", "2", 1)]
        for one, digest in zip(records, digests, strict=True):
            one["provenance"]["data"]["sha256"] = digest
        return to_frame(records)

    assert provenance.warnings(runs("aa", "aa", "bb")) == []
    (warning,) = provenance.warnings(runs("aa", "cc", "bb"))
    assert warning.startswith("Mixed data") and "r8/0" in warning


def test_settings_may_differ_between_methods_but_not_between_seeds(record):
    first, second, other = record(seed=0), record(seed=1), record("mezo", "inf")
    other["cell"]["settings"]["learning_rate"] = 0.5
    assert provenance.warnings(to_frame([first, second, other])) == []
    second["cell"]["settings"]["learning_rate"] = 0.5
    (warning,) = provenance.warnings(to_frame([first, second, other]))
    assert "r8/minilm/dpzero/2" in warning


def test_the_union_holds_no_time_and_every_status(record):
    runs = to_frame([record(), record(seed=1, status="oom")], ["r8/minilm/dpzero/eps-2/seed-2"])
    union = provenance.union(runs, "quick")
    assert union["runs"] == {"ok": 1, "oom": 1, "diverged": 0, "missing": 1}
    assert union["missing"] == ["r8/minilm/dpzero/eps-2/seed-2"]
    assert not [key for key in str(union).split("'") if "seconds" in key or "date" in key]


def test_records_without_provenance_are_unknown_not_an_error(record):
    bare = record()
    bare["provenance"] = {}
    assert "commit unknown" in provenance.line(to_frame([bare]), "quick")
