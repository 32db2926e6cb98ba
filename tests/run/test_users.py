"""Runs whose unit is the user: how batches are drawn, what the record says, and that no user moves more than the clip."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from baselines.dp_sgd import DPSGD
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.report import formatting, records
from dpzero.report.tables import accuracy
from dpzero.run.run import run_cell
from dpzero.run.setup import Setup

USERS = {"unit": "user", "synthetic_users": 60, "examples_per_user": 3}
GROUPS = USERS | {"user_level": "group_privacy"}


def quiet(line: str) -> None: ...


@pytest.fixture
def cell(smoke):
    def make(method: str, **settings) -> dict:
        given = smoke(method)
        return sweep.complete(given | {"settings": given["settings"] | settings})

    return make


@pytest.fixture
def run(cache, tmp_path):
    def one(cell: dict) -> dict:
        run_cell(cell, tmp_path / "record.json", quiet, "cpu")
        return json.loads((tmp_path / "record.json").read_text())

    return one


@pytest.mark.parametrize("method", ["dpzero", "dp_sgd"])
def test_users_are_drawn_and_counted(run, cell, method):
    record = run(cell(method, **USERS))
    privacy = record["privacy"]
    users = set(tasks.load("toy").users(60))
    assert record["status"] == "ok" and privacy["steps"] == 20
    assert (privacy["unit"], privacy["dataset_size"], privacy["batch_size"]) == ("user", len(users), 8)
    assert 1.99 < privacy["epsilon_spent"] <= 2
    assert record["provenance"]["data"]["users"] == "made up, by a hash of the text"
    passes = {"dpzero": 2, "dp_sgd": 3}[method]
    assert 20 * 8 * passes < record["metrics"]["example_forwards"] <= 20 * 8 * passes * 3


@pytest.mark.parametrize("method", ["dpzero", "dp_sgd"])
def test_group_privacy_draws_examples_and_adds_noise_for_all_of_a_user(run, cell, method):
    users, groups = run(cell(method, **USERS))["privacy"], run(cell(method, **GROUPS))["privacy"]
    assert groups["unit"] == "user, as a group of at most 3 examples"
    assert 150 < groups["dataset_size"] <= 180 and groups["batch_size"] == 8
    assert users["epsilon_target"] == groups["epsilon_target"] == 2 >= groups["epsilon_spent"] > 1.99
    example = Setting("gaussian", "poisson", "add_remove", groups["dataset_size"], 8, 20, 1e-4)
    assert example.epsilon(groups["noise_scale"]) < 1  # what one example of the user loses


def test_a_batch_holds_whole_users_up_to_the_cap_and_the_same_ones_again(cache, cell):
    setup = Setup(cell("dpzero", **USERS), quiet, "cpu")
    names = np.array(tasks.load("toy").users(60))
    drawn = list(setup.batches(setup.examples["train"], setup.budget(None), 0))
    for _, (batch, users) in drawn:
        assert len(batch) == len(users)
        assert np.bincount(users, minlength=1).max(initial=0) <= 3
    again = Setup(cell("dpzero", **USERS), quiet, "cpu")
    for (_, (batch, users)), (_, (same, others)) in zip(
        drawn, again.batches(again.examples["train"], again.budget(None), 0), strict=True
    ):
        assert np.array_equal(batch.tokens, same.tokens) and np.array_equal(users, others)
    kept = names[Setup(cell("dpzero", **GROUPS), quiet, "cpu").drawn_rows]
    assert set(kept) == set(names) and np.unique(kept, return_counts=True)[1].max() == 3


@pytest.mark.parametrize("loud", [1.0, 1e6, -1e6, 1e38])
def test_a_user_with_many_loud_examples_moves_the_sum_of_gradients_by_the_clip_at_most(cache, loud):
    class Loud(losses.CrossEntropy):
        def __call__(self, model, batch):
            return super().__call__(model, batch) * torch.where(
                torch.from_numpy(batch.labels) == 3, loud, 1.0
            )

    train = encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["train"]
    bad, good = np.flatnonzero(train.labels == 3)[:5], np.flatnonzero(train.labels != 3)[:6]
    ends, setting = [], Setting("gaussian", "poisson", "add_remove", 240, 1, 100, 1e-5)
    for rows, users in ((good, [0, 0, 1, 1, 1, 2]), (np.append(good, bad), [0, 0, 1, 1, 1, 2, *[3] * 5])):
        model = text_classifier.load("tiny-encoder", tasks.load("toy"), "full")
        budget = StandInBudget(setting, 0.0, RunKey.published(0), unit="user")
        DPSGD(model, Loud(64), budget, learning_rate=1.0, clip=1e-2).step(train[rows], users)
        ends.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    moved = (ends[1] - ends[0]).norm().item()
    assert moved <= 1e-2 * (1 + 1e-3)
    assert moved > 0.99e-2 or loud in (1.0, 1e38)


def test_one_user_s_gradient_is_that_of_the_mean_of_their_losses(cache):
    train = encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["train"][np.arange(7)]
    users, clip = np.array([4, 9, 4, 4, 9, 1, 4]), 0.5
    model, loss = text_classifier.load("tiny-encoder", tasks.load("toy"), "full"), losses.CrossEntropy(32)
    trained = list(model.parameters())
    expected = [torch.zeros_like(p) for p in trained]
    for user in (1, 4, 9):
        mean = loss(model, train[np.flatnonzero(users == user)]).mean()
        gradients = torch.autograd.grad(mean, trained)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient * min(1.0, clip / norm.item())
    before = [p.detach().clone() for p in trained]
    setting = Setting("gaussian", "poisson", "add_remove", 240, 1, 100, 1e-5)
    budget = StandInBudget(setting, 0.0, RunKey.published(0), unit="user")
    DPSGD(model, loss, budget, learning_rate=1.0, clip=clip).step(train, users)
    for start, p, total in zip(before, trained, expected, strict=True):
        assert (start - p.detach() - total).abs().max() < 1e-5


def test_an_epsilon_of_users_stands_in_a_column_of_its_own(run, cell):
    frame = records.to_frame([run(cell("dpzero")), run(cell("dp_sgd", **USERS))])
    assert dict(zip(frame["method"], frame["promise"], strict=True)) == {"dpzero": "", "dp_sgd": "user"}
    table = accuracy(frame)
    columns = {column.heading: column.key for column in table.columns}
    rows = {row["method"]: row for row in table.rows}
    assert columns["ε"] == "_epsilon" and columns["ε per user"] == "_user_epsilon"
    assert rows["dpzero"]["_epsilon"] == "2" and "_user_epsilon" not in rows["dpzero"]
    assert rows["dp_sgd"]["_user_epsilon"] == "2" and "_epsilon" not in rows["dp_sgd"]
    alone = accuracy(frame[frame["method"] == "dpzero"])
    assert "ε per user" not in [column.heading for column in alone.columns]
    assert formatting.epsilon_column(frame[frame["promise"] == "user"])["promise"] == "user"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples_per_user": 3}, "examples_per_user is for unit user: leave it out"),
        ({"unit": "user"}, "name no users: give the task's stanza `user`, or synthetic_users"),
        (
            {"unit": "user", "synthetic_users": 9, "user_level": "group_privacy"},
            "a group of known size: give examples_per_user",
        ),
        (GROUPS | {"examples_per_user": 100}, "groups of at most 64"),
        (GROUPS | {"mechanism": "laplace"}, "no accounting for groups of 3 examples"),
        (USERS | {"iterate": "accounted", "evaluate_every": 5}, "counts examples, and the unit is the user"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(cell, settings, message):
    with pytest.raises(UsageError, match=message):
        cell("dpzero", **settings)


def test_methods_without_noise_have_no_users(cell):
    assert "unit" not in cell("mezo", **USERS)["settings"]


def test_rows_of_one_s_own_name_their_users(tmp_path, monkeypatch):
    from dpzero import include

    lines = ["text,label,who", *(f"text number {i},{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(60))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    stanza = "mine: {files: rows.csv, text: text, label: label, words: {a: one, b: two}, user: who}\n"
    (tmp_path / "tasks.yaml").write_text(stanza)
    monkeypatch.setenv(include.VARIABLE, str(tmp_path))
    task = tasks.load("mine")
    assert task.users() == ["xyz"[int(row.text.split()[-1]) % 3] for row in task.splits["train"]]
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "text without a user,a,"]))
    with pytest.raises(UsageError, match="names no user: give each row one"):
        tasks.load("mine").users()
