"""Catalogues: every stanza passes its schema, and a wrong stanza is refused with its key before any data is read."""

from __future__ import annotations

import copy
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.language.data import assets, catalogue, tasks
from dpzero.language.models import model_catalogue

CATALOGUES = {"task": tasks.CATALOGUE, "model": model_catalogue.CATALOGUE, "asset": assets.CATALOGUE}
TASK = {
    "title": "Some task",
    "reader": "columns",
    "files": {"train": "a.jsonl", "test": "b.jsonl"},
    "hub": {"name": "someone/some", "train": "train", "test": "test"},
    "sentences": ["text"],
    "words": {"neg": "bad", "pos": "good"},
    "causal": {"prompt": "{text:strip} It was", "answers": [" bad", " good"]},
    "masked": {"template": "*cls**sent_0*_It_was*mask*.*sep+*", "words": ["bad", "good"]},
    "max_length": 64,
    "split": "official",
    "source": "someone (2020)",
}
PLAIN = {
    "reader": "tab",
    "asset": "reuters",
    "prompt": "{text}\nTopic:",
}  # in place of what is in `columns` alone
COLUMNS = ("hub", "sentences", "causal", "masked")
FREE = {"prompt": "{text}", "candidates": "texts", "each": " {candidate}", "right": "texts", "generate": 5}
MODEL = {"kind": "encoder", "hub": "someone/some", "feature_scale": 10, "title": "Some model"}


def checked(kind: str, stanza: object) -> dict:
    """The stanza, written to YAML and read again."""
    text = yaml.safe_dump({"some": stanza}, sort_keys=False)
    read = catalogue.parse(text, f"{kind}s.yaml")["some"]
    CATALOGUES[kind].check("some", read)
    return read


def refused(kind: str, stanza: object) -> str:
    with pytest.raises(UsageError) as error:
        checked(kind, stanza)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{kind}s.yaml, {kind} some")
    return str(error.value)


def changed(stanza: dict, change: dict) -> dict:
    """`change` has dotted keys; None takes a key out."""
    copied = copy.deepcopy(stanza)
    for path, value in change.items():
        *parents, key = path.split(".")
        part = copied
        for parent in parents:
            part = part[parent]
        part.pop(key) if value is None else part.update({key: value})
    return copied


@pytest.mark.parametrize("kind", ["task", "model", "asset"])
def test_every_stanza_is_checked_in_milliseconds(kind):
    start = time.perf_counter()
    for name, stanza in CATALOGUES[kind].built_in.items():
        CATALOGUES[kind].check(name, stanza)
    assert time.perf_counter() - start < 0.5


def test_a_users_stanzas_are_accepted():
    assert checked("task", TASK) == TASK and checked("model", MODEL) == MODEL
    checked("task", changed(TASK, {"hub": None, "masked": None, "values": ["no", "yes"], "label": "y"}))
    checked("task", changed(TASK, {"causal": None, "prompt": "{text}\nIt was"}))
    checked("task", changed(TASK, dict.fromkeys(COLUMNS) | PLAIN))
    checked("task", changed(TASK, {"words": None, "masked": None, "causal": FREE}))


