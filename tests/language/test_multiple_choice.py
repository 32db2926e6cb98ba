"""Models that score candidate texts or write answers: scores, losses, micro-batches, F1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.fine_tuning import FineTuning
from baselines.mezo import MeZO
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.data.datasets import Draw, Row
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.language.models.encoding import Continuations, TokenizerInfo, tokenizer_info
from dpzero.language.models.losses import ContinuationLoss

ROUNDING = 3e-6
ROWS = {
    "copa": [
        {"premise": "It rained.", "question": "effect", "choice1": "The street was wet.", "choice2": "It was I.", "label": 0},
        {"premise": "He fell.", "question": "cause", "choice1": "The floor.", "choice2": "I pushed him.", "label": 1},
    ],
    "record": [
        {"passage": "A b c.\n@highlight\nD", "query": "It is @placeholder now.", "entities": ["Rome", "New York", "Rome"],
         "answers": ["Rome"]},
    ],
    "squad": [
        {"title": "T", "context": "The film was fun", "question": "How was it?", "answers": {"text": ["fun", "very fun"]}},
        {"title": "T", "context": "In 1999 a war", "question": "When?", "answers": {"text": ["1999"]}},
    ],
    "drop": [
        {"passage": "Two and two", "question": "How many?", "answers_spans": {"spans": ["4", "four"]}},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Small files of each task."""
    for name, fields in ROWS.items():
        (tmp_path / name).mkdir()
        for split, count in (("train", 10), ("validation", 3)):
            lines = "".join(json.dumps(f | {"idx": i}) + "\n" for i in range(count) for f in fields)
            (tmp_path / name / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def model() -> text_classifier.TextScorer:
    return text_classifier.load("tiny-causal", tasks.load("squad"), "full")


@pytest.fixture
def batch() -> Continuations:
    """Six examples of one to three candidates of one to five tokens."""
    draw = np.random.default_rng(0)
    examples = []
    for _ in range(6):
        counts = draw.integers(1, 6, draw.integers(1, 4))
        right = draw.integers(len(counts))
        examples.append(
            [(draw.integers(1, 1000, n + draw.integers(1, 9)), n, i == right) for i, n in enumerate(counts)]
        )
    return Continuations.from_candidates(examples, [""] * 6)


def by_hand(model: text_classifier.TextScorer, batch: Continuations, i: int) -> torch.Tensor:
    """Mean log-probabilities of the candidates of one example, from the language model's logits at every position."""
    scores = []
    for c in range(batch.first[i], batch.first[i + 1]):
        ids = torch.from_numpy(batch.candidates.ids(c).astype(np.int64))[None]
        likely = model.language_model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        count = int(batch.candidates.labels[c])
        scores.append(likely.gather(1, ids[0, 1:, None])[-count:, 0].mean())
    return torch.stack(scores)


# --- scores and losses


@torch.no_grad()
def test_a_score_is_the_mean_log_probability_of_the_candidates_tokens(model, batch):
    scores = ContinuationLoss(10_000).scores(model, batch.candidates)
    expected = torch.cat([by_hand(model, batch, i) for i in range(len(batch))])
    torch.testing.assert_close(scores, expected, atol=ROUNDING, rtol=0)
    assert scores.dtype == torch.float32


@torch.no_grad()
def test_the_loss_of_one_candidate_is_its_own_and_of_several_their_cross_entropy(model, batch):
    losses = ContinuationLoss(10_000)(model, batch)
    counts = np.diff(batch.first)
    assert losses.shape == (6,) and 1 in counts and counts.max() > 1
    for i in range(6):
        scores, gold = by_hand(model, batch, i), int(batch.gold()[i])
        alone = -scores[0] if counts[i] == 1 else -scores.log_softmax(0)[gold]
        assert losses[i].item() == pytest.approx(alone.item(), abs=ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 20, 40, 70])
