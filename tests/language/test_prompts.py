"""Prompts as token ids, checked by hand: LM-BFF's for RoBERTa and MeZO's for OPT.

The tokenizer is byte-level BPE, of the papers' kind, with a handful of merges; what a piece of text is in it can be read.
"""

from __future__ import annotations

import json

import pytest

from dpzero.errors import UsageError
from dpzero.language.data import prompts, tasks
from tests.language.byte_level import byte_level_bpe
from tests.language.test_tasks import FREE, PAPERS

WORDS = [
    "It",
    "was",
    "great",
    "terrible",
    "okay",
    "bad",
    "good",
    "Yes",
    "No",
    "Maybe",
    "fun",
    "film",
    "Answer",
]
SPECIAL = {"cls": 0, "sep": 2, "mask": 4}  # of <s>, </s>, <mask>


BPE = byte_level_bpe(WORDS)


def plain(text: str) -> list[int]:
    return BPE.encode(text, add_special_tokens=False).ids


def decoded(ids: list[int]) -> str:
    """Tokens of the vocabulary with | between them."""
    return "|".join(BPE.id_to_token(i) for i in ids)


def masked(task: str, *sentences: str, max_length: int = 256) -> list[int]:
    lines = tasks.stanza(task)["masked"]
    limits = lines.get("limits", ())
    return prompts.masked_prompt(lines["template"], sentences, plain, SPECIAL, max_length, limits)


# --- masked


@pytest.mark.parametrize("task", ["sst2", "sst5"])
def test_a_sentiment_prompt_ends_in_a_mask_and_a_full_stop(task):
    assert decoded(masked(task, "fun film")) == "<s>|fun|Ġfilm|ĠIt|Ġwas|<mask>|.|</s>"


@pytest.mark.parametrize("task", ["snli", "mnli", "rte"])
def test_a_premise_loses_its_full_stop_and_a_hypothesis_its_capital(task):
    ids = masked(task, "It was fun.", "Good film.")
    assert decoded(ids) == "<s>|It|Ġwas|Ġfun|?|<mask>|,|Ġgood|Ġfilm|.|</s>"


def test_a_premise_without_a_full_stop_loses_its_last_character_all_the_same():
    assert decoded(masked("rte", "fun", "It")) == "<s>|fu|?|<mask>|,|Ġ|i|t|</s>"


def test_the_question_of_trec_follows_the_mask():
    assert decoded(masked("trec", "It was ?")) == "<s>|<mask>|:|ĠIt|Ġwas|Ġ|?|</s>"


@pytest.mark.parametrize(
    "task, words",
    [
        ("sst2", {"negative": "terrible", "positive": "great"}),
        ("sst5", dict(zip(["very negative", "negative", "neutral", "positive", "very positive"],
                          ["terrible", "bad", "okay", "good", "great"], strict=True))),
        ("rte", {"entailment": "Yes", "not_entailment": "No"}),
        ("snli", {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}),
        ("mnli", {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}),
        ("trec", {w.lower(): w for w in ("Description", "Entity", "Expression", "Human", "Location", "Number")}),
    ],
)  # fmt: skip
def test_label_words_are_lm_bffs_by_name(task, words):
    assert dict(zip(tasks.load(task).labels, tasks.stanza(task)["masked"]["words"], strict=True)) == words


def test_a_first_sentence_is_cut_at_its_limit_and_the_rest_stays():
    ids = masked("sst5", "fun" + " fun" * 200)
    assert len(ids) == 1 + 110 + 5 and decoded(ids).endswith("|ĠIt|Ġwas|<mask>|.|</s>")
    ids = masked("mnli", "fun" + " fun" * 300 + ".", "Film.")
    assert len(ids) == 1 + 240 + 3 + 2 + 1 and decoded(ids).endswith("|Ġfun|?|<mask>|,|Ġfilm|.|</s>")


def test_a_long_text_is_cut_at_its_end_if_the_mask_stays():
    uncut = masked("trec", "fun" + " fun" * 50)
    assert masked("trec", "fun" + " fun" * 50, max_length=20) == uncut[:20]


@pytest.mark.parametrize("max_length", [7, 9, 30])
def test_a_mask_is_never_cut_off(max_length):
    ids = masked("sst2", "fun" + " fun" * 50, max_length=max_length)
    assert len(ids) == max_length and decoded(ids).endswith("|ĠIt|Ġwas|<mask>|.|</s>")


def test_a_template_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"max_length is 5, but the prompt .* is longer without its first"):
        masked("sst2", "fun film", max_length=5)


