"""Membership inference, small: the toy task with random weights, all methods, in seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.mezo import MeZO
from dpzero.algorithm import DPZero
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.language.models.caches import Features, features
from dpzero.language.models.encoding import Examples
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.studies import membership as membership_study
from dpzero.studies import membership_runs
from dpzero.studies.membership import SHORT, TWO_POINT, membership
from dpzero.studies.membership_runs import (
    Method,
    Pool,
    draw_members,
    first_distinct,
    load_pool,
    outcome,
    train_run,
    trained,
)

SMALL = {
    "task": "toy",
    "model": "tiny-encoder",
    "pool_size": 40,
    "runs": 16,
    "steps": 12,
    "processes": 1,
}
MEZO = Method("mezo", "MeZO", None, "mezo", TWO_POINT)
ADAMW = Method("adamw", "AdamW", None, "fine_tuning", membership_study.ADAMW)
LORA = Method("lora", "AdamW", None, "fine_tuning", SHORT["lora"]["fine_tuning"], tune="lora")
FULL = Method("full", "DP-Adam", 2.0, "dp_sgd", SHORT["full"]["dp_sgd"], noise_scale=0.5, tune="full")
CLASSES = len(tasks.load("toy").labels)
DPZERO = Method("dpzero", "DPZero", 2.0, "dpzero", {**TWO_POINT, "clip": 3.0}, noise_scale=5.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are so small that a second one only waits
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pools() -> dict[str, Pool]:
    setting = Setting("gaussian", "poisson", "add_remove", 40, 20, 12, 1e-5)
    return {
        tune: load_pool("toy", "tiny-encoder", setting, mislabelled=0.25, seed=3, tune=tune)
        for tune in ("head", "lora", "full")
    }


@pytest.fixture(scope="module")
def pool(pools) -> Pool:
    return pools["head"]


@pytest.fixture(scope="module")
def result() -> dict:
    return membership(**SMALL, epsilons=[2.0], log=lambda line: None)


# -- the runs are the benchmark's runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    task = tasks.load("toy")
    texts = encoding.encode(tasks.load("toy"), "tiny-encoder", task.max_length)["train"][np.arange(40)]
    return text_classifier.load("tiny-encoder", task, "head", 3), texts


def test_training_on_features_equals_training_the_model_with_a_frozen_body(classifier):
    model, texts = classifier
    setting = Setting("gaussian", "poisson", "add_remove", 40, 20, 5, 1e-5)

    def after(module, loss, batches):
        method = DPZero(
            module, loss, StandInBudget(setting, 5.0, RunKey.published(1)), **TWO_POINT, clip=3.0, seed=1
        )
        for batch in batches:
            method.step(batch)
        return torch.cat([p.flatten() for p in method.parameters])

    start = {name: value.clone() for name, value in model.state_dict().items()}
    indices = list(Budget(setting, 5.0, RunKey.published(1)).batches())
    values = Features.from_arrays(features(model, texts), texts.labels)
    head = text_classifier.HeadAlone(model.head)
    on_features = after(head, losses.CrossEntropy(256), [values[batch] for batch in indices])
    moved = on_features - torch.cat([start["head.weight"].flatten(), start["head.bias"]])
    model.load_state_dict(start)
    whole = after(model, losses.CrossEntropy(256), [texts[batch] for batch in indices])
    model.load_state_dict(start)
    assert moved.abs().max() > 0.01
    assert torch.allclose(on_features, whole, atol=1e-5)


def relabelled(pool: Pool, who: np.ndarray) -> Pool:
    labels = pool.labels.copy()
    labels[who] = (labels[who] + 1) % CLASSES
    kind = torch.from_numpy if isinstance(pool.texts, Features) else np.asarray
    return replace(pool, texts=replace(pool.texts, labels=kind(labels)))


@pytest.mark.parametrize("method", [MEZO, ADAMW, DPZERO, LORA, FULL], ids=lambda c: c.name)
def test_a_run_trains_on_its_members_alone(pools, method):
    pool = pools[method.tune]
    inside, before = draw_members(40, 5), train_run(pool, method, 5)[0]
    for who, moves in ((np.flatnonzero(~inside), False), (np.flatnonzero(inside)[:1], True)):
        after = train_run(relabelled(pool, who), method, 5)[0]
        assert (np.abs(after - before).max() > 0) == moves


@pytest.mark.parametrize("tune", ["head", "lora", "full"])
def test_the_base_model_is_that_of_every_tuning_and_stays_as_it_is(pools, tune):
    pool = pools[tune]
    start = [p.detach().clone() for p in trained(pool.model)]
    train_run(pool, ADAMW, 5)
    assert all(map(torch.equal, trained(pool.model), start))
    logits, accuracy = train_run(pool, Method("base", "", 0.0), 5)
    assert np.allclose(logits, train_run(pools["head"], Method("base", "", 0.0), 5)[0], atol=1e-5)
    assert accuracy == losses.CrossEntropy(256).evaluate(pool.model, pool.dev)["accuracy"]


@pytest.mark.parametrize("method", [ADAMW, LORA, FULL], ids=lambda c: c.name)
def test_a_run_starts_where_every_other_does(pools, method):
    first = train_run(pools[method.tune], method, 5)[0]
    train_run(pools[method.tune], method, 6)
    assert np.array_equal(train_run(pools[method.tune], method, 5)[0], first)


def test_a_finished_run_is_read_and_a_changed_one_is_not(pools, tmp_path, monkeypatch):
    first = outcome(pools, tmp_path, (DPZERO, 5))
    assert len(list(tmp_path.rglob("seed-5.npz"))) == 1
    monkeypatch.setattr(membership_runs, "train_run", None)  # training would fail
    again = outcome(pools, tmp_path, (DPZERO, 5))
    assert np.array_equal(again.logits, first.logits) and again[1:] == first[1:]
    longer = replace(pools["head"], identity=pools["head"].identity | {"format": 0})
    for job, its_pools in (
        ((DPZERO, 6), pools),
        ((replace(DPZERO, noise_scale=6.0), 5), pools),
        ((DPZERO, 5), pools | {"head": longer}),
    ):
        with pytest.raises(TypeError, match="not callable"):
            outcome(its_pools, tmp_path, job)


def test_dpzero_without_noise_or_clip_is_mezo_and_noise_changes_it(pool):
    free = replace(DPZERO, settings={**TWO_POINT, "clip": 1e6}, noise_scale=0.0)
    mezo = train_run(pool, MEZO, 5)[0]
    assert np.allclose(train_run(pool, free, 5)[0], mezo, atol=1e-4)
    assert not np.allclose(train_run(pool, replace(free, noise_scale=1e-4), 5)[0], mezo, atol=1e-2)


def test_members_of_a_batch_join_it_at_the_accounted_rate(pool, monkeypatch):
    """1,000 steps over about 20 members: six standard errors of the mean, false alarm below 1e-8."""
    sizes = []
    monkeypatch.setattr(MeZO, "step", lambda self, batch: sizes.append(len(batch)))
    setting = replace(pool.setting, steps=1000, batch_size=10)
    train_run(replace(pool, setting=setting), MEZO, 5)
    drawn, n = sum(sizes), 1000 * draw_members(40, 5).sum()
    assert abs(drawn - n * setting.rate) < 6 * np.sqrt(n * setting.rate * (1 - setting.rate))


# -- who is in it ------------------------------------------------------------------------------------------------------


def test_members_are_a_fair_coin_for_every_text_and_run():
    """64,000 coins, and the products of neighbours along both axes: six standard errors each, false alarm below 1e-8."""
    signs = np.array([draw_members(1000, seed) for seed in range(64)]) * 2 - 1
    drawn_anew = np.array([draw_members(1000, seed, "control") for seed in range(64)]) * 2 - 1
    for values in (signs, signs[1:] * signs[:-1], signs[:, 1:] * signs[:, :-1], signs * drawn_anew):
        assert abs(values.mean()) < 6 / np.sqrt(values.size)


def test_the_pool_holds_each_text_once():
    texts = Examples.from_token_ids([[1, 2], [3], [1, 2], [1, 2, 0], [3], [4]], [0, 1, 1, 0, 1, 0])
    assert first_distinct(texts, 4).tolist() == [0, 1, 3, 5]
    with pytest.raises(UsageError, match="hold 5 distinct training texts, of 4"):
        first_distinct(texts, 5)


def test_wrong_labels_have_the_asked_number_and_every_other_class():
    setting = Setting("gaussian", "poisson", "add_remove", 80, 40, 12, 1e-5)
    right = load_pool("toy", "tiny-encoder", setting, mislabelled=0.0, seed=3)
    wrong = load_pool("toy", "tiny-encoder", setting, mislabelled=0.5, seed=3)
    assert right.mislabelled.sum() == 0 and list(right.groups()) == ["natural", "all"]
    assert wrong.mislabelled.sum() == 40
    assert np.array_equal(right.labels != wrong.labels, wrong.mislabelled)
    shifts = (wrong.labels - right.labels)[wrong.mislabelled] % CLASSES
    assert set(shifts) == set(range(1, CLASSES))


# -- the whole ---------------------------------------------------------------------------------------------------------


def rows(result: dict, **wanted: object) -> list[dict]:
    return [row for row in result["rows"] if wanted.items() <= row.items()]


def test_every_method_is_attacked_in_every_group_in_both_ways(result):
    names = ["base", "control", "mezo", "adamw", "dpzero_2"]
    grid = [(m, t, a) for m in names for t in ("natural", "mislabelled", "all") for a in ("loss", "lira")]
    assert [(row["method"], row["texts"], row["attack"]) for row in result["rows"]] == grid
    assert [method["name"] for method in result["methods"]] == ["base", "mezo", "adamw", "dpzero_2"]


def test_attacks_on_the_base_model_guess(result):
    for row in rows(result, method="base"):
        for name in ("true_positive_rate", "false_positive_rate"):
            assert [row[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(
                [0.01] * 3, abs=1e-9
            )
        assert row["auc"] == 0.5 and row["ceiling"] == pytest.approx(0.01) and not row["refuted"]


def test_attacks_find_memorised_members(result):
    for attack in ("loss", "lira"):
        (row,) = rows(result, method="adamw", texts="all", attack=attack)
        assert row["auc_low"] > 0.55


def test_attacks_on_the_control_guess(result):
    for attack in ("loss", "lira"):
        (mezo,), (control,) = (
            rows(result, method=m, texts="all", attack=attack) for m in ("mezo", "control")
        )
        assert control["auc"] not in (mezo["auc"], 0.5)  # neither MeZO's members nor the base model
        assert abs(control["auc"] - 0.5) < 0.1


def test_the_ceiling_follows_from_the_noise_of_a_claim(result):
    setting = Setting("gaussian", "poisson", "add_remove", 40, 20, 12, 1e-5)
    (method,) = (method for method in result["methods"] if method["name"] == "dpzero_2")
    assert method["noise_scale"] == pytest.approx(setting.noise_scale(2.0), rel=1e-4)
    for row in result["rows"]:
        assert ("ceiling" in row) == (row["method"] not in ("mezo", "adamw")) == (row["epsilon"] is not None)
    for row in rows(result, method="dpzero_2"):
        assert (
            0.01 < row["ceiling"] < row["ceiling_of_epsilon_delta"] == pytest.approx(np.exp(2) / 100 + 1e-5)
        )


def test_the_result_is_json_and_says_that_it_is_no_release(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["noise_key"], result["valid_release"], result["data"]) == ("published", False, "public")
    assert result["provenance"]["method_code"].keys() == {"dpzero", "fine_tuning", "mezo"}


@pytest.mark.slow  # each process begins with the imports
def test_it_replays_in_other_processes(result):
    lines = []
    again = membership(**{**SMALL, "processes": 2}, epsilons=[2.0], log=lines.append)
    assert again["rows"] == result["rows"] and again["methods"] == result["methods"]
    assert lines[-1] == "membership: 64 of 64 runs"


def test_tunings_are_compared_in_one_result_that_goes_on_from_its_runs(tmp_path):
    sizes = SMALL | {"steps": 2, "folder": tmp_path, "log": lambda line: None}
    compared = membership(
        **sizes, tunes=["head", "lora"], uses=["fine_tuning", "dp_sgd"], epsilons=[8.0], max_length=8
    )
    assert (compared["tune"], compared["max_length"]) == (["head", "lora"], 8)
    assert [(method["name"], method["tune"]) for method in compared["methods"]] == [
        ("base", "head"),
        *(("adamw_head", "head"), ("dp_adam_head_8", "head")),
        *(("adamw_lora", "lora"), ("dp_adam_lora_8", "lora")),
    ]
    assert len(list(tmp_path.rglob("seed-*.npz"))) == 5 * SMALL["runs"]
    for row in rows(compared, method="dp_adam_lora_8", texts="all"):
        assert 0 < row["advantage_ceiling"] < 1 and row["advantage"] <= row["advantage_ceiling"] + 0.2
    again = membership(
        **sizes, tunes=["head", "lora"], uses=["fine_tuning", "dp_sgd"], epsilons=[8.0], max_length=8
    )
    assert again == compared  # seconds included: nothing was run again


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tunes": ["heads"]}, "did you mean"),
        ({"uses": ["dpzero"]}, "no control is left"),
        ({"rate": 1.5}, "batch_size"),
        ({"pool_size": 10**6}, "make it smaller"),
        ({"task": "r9"}, "did you mean"),
        ({"epsilons": [0.0]}, "epsilon is 0.0"),
    ],
)
def test_bad_arguments_are_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        membership(**{**SMALL, "epsilons": [2.0], **wrong}, log=lambda line: None)
