"""What fits: the largest model or batch, the next of which does not; and a measurement beside its prediction."""

from __future__ import annotations

import json

import pytest

from dpzero import __main__ as command_line
from dpzero.errors import UsageError
from dpzero.language.models import random_models
from dpzero.memory import capacity, trackers
from dpzero.memory.measure import measure
from dpzero.memory.predict import predict
from dpzero.memory.stand_in_step import Loaded, Workload, build_model

SETTINGS = {"batch_size": 4, "sequence_length": 32, "dtype": "float32"}
TINY = {"model_type": "opt", "vocab_size": 2000, "num_attention_heads": 4, "max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Three sizes of one family."""
    sizes = {"small": (32, 174_880), "middle": (128, 900_864), "large": (512, 7_344_128)}
    catalogue = {
        name: {**TINY, "hidden_size": w, "word_embed_proj_dim": w, "ffn_dim": 4 * w, "num_hidden_layers": 2}
        for name, (w, _) in sizes.items()
    }
    for name, stanza in catalogue.items():
        stanza["parameters"] = sum(p.numel() for p in _model(monkeypatch, {name: stanza}, name).parameters())
    monkeypatch.setattr(random_models, "catalogue", lambda: catalogue)


def _model(monkeypatch, catalogue, name):
    monkeypatch.setattr(random_models, "catalogue", lambda: catalogue)
    return random_models.build(name, device="meta")


def quiet(_: str) -> None: ...


def test_the_largest_model_fits_and_the_next_does_not():
    room = 20 * 2**20
    for row in capacity.largest_models(
        ["small", "middle", "large"], room, ("dpzero", "adamw", "lora"), SETTINGS, quiet
    ):
        assert row["model"] == "middle" and row["next_model"] == "large"
        assert row["peak_bytes"] <= room < row["next_bytes"]
        assert predict(Workload("large", row["method"], **SETTINGS))["peak_bytes"] > room


@pytest.mark.parametrize("method", ["dpzero", "adamw"])
def test_the_largest_batch_fits_and_one_more_does_not(method):
    room = 30 * 2**20
    (row,) = capacity.largest_batches("middle", room, (method,), SETTINGS, quiet)

    def peak(size: int) -> int:
        return predict(Workload("middle", method, **SETTINGS | {"batch_size": size}))["peak_bytes"]

    assert row["peak_bytes"] == peak(row["batch_size"]) <= room < peak(row["batch_size"] + 1)


def test_what_does_not_fit_at_all_says_so():
    (row,) = capacity.largest_batches("middle", 2**20, ("dpzero",), SETTINGS, quiet)
    assert row["batch_size"] == 0 and row["peak_bytes"] is None
    (row,) = capacity.largest_models(["small"], 2**10, ("dpzero",), SETTINGS, quiet)
    assert row["model"] is None and row["next_bytes"] > 2**10


def test_sizes_are_read():
    assert capacity.parse_size("24GiB") == 24 * 2**30 and capacity.parse_size("0.5 MB") == 500_000
    for text in ("24", "many", "-1GiB", "24TB"):
        with pytest.raises(UsageError, match="write it as 24GiB"):
            capacity.parse_size(text)


def test_the_verbs_answer(capsys):
    ask = ["--batch-size", "4", "--sequence-length", "32"]
    room = ["--gpu-memory", "30MiB", "--reserve", "2MiB"]
    assert command_line.main(["fits", *room, "--methods", "dpzero", "--models", "small", "large", *ask]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["model"] == "small" and row["how"].startswith("predicted")
    assert (
        command_line.main(
            ["measure-memory", "--model", "small", "--method", "dpzero", "--device", "cpu", *ask]
        )
        == 0
    )
    peaks = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert peaks["how"].startswith("measured") and peaks["reserved_peak_bytes"] is None
    assert peaks["resident_peak_bytes"] >= peaks["resident_before_bytes"] > 0
    assert command_line.main(["fits", *room, "--models", "huge"]) == 2
    assert "no shape 'huge'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["inference", "dpzero", "adamw"])
def test_a_measurement_agrees_with_its_prediction(method):
    workload = Workload("middle", method, 4, 32)
    measured, predicted = measure(workload, "cpu"), predict(workload)
    assert measured["peak_bytes"] == pytest.approx(predicted["peak_bytes"], rel=0.02)
    assert measured["weights_bytes"] == predicted["weights_bytes"]
    assert measured["inference_peak_bytes"] == pytest.approx(predicted["inference_peak_bytes"], rel=0.02)


def test_half_precision_is_not_measured_on_a_cpu():
    with pytest.raises(UsageError, match="measured on a GPU alone"):
        measure(Workload("small", "dpzero", 2, 8, "bfloat16"), "cpu")


def test_phases_of_a_second_reading_are_its_own():
    """As on CUDA, where steps that warm up come first."""
    loaded = Loaded(Workload("small", "adamw", 4, 32), build_model(Workload("small", "adamw", 4, 32), "cpu"))
    first, second = (trackers.LiveStorage(loaded.rest) for _ in range(2))
    with first:
        loaded.steps(first)
    before = dict(first.peaks)
    with second:
        loaded.steps(second)
    assert set(second.peaks) == {"backward", "forward", "update"} and first.peaks == before


def test_the_allocators_peaks_are_read_at_each_mark(monkeypatch):
    """CUDA's counters, played by a list: each phase gets what was highest since the last reading."""
    highest, now = [0], [0]

    def take(size: int) -> None:
        now[0] += size
        highest[0] = max(highest[0], now[0])

    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: highest.__setitem__(0, now[0]))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: highest[0])
    with trackers.AllocatorPeaks("cuda", "backward") as peaks:
        take(10)
        with peaks.phase("forward"):
            take(5)
            take(-5)
        take(3)
        with peaks.phase("update"):
            take(-13)
        take(1)
    assert peaks.peaks == {"backward": 13, "forward": 15, "update": 13}
    assert peaks.peak == 15 and peaks.phase_of_peak == "forward"