# --- causal


@pytest.mark.parametrize(
    "task, fields, prompt",
    [
        ("boolq", {"passage": "It was {fun}.", "question": "was it"}, "It was {fun}. Was it?\n"),
        ("copa", {"premise": "It was fun. ", "question": "cause"}, "It was fun because"),
        ("record", {"passage": "Text.\n@highlight\nOne\n@highlight\nTwo"}, "Text.\n- One\n- Two\n-"),
        ("record-question", {"passage": "Text.", "query": "It was @placeholder."},
         'Text.\nIt was @placeholder.\nQuestion: what is the "@placeholder"\nAnswer:'),
        ("squad", {"title": "Film", "context": "It was.", "question": " What? "},
         "Title: Film\nContext: It was.\nQuestion: What?\nAnswer:"),
    ],
)  # fmt: skip
def test_a_causal_prompt_is_mezos(task, fields, prompt):
    """Braces, spaces and transforms; `test_opt_tokens` has each task of MeZO as tokens."""
    assert prompts.fill(tasks.load(task).prompt, fields) == prompt


@pytest.mark.parametrize(
    "task, answers",
    [
        ("sst2", {"negative": " terrible", "positive": " great"}),
        ("boolq", {"yes": "Yes", "no": "No"}),
        ("cb", {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"}),
        ("rte", {"entailment": "Yes", "not_entailment": "No"}),
        ("wsc", {"no": "No", "yes": "Yes"}),
        ("wic", {"no": "No", "yes": "Yes"}),
        ("multirc", {"no": "No", "yes": "Yes"}),
    ],
)
def test_answers_are_mezos_by_name(task, answers):
    loaded = tasks.load(task)
    assert dict(zip(loaded.labels, loaded.answers, strict=True)) == answers


def test_the_answers_length_is_the_difference_to_the_prompt_alone():
    ids, count = prompts.tokenize_answer("fun film It was", " great", plain)
    assert decoded(ids) == "fun|Ġfilm|ĠIt|Ġwas|Ġgreat" and count == 1
    ids, count = prompts.tokenize_answer("It was?\n", "Yes", plain)
    assert decoded(ids) == "It|Ġwas|?|Ċ|Yes" and count == 1
    ids, count = prompts.tokenize_answer("Answer:", " fun film\n", plain)
    assert decoded(ids[-count:]) == "Ġfun|Ġfilm|Ċ"
    ids, count = prompts.tokenize_answer(
        "\n It was", " great", plain
    )  # MeZO's encode_prompt ends in `.lstrip().strip(" ")`
    assert decoded(ids) == "It|Ġwas|Ġgreat" and count == 1


def test_a_long_causal_prompt_keeps_its_first_token_and_its_end():
    ids = plain("bad bad bad fun film It was")
    assert decoded(prompts.truncate_left(ids, 5, [2])) == "</s>|fun|Ġfilm|ĠIt|Ġwas".replace("fun", "Ġfun")
    assert prompts.truncate_left(ids, 7, []) == ids and prompts.truncate_left(ids, 8, [2]) == [2, *ids]


@pytest.mark.parametrize(
    "change, text, expected",
    [
        ("question", "is it", "Is it?"),
        ("question", "Is it?", "Is it?"),
        ("without_period", "It was. ", "It was"),
        ("without_period", "It was!", "It was!"),
        ("lower_first_word", "The Film was", "the Film was"),
        ("lower_first_word", "I was", "I was"),
        ("conjunction", "effect", "so"),
    ],
)
def test_transforms(change, text, expected):
    assert prompts.fill("{x:" + change + "}", {"x": text}) == expected


def test_every_template_can_be_filled():
    """No transform or column is misspelt: a row with all columns fills every prompt."""
    for name in PAPERS + FREE:  # a task of one's own may have other columns
        lines = tasks.stanza(name)
        if lines["reader"] == "columns":
            fields = dict.fromkeys(("sentence", "text", "word", "passage", "premise", "hypothesis", "paragraph", "title",
                                    "context", "answer", "query", "sentence1", "sentence2", "span1_text", "span2_text"), "x")  # fmt: skip
            filled = prompts.fill(tasks.load(name).prompt, fields | {"question": "cause"})
            assert "{" not in filled and "x" in filled, name
            assert set(lines["sentences"]) <= {*fields, "question", "choice1", "choice2"}
    assert (
        json.dumps(prompts.last_literal("{a} It was")) == '" It was"' and prompts.last_literal("{a}{b}") == ""
    )