def test_any_cut_into_micro_batches_gives_the_same_losses(model, batch, budget):
    parts = list(ContinuationLoss(budget).parts(batch))
    assert len(parts) > 1 and sum(len(part) for part in parts) == 6
    for part in parts:
        assert len(part) == 1 or len(part.candidates) * part.candidates.lengths().max() <= budget
    expected = ContinuationLoss(10_000)(model, batch)
    torch.testing.assert_close(ContinuationLoss(budget)(model, batch), expected, atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_one_example_changes_no_loss_but_its_own(model, batch):
    before = ContinuationLoss(60)(model, batch)
    others = batch[np.array([0, 1, 2, 3, 5])]
    torch.testing.assert_close(
        ContinuationLoss(60)(model, others), before[[0, 1, 2, 3, 5]], atol=ROUNDING, rtol=0
    )


def test_an_empty_batch_has_no_losses(model, batch):
    assert ContinuationLoss(60)(model, batch[np.zeros(0, np.int64)]).shape == (0,)


def test_the_output_layer_runs_at_the_answer_positions_only(model, batch, monkeypatch):
    seen = []
    handle = model.head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2]))
    ContinuationLoss(10_000)(model, batch)
    handle.remove()
    assert seen == [(len(batch.candidates), batch.candidates.labels.max())]


def test_one_token_candidates_of_a_classifier_and_of_text_have_the_same_loss():
    """The normaliser of the vocabulary cancels, so that label words need no softmax over it."""
    toy = tasks.load("toy")
    classifier, text = (
        text_classifier.load("tiny-causal", toy, "full", 3),
        text_classifier.load("tiny-causal", tasks.load("squad"), "full", 3),
    )
    row = toy.splits["dev"][0]
    choice = encoding.encode_candidates(toy, "tiny-causal", 64, "dev")[np.array([0])]
    assert len(choice.candidates) == 4
    ids = torch.from_numpy(choice.candidates.ids(0)[:-1].astype(np.int64))[None]
    expected = torch.nn.functional.cross_entropy(
        classifier(ids, torch.ones_like(ids)), torch.tensor([row.label])
    )
    assert ContinuationLoss(512)(text, choice).item() == pytest.approx(expected.item(), abs=ROUNDING)


# --- the mean over the answer tokens of a batch, as in MeZO's code


@pytest.fixture
def answers() -> Continuations:
    """Five examples of one answer of 1, 2, 4, 7 and 11 tokens."""
    draw = np.random.default_rng(1)
    return Continuations.from_candidates(
        [[(draw.integers(3, 1000, n + 4), n, True)] for n in (1, 2, 4, 7, 11)], [""] * 5
    )


def mean_over_tokens(model: text_classifier.TextScorer, batch: Continuations) -> torch.Tensor:
    """One cross entropy over all answer tokens of the batch."""
    logits, targets = [], []
    for i in range(len(batch)):
        ids = torch.from_numpy(batch.candidates.ids(i).astype(np.int64))[None]
        count = int(batch.candidates.labels[i])
        logits.append(model.language_model(input_ids=ids).logits[0, -count - 1 : -1])
        targets.append(ids[0, -count:])
    return torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))


def test_weighted_by_tokens_the_mean_loss_is_that_over_all_answer_tokens(model, answers):
    weighted = answers.weighted_by_tokens()
    expected = mean_over_tokens(model, answers).item()
    assert ContinuationLoss(30)(model, answers).mean().item() != pytest.approx(expected, abs=1e-2)
    assert ContinuationLoss(30)(model, weighted).mean().item() == pytest.approx(expected, abs=ROUNDING)
    with torch.no_grad():  # the passes of zeroth-order methods are cut in another way
        assert ContinuationLoss(30)(model, weighted).mean().item() == pytest.approx(expected, abs=ROUNDING)
    assert ContinuationLoss(30).evaluate(model, weighted)["loss"] == pytest.approx(expected, abs=ROUNDING)


