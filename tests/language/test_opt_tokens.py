"""What OPT reads of each of MeZO's tasks, token by token: through files of rows, the tokenizer's own habits and the encoding of a run.

The stand-in has OPT's marks and its habit of beginning each text with </s>, where MeZO's prompts begin with <s>, id 0.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpzero.language import objective, tasks, tokens
from tests.language.byte_level import byte_level_bpe

WORDS = ["It", "was", "great", "terrible", "Yes", "No", "Maybe", "fun", "film", "Answer", "so", "we", "left"]
OPT = [f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")]
CASES = {  # a row as in the data, and the tokens of what OPT reads of it: the prompt, where one position is read; else prompt and answer
    "sst2": ({"sentence": "fun film ", "label": 1}, "<s>|fun|Ġfilm|ĠIt|Ġwas"),
    "rte": (
        {"sentence1": "It was fun.", "sentence2": "It was.", "label": 1},
        "<s>It was fun.\nDoes this mean that \"It was.\" is true? Yes or No?\n",
    ),
    "cb": (
        {"premise": "It was.", "hypothesis": "fun", "label": 2},
        '<s>Suppose It was. Can we infer that "fun"? Yes, No, or Maybe?\n',
    ),
    "boolq": ({"passage": "It was.", "question": "was it fun", "answer": True}, "<s>It was. Was it fun?\n"),
    "wsc": (
        {"text": "We left.", "span1_text": "we", "span2_text": "We", "label": 0},
        '<s>We left.\nIn the previous sentence, does the pronoun "we" refer to we? Yes or No?\n',
    ),
    "wic": (
        {"word": "film", "sentence1": "A film.", "sentence2": "To film.", "label": 0},
        '<s>Does the word "film" have the same meaning in these two sentences? Yes, No?\nA film.\nTo film.\n',
    ),
    "multirc": (
        {"paragraph": "It was.", "question": "What?", "answer": "fun", "label": 1},
        '<s>It was.\nQuestion: What?\nI found this answer "fun". Is that correct? Yes or No?\n',
    ),
    "copa": (
        {"premise": "It was fun.", "choice1": "We left.", "choice2": "It was.", "question": "effect", "label": 0},
        "<s>|It|Ġwas|Ġfun|Ġso|Ġwe|Ġleft|.",
    ),
    "record": (
        {"passage": "Fun.\n@highlight\nIt was", "query": "It was @placeholder.", "entities": ["We", "No"], "answers": ["No"]},
        "<s>Fun.\n- It was\n- It was No.",
    ),
    "squad": (
        {"title": "Film", "context": "It was.", "question": "What?", "answers": {"text": ["fun film"]}},
        "<s>Title: Film\nContext: It was.\nQuestion: What?\nAnswer: fun film\n",
    ),
    "drop": (
        {"passage": "It was.", "question": "What?", "answers_spans": {"spans": ["fun"]}},
        "<s>Passage: It was.\nQuestion: What?\nAnswer: fun\n",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of models and rows."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("opt")
    words = byte_level_bpe(WORDS)
    words.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **sizes, vocab_size=600))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
    for name in OPT:
        for part in (model, tokenizer):
            part.save_pretrained(folder / "models" / name)
    for task, (row, _) in CASES.items():
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


def test_the_stand_in_has_opts_habit():
    assert tokens.tokenizer("opt-125m", 9)("fun")[0] == 2


@pytest.mark.parametrize("name", OPT)
def test_each_opt_begins_with_the_token_that_mezos_does(name):
    assert tokens.marks(name).first == (0,)


@pytest.mark.parametrize("task", CASES)
def test_a_row_is_read_as_mezo_reads_it(task):
    wanted = CASES[task][1]
    read = objective.encode(task, "opt-125m", 2048)
    side = next(part for part in read.values() if len(part))
    if hasattr(side, "gold"):  # of several candidates the right one
        place = int(side.first[0] + side.gold()[0])
        ids = side.candidates.ids(place).tolist()
    else:
        ids = side.ids(0).tolist()
    made = byte_level_bpe(WORDS)
    if "|" in wanted:
        assert "|".join(made.id_to_token(i) for i in ids) == wanted
    assert made.decode(ids, skip_special_tokens=False) == wanted.replace("|", "").replace("Ġ", " ")
    assert ids[0] == 0 and 2 not in ids
