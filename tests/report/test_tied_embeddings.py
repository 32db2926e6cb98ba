"""What the table of discrepancies says of tied embeddings on RoBERTa is counted and measured here."""

from __future__ import annotations

import csv
import re

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

from dpzero import DPZero
from dpzero.language.models import random_models
from dpzero.language.models.text_classifier import Classifier, MaskedTransform, label_head
from dpzero.memory.predict import predict
from dpzero.memory.stand_in_step import NoiselessStandInBudget, Workload
from dpzero.report.comparison import DISCREPANCIES

WIDTH, STEPS, ROWS, MASK = 64, 16, 8, 4


@pytest.fixture(scope="module")
def row() -> dict[str, str]:
    """DPZero's row of tied embeddings."""
    with DISCREPANCIES.open(encoding="utf-8", newline="") as stream:
        (one,) = (r for r in csv.DictReader(stream) if (r["paper"], r["id"]) == ("DPZero", "tied embeddings"))
    return one


def test_so_many_parameters_are_trained(row):
    """Of RoBERTa-large; the output layer has a row for each word."""
    tied, untied = (
        predict(Workload("roberta-large", "dpzero", 1, 8, tie_embeddings=tie))["trained_parameters"]
        for tie in (True, False)
    )
    assert f"{untied / 1e6:.1f} M trained parameters" in row["published"]
    assert f"of {tied / 1e6:.1f} M parameters in all" in row["here"]


def narrow_roberta(tied: bool) -> Classifier:
    """RoBERTa-large with random weights, as deep, 64 wide and with 2000 words."""
    torch.manual_seed(0)
    config = random_models.config_of("roberta-large")
    config.update({"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "vocab_size": 2000})
    whole = AutoModelForMaskedLM.from_config(config).eval()
    head = label_head(whole, [10, 11], whole=True, tied=tied)
    return Classifier(whole.base_model, head, "masked", transform=MaskedTransform(whole.lm_head), mask=MASK)


def steps(tied: bool) -> torch.Tensor:
    """The scalars of DPZero's steps at the same weights, on the same rows, without noise: float64 [STEPS]."""
    torch.manual_seed(1)
    ids = torch.randint(5, 2000, (ROWS, 16))
    ids[:, -2] = MASK
    labels, scalars = torch.arange(ROWS) % 2, []

    class Listening(DPZero):
        def projected_gradient(self, difference):
            scalars.append(super().projected_gradient(difference))
            return scalars[-1]

    def loss(model, batch):
        return cross_entropy(model(batch, torch.ones_like(batch)), labels[: len(batch)], reduction="none")

    budget = NoiselessStandInBudget.for_batches(ROWS)
    me = Listening(narrow_roberta(tied), loss, budget, learning_rate=0.0, clip=200.0, smoothing=1e-3, seed=0)
    for _ in range(STEPS):
        me.step(ids)
    return torch.tensor(scalars, dtype=torch.float64)


def test_so_far_apart_is_a_step(row):
    """A step moves the weights by its scalar along a direction that both share, so the scalars' difference is the steps'."""
    tied, untied = steps(True), steps(False)
    said = re.search(
        r"layers, (\d+) wide, .* differs by (\d+) % of its size \(root mean square, (\d+) steps\)",
        row["here"],
    )
    assert said and (int(said[1]), int(said[3])) == (WIDTH, STEPS)
    measured = 100 * float((tied - untied).square().mean().sqrt() / tied.square().mean().sqrt())
    assert measured == pytest.approx(int(said[2]), abs=1)
