"""One run: what its record says, that it repeats, resumes, and keeps secrets; failures that are results and those that are not."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dpzero import __main__ as command_line
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import caches, frozen_layers, text_classifier
from dpzero.report import records
from dpzero.run import checkpoint, measurements
from dpzero.run.run import Run, run_cell
from dpzero.run.setup import Setup
from dpzero.zeroth_order import TwoPoint
from tests.run.stopping import interrupt_at

PRIVATE = ["dpzero", "dp_zo_gaussian", "dp_zo_laplace", "dp_zo_laplace_pure", "dp_sgd", "dp_adam"]
OTHERS = ["zero_shot", "adamw", "sgd", "mezo"]
# variants of a method's file, of which one is enough in a test that runs twice
FEW = [
    *("zero_shot", "adamw", "mezo", "dpzero", "dp_zo_laplace", "dp_sgd"),
    *(
        pytest.param(m, marks=pytest.mark.slow)
        for m in ("sgd", "dp_zo_gaussian", "dp_zo_laplace_pure", "dp_adam")
    ),
]
CUT_OFF = [
    *("dpzero", "dp_sgd"),
    *(
        pytest.param(m, marks=pytest.mark.slow)
        for m in PRIVATE + OTHERS
        if m not in ("dpzero", "dp_sgd", "zero_shot")
    ),
]


def quiet(line: str) -> None: ...


@pytest.fixture
def run(cache, tmp_path):
    """run(cell) -> its record, as it is on disk."""

    def one(cell: dict, out: Path | None = None) -> dict:
        out = out or tmp_path / "record.json"
        returned = run_cell(cell, out, quiet, "cpu")
        record = json.loads(out.read_text())
        assert returned["run"] == record["run"] and returned["status"] == record["status"]
        assert not checkpoint.folder(out).exists()
        return record

    return one


def repeatable(record: dict) -> dict:
    """Without wall times, what the whole process holds, and the commit, which a developer may move meanwhile."""
    curve = [{k: v for k, v in point.items() if k != "train_seconds"} for point in record["curve"]]
    memory = {k: v for k, v in record["memory"].items() if k != "peak_resident_bytes"}
    provenance = {
        key: record["provenance"][key] for key in ("model", "data", "packages", "device", "threads")
    }
    same = {k: v for k, v in record.items() if k != "time"}
    if record["transcript"]:
        same["transcript"] = record["transcript"] | {"file": "the record's own name"}
    return same | {"curve": curve, "memory": memory, "provenance": provenance}


# --- the record


@pytest.mark.parametrize("method", OTHERS + PRIVATE)
def test_a_record_is_complete(run, smoke, method):
    cell = smoke(method)
    record = run(cell)
    assert records.to_frame([record]).shape[0] == 1 and record["version"] == 1
    assert record["status"] == "ok" and record["error"] is None
    assert record["cell"]["settings"] == cell["settings"]
    assert record["metrics"]["split"] == "test" and record["metrics"]["examples"] == 120
    assert 0 <= record["metrics"]["accuracy"] <= 1 and math.isfinite(record["metrics"]["loss"])
    correct = np.frombuffer(base64.b64decode(record["metrics"]["correct"]), np.uint8)
    assert len(correct) == 15 and np.unpackbits(correct).sum() / 120 == record["metrics"]["accuracy"]
    passes = {None: 0, 0: 2, 1: 3}[record["method"]["order"]]
    assert record["metrics"]["example_forwards"] == 20 * 8 * passes
    labels = [row.label for row in tasks.load(cell["task"]).splits["test"]]
    assert record["metrics"]["majority"] == max(map(labels.count, labels)) / len(labels)
    steps = [point["step"] for point in record["curve"]]
    assert steps == ([0] if method == "zero_shot" else [0, 1, 2, 5, 10, 20])
    assert all(0 <= point["dev_accuracy"] <= 1 for point in record["curve"])
    assert record["memory"]["peak_allocated_bytes"] >= record["memory"]["inference_peak_bytes"]
    assert record["memory"]["inference_peak_bytes"] > record["memory"]["weights_bytes"] > 0
    assert record["time"]["wall_seconds"] >= record["time"]["train_seconds"] >= 0
    provenance = record["provenance"]
    assert len(provenance["model"]["sha256"]) == len(provenance["data"]["sha256"]) == 64
    assert provenance["model"]["title"] == "tiny random BERT"
    assert provenance["data"]["title"] == "Toy topics"
    assert provenance["data"]["source"] == "dpzero (2026), generated from tasks.yaml"
    assert provenance["data"]["split"] == "fixed, balanced over the topics, by hash of the text"
    installed = provenance["packages"]["torch"]
    assert installed.split("+")[0] == torch.__version__.split("+")[0]  # some builds add their own


@pytest.mark.parametrize("method, epsilon", [*((m, "2") for m in PRIVATE), ("dp_zo_laplace_pure", "0.5")])
def test_what_was_spent_is_the_target_and_no_more(run, smoke, method, epsilon):
    privacy = run(smoke(method) | {"epsilon": epsilon})["privacy"]
    target = float(epsilon)
    assert privacy["epsilon_target"] == target
    assert target * 0.999 < privacy["epsilon_spent"] <= target * (1 + 1e-12)
    assert privacy["steps"] == 20 and privacy["dataset_size"] == 240 and privacy["batch_size"] == 8
    assert privacy["noise_key"] == "published" and privacy["valid_release"] is False
    assert privacy["epsilon_spent_rdp"] is None or privacy["epsilon_spent_rdp"] > target


@pytest.mark.parametrize("method", OTHERS)
def test_a_run_without_noise_says_nothing_of_privacy(run, smoke, method):
    assert run(smoke(method, steps=0 if method == "zero_shot" else 2))["privacy"] is None


def test_the_metric_is_taken_on_the_split_that_is_asked_for(run, smoke):
    metrics = run(smoke("mezo", steps=2, split="dev"))["metrics"]
    assert (metrics["split"], metrics["examples"]) == ("dev", 60) and "correct" not in metrics


@pytest.mark.parametrize("tune", ["full", "bias", "lora", "head", "top"])
@pytest.mark.parametrize("method", ["dpzero", "dp_adam"])
def test_every_part_of_a_model_can_be_trained(run, smoke, method, tune):
    record = run(smoke(method, tune=tune))
    assert record["status"] == "ok" and record["privacy"]["steps"] == 20


@pytest.mark.parametrize("method", ["dpzero", "dp_adam", "adamw"])
def test_a_head_trained_alone_learns_from_features_what_it_learns_from_texts(run, smoke, monkeypatch, method):
    """Weights can differ in their last digits, and the loss on test with them."""
    cell = smoke(method, tune="head")
    on_features = run(cell)
    monkeypatch.setattr(caches, "trains_on_features", lambda *_: False)
    on_texts = run(cell)
    for record in (on_features, on_texts):
        assert record["metrics"]["examples"] == 120 and len(record["curve"]) == 6
    assert on_features["metrics"]["loss"] == pytest.approx(on_texts["metrics"]["loss"], rel=1e-4)
    assert on_features["memory"]["peak_allocated_bytes"] == on_texts["memory"]["peak_allocated_bytes"]


@pytest.mark.parametrize("method", ["dpzero", "dp_sgd", "adamw"])
def test_a_last_layer_learns_from_hidden_states_what_it_learns_from_texts(run, smoke, monkeypatch, method):
    cell = smoke(method, tune="top")
    from_states = run(cell)
    monkeypatch.setattr(frozen_layers, "can_cache", lambda *_: False)
    from_texts = run(cell)
    assert from_states["metrics"]["loss"] == pytest.approx(from_texts["metrics"]["loss"], rel=1e-4)
    assert from_states["memory"] == from_texts["memory"] | {
        "peak_resident_bytes": from_states["memory"]["peak_resident_bytes"]
    }


@pytest.mark.parametrize("method", ["dpzero", "dp_sgd", "adamw"])
def test_a_causal_model_runs_too(run, smoke, method):
    record = run(smoke(method, tune="full", max_length=24) | {"model": "tiny-causal"})
    assert record["status"] == "ok" and record["run"].startswith("toy/tiny-causal/")


# --- repeating


@pytest.mark.parametrize("method", FEW)
def test_the_same_cell_gives_the_same_record(run, smoke, tmp_path, method):
    first, second = (run(smoke(method), tmp_path / name) for name in ("a.json", "b.json"))
    assert repeatable(first) == repeatable(second)


def test_another_seed_gives_another_run(run, smoke):
    first, second = (run(smoke("dpzero") | {"seed": seed}) for seed in (0, 1))
    assert first["metrics"]["loss"] != second["metrics"]["loss"]


def test_methods_of_one_seed_meet_the_same_batches(cache, smoke):
    def batches(method: str) -> list[list[int]]:
        mine = Setup(smoke(method), quiet, "cpu")
        batches = mine.batches(mine.examples["train"], mine.budget(None), 0)
        return [batch.tokens.tolist() for _, (batch,) in batches]

    first = batches("dpzero")
    assert len(first) == 20 and all(batches(m) == first for m in ("mezo", "dp_adam", "dp_zo_laplace"))


# --- secrets


def test_a_secret_run_shows_no_function_of_private_examples(run, smoke, tmp_path):
    cell = smoke("dpzero", noise_key="secret")
    first, second = (run(cell, tmp_path / name) for name in ("a.json", "b.json"))
    for record in (first, second):
        assert record["privacy"]["valid_release"] is True and record["privacy"]["noise_key"] == "secret"
        assert record["curve"] == [] and set(record["time"].values()) == {None}
        assert (
            len(base64.b64decode(record["metrics"]["correct"])) == 15
        )  # of public test rows, as accuracy is
        assert record["metrics"]["example_forwards"] == 20 * 8 * 2
    assert first["metrics"]["loss"] != second["metrics"]["loss"]
    assert first["memory"]["peak_allocated_bytes"] == second["memory"]["peak_allocated_bytes"]


def test_the_key_is_written_nowhere(cache, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint.Checkpoint, "remove", lambda self: None)
    mine = Run(Setup(smoke("dpzero", noise_key="secret"), quiet, "cpu"), tmp_path / "runs" / "a.json")
    mine.train()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ledger", "state.pt"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert mine.setup.key.key not in content and mine.setup.key.key.hex().encode() not in content


# --- interruptions


@pytest.mark.parametrize("method", CUT_OFF)
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_been(run, smoke, tmp_path, monkeypatch, method):
    cell = smoke(method)
    whole = run(cell, tmp_path / "whole.json")
    out = tmp_path / "cut.json"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0)
        interrupt_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            run(cell, out)
    assert not out.exists()
    lines = []
    run_cell(cell, out, lines.append, "cpu")
    assert any("resumed at step 13 of 20" in line for line in lines)
    assert repeatable(json.loads(out.read_text())) == repeatable(whole)


def test_steps_after_the_last_checkpoint_are_the_same_release_under_a_published_key(
    run, smoke, tmp_path, monkeypatch
):
    cell = smoke("dpzero")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            run(cell)
    assert repeatable(run(cell)) == repeatable(run(cell, tmp_path / "whole.json"))


def test_without_a_transcript_they_are_spent_and_the_run_ends_where_its_budget_does(run, smoke, monkeypatch):
    cell = smoke("dp_sgd", noise_key="secret")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            run(cell)
    privacy = run(cell)["privacy"]
    assert privacy["steps"] == 20 and 1.99 < privacy["epsilon_spent"] <= privacy["epsilon_target"]


def test_another_setting_starts_anew(run, smoke, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0)
        interrupt_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            run(smoke("dpzero"))
    changed = smoke("dpzero", clip=7.0)
    assert repeatable(run(changed)) == repeatable(run(changed, tmp_path / "whole.json"))


# --- failures that are results


def out_of_memory_after(monkeypatch, calls: int, error: BaseException) -> None:
    whole, seen = text_classifier.Classifier.forward, []

    def forward(self, *arguments):
        seen.append(None)
        if len(seen) > calls:
            raise error
        return whole(self, *arguments)

    monkeypatch.setattr(text_classifier.Classifier, "forward", forward)
    monkeypatch.setattr(
        measurements, "FOLDER", f"of {id(error)}"
    )  # where no earlier run left its measurement


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nand more"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("no more"),
    ],
)
def test_running_out_of_memory_is_a_result(run, smoke, monkeypatch, error):
    out_of_memory_after(monkeypatch, 0, error)
    record = run(smoke("dpzero"))
    assert record["status"] == "oom" and record["error"] == str(error).splitlines()[0]
    assert record["metrics"] is None and record["memory"] is None
    assert records.to_frame([record])["status"].tolist() == ["oom"]


def test_running_out_of_memory_half_way_still_says_what_was_spent(run, smoke, monkeypatch):
    out_of_memory_after(monkeypatch, 60, torch.OutOfMemoryError("CUDA out of memory."))
    record = run(smoke("dpzero"))
    assert record["status"] == "oom" and record["memory"]["peak_allocated_bytes"] > 0
    assert 0 < record["privacy"]["steps"] < 20
    assert 0 < record["privacy"]["epsilon_spent"] < record["privacy"]["epsilon_target"]
    taken = record["time"]["steps_per_second"] * record["time"]["train_seconds"]
    assert record["privacy"]["steps"] - 1 <= round(taken) <= record["privacy"]["steps"]


def test_running_out_of_memory_ends_the_command_well(cache, smoke, tmp_path, monkeypatch, capsys):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "1")
    out_of_memory_after(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    spec, out = json.dumps(smoke("mezo")), tmp_path / "a.json"
    assert command_line.main(["run", "--spec", spec, "--out", str(out), "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["status"] == "oom" and answer["accuracy"] is None and out.exists()


@pytest.mark.parametrize("method", ["mezo", "sgd", "dpzero", "dp_zo_gaussian", "dp_sgd"])
def test_divergence_is_a_result(run, smoke, method):
    record = run(smoke(method, learning_rate=1e30))
    assert record["status"] == "diverged" and "not finite" in record["error"]
    assert record["metrics"] is None and record["curve"][0]["step"] == 0
    assert record["memory"]["peak_allocated_bytes"] > 0
    assert (record["privacy"] is None) == (method in OTHERS)
    assert records.to_frame([record])["status"].tolist() == ["diverged"]


# --- failures that are not


def test_a_bug_raises_and_leaves_no_record(run, smoke, tmp_path, monkeypatch):
    def bug(self, batch):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(TwoPoint, "step", bug)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(smoke("mezo"))
    assert not list(tmp_path.rglob("record.json*"))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"batch_size": 500}, "batch_size 500 is larger than dataset_size 240"),
        ({"sampling": "full_batch"}, "full_batch needs batch_size 240"),
        ({"mechanism": "laplace", "adjacency": "replace_one"}, "no proven accounting for laplace"),
        ({"delta": 0.0}, "no proven accounting for gaussian"),
    ],
)
def test_what_cannot_be_accounted_is_refused_in_one_line(run, smoke, tmp_path, settings, words):
    with pytest.raises(UsageError) as error:
        run(smoke("dpzero", **settings))
    assert words in str(error.value) and "toy/tiny-encoder/dpzero" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "record.json").exists()


def test_a_cold_cache_leaves_nothing_behind(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="is not in the cache"):
        run_cell(smoke("mezo") | {"task": "r8"}, tmp_path / "a.json", quiet, "cpu")
    assert list(tmp_path.iterdir()) == []
