"""The fine-tuned model of a run, as plain transformers reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
)

from dpzero import include
from dpzero.__main__ import main
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding
from dpzero.language.models.text_classifier import VocabularyHead
from dpzero.plan import sweep
from dpzero.run.export import export
from dpzero.run.replay import rebuild
from dpzero.run.run import run_cell
from tests.own_model import write_model, write_rows


def train(cell: dict, out: Path) -> Path:
    run_cell(cell, out, lambda line: None, "cpu")
    return out


def texts(name: str, model: str, length: int) -> list[torch.Tensor]:
    """Token ids of some test rows, each [1, T]."""
    examples = encoding.encode(tasks.load(name), model, length)["test"]
    return [torch.from_numpy(examples.ids(i))[None].long() for i in range(5)]


def words_and_bias(usage: str) -> tuple[list[int], torch.Tensor]:
    """What a model card tells of the output layer."""
    (line,) = [line for line in usage.splitlines() if line.startswith("words, bias = ")]
    return eval(line.partition(" = ")[2], {"torch": torch})


@pytest.fixture
def data() -> Path:
    folder = Path(os.environ.get("DPZERO_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no task rows in {folder}")
    return folder


@pytest.mark.parametrize("tune", ["full", "bias", "lora", "head"])
@torch.no_grad()
def test_a_causal_model_gives_the_same_scores_in_plain_transformers(smoke, cache, tmp_path, tune):
    cell = smoke("mezo", tune=tune, learning_rate=1e-3)
    record = train(sweep.complete(cell | {"model": "tiny-causal"}), tmp_path / "a.json")
    answer = export(record, tmp_path / "model")
    fine_tuned, (words, bias) = rebuild(record).model, words_and_bias(answer["usage"])
    assert words == encoding.answer_tokens("tiny-causal", tasks.load("toy"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for ids in texts("toy", "tiny-causal", 16):
        expected = fine_tuned(ids, torch.ones_like(ids))
        torch.testing.assert_close(plain(ids).logits[:, -1, words] + bias, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"tune": "full"},
        {"tune": "full", "tie_embeddings": False},
        {"tune": "bias"},
        {"tune": "lora", "lora_head": "trained"},
    ],
    ids=["full", "untied", "bias", "lora and head"],
)
@torch.no_grad()
def test_a_masked_model_gives_the_same_scores_in_plain_transformers(
    smoke, cache, tmp_path, data, monkeypatch, settings
):
    monkeypatch.setenv("DPZERO_DATA_DIR", str(data))
    cell = smoke("mezo", learning_rate=1e-3, max_length=32)
    cell["settings"] |= {"train_examples": 50, "curve_examples": 8} | settings
    record = train(sweep.complete(cell | {"model": "tiny-masked", "task": "sst2"}), tmp_path / "a.json")
    answer = export(record, tmp_path / "model")
    fine_tuned, (words, bias) = rebuild(record).model, words_and_bias(answer["usage"])
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    if isinstance(fine_tuned.head, VocabularyHead):  # every row of it was moved
        assert torch.equal(plain.get_output_embeddings().weight, fine_tuned.head.rows.weight)
        assert plain.config.tie_word_embeddings == (settings == {"tune": "full"})
    for ids in texts("sst2", "tiny-masked", 32):
        logits = plain(ids).logits[:, int((ids[0] == fine_tuned.mask).int().argmax()), words]
        torch.testing.assert_close(logits + bias, fine_tuned(ids, torch.ones_like(ids)), rtol=1e-4, atol=1e-5)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder with a task of 120 rows and an encoder that has a tokenizer."""
    write_rows(tmp_path / "rows.csv")
    stanza = "mine: {files: rows.csv, text: text, label: label, words: {0: dull, 1: great}}\n"
    (tmp_path / "tasks.yaml").write_text(stanza, "utf-8")
    (tmp_path / "models.yaml").write_text("small: {kind: encoder, path: model}\n", "utf-8")
    write_model(tmp_path / "model")
    monkeypatch.setenv(include.VARIABLE, str(tmp_path))
    return tmp_path


def test_the_card_of_an_own_encoder_says_how_it_is_used_and_what_it_promises(
    smoke, cache, own, monkeypatch, capsys
):
    cell = smoke("dpzero", tune="full", learning_rate=1e-2, clip=1.0)
    record = train(sweep.complete(cell | {"task": "mine", "model": "small"}), own / "a.json")
    assert main(["export", str(record), "--out", str(own / "exported")]) == 0
    card = (own / "exported" / "README.md").read_text("utf-8")
    assert "## Privacy statement" in card and "under a secret key each run would be (2" in card
    code = card.split("```python\n")[1].split("```")[0]
    rows = tasks.load("mine").splits["test"]
    monkeypatch.chdir(own / "exported")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace('["a text"]', repr([row.text for row in rows])), {})
    labels = json.loads(printed.getvalue().replace("'", '"'))
    accuracy = sum(label == str(row.label) for label, row in zip(labels, rows, strict=True)) / len(rows)
    assert accuracy == pytest.approx(json.loads(record.read_text("utf-8"))["metrics"]["accuracy"])


@pytest.mark.parametrize("tune", ["prefix", "side", "reversible"])
def test_a_part_that_transformers_does_not_know_is_not_exported(tune, smoke, cache, tmp_path):
    record = train(sweep.complete(smoke("mezo", tune=tune)), tmp_path / "a.json")
    with pytest.raises(UsageError, match=f"tune {tune} adds what save_pretrained does not write"):
        export(record, tmp_path / "model")


def test_what_cannot_be_exported_is_refused(smoke, cache, tmp_path):
    record = train(sweep.complete(smoke("mezo")), tmp_path / "a.json")
    with pytest.raises(UsageError, match="holds files already: give a new folder"):
        export(record, tmp_path)
    record = train(sweep.complete(smoke("adamw")), tmp_path / "b.json")
    with pytest.raises(UsageError, match=r"b.json has no transcript"):
        export(record, tmp_path / "model")
