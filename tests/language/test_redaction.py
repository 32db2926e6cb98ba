"""What a policy takes out of a text, and the rows of a task without it."""

from __future__ import annotations

import pytest

from dpzero.language.data import tasks
from dpzero.language.data.datasets import Row
from dpzero.language.data.redaction import redact, redact_row
from dpzero.language.models import encoding


@pytest.mark.parametrize(
    ("text", "numbers", "names"),
    [
        ("Call me at 555-0199 today", "Call me at _ today", "Call me at _ today"),
        ("I met Ann Lee. She left", "I met Ann Lee. She left", "I met _ _. She left"),
        ("see http://a.b/c or ann@x.org!", "see _ or _", "see _ or _"),
        ("nothing to hide, I think", "nothing to hide, I think", "nothing to hide, I think"),
    ],
)
def test_numbers_addresses_and_names_are_taken_out_one_by_one(text, numbers, names):
    assert redact(text, "numbers") == numbers and redact(text, "numbers_and_names") == names
    assert len(redact(text, "numbers_and_names").split()) == len(text.split())


def test_a_policy_misses_names_without_a_capital_or_at_the_start():
    """Said in the docstring of the method, and why no epsilon covers them."""
    for text in ("Ann came", "we met ann", "It rained. Ann came"):
        assert redact(text, "numbers_and_names") == text


def test_the_columns_of_a_row_are_redacted_and_its_label_stays():
    row = redact_row(Row("I saw Bo", 3, {"text": "I saw Bo", "count": 4}), "numbers_and_names")
    assert row.text == row.fields["text"] == "I saw _" and row.label == 3 and row.fields["count"] == 4


def test_what_is_taken_out_changes_nothing_of_the_redacted_rows(tmp_path, monkeypatch, cache):
    """Neither a row nor their order: neighbours of selective privacy have the same first pass."""
    from dataclasses import replace

    from dpzero import include

    seen = []
    for secret in ("Ann", "Bob", "Zoe"):
        lines = [
            "text,label",
            *(
                f"we met {secret if i == 5 else 'Max'} at place number{i % 7} and left again {'x' * i},{'ab'[i % 2]}"
                for i in range(40)
            ),
        ]
        for split in ("train", "dev", "test"):
            (tmp_path / f"{split}.csv").write_text("\n".join(lines if split == "train" else lines[:5]))
        files = "{train: train.csv, dev: dev.csv, test: test.csv}"
        (tmp_path / "tasks.yaml").write_text(
            f"mine: {{files: {files}, text: text, label: label, words: {{a: one, b: two}}}}\n"
        )
        monkeypatch.setenv(include.VARIABLE, str(tmp_path))
        task = replace(tasks.load("mine"), redaction="numbers_and_names")
        train = task.splits["train"]
        seen.append(
            (
                [(row.text, row.label) for row in train],
                encoding.encode(task, "tiny-encoder", 16)["train"].tokens.tolist(),
            )
        )
        assert not any(secret in row.text for row in train)
        assert any("Max" in row.text for row in tasks.load("mine").splits["train"])
    assert seen[0] == seen[1] == seen[2]
