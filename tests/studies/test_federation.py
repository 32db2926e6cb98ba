"""The study of a federation, small: clients are processes, and the bytes of each are counted on a link of its own."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dpzero.cli import studies
from dpzero.language.models.caches import Features
from dpzero.privacy import Setting
from dpzero.studies import federation

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, STEPS = 4, 8


@pytest.fixture(autouse=True)
def one_thread(cache, monkeypatch):
    monkeypatch.setattr(federation, "LEAST_SHARES", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem() -> federation.Problem:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 40)
    values = np.asarray(random.normal(size=(40, 6)) + labels[:, None], np.float32)
    examples = Features.from_arrays(values, labels)
    torch.manual_seed(0)
    return federation.Problem(nn.Linear(6, 2), {"train": examples, "test": examples}, CLIENTS)


def measured(noise: str, leaving: float) -> dict:
    setting, given = Setting("gaussian", "poisson", "add_remove", CLIENTS, 2, STEPS, 1e-2), problem()
    central = federation.train_centrally(given, setting, seed=0)
    return federation.measure(given, setting, noise, leaving, 0, central)


def committed() -> list[dict[str, str]]:
    with (ROOT / "results" / studies.STUDIES["federation"][1]).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("noise", "leaving"), federation.CASES)
def test_processes_end_with_the_bits_of_the_transcript(noise, leaving):
    row = measured(noise, leaving)
    assert row["clients_with_bits_of_replay"] == CLIENTS
    assert row["same_bits_as_central"] == (noise == "server" and row["answered"] == row["asked"])
    assert row["epsilon_client"] == pytest.approx(federation.EPSILON, rel=1e-3)
    assert row["down_bytes_client_round"] < 32 and row["up_bytes_client_round"] <= 12
    assert not row["valid_release"] and row.keys() == committed()[0].keys()


@pytest.mark.skipif(not federation.can_make_namespaces(), reason="network namespaces need root")
def test_the_wire_carries_the_payload_and_its_headers():
    row = measured("shared", 0.0)
    payload = {way: row[f"{way}_bytes_client_round"] * STEPS * CLIENTS for way in ("up", "down")}
    wire = {way: row[f"{way}_wire_bytes_client_round"] * STEPS * CLIENTS for way in ("up", "down")}
    frames = STEPS * CLIENTS  # at least one a message, of 14 + 20 + 20 bytes of headers
    assert all(wire[way] > payload[way] + 54 * frames for way in payload)


def test_without_namespaces_nothing_is_counted_on_the_wire(monkeypatch):
    monkeypatch.setattr(federation, "can_make_namespaces", lambda: False)
    row = measured("server", 0.0)
    assert row["same_bits_as_central"] and row["clients_with_bits_of_replay"] == CLIENTS
    assert math.isnan(row["up_wire_bytes_client_round"])


def test_the_table_has_rounds_of_at_most_32_bytes_and_one_model_for_all():
    for row in committed():
        assert int(row["ask_bytes_each_round"]) <= 32 and int(row["answer_bytes"]) <= 32
        assert row["clients_with_bits_of_replay"] == row["clients"]
        assert float(row["epsilon_client"]) == pytest.approx(federation.EPSILON, rel=1e-3)
        assert float(row["down_wire_bytes_client_round"]) < float(row["fedkseed_claim_bytes_round"])
