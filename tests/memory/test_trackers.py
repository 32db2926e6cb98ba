"""The live storage tracker counts what it should: known tensors, each storage once, until it is freed."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import nn

from dpzero.language.data import tasks
from dpzero.language.models import text_classifier
from dpzero.memory import trackers
from dpzero.memory.trackers import LiveStorage
from dpzero.run import measurements
from dpzero.run.setup import Setup

KIB = 256  # float32 numbers


def test_a_tensor_counts_in_whole_blocks():
    with LiveStorage() as tracker:
        one, two = torch.zeros(1), torch.zeros(129)  # 4 and 516 bytes
    assert tracker.live == tracker.peak == 512 + 1024
    assert one.numel() + two.numel() == 130


def test_a_freed_tensor_counts_no_more():
    with LiveStorage() as tracker:
        kept = torch.zeros(KIB)
        for _ in range(5):
            gone = torch.zeros(2 * KIB)
            del gone
    assert (tracker.live, tracker.peak) == (1024, 3072)
    del kept
    assert tracker.live == 0


def test_views_and_changes_in_place_count_nothing():
    with LiveStorage() as tracker:
        x = torch.zeros(4, 64)
        views = [x.t(), x.view(-1), x[0], x.detach(), x.expand(2, 4, 64)]
        x.add_(1).mul_(2)
    assert tracker.peak == 1024 and len(views) == 5


def test_a_view_keeps_its_storage_alive():
    with LiveStorage() as tracker:
        part = torch.zeros(KIB)[:1]
        assert tracker.live == 1024
        del part
    assert tracker.live == 0


def test_results_and_what_the_operator_saw_before_count():
    x = torch.zeros(KIB)
    tracker = LiveStorage()
    tracker.add(x)
    tracker.add(x.view(2, -1))
    with tracker:
        y = x + 1
        z = (y * 2).sum()  # y * 2 lives while it is summed
    assert tracker.peak == 3 * 1024 + 512
    assert tracker.live == 2 * 1024 + 512 and z.item() == 512


def test_what_is_kept_for_backward_counts():
    def peak(grad: bool) -> int:
        layers = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
        x = torch.zeros(32, 64)  # 8 KiB an activation

        def work() -> None:
            with torch.set_grad_enabled(grad):
                layers(x).sum()

        return trackers.peak_bytes(layers, work) - trackers.weights_bytes(layers)

    assert peak(grad=False) < 4 * 8192 < 7 * 8192 < peak(grad=True)


def test_weights_count_each_storage_once():
    model = nn.Module()
    model.embedding = nn.Embedding(64, 16)
    model.head = nn.Linear(16, 64, bias=False)
    model.head.weight = model.embedding.weight
    model.register_buffer("table", torch.zeros(3))
    assert trackers.weights_bytes(model) == 64 * 16 * 4 + 512
    assert trackers.peak_bytes(model, lambda: None) == trackers.weights_bytes(model)
    assert trackers.reserved_bytes(model) is None and "CPU" in trackers.how(model)


def test_the_resident_peak_is_forgotten_and_found_again():
    before = trackers.resident_peak_bytes()
    block = mmap.mmap(-1, 2**26)  # 64 MiB that go back to the system, whatever malloc keeps for later
    block.write(b"1" * 2**26)
    assert trackers.resident_peak_bytes() >= before
    with_block = trackers.resident_peak_bytes()
    block.close()
    trackers.reset_resident_peak()
    assert trackers.resident_peak_bytes() <= with_block - 2**25


@pytest.fixture
def measured(cache, smoke):
    def measure(
        method: str, model: str = "tiny-encoder", shown: int = 0, of: str = "all_rows", **settings: object
    ) -> dict:
        cell = smoke(method, **settings) | {"model": model}
        cell["settings"] |= {"demonstrations": shown, "demonstrations_for": of} if shown else {}
        return measurements.measure_step_memory(Setup(cell, lambda line: None, "cpu"))

    return measure


def test_runs_of_the_same_settings_share_a_measurement_and_no_others_do(cache, smoke, monkeypatch):
    taken = []
    monkeypatch.setattr(measurements, "FOLDER", "of this test")
    monkeypatch.setattr(trackers, "peak_bytes", lambda model, work: taken.append(work()) or len(taken))

    def measure(cell: dict) -> int:
        measurements.measure_step_memory(Setup(cell, lambda line: None, "cpu"))
        return len(taken) // 2

    cell = smoke("dpzero")
    same = cell | {"epsilon": "6", "seed": 3}
    tries = [smoke("dpzero", clip=3.0), smoke("dpzero", learning_rate=0.5, steps=10)]
    others = [smoke("dpzero", batch_size=9), smoke("mezo")]
    assert [measure(c) for c in (cell, cell, same, *tries, *others)] == [1, 1, 1, 1, 1, 2, 3]


def test_in_context_learning_holds_the_keys_and_values_of_its_demonstrations(measured):
    settings = {"model": "tiny-causal", "tune": "full", "batch_size": 1, "max_length": 512}
    plain = measured("zero_shot", **settings)
    shown = measured("zero_shot", **settings, shown=32, token_budget=2048)
    config = text_classifier.load("tiny-causal", tasks.load("toy"), "full").backbone.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * 4  # bytes
    kept = 511 * per_token * (1 + 4)  # once, and once for each of the four texts of a micro-batch
    assert shown["inference_peak_bytes"] == plain["inference_peak_bytes"] == plain["peak_allocated_bytes"]
    assert shown["weights_bytes"] + kept <= shown["peak_allocated_bytes"] < shown["weights_bytes"] + 2 * kept
    assert "an evaluation of 4 stand-in texts of 512 tokens" in shown["how"]


def test_demonstrations_of_each_rows_own_keep_no_keys_and_values(measured):
    settings = {"model": "tiny-causal", "tune": "full", "batch_size": 1, "max_length": 512}
    shared, own = (
        measured("zero_shot", **settings, shown=32, of=of, token_budget=512)
        for of in ("all_rows", "each_row")
    )
    assert own["peak_allocated_bytes"] < 1.01 * own["inference_peak_bytes"] < shared["peak_allocated_bytes"]
    assert own["how"].endswith("2 stand-in texts of 512 tokens, each unlike the others from the first on")


def test_a_zeroth_order_step_has_the_memory_of_inference(measured):
    settings = {"tune": "full", "batch_size": 32, "max_length": 48}
    inference = measured("zero_shot", **settings)
    assert inference["peak_allocated_bytes"] == inference["inference_peak_bytes"]
    for method in ("mezo", "dpzero"):
        own = measured(method, **settings)
        assert own["inference_peak_bytes"] == inference["inference_peak_bytes"]
        assert own["inference_peak_bytes"] <= own["peak_allocated_bytes"] < 1.1 * own["inference_peak_bytes"]


def test_backpropagation_takes_more_and_per_example_gradients_most(measured):
    settings = {"tune": "full", "batch_size": 32, "max_length": 48}
    peaks = [
        measured(method, **settings)["peak_allocated_bytes"] for method in ("mezo", "sgd", "adamw", "dp_adam")
    ]
    assert peaks == sorted(peaks) and peaks[1] > 2 * peaks[0] and peaks[3] > 1.5 * peaks[2]


@pytest.mark.parametrize("method", ["dpzero", "adamw", "dp_adam"])
def test_the_figure_repeats_exactly(measured, method):
    assert measured(method) == measured(method)
