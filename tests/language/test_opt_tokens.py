"""The tokens of each of MeZO's tasks for OPT, from files of rows through the tokenizer to the encoding of a run.

The stand-in has OPT's marks and its habit of beginning each text with </s>, where MeZO's prompts begin with <s>, id 0. Its
words are so chosen that the tokens below are those that GPT-2's own merges make of the same text.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from dpzero.language.data import tasks
from dpzero.language.models import encoding
from dpzero.language.models.encoding import Continuations
from tests.language.byte_level import byte_level_bpe

WORDS = [  # one that begins like the middle of another stands behind it
    "ose", "age", "same", "Supp", "Pass", "Question", "pronoun", "previous", "correct", "meaning", "mean", "Context", "Title",
    "Answer", "Maybe", "Does", "What", "Film", "Yes", "Fun", "Can", "Was", "It", "We", "In", "No", "To", "Is", "these",
    "sentences", "sentence", "answer", "terrible", "great", "refer", "infer", "found", "does", "true", "that", "this", "two",
    "word", "have", "left", "film", "fun", "was", "the", "or", "in", "is", "it", "to", "so", "we", '"', '"?', '".', '."',
]  # fmt: skip
STAND_IN = byte_level_bpe(WORDS)
STAND_IN.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
OPT = [f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")]
CASES = {  # a row as in the data; the tokens of what OPT is asked, then of the right answer and of the wrong ones
    "sst2": (
        {"sentence": "fun film ", "label": 1},
        "<s>|fun|Ġfilm|ĠIt|Ġwas",
        "Ġgreat", "Ġterrible",
    ),
    "rte": (
        {"sentence1": "It was fun.", "sentence2": "It was.", "label": 1},
        '<s>|It|Ġwas|Ġfun|.|Ċ|Does|Ġthis|Ġmean|Ġthat|Ġ"|It|Ġwas|."|Ġis|Ġtrue|?|ĠYes|Ġor|ĠNo|?|Ċ',
        "No", "Yes",
    ),
    "cb": (
        {"premise": "It was.", "hypothesis": "fun", "label": 2},
        '<s>|Supp|ose|ĠIt|Ġwas|.|ĠCan|Ġwe|Ġinfer|Ġthat|Ġ"|fun|"?|ĠYes|,|ĠNo|,|Ġor|ĠMaybe|?|Ċ',
        "Maybe", "Yes", "No",
    ),
    "boolq": (
        {"passage": "It was.", "question": "was it fun", "answer": True},
        "<s>|It|Ġwas|.|ĠWas|Ġit|Ġfun|?|Ċ",
        "Yes", "No",
    ),
    "wsc": (
        {"text": "We left.", "span1_text": "we", "span2_text": "We", "label": 0},
        '<s>|We|Ġleft|.|Ċ|In|Ġthe|Ġprevious|Ġsentence|,|Ġdoes|Ġthe|Ġpronoun|Ġ"|we|"|Ġrefer|Ġto|Ġwe|?|ĠYes|Ġor|ĠNo|?|Ċ',
        "No", "Yes",
    ),
    "wic": (
        {"word": "film", "sentence1": "A film.", "sentence2": "To film.", "label": 0},
        '<s>|Does|Ġthe|Ġword|Ġ"|film|"|Ġhave|Ġthe|Ġsame|Ġmeaning|Ġin|Ġthese|Ġtwo|Ġsentences|?|ĠYes|,|ĠNo|?|Ċ'
        "|A|Ġfilm|.|Ċ|To|Ġfilm|.|Ċ",
        "No", "Yes",
    ),
    "multirc": (
        {"paragraph": "It was.", "question": "What?", "answer": "fun", "label": 1},
        '<s>|It|Ġwas|.|Ċ|Question|:|ĠWhat|?|Ċ|I|Ġfound|Ġthis|Ġanswer|Ġ"|fun|".|ĠIs|Ġthat|Ġcorrect|?|ĠYes|Ġor|ĠNo|?|Ċ',
        "Yes", "No",
    ),
    "copa": (
        {"premise": "It was fun.", "choice1": "We left.", "choice2": "It was.", "question": "effect", "label": 0},
        "<s>|It|Ġwas|Ġfun|Ġso",
        "Ġwe|Ġleft|.", "Ġit|Ġwas|.",
    ),
    "record": (
        {"passage": "Fun.\n@highlight\nIt was", "query": "It was @placeholder.", "entities": ["We", "No"], "answers": ["No"]},
        "<s>|Fun|.|Ċ|-|ĠIt|Ġwas|Ċ|-",
        "ĠIt|Ġwas|ĠNo|.", "ĠIt|Ġwas|ĠWe|.",
    ),
    "squad": (
        {"title": "Film", "context": "It was.", "question": "What?", "answers": {"text": ["fun film"]}},
        "<s>|Title|:|ĠFilm|Ċ|Context|:|ĠIt|Ġwas|.|Ċ|Question|:|ĠWhat|?|Ċ|Answer|:",
        "Ġfun|Ġfilm|Ċ",
    ),
    "drop": (
        {"passage": "It was.", "question": "What?", "answers_spans": {"spans": ["fun"]}},
        "<s>|Pass|age|:|ĠIt|Ġwas|.|Ċ|Question|:|ĠWhat|?|Ċ|Answer|:",
        "Ġfun|Ċ",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of models and rows."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("opt")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **sizes, vocab_size=600))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=STAND_IN, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
    for name in OPT:
        for part in (model, tokenizer):
            part.save_pretrained(folder / "models" / name)
    for task, (row, *_) in CASES.items():
        for file in tasks.stanza(task)["files"].values():
            path = folder / "rows" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row) + "\n")
    return folder / "models", folder / "rows"


@pytest.fixture(autouse=True)
def _local(places, tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(places[0]))
    monkeypatch.setenv("DPZERO_DATA_DIR", str(places[1]))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))


def decoded(ids) -> str:
    """Tokens of the vocabulary with | between them."""
    return "|".join(STAND_IN.id_to_token(int(i)) for i in ids)


def asked(task: str) -> list[tuple[str, str]]:
    """(prompt, answer) of the test row for each answer, as tokens of a run; the right answer first."""
    read = encoding.encode(tasks.load(task), "opt-125m", 2048)["test"]
    if isinstance(read, Continuations):
        candidates = [(read.candidates.ids(i), count) for i, count in enumerate(read.candidates.labels)]
        pairs, right = [(ids[:-count], ids[-count:]) for ids, count in candidates], read.gold()[0]
    else:
        words = encoding.answer_tokens("opt-125m", tasks.load(task))
        pairs, right = [(read.ids(0), [word]) for word in words], read.labels[0]
    pairs.insert(0, pairs.pop(right))
    return [(decoded(prompt), decoded(answer)) for prompt, answer in pairs]


def test_the_stand_in_tokenizer_adds_the_token_that_opts_adds():
    assert encoding.tokenizer("opt-125m", 9)("fun")[0] == 2


@pytest.mark.parametrize("name", OPT)
def test_every_opt_prompt_begins_with_the_token_of_mezo(name):
    assert encoding.tokenizer_info(name).first == (0,)


@pytest.mark.parametrize("task", CASES)
def test_a_row_has_the_tokens_of_mezo(task):
    _, prompt, *answers = CASES[task]
    assert asked(task) == [(prompt, answer) for answer in answers]
