"""DP few-shot generation: tokens are noisy argmaxes over public candidates, each a release, and what is written stands before queries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from baselines.dp_few_shot import DPFewShot
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.data.datasets import Row
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.run.run import run_cell
from dpzero.run.setup import Setup

TOY = tasks.load("toy")


@pytest.fixture(scope="module")
def rows():
    """Training rows by label, and the words of each label."""
    return encoding.encode_by_label(TOY, "tiny-causal", 16)


@pytest.fixture(scope="module")
def model():
    return text_classifier.load("tiny-causal", TOY, "bias")


def budget(noise_scale: float = 1e-12, kind: type = StandInBudget) -> StandInBudget:
    setting = Setting("gaussian", "poisson", "add_remove", 240, 16, 20, 1e-4)
    return kind(setting, noise_scale, RunKey.published(0))


def make(model, rows, share: Budget | None = None, **settings) -> DPFewShot:
    me = DPFewShot(
        model, losses.CrossEntropy(512), share or budget(), **{"vocabulary": 7, "longest": 3} | settings
    )
    me.prompts = rows[1]
    return me


def probabilities(model, ids: list[int]) -> torch.Tensor:
    """Of the next token, by a pass over one text without padding."""
    with torch.no_grad():
        hidden = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return (model.backbone.get_input_embeddings().weight @ hidden).softmax(0)


def of_label(rows, label: int, count: int) -> np.ndarray:
    return np.flatnonzero(rows[0].labels == label)[:count]


# A token ---------------------------------------------------------------------------------------------------------------


def test_a_token_is_the_likeliest_on_average_over_the_examples_of_the_label_among_public_candidates(
    model, rows
):
    me = make(model, rows)
    chosen = np.concatenate([of_label(rows, 0, 5), of_label(rows, 2, 5)])
    batch, words = rows[0][chosen], list(rows[1][0])
    candidates = probabilities(model, words).topk(7).indices
    total = torch.zeros(7)
    for i in range(5):  # those of label 2 have no part
        among = probabilities(model, [*batch.ids(i).tolist(), *words])[candidates]
        total += among / among.sum()
    assert me.step(batch) == int(candidates[total.argmax()])


def test_labels_take_turns_and_a_demonstration_ends_after_its_longest_or_with_its_line(model, rows):
    me = make(model, rows)
    for _ in range(7):
        me.step(rows[0][np.arange(40)])
    assert [(label, len(tokens)) for label, tokens in me.demonstrations] == [(0, 3), (1, 3), (2, 1)]
    cut = make(model, rows)
    cut.step(rows[0][np.arange(40)])
    cut.stops = frozenset(me.written[0][1:2])  # the second token now ends a line
    assert cut.step(rows[0][np.arange(40)]) in cut.stops
    assert (cut.label, cut.demonstrations) == (1, [(0, me.written[0][:1])])


def test_a_line_does_not_begin_with_its_end(model, rows):
    me = make(model, rows)
    likeliest = int(probabilities(model, list(rows[1][0])).argmax())
    assert likeliest in me._likely_tokens(rows[1][0])
    me.stops = frozenset([likeliest])
    assert likeliest not in me._likely_tokens(rows[1][0])


def test_the_candidates_do_not_depend_on_private_examples(model, rows):
    seen = []
    for label in (0, 1):
        me = make(model, rows, budget(noise_scale=1e9))
        real = me._probabilities
        me._probabilities = lambda batch, words, tokens, real=real: (
            seen.append(tokens.tolist()) or real(batch, words, tokens)
        )
        token = me.step(rows[0][of_label(rows, label, 20)])
        assert token in seen[-1] and me.steps_taken == len(me.budget.ledger) == 1
    assert seen[0] == seen[1] == me._likely_tokens(rows[1][0]).tolist()


# Privacy ---------------------------------------------------------------------------------------------------------------


class Watched(StandInBudget):
    def release_vectors(self, clipped, clip):
        self.seen = clipped.sum(0), clip
        return super().release_vectors(clipped, clip)


@pytest.mark.parametrize("clip", [1.0, 0.2])
def test_one_example_more_moves_the_release_by_the_clip_at_most(model, rows, clip):
    chosen, sums = of_label(rows, 0, 12), []
    for count in range(1, 13):
        share = budget(kind=Watched)
        make(model, rows, share, clip=clip).step(rows[0][chosen[:count]])
        total, bound = share.seen
        assert bound == clip
        sums.append(total)
    moved = torch.stack(sums).diff(dim=0).norm(dim=1)
    assert (moved <= clip * (1 + 1e-6)).all() and (moved > 0.1 * clip).all()


def test_the_worst_neighbour_moves_it_by_all_of_the_clip(model, rows):
    """With one candidate every example is certain of it."""
    sums = []
    for count in (3, 4):
        share = budget(kind=Watched)
        make(model, rows, share, vocabulary=1).step(rows[0][of_label(rows, 0, count)])
        sums.append(share.seen[0])
    assert float((sums[1] - sums[0]).norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_tokens_are_written_in_the_precision_of_the_loss(model, rows, compute):
    me = DPFewShot(model, losses.CrossEntropy(512, compute), budget(), vocabulary=7, longest=3)
    me.prompts = rows[1]
    types = set()
    linear = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    hook = linear.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    me.step(rows[0][of_label(rows, 0, 3)])
    hook.remove()
    assert types == {getattr(torch, compute)}


def test_an_empty_batch_is_a_release_of_noise(model, rows):
    tokens = set()
    for seed in range(20):
        share = StandInBudget(budget().setting, 1.0, RunKey.published(seed))
        tokens.add(make(model, rows, share).step(rows[0][np.zeros(0, int)]))
        assert len(share.ledger) == 1
    assert len(tokens) > 1  # of 7 candidates, equally likely: false alarm in 7^-19


# Runs ------------------------------------------------------------------------------------------------------------------


def cell(model: str = "tiny-causal", task: str = "toy", **settings) -> dict:
    own = {"batch_size": 16, "steps": 12, "longest": 3, "max_length": 64, "delta": 1e-4, "test_examples": 20}
    names = {
        "task": task,
        "model": model,
        "method": "dp_few_shot",
        "use": "dp_few_shot",
        "title": "DP few-shot",
    }
    return sweep.complete(names | {"epsilon": "2", "seed": 0, "settings": own | settings})


def test_a_run_has_a_release_for_each_token_and_the_accountant_s_epsilon(cache, tmp_path):
    record = run_cell(cell(), tmp_path / "record.json", lambda _: None, "cpu")
    privacy = json.loads((tmp_path / "record.json").read_text())["privacy"]
    setting = Setting("gaussian", "poisson", "add_remove", 240, 16, 12, 1e-4)
    assert record["status"] == "ok" and record["metrics"]["examples"] == 20
    assert (privacy["steps"], privacy["unit"], privacy["clip"]) == (12, "example", 1.0)
    assert privacy["epsilon_spent"] == pytest.approx(setting.epsilon(privacy["noise_scale"]), rel=1e-9)
    assert 1.9 < privacy["epsilon_spent"] <= 2
    assert record["metrics"]["demonstrations"].count("The topic of this sentence is") == 4  # of 3 tokens each
    assert record["metrics"]["example_forwards"] == 12 * (16 + 1)
    assert not any(
        "dev_accuracy" in point for point in record["curve"]
    )  # without demonstrations it would mislead


def test_queries_are_scored_after_what_was_written(cache):
    setup = Setup(cell(), lambda _: None)
    asked, text = setup.after_demonstrations("test", [(1, [5, 6]), (0, [7])])
    assert len(asked) == len(setup.examples["test"]) == 20
    encode = encoding.tokenizer_info("tiny-causal").encode
    assert text == setup.task.shown(Row("5 6", 1)) + setup.task.shown(Row("7", 0))
    shown = encode(text)
    for i in range(20):
        plain = setup.examples["test"].ids(i).tolist()
        assert asked.ids(i).tolist() == [plain[0], *shown, *plain[1:]]


def test_a_secret_run_leaves_nothing_unlisted_and_resumes(cache, tmp_path, monkeypatch):
    from dpzero.run import checkpoint

    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    record = run_cell(cell(noise_key="secret"), tmp_path / "record.json", lambda _: None, "cpu")
    assert record["status"] == "ok" and record["privacy"]["valid_release"] is False  # noise in floats


def test_a_model_that_does_not_write_is_refused(cache):
    with pytest.raises(UsageError, match="written by a causal model, and tiny-encoder is none"):
        cell("tiny-encoder")
    with pytest.raises(UsageError, match="demonstrations of task toy are not written by tiny-encoder"):
        encoding.encode_by_label(TOY, "tiny-encoder", 16)


def test_the_whole_model_writes_and_no_other_choice_of_what_is_trained_is_taken():
    assert cell()["settings"]["tune"] == "full"
    with pytest.raises(UsageError, match="trains nothing has no use for tune head: give tune full"):
        cell(tune="head")


def test_exact_noise_and_no_steps_are_refused():
    with pytest.raises(UsageError, match="use noise_arithmetic float"):
        cell(noise_arithmetic="exact")
    with pytest.raises(UsageError, match="steps is 0"):
        cell(steps=0)