def test_a_gradient_step_follows_the_mean_over_tokens_whatever_the_micro_batches(answers):
    moved = []
    for by_hand_too in (True, False):
        scorer = text_classifier.load("tiny-causal", tasks.load("squad"), "bias")
        loss = ContinuationLoss(20)
        assert len(list(loss.parts(answers))) > 2
        method = FineTuning(scorer, loss, 5, learning_rate=1.0, optimizer="sgd")
        before = [p.detach().clone() for p in method.parameters]
        if by_hand_too:
            mean_over_tokens(scorer, answers).backward()
            method.optimizer.step()
        else:
            method.step(answers.weighted_by_tokens())
        moved.append([p.detach() - b for p, b in zip(method.parameters, before, strict=True)])
    assert max(float(m.abs().max()) for m in moved[0]) > 1e-2
    for expected, mine in zip(*moved, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


def test_mezo_follows_the_mean_over_tokens(answers):
    scorer = text_classifier.load("tiny-causal", tasks.load("squad"), "full")
    method = MeZO(scorer, ContinuationLoss(2048), 5, learning_rate=1.0, smoothing=1e-2)
    values = method.loss(scorer, answers.weighted_by_tokens())[:, None].double()
    expected = mean_over_tokens(scorer, answers).item() / (2 * 1e-2)
    assert method.projected_gradient(values[:, 0]) == pytest.approx(expected, rel=1e-5)


def test_weights_are_of_the_batch_and_answers_of_one_length_have_none(answers):
    weights = answers.weighted_by_tokens().weights
    assert weights is not None and weights.tolist() == pytest.approx([n / 5 for n in (1, 2, 4, 7, 11)])
    pair = answers[np.array([0, 4])].weighted_by_tokens()
    assert pair.weights is not None and pair.weights.tolist() == pytest.approx([1 / 6, 11 / 6])
    same = answers[np.array([2, 2])].weighted_by_tokens()
    assert same.weights is not None and same.weights.tolist() == [1, 1]
    assert len(answers[np.zeros(0, np.int64)].weighted_by_tokens()) == 0


# --- what rows become


def decoded(task: str, split: str, i: int = 0) -> list[tuple[str, bool]]:
    """What each candidate appends."""
    return tasks.load(task).candidates(Row("", 0, ROWS[task][i]))


def test_copa_candidates_begin_in_lower_case_except_i():
    assert decoded("copa", "train", 0) == [(" the street was wet.", True), (" it was I.", False)]
    assert decoded("copa", "train", 1) == [(" the floor.", False), (" I pushed him.", True)]


def test_a_record_candidate_replaces_the_placeholder():
    assert decoded("record", "train") == [
        (" It is Rome now.", True), (" It is New York now.", False), (" It is Rome now.", True)
    ]  # fmt: skip


def test_an_answer_of_squad_ends_its_line():
    assert decoded("squad", "train") == [(" fun\n", True), (" very fun\n", True)]
    assert decoded("drop", "train") == [(" 4\n", True), (" four\n", True)]


def test_free_answers_train_on_the_right_one_and_are_chosen_among_all():
    splits = encoding.encode(tasks.load("copa"), "tiny-causal", 64)
    assert np.diff(splits["train"].first).tolist() == [1] * len(splits["train"])
    assert np.diff(splits["test"].first).tolist() == [2] * 6 and splits["test"].right.sum() == 6
    again = encoding.encode(tasks.load("copa"), "tiny-causal", 64)  # from the cache
    assert np.array_equal(again["test"].candidates.tokens, splits["test"].candidates.tokens)


def test_the_prompt_is_cut_on_the_left_and_leaves_room_for_new_tokens():
    splits = encoding.encode(tasks.load("squad"), "tiny-causal", 56)
    assert splits["test"].candidates.lengths().max() <= 6
    assert json.loads(str(splits["test"].references[0])) in (["fun", "very fun"], ["1999"])
    with pytest.raises(UsageError, match="raise max_length"):
        encoding.encode(tasks.load("squad"), "tiny-causal", 51)


# --- in-context learning


COPA_ANSWERED = {0: "It rained so the street was wet.", 1: "He fell because I pushed him."}


def test_demonstrations_precede_the_prompt_with_answers_and_blank_lines():
    task = tasks.load("copa", Draw(seed=7, demonstrations=3))
    order = np.random.RandomState(7).permutation(20)[:3]
    shown = "".join(COPA_ANSWERED[i % 2] + "\n\n" for i in order)
    assert {row.demonstrations for split in ("dev", "test") for row in task.splits[split]} == {shown}
    assert {row.demonstrations for row in tasks.load("copa").splits["test"]} == {""}


def test_each_row_has_the_demonstrations_that_mezos_script_draws_for_it():
    """Written down from its `sample_train_sets` and `sample_subset`."""
    generator = np.random.RandomState(0)
    seeds = generator.randint(0, 10000, 1000)  # its script asks for 1000 test rows; COPA has fewer
    answered = {}
    for seed, test_row in zip(seeds, np.random.RandomState(0).permutation(6), strict=False):
        drawn = np.random.RandomState(seed).permutation(20)[:3]
        answered[test_row] = "".join(COPA_ANSWERED[i % 2] + "\n\n" for i in drawn)
    draw = Draw(train_examples=8, seed=0, demonstrations=3, demonstrations_for="each_row")
    task = tasks.Task("copa", tasks.stanza("copa") | {"dev_rows": 4}, draw)
    lines = [f | {"idx": i} for i in range(3) for f in ROWS["copa"]]
    assert len(set(answered.values())) > 2
    assert {lines.index(row.fields): row.demonstrations for row in task.splits["test"]} == answered


def test_another_seed_draws_other_demonstrations_for_each_row():
    shown = [
        [row.demonstrations for row in tasks.load("copa", draw).splits["test"]]
        for seed in (0, 1, 0)
        for draw in [Draw(seed=seed, demonstrations=9, demonstrations_for="each_row")]
    ]
    assert shown[0] == shown[2] != shown[1]


@pytest.mark.parametrize("leading_blanks, blanks", [("kept", "  "), ("stripped", "")])
def test_blanks_before_a_prompt_that_follows_demonstrations_are_kept_or_stripped(leading_blanks, blanks):
    task = tasks.load("copa", Draw(demonstrations=1, leading_blanks=leading_blanks))
    row = task.splits["test"][0]
    padded = row._replace(fields=row.fields | {"premise": "  \n It snowed."})
    begin = row.demonstrations + blanks + "\n It snowed"
    assert task.prompt_for(padded).startswith(begin) and row.demonstrations.endswith("\n\n")


def test_demonstrations_are_the_same_for_label_words_and_candidates():
    draw = Draw(seed=3, demonstrations=2)
    toy = tasks.load("toy", draw)
    row = toy.splits["test"][0]
    ids = encoding.encode(toy, "tiny-causal", 200)["test"].ids(0)
    assert ids.tolist() == [1, *tokenizer_info("tiny-causal").encode(toy.prompt_for(row))]
    assert row.demonstrations.count("The topic of this sentence is") == 2
    copa = encoding.encode(tasks.load("copa", draw), "tiny-causal", 200)["test"]
    alone = encoding.encode(tasks.load("copa"), "tiny-causal", 200)["test"]
    assert copa.candidates.labels.tolist() == alone.candidates.labels.tolist()
    assert copa.candidates.ids(0)[-3:].tolist() == alone.candidates.ids(0)[-3:].tolist()
    assert copa.candidates.lengths().min() > alone.candidates.lengths().max()


@pytest.mark.parametrize("task, model", [("toy", "tiny-encoder"), ("trec", "tiny-masked")])
def test_demonstrations_need_a_causal_model(task, model, folder):
    (folder / "trec").mkdir()
    for split in ("train", "test"):
        (folder / "trec" / f"{split}.jsonl").write_text('{"text": "What?", "coarse_label": 1}')
    with pytest.raises(UsageError, match=f"demonstrations are for causal models, which {model} is not"):
        encoding.encode(tasks.load(task, Draw(seed=3, demonstrations=2)), model, 64)


# --- metrics


@torch.no_grad()
def test_accuracy_counts_the_likeliest_candidate_and_several_may_be_right(model, batch):
    scores = ContinuationLoss(40).evaluate(model, batch)
    likeliest = [int(by_hand(model, batch, i).argmax()) for i in range(6)]
    right = [bool(batch.right[batch.first[i] + likeliest[i]]) for i in range(6)]
    gold = [by_hand(model, batch, i)[batch.gold()[i]].item() for i in range(6)]
    assert scores["accuracy"] == pytest.approx(np.mean(right)) and scores["correct"] == losses.packed(right)
    assert scores["loss"] == pytest.approx(-np.mean(gold), abs=ROUNDING)
    both = dataclasses.replace(batch, right=np.ones_like(batch.right))
    assert ContinuationLoss(40).evaluate(model, both)["accuracy"] == 1


@pytest.mark.parametrize(
    "written, references, expected",
    [
        ("fun", ["fun"], 1.0),
        ("The Fun!", ["fun"], 1.0),  # case, punctuation and articles do not count
        ("it was fun", ["fun"], 0.5),
        ("fun fun", ["fun"], 2 / 3),
        ("it was fun", ["no", "was fun"], 0.8),  # the best of the references
        ("", ["fun"], 0.0),
        ("no answer", ["no answer"], 1.0),
        ("answer", ["no answer"], 0.0),
    ],
)
def test_f1(written, references, expected):
    assert losses.f1(written, references) == pytest.approx(expected)


def test_greedy_decoding_takes_the_likeliest_token_until_the_line_ends(model):
    info = tokenizer_info("tiny-causal")
    prompt = np.array([1, 50, 60])
    ids = torch.from_numpy(prompt)[None]
    expected = []
    with torch.no_grad():
        for _ in range(5):
            expected.append(int(model.language_model(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[expected[-1]]])], 1)
    with_newline = dataclasses.replace(
        info, encode=lambda text: [1023] if text == "\n" else info.encode(text)
    )
    assert losses.generate_answers(model, [prompt], 5, with_newline) == [info.decode(expected)]
    ends = TokenizerInfo(lambda text: [expected[2]], {}, (), info.decode)
    until = expected[: expected.index(expected[2]) + 1]
    assert losses.generate_answers(model, [prompt], 5, ends) == [info.decode(until)]


