"""The benchmark of steps, on tiny shapes: what its rows run, what it keeps, and what its baseline is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpzero.errors import UsageError
from dpzero.language.models import random_models
from dpzero.memory.public_code_step import NaiveStep
from dpzero.memory.trackers import peak_bytes
from dpzero.plan.method_variants import VARIANTS
from dpzero.report.writing import write_study
from dpzero.studies import benchmark
from dpzero.studies.benchmark import ROWS, Benchmark, batch_of

WIDTH = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {
    "tiny-roberta": {
        "model_type": "roberta",
        **WIDTH,
        "intermediate_size": 32,
        "max_position_embeddings": 150,
        "type_vocab_size": 1,
    },
    "tiny-opt": {
        "model_type": "opt",
        **WIDTH,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 150,
    },
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(random_models, "catalogue", lambda: TINY)
    # its tokens are those of a real vocabulary
    monkeypatch.setattr(benchmark, "VOCABULARY", 300)


def bench(model="tiny-roberta", **settings) -> Benchmark:
    settings = {"token_budget": 128, "device": "cpu", "rounds": 2, "log": lambda line: None} | settings
    return Benchmark(model, 6, "short", **settings)


RUN = {"tiny-roberta": ROWS, "tiny-opt": ("dpzero", "public", "adamw", "dp_sgd_hooks")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """All rows on one architecture, a row of each kind on the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_models, "catalogue", lambda: TINY)
        patch.setattr(benchmark, "VOCABULARY", 300)
        return {
            model: [json.loads(json.dumps(result)) for result in bench(model).run(RUN[model])]
            for model in TINY
        }


@pytest.mark.parametrize("model", TINY)
def test_every_row_has_times_and_peaks(kept, model):
    result = kept[model][-1]
    assert [row["name"] for row in result["rows"]] == list(RUN[model])
    for row in result["rows"]:
        assert row["status"] == "ok" and 0 < row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"]
        assert row["weights_bytes"] < row["inference_peak_bytes"] <= row["peak_bytes"]
    assert result["tokens"] <= result["padded_tokens"] <= 6 * result["longest"]
    assert result["provenance"]["device"] and result["rounds"] == 2


def test_results_come_after_each_group_of_rows(kept):
    counts = [len(part["rows"]) for part in kept["tiny-opt"]]
    assert counts == sorted(set(counts)) and counts[-1] == len(RUN["tiny-opt"]) > counts[0]


def test_the_zeroth_order_rows_hold_what_inference_holds_and_the_public_step_more(kept):
    """On a tiny model a batch outweighs the weights, so the public step is larger by its logits above all."""
    rows = {row["name"]: row for row in kept["tiny-roberta"][-1]["rows"]}
    for name in ("mezo", "dpzero", "dpzero_signs", "dpzero_sphere", "dp_aggzo"):
        generators = 8192  # their states, which a step compares
        assert rows[name]["peak_bytes"] <= 1.01 * rows[name]["inference_peak_bytes"] + generators
    assert rows["public"]["peak_bytes"] > 1.2 * rows["mezo"]["peak_bytes"]


def test_tables_and_figures_are_the_same_bytes_again(kept, tmp_path):
    result = tmp_path / "tiny.json"
    result.write_text(json.dumps(kept["tiny-roberta"][-1]))
    files = write_study("benchmark", result, tmp_path / "tables", tmp_path / "figures")
    first = {file: file.read_bytes() for file in files}
    assert {file.name for file in files} == {"tiny.csv", "tiny.md", "tiny.pdf", "tiny.png"}
    text = (tmp_path / "tables" / "tiny.md").read_text()
    assert all(VARIANTS[name].title in text for name in ROWS) and "× the time" in text
    write_study("benchmark", result, tmp_path / "tables", tmp_path / "figures")
    assert {file: file.read_bytes() for file in files} == first


def test_a_file_that_is_no_result_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is no result of `benchmark`"):
        write_study("benchmark", tmp_path / "other.json", tmp_path, tmp_path)


def test_running_out_of_memory_is_a_row(monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(NaiveStep, "step", full)
    *_, result = bench().run(["mezo", "public"])
    assert [row["status"] for row in result["rows"]] == ["ok", "oom"]
    assert "ratio_median" not in result["rows"][1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: next(bench().run(["mezzo"])), "no row 'mezzo': give some of dpzero, dpzero_on_read"),
        (lambda: next(bench("tiny-gpt").run(["mezo"])), "no shape 'tiny-gpt': give one of tiny-roberta"),
        (lambda: batch_of(3, "long"), "--length is 'long': give a number of tokens, or short"),
        (lambda: batch_of(3, "0"), "--length is '0'"),
    ],
)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_a_batch_is_the_same_again_and_as_long_as_asked():
    assert batch_of(5, "17").lengths().tolist() == [17] * 5
    first, second = batch_of(40, "short"), batch_of(40, "short")
    assert (
        np.array_equal(first.tokens, second.tokens)
        and 8 <= first.lengths().min() < 27 < first.lengths().max()
    )


# What the shapes and the baseline compute --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TINY)
def test_the_two_word_head_equals_the_whole_model_at_the_last_position(model):
    two_words = random_models.build(model)
    ids, mask, _ = batch_of(6, "short").padded(torch.device("cpu"))
    ids = ids % 290 + 5
    with torch.no_grad():
        logits = two_words.model(input_ids=ids, attention_mask=mask).logits
        mine = two_words(ids, mask)
    last = logits[torch.arange(6), mask.sum(1) - 1][:, list(random_models.ANSWERS)]
    assert torch.allclose(mine, last, atol=1e-5)


def test_the_public_step_moves_along_the_direction_that_it_perturbed():
    model, batch = random_models.build("tiny-opt"), batch_of(6, "short")
    start = [p.detach().clone() for p in model.model.parameters()]
    step = NaiveStep(model, learning_rate=0.1, seed=3)
    torch.manual_seed(3)
    z = [torch.normal(0.0, 1.0, p.shape) for p in start]
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, origin, direction in zip(model.model.parameters(), start, z, strict=True):
                p.copy_(origin + sign * 1e-3 * direction)
        losses.append(step._losses(batch).detach())
    with torch.no_grad():
        for p, origin in zip(model.model.parameters(), start, strict=True):
            p.copy_(origin)
    step.step(batch)
    gradient = ((losses[0] - losses[1]) / 2e-3).mean()
    for p, origin, direction in zip(model.model.parameters(), start, z, strict=True):
        assert torch.allclose(p, origin - 0.1 * gradient * direction, atol=2e-4)


def test_the_public_step_holds_copies_of_the_largest_tensor():
    model, batch = random_models.build("tiny-opt"), batch_of(2, "8")
    largest = max(p.numel() * 4 for p in model.model.parameters())
    step = NaiveStep(model)
    alone = peak_bytes(model, lambda: step._perturb(1)) - sum(p.numel() * 4 for p in model.parameters())
    assert alone > 1.9 * largest
    step.step(batch)


def test_a_method_that_refuses_the_model_is_a_row_with_the_reason():
    [result] = bench("tiny-opt", compute="bfloat16").run(["dp_sgd_ghost"])
    [row] = result["rows"]
    assert row["status"] == "refused" and "set clipping to hooks" in row["error"]
