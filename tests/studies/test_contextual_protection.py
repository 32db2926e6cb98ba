"""Contextual protection, small: a tiny causal model with random weights learns codes of one digit, in seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpzero.language.models import encoding, losses, model_catalogue, text_classifier
from dpzero.privacy import Setting
from dpzero.studies import contextual_protection as study
from dpzero.studies.contextual_protection import (
    PROMPTS,
    Canaries,
    Runs,
    code_log_likelihoods,
    contextual_protection,
    index_of,
    people,
    rank_of,
    trials,
)
from dpzero.studies.membership_runs import draw_members

TINY = "tiny-causal"
SETTING = Setting("gaussian", "poisson", "add_remove", 8, 4, 3, 1e-5)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries.encode(people(8, 2), encoding.tokenizer_info(TINY))


@pytest.fixture(scope="module")
def runs(canaries) -> Runs:
    return Runs(TINY, canaries, SETTING, "float32", None)


@pytest.fixture(scope="module")
def result() -> dict:
    sizes = {"count": 8, "digits": 1, "runs": 3, "steps": 2, "compute": "float32"}
    return contextual_protection(TINY, **sizes, log=lambda line: None)


def test_people_differ_and_their_codes_are_published_draws():
    found = people(32, 3)
    assert len({person.name for person in found}) == 32
    assert found == people(32, 3) and found != people(32, 3, seed=1)
    assert all(len(person.code) == 3 and set(person.code) <= set(range(10)) for person in found)


@pytest.mark.parametrize("kind", ["plain", "default"])
def test_a_training_text_is_what_the_attacker_knows_and_then_the_code(canaries, kind):
    for i, person in enumerate(canaries.people):
        prefix, text = canaries.prefix(i, kind), canaries.training[kind].candidates.ids(i).tolist()
        assert text[: len(prefix)] == prefix
        assert text[len(prefix) :][: len(person.code)] == [canaries.digit_tokens[d] for d in person.code]


def test_the_protected_half_of_a_contextual_text_has_no_code():
    (person,) = people(1, 3)
    question, answer, _ = person.pieces("default")
    assert "protected and a default answer" in question
    assert answer.index("Protected:") < answer.index("hidden") < answer.index("Default:")
    assert not any(character.isdigit() for character in answer)


def test_likelihoods_of_all_codes_are_those_of_reading_each_code_as_a_text(canaries):
    torch.manual_seed(0)
    model = text_classifier.TextScorer(model_catalogue.load_pretrained(TINY)).eval()
    prefix, digits = canaries.prefix(3, "plain"), canaries.digit_tokens
    every = code_log_likelihoods(model, prefix, digits, 2, "float32")
    texts = [(*prefix, digits[a], digits[b]) for a in range(10) for b in range(10)]
    rows = encoding.Continuations.from_candidates([[(text, 2, True)] for text in texts], [""] * 100)
    with torch.no_grad():
        one_by_one = 2 * losses.ContinuationLoss(4096).scores(model, rows.candidates).numpy()
    assert np.allclose(every, one_by_one, atol=1e-5) and every.std() > 1e-4


def test_the_rank_of_a_code_counts_those_that_are_at_least_as_likely():
    likelihoods = np.array([-3.0, -1.0, -2.0, -1.0, -9.0, -9.0, -9.0, -9.0, -9.0, -9.0])
    assert [rank_of(likelihoods, (code,)) for code in (1, 3, 2, 0, 4)] == [2, 2, 3, 4, 10]
    assert index_of((0, 4, 2)) == 42


@pytest.mark.parametrize("name", ["plain", "contextual", "dp_sgd_8", "dpzero_8"])
def test_a_run_trains_on_its_members_alone(canaries, runs, name):
    """A code that is not trained on has no part in the likelihood of the others."""
    (trial,) = [trial for trial in trials(SETTING, (8.0,)) if trial.method.name == name]
    inside = draw_members(8, 5)
    texts = canaries.training[trial.training]
    before = runs.outcome(trial, 5)["log_likelihood"]
    for who, moves in ((np.flatnonzero(~inside), False), (np.flatnonzero(inside), True)):
        order = np.arange(8)
        order[who] = np.roll(who, 1)  # they exchange their texts
        canaries.training[trial.training] = texts[order]
        after = runs.outcome(trial, 5)["log_likelihood"]
        canaries.training[trial.training] = texts
        assert (np.abs(after - before).max() > 0) == moves


def test_plain_training_is_read_out_of_the_model_and_a_run_starts_anew(runs, canaries):
    setting = Setting("gaussian", "poisson", "add_remove", 8, 8, 60, 1e-5)
    longer = Runs(TINY, canaries, setting, "float32", None)
    base, plain = trials(setting, ())[:2]
    inside = draw_members(8, 5)
    before, trained = longer.outcome(base, 5), longer.outcome(plain, 5)
    gain = trained["log_likelihood"][0] - before["log_likelihood"][0]
    assert gain[inside].mean() > gain[~inside].mean()
    assert (trained["known_loss"][0] < before["known_loss"][0])[inside].all()
    assert np.array_equal(longer.outcome(base, 5)["log_likelihood"], before["log_likelihood"])


def test_only_methods_with_noise_have_an_epsilon_and_a_ceiling(result):
    asked = [(row["method"], row["prompt"]) for row in result["rows"]]
    assert asked == [
        *(("base", prompt) for prompt in PROMPTS),
        ("plain", "plain"),
        *(("contextual", prompt) for prompt in PROMPTS),
        *(("dp_sgd_8", "plain"), ("dpzero_8", "plain")),
    ]
    for row in result["rows"]:
        assert row["private"] == (row["epsilon"] == 8.0) == (row["noise_scale"] is not None)
        assert ("advantage_ceiling" in row) == (row["epsilon"] is not None)
        assert 0 <= row["exposure"] <= np.log2(10) + 1e-9
    assert not result["valid_release"] and json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_study_goes_on_from_its_runs(tmp_path, monkeypatch):
    sizes = {"count": 8, "digits": 1, "steps": 1, "compute": "float32", "epsilons": ()}
    quiet = {"folder": tmp_path, "log": lambda line: None}
    first = contextual_protection(TINY, **sizes, runs=3, **quiet)
    monkeypatch.setattr(study, "train", None)  # training would fail
    assert contextual_protection(TINY, **sizes, runs=3, **quiet) == first
    with pytest.raises(TypeError, match="not callable"):
        contextual_protection(TINY, **sizes, runs=4, **quiet)