@pytest.mark.parametrize("tune", ["full", "prefix"])
def test_generation_does_not_depend_on_the_other_prompts(tune):
    """A short prompt's text may end before a long one's."""
    model, info = (
        text_classifier.load("tiny-causal", tasks.load("squad"), tune),
        tokenizer_info("tiny-causal"),
    )
    prompts = [np.array([1, *range(50, 50 + length)]) for length in (3, 11, 1, 6)]
    free = TokenizerInfo(lambda text: [], {}, (), info.decode)
    third = int(losses.generate_answers(model, prompts[:1], 8, free)[0].split()[2])
    ends = TokenizerInfo(lambda text: [third], {}, (), info.decode)
    alone = [losses.generate_answers(model, [prompt], 8, ends)[0] for prompt in prompts]
    assert losses.generate_answers(model, prompts, 8, ends) == alone
    assert len({len(text.split()) for text in alone}) > 1


@pytest.mark.parametrize("model, longest", [("tiny-encoder", 64), ("tiny-masked", 67)])
def test_texts_longer_than_the_model_has_positions_are_refused(model, longest):
    """RoBERTa's positions start after that of its padding token."""
    with pytest.raises(
        UsageError, match=f"max_length is {longest + 1}, but {model} knows {longest} positions"
    ):
        encoding.encode(tasks.load("toy"), model, longest + 1)
    loaded = text_classifier.load(model, tasks.load("trec"), "full")
    ids = torch.full((1, longest), 9)
    loaded(ids, torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        ids = torch.full((1, longest + 1), 9)
        loaded(ids, torch.ones_like(ids))


def test_a_model_that_writes_is_scored_by_f1(model):
    splits = encoding.encode(tasks.load("squad"), "tiny-causal", 80)
    loss = losses.make_loss(tasks.load("squad"), "tiny-causal", 256)
    scores = loss.evaluate(model, splits["test"][np.arange(2)])
    assert set(scores) == {"f1", "loss"} and 0 <= scores["f1"] <= 1 and loss.max_new_tokens == 50
    assert (
        loss.evaluate(model, loss.stand_in(2, 80))["f1"] == 0
    )  # for the memory of an evaluation: there is nothing to be right about