WRONG = [
    ({"reader": "collumns"}, "unknown reader 'collumns': did you mean 'columns'?"),
    ({"reader": ["columns"]}, "reader is ['columns'], but must be text"),
    ({"words": {False: False, True: True}}, "has the key words.False (YAML reads yes, no, on and off without quotes as truth values)"),
    ({"words": {"no": False, "yes": True}}, "words.no is False (YAML reads yes, no, on and off without quotes as truth values), but must be text: put it in quotes"),
    ({"words": {"neg": 1, "pos": 2}}, "words.neg is 1, but must be text: put it in quotes"),
    ({"words": ["bad", "good"]}, "words is ['bad', 'good'], but must be a mapping of keys"),
    ({"words": None}, "has no key 'words': add it"),
    ({"source": None}, "has no key 'source': add it"),
    ({"split": None}, "has no key 'split': add it"),
    ({"source": None, "sorce": "x"}, "unknown key 'sorce': did you mean 'source'?"),
    ({"hub": {"name": "x", "train": "t"}}, "has no key 'hub.test': add it"),
    ({"files.tst": "x"}, "unknown key 'files.tst': did you mean 'files.test'?"),
    ({"max_length": "64"}, "max_length is '64', but must be a whole number of at least 1"),
    ({"max_length": 0}, "max_length is 0, but must be a whole number of at least 1"),
    ({"max_length": True}, "max_length is True"),
    ({"title": ""}, "title is empty, but must be text"),
    ({"sentences": "text"}, "sentences is 'text', but must be a list of one or more"),
    ({"sentences": []}, "sentences is empty, but must be a list of one or more"),
    ({"values": [0]}, "has 1 values for 2 words: give one for each, in their order"),
    ({"values": [1, 1]}, "has two values that are the same"),
    ({"causal.answers": ["a", "b", "c"]}, "has 3 causal.answers for 2 words"),
    ({"masked.words": ["a", "a"]}, "has two masked.words that are the same"),
    ({"answers": ["a", "b"]}, "unknown key 'answers'"),
    ({"prompt": "{text}"}, "unknown key 'prompt'"),
    ({"causal": None}, "has no key 'prompt': add it"),
    ({"causal": None, "prompt": "{txt}"}, "has a prompt that does not hold {text} once"),
    ({"causal.prompt": "{text"}, "has the template '{text', whose braces do not match"),
    ({"causal.prompt": "{text:uper}"}, "has the template '{text:uper}': unknown transform 'uper': known are strip, lower"),
    ({"masked.template": "*cls**sent_1*_It*mask*"}, "has sent_1 in its masked template, but its sentences are numbered 0 to 0"),
    ({"masked.template": "*cls**sent_0*_It"}, "has the masked template '*cls**sent_0*_It' without *mask*"),
    ({"words": None, "masked": None, "causal": FREE | {"candidates": [" {a}"]}}, "unknown key 'causal.each'"),
    (dict.fromkeys(COLUMNS) | {"reader": "tab", "asset": "reuters"}, "has no key 'prompt': add it"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", WRONG, ids=range(len(WRONG)))
def test_a_wrong_task_is_refused_with_its_key(change, words):
    assert words in refused("task", changed(TASK, change))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "encodr"}, "unknown kind 'encodr': did you mean 'encoder'?"),
        (
            {"hub": None},
            "says where its weights come from in one of the keys 'asset', 'hub', 'path' and 'config'",
        ),
        (
            {"asset": "minilm"},
            "says where its weights come from in one of the keys 'asset', 'hub', 'path' and 'config'",
        ),
        ({"kind": "masked"}, "unknown key 'feature_scale'"),
        ({"feature_scale": -1}, "feature_scale is -1, but must be a number above 0"),
        ({"first": [0]}, "unknown key 'first'"),
        ({"hub": None, "config": {"hidden_size": 8}}, "has no key 'config.model_type': add it"),
        ({"title": 125}, "title is 125, but must be text: put it in quotes"),
    ],
)
def test_a_wrong_model_is_refused_with_its_key(change, words):
    assert words in refused("model", changed(MODEL, change))


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.text(max_size=4)
    | st.just([])
    | st.just({})
)
ANYTHING |= st.lists(st.text(max_size=3) | st.integers(), max_size=2) | st.dictionaries(
    st.text(max_size=3), st.text()
)


def paths(stanza: object, before: tuple = ()) -> list[tuple]:
    """The path of every value of a stanza."""
    pairs = (
        stanza.items() if isinstance(stanza, dict) else enumerate(stanza) if isinstance(stanza, list) else ()
    )
    return [before, *(path for key, value in pairs for path in paths(value, (*before, key)))]


@pytest.mark.parametrize(
    "kind, name",
    [
        *(("task", name) for name in ("r8", "toy", "trec", "squad", "copa", "tweets", "bbc")),
        *(("model", name) for name in ("minilm", "opt-125m", "tiny-masked")),
        ("asset", "vader"),
    ],
)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_stanza_with_any_value_is_accepted_or_refused_in_one_line(kind, name, data):
    stanza = copy.deepcopy(CATALOGUES[kind].built_in[name])
    *parents, key = data.draw(st.sampled_from(paths(stanza)[1:]))
    part = stanza
    for parent in parents:
        part = part[parent]
    part[key] = data.draw(ANYTHING)
    try:
        CATALOGUES[kind].check("some", stanza)
    except UsageError as error:
        assert str(error).startswith(f"{kind}s.yaml, {kind} some") and "\n" not in str(error)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks.CATALOGUE, "built_in", {"some": stanza})
            assert kind != "task" or tasks.load("some").about()["title"] == stanza["title"]


@pytest.mark.parametrize("stanza, fault", [(None, "is empty"), (3, "is 3"), ([1], r"is [1]")])
def test_a_stanza_that_is_no_mapping_is_refused(stanza, fault):
    assert fault in refused("task", stanza)


def test_an_asset_of_another_hash_is_refused():
    asset = assets.CATALOGUE["bbc"]
    assert "sha256 is 'abc', but must be text like [0-9a-f]{64}" in refused(
        "asset", asset | {"sha256": "abc"}
    )
    assert "version is 2.5, but must be text: put it in quotes" in refused("asset", asset | {"version": 2.5})


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "some: {title: x, title: y}",
            "tasks.yaml: the mapping of line 1 has the key 'title' twice: leave one out",
        ),
        ("some: {}\nsome: {}", "tasks.yaml: the mapping of line 1 has the key 'some' twice: leave one out"),
        ("some: {title: [}", "tasks.yaml is not valid YAML"),
    ],
)
def test_a_duplicate_key_is_refused(text, words):
    with pytest.raises(UsageError) as error:
        catalogue.parse(text, "tasks.yaml")
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_a_task_of_local_files_alone_needs_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.CATALOGUE, "built_in", {"some": changed(TASK, {"hub": None})})
    monkeypatch.delenv("DPZERO_DATA_DIR", raising=False)
    with pytest.raises(UsageError, match="task some, has no key 'hub': add it, or give a folder"):
        tasks.load("some")
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    assert tasks.load("some").labels == ("neg", "pos")
