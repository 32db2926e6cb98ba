"""JFT: a pass without noise over redacted rows, then DP-SGD; its epsilon is selective, and stands in no column of others."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from baselines.dp_sgd import DPSGD
from baselines.jft import JFT
from dpzero.errors import UsageError
from dpzero.language.data import redaction, tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy import Budget, RunKey, Setting
from dpzero.report import records
from dpzero.report.statement import statement
from dpzero.report.tables import accuracy, privacy
from dpzero.run.run import run_cell

LOSS = losses.CrossEntropy(2048)
SECOND = {"learning_rate": 0.1, "clip": 1.0}


def budget(adjacency="replace_one", **options) -> Budget:
    setting = Setting("gaussian", "poisson", adjacency, 240, 16, 4, 1e-5)
    return Budget(setting, 1.0, RunKey.published(0), noise_arithmetic="float", **options)


@pytest.fixture
def train(cache):
    return encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["train"]


def model():
    return text_classifier.load("tiny-encoder", tasks.load("toy"), "full")


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_first_pass_learns_without_a_release_and_the_second_is_dp_sgd(train):
    mine, other, source = model(), model(), budget()
    me = JFT(mine, LOSS, source, redaction="numbers", first_steps=30, first_learning_rate=0.01, **SECOND)
    before = LOSS.evaluate(mine, train)["loss"]
    me.first_pass(train)
    assert LOSS.evaluate(mine, train)["loss"] < before - 0.1
    assert len(source.ledger) == me.steps_taken == 0 and me.forwards_before == 30 * 16 * 3
    other.load_state_dict(mine.state_dict())
    alone = budget()
    they = DPSGD(other, LOSS, alone, **SECOND)
    for batch, same in zip(source.batches(), alone.batches(), strict=True):
        me.step(train[batch])
        they.step(train[same])
    assert torch.equal(weights(mine), weights(other)) and len(source.ledger) == me.steps_taken == 4


def test_the_first_pass_sees_only_what_it_is_given(train):
    """The budget's batches play no part in it: other rows at the same numbers would not be read."""
    ends = []
    for key in (0, 1):
        mine = model()
        setting = budget().setting
        source = Budget(setting, 1.0, RunKey.published(key), noise_arithmetic="float")
        JFT(mine, LOSS, source, redaction="numbers", first_steps=3, **SECOND).first_pass(train)
        ends.append(weights(mine))
    assert torch.equal(*ends)


def test_a_ledger_stays_selective_in_another_process(train, tmp_path):
    source = budget(ledger=tmp_path / "ledger")
    me = JFT(model(), LOSS, source, redaction="numbers", first_steps=1, **SECOND)
    me.step(train[next(iter(source.batches()))])
    state = source.state_dict()
    source.close()
    for again in (Budget.resume(tmp_path / "ledger", key=RunKey.published(0)), budget()):
        if not len(again.ledger):
            again.load_state_dict(state)
        assert again.definition == "selective" and again.epsilon_spent() == math.inf
        assert 0 < again.selective_epsilon_spent() < math.inf and not again.valid_release
        again.close()


def test_no_epsilon_of_whole_examples_is_claimed(train):
    source, plain = budget(), budget()
    me = JFT(model(), LOSS, source, redaction="numbers", first_steps=1, **SECOND)
    for batch, _ in zip(source.batches(), plain.batches(), strict=True):
        me.step(train[batch])
        plain.admit(len(_))
        plain.release_([torch.zeros(3)], 1.0)
    assert source.epsilon_spent() == math.inf
    assert source.selective_epsilon_spent() == plain.epsilon_spent() > 0
    said = source.statement()
    assert said["definition"] == "selective" and said["selective_epsilon_spent"] == plain.epsilon_spent()
    assert said["epsilon_spent"] == said["gdp_mu"] == said["epsilon_spent_rdp"] == math.inf
    assert said["epsilon_target"] is None and said["valid_release"] is False
    assert "selective:" in repr(source) and plain.selective_epsilon_spent() == math.inf


def test_an_example_that_joins_has_no_selective_epsilon(train):
    """Its redacted row joins the first pass, which has no noise."""
    source = budget("add_remove")
    me = JFT(model(), LOSS, source, redaction="numbers", first_steps=1, **SECOND)
    me.step(train[next(source.batches())])
    assert source.selective_epsilon_spent() == math.inf


@pytest.fixture
def cell(smoke):
    def make(**settings) -> dict:
        given = smoke("dp_sgd")
        kept = {k: v for k, v in given["settings"].items() if k != "clipping"}
        own = {"redaction": "numbers", "adjacency": "replace_one", "first_steps": 5} | settings
        return sweep.complete(given | {"method": "jft", "use": "jft", "title": "JFT", "settings": kept | own})

    return make


def test_a_policy_that_finds_nothing_is_refused(cache, tmp_path, cell):
    with pytest.raises(
        UsageError, match="redaction numbers finds no sensitive word in the training rows of task toy"
    ):
        run_cell(cell(), tmp_path / "0.json", lambda line: None, "cpu")


@pytest.mark.parametrize("tune", ["bias", "head"])
def test_selective_epsilon_never_stands_in_a_column_of_whole_examples(
    cache, tmp_path, smoke, cell, tune, monkeypatch
):
    monkeypatch.setitem(
        redaction.POLICIES, "numbers", (re.compile(r"\bsister\b"),)
    )  # the texts have no number
    made = []
    for n, one in enumerate((cell(tune=tune), smoke("dp_sgd", tune=tune))):
        run_cell(one, tmp_path / f"{n}.json", lambda line: None, "cpu")
        made.append(json.loads((tmp_path / f"{n}.json").read_text()))
    jft, texts = made[0]["privacy"], [row.text for row in tasks.load("toy").splits["train"]]
    changed = sum("sister" in text for text in texts) / len(texts)
    assert 0 < made[0]["provenance"]["data"]["redacted_rows"] == changed < 1
    assert jft["definition"] == "selective" and 1.99 < jft["selective_epsilon_spent"] <= 2
    assert [jft[key] for key in ("epsilon_spent", "epsilon_target", "gdp_mu", "epsilon_spent_rdp")] == [
        None
    ] * 4
    assert made[0]["metrics"]["example_forwards"] == 5 * 8 * 3 + 20 * 8 * 3
    frame = records.to_frame(made)
    assert set(frame["promise"]) == {"", "selective"}
    for table in (accuracy(frame), privacy(frame)):
        rows = {row["method"]: row for row in table.rows}
        keys = [column.key for column in table.columns]
        assert {"_epsilon", "_selective_epsilon"} <= set(keys)
        assert rows["jft"]["_selective_epsilon"] == "2" and "_epsilon" not in rows["jft"]
        assert rows["dp_sgd"]["_epsilon"] == "2" and "_selective_epsilon" not in rows["dp_sgd"]
    row = next(row for row in privacy(frame).rows if row["method"] == "jft")
    assert 1.99 < row["selective_epsilon_spent"] <= 2 and not np.isfinite(row["epsilon_spent"])
    text = " ".join(statement(frame, "mine").split())
    assert "without a bound for whole examples" in text and "no word that the policy misses" in text


@pytest.mark.parametrize(
    "settings",
    [{"adjacency": "add_remove"}, {"noise_key": "secret"}, {"unit": "user", "synthetic_users": 60}],
)
def test_settings_under_which_no_selective_epsilon_holds_are_refused(cell, settings):
    with pytest.raises(UsageError, match="selective privacy is of a row's sensitive words"):
        cell(**settings)
