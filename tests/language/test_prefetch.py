"""Preparation of a sweep, and the errors if a part of it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language import prefetch
from dpzero.language.data.datasets import ALL, Draw
from dpzero.language.models import model_catalogue

SST2 = ("sst2", "tiny-encoder", 16, ALL)
TOY = ("toy", "tiny-encoder", 16, ALL)
LOST = ("toy", "opt-125m", 16, ALL)  # whose weights are nowhere


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Rows of SST-2, one of them without a text, and an empty folder of models."""
    for variable, name in (("DATA_DIR", "data"), ("MODEL_DIR", "models"), ("CACHE", "cache")):
        monkeypatch.setenv(f"DPZERO_{variable}", str(tmp_path / name))
    place = tmp_path / "data" / "sst2"
    place.mkdir(parents=True)
    for file, count in (("train_sentences.jsonl", 30), ("validation.jsonl", 5)):
        rows = [{"sentence": f"film {i}", "label": i % 2} for i in range(count)]
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (place / "validation.jsonl").open("a") as file:
        file.write('{"sentence": null, "label": 1}\n')
    return tmp_path


def mend(folder: Path) -> None:
    file = folder / "data" / "sst2" / "validation.jsonl"
    file.write_text(file.read_text().replace("null", '"x"'))


def tokens(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (folder / "cache" / "tokens").glob("*"))


def test_a_failure_does_not_stop_the_other_tasks(folder):
    lines: list[str] = []
    with pytest.raises(UsageError) as error:
        prefetch.prefetch([SST2, LOST, TOY], lines.append)
    row = f"{folder}/data/sst2/validation.jsonl, line 6, has sentence null, which is no text"
    model = f"model opt-125m is not in {folder}/models/opt-125m"
    assert str(error.value).startswith(f"2 things failed: {row}") and model in str(error.value)
    assert any(line.startswith(f"sst2: {row}") for line in lines)
    assert any(line.startswith(f"opt-125m: {model}") for line in lines)
    assert tokens(folder) == ["toy-tiny-encoder-16"]


def test_a_reason_is_reported_once(folder):
    with pytest.raises(UsageError) as error:
        prefetch.prefetch([SST2, TOY, ("sst2", "tiny-encoder", 16, Draw(shots=2, seed=1))], lambda _: None)
    assert str(error.value).startswith(str(folder)) and str(error.value).count("line 6") == 1


def test_all_rows_are_read_before_weights_are_fetched(folder, monkeypatch):
    mend(folder)
    lines: list[str] = []
    monkeypatch.setattr(model_catalogue, "fetch", lambda model: lines.append(f"weights of {model}"))
    result = prefetch.prefetch([SST2, TOY], lines.append)
    kinds = ["rows" if "rows" in line else "weights" if "weights" in line else "tokens" for line in lines]
    assert kinds == ["rows", "rows", "weights", "tokens", "tokens"]
    assert result["tokens"]["sst2/tiny-encoder/16"]["test"]["examples"] == 6


def test_no_weights_are_fetched_for_a_task_that_fails(folder, monkeypatch):
    monkeypatch.setattr(model_catalogue, "fetch", lambda model: pytest.fail(f"fetched {model}"))
    with pytest.raises(UsageError, match=r"line 6, has sentence null"):
        prefetch.prefetch([SST2, ("sst2", "opt-125m", 16, ALL)], lambda _: None)
