"""What a run does beside training: what it imports, and how often the model reads an example. No times: see README.md."""

from __future__ import annotations

import base64
import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dpzero import imports
from dpzero.language.data import tasks
from dpzero.language.models import caches, text_classifier
from dpzero.language.models.losses import CrossEntropy
from dpzero.plan import sweep
from dpzero.run import setup as setups
from dpzero.run.run import run_cell

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import json, sys
from dpzero.__main__ import main

status = main(["run", "--spec", sys.argv[1], "--out", sys.argv[2], "--device", "cpu", "--threads", "1"])
print(json.dumps([status, *sys.modules]))
"""
SLOW_TO_IMPORT = {
    "transformers",
    "scipy.optimize",
    "scipy.signal",
    "dp_accounting",
    "torch._dynamo",
    "datasets",
    "opacus",
}


def quiet(line: str) -> None: ...


def repeatable(record: dict) -> dict:
    curve = [{key: point[key] for key in point if key != "train_seconds"} for point in record["curve"]]
    weights = (record["transcript"] or {}).get("weights_sha256")
    return {"curve": curve, "weights": weights} | {key: record[key] for key in ("cell", "metrics", "privacy")}


@pytest.mark.parametrize(
    ("method", "model"), [("dpzero", "tiny-encoder"), ("mezo", "tiny-causal"), ("adamw", "tiny-encoder")]
)
def test_a_head_on_cached_features_is_trained_without_the_libraries_that_are_slow_to_import(
    cache, smoke, tmp_path, method, model
):
    cell = smoke(method, tune="head", max_length=24) | {"model": model}
    first = run_cell(cell, tmp_path / "first.json", quiet, "cpu")
    out = tmp_path / "second.json"
    arguments = [sys.executable, "-c", RUN, json.dumps(cell), str(out)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    status, *modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and "torch" in modules
    of_its_own = (
        {"torch._dynamo"} if method == "adamw" else set()
    )  # torch's optimizers import it to take a step
    assert SLOW_TO_IMPORT & set(modules) <= of_its_own
    assert repeatable(json.loads(out.read_text())) == repeatable(json.loads(json.dumps(first)))


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
def test_a_kept_head_starts_with_the_bits_of_the_whole_model(cache, name):
    task = tasks.load("toy")
    loaded = [text_classifier.load(name, task, "head", seed) for seed in (0, 1)]
    for _ in range(2):  # made, and then read
        for seed, model in enumerate(loaded):
            head = caches.read_head(name, lambda model=model: model, task, seed)
            for mine, theirs in zip(head.parameters(), model.head.parameters(), strict=True):
                assert mine.requires_grad and mine.equal(theirs)


def test_random_weights_of_another_seed_have_features_of_their_own(cache, smoke, tmp_path):
    cell = smoke("mezo", tune="head", steps=0)
    setup = [setups.Setup(cell | {"seed": seed}, quiet, "cpu") for seed in (5, 6)]
    features = [one.model_and_examples()[1]["test"].values for one in setup]
    whole = caches.features(setup[1].model(), setup[1].examples["test"])
    assert np.array_equal(features[1], whole) and not np.array_equal(*features)


@pytest.mark.parametrize("tune", ["bias", "head"])
def test_the_model_answers_each_test_row_once_and_each_dev_row_once_a_point(
    cache, smoke, tmp_path, monkeypatch, tune
):
    evaluated, evaluate = Counter(), CrossEntropy.evaluate

    def count(loss, model, examples):
        evaluated[len(examples)] += 1
        return evaluate(loss, model, examples)

    monkeypatch.setattr(CrossEntropy, "evaluate", count)
    record = run_cell(smoke("dpzero", tune=tune), tmp_path / "record.json", quiet, "cpu")
    dev = record["cell"]["settings"]["curve_examples"]
    assert evaluated == {record["metrics"]["examples"]: 1, dev: len(record["curve"])}


@pytest.mark.parametrize(("wanted", "taken"), [(50, 50), (10**6, 120)])
def test_a_part_of_test_is_its_first_rows_and_the_record_says_how_many(cache, smoke, tmp_path, wanted, taken):
    cell = smoke("zero_shot")
    whole = run_cell(cell, tmp_path / "whole.json", quiet, "cpu")["metrics"]
    cell["settings"]["test_examples"] = wanted
    part = run_cell(sweep.complete(cell), tmp_path / "part.json", quiet, "cpu")["metrics"]
    answers = [
        np.unpackbits(np.frombuffer(base64.b64decode(one["correct"]), np.uint8)) for one in (whole, part)
    ]
    assert whole["examples"] == 120 and part["examples"] == taken
    assert np.array_equal(answers[0][:taken], answers[1][:taken])
    assert part["accuracy"] == answers[1][:taken].mean()
    labels = [row.label for row in tasks.load(cell["task"]).splits["test"]][:taken]
    assert part["majority"] == max(map(labels.count, labels)) / taken


def test_what_a_release_cost_is_computed_for_it(cache, smoke):
    public, secret = (
        setups.Setup(smoke("dpzero", noise_key=key), quiet, "cpu") for key in ("published", "secret")
    )
    assert public.budget(None).cached_costs and secret.budget(None).cached_costs is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), imports.quickly():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
