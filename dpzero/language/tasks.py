"""Tasks: labelled text with a fixed split, a prompt and label words, declared in tasks.yaml.

A new task is a stanza there; Python is needed only for a file format that no reader below knows.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from dpzero.errors import UsageError
from dpzero.language import assets


class Row(NamedTuple):
    """One labelled text; `label` is an index into the task's labels."""

    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification task. `labels`, `words` and `answers` are in the same order: that of the label ids."""

    name: str
    title: str
    labels: tuple[str, ...]  # as in the data
    words: tuple[str, ...]  # a description of each label, for encoders
    answers: tuple[str, ...]  # what a causal LM says after the prompt, beginning with a space
    prompt: str  # holds "{text}" once
    metric: str
    max_length: int  # tokens
    splits: dict[str, list[Row]]  # train, dev, test
    source: str
    split_statement: str

    def prompted(self, text: str) -> str:
        """The prompt around a text, whatever braces the text holds."""
        return self.prompt.replace("{text}", text)


def names() -> list[str]:
    """The tasks of tasks.yaml, in its order; reads no data."""
    return list(_stanzas())


def assets_of(name: str) -> list[str]:
    """The assets that a task reads (see `assets.ensure`); reads no data. UsageError for an unknown task."""
    asset = stanza(name).get("asset")
    return [asset] if asset else []


def load(name: str) -> Task:
    """Read a task from the cache. UsageError for an unknown task, or when its asset is not in the cache."""
    lines = stanza(name)
    words = lines["words"]
    splits = _READERS[lines["reader"]](name, lines)
    return Task(
        name=name,
        title=lines["title"],
        labels=tuple(words),
        words=tuple(words.values()),
        answers=tuple(f" {answer}" for answer in lines.get("answers", words.values())),
        prompt=lines["prompt"],
        metric=lines["metric"],
        max_length=lines["max_length"],
        splits={
            split: sorted(splits[split], key=lambda row: _hash(name, row.text))
            for split in ("train", "dev", "test")
        },
        source=lines["source"],
        split_statement=lines["split"],
    )


@functools.cache
def _stanzas() -> dict[str, dict]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def stanza(name: str) -> dict:
    if name not in _stanzas():
        near = difflib.get_close_matches(name, _stanzas(), n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_stanzas())}"
        raise UsageError(f"unknown task '{name}': {hint}")
    return _stanzas()[name]


Splits = dict[str, list[Row]]


def _hash(name: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{name}:{text}".encode()).digest(), "big")


def _by_hash(name: str, rows: Iterable[Row], test: bool) -> Splits:
    """One tenth dev, one tenth test (if wanted), the rest train; equal texts always on the same side."""
    sides = {0: "dev", 1: "test" if test else "train"}
    splits: Splits = {"train": [], "dev": [], "test": []}
    for row in rows:
        splits[sides.get(_hash(name, row.text) % 10, "train")].append(row)
    return splits


def _tab(name: str, stanza: dict) -> Splits:
    """Orange's .tab with official train and test: three header lines, then `label<TAB>text`."""
    root, ids = assets.folder(stanza["asset"]), {label: i for i, label in enumerate(stanza["words"])}

    def rows(file: str) -> list[Row]:
        lines = (root / file).read_text("utf-8").split("\n")[3:]
        pairs = (line.split("\t", 1) for line in lines if line.strip())
        return [Row(text.strip(), ids[label]) for label, text in pairs]

    return _by_hash(name, rows(stanza["files"]["train"]), test=False) | {
        "test": rows(stanza["files"]["test"])
    }


def _vader(name: str, stanza: dict) -> Splits:
    """`id<TAB>mean valence<TAB>text`: negative below, positive above, near-neutral rows left out."""
    rows = []
    # Not splitlines(): it would also break a text at rarer line separators.
    for line in (assets.folder(stanza["asset"]) / stanza["file"]).read_text("utf-8").split("\n"):
        if line.strip():
            _, valence, text = line.split("\t")
            if abs(float(valence)) >= stanza["threshold"]:
                text = html.unescape(text).replace("''", '"')  # the file writes & as &amp; and " as ''
                rows.append(Row(" ".join(text.split()), int(float(valence) > 0)))
    return _by_hash(name, rows, test=True)


def _folders(name: str, stanza: dict) -> Splits:
    """One folder per label, one text file per row; white space, line ends included, becomes one space."""
    root, rows = assets.folder(stanza["asset"]), []
    for label, folder in enumerate(stanza["folders"]):
        for path in sorted((root / folder).glob("*.txt")):
            content = path.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:  # one BBC article writes the pound sign in Latin-1
                text = content.decode("latin-1")
            rows.append(Row(" ".join(text.split()), label))
    return _by_hash(name, rows, test=True)


def _toy(name: str, stanza: dict) -> Splits:
    """Every noun in every frame, cut to the same number of rows for each label.

    The hash that cuts is another than the one that orders a split: else the labels of a split would not be mixed.
    """
    splits: Splits = {split: [] for split in stanza["sizes"]}
    for label, nouns in enumerate(stanza["nouns"].values()):
        texts = (frame.format(noun=noun) for frame in stanza["frames"] for noun in nouns)
        pool = iter(sorted(texts, key=lambda text: _hash(f"{name} split", text)))
        for split, size in stanza["sizes"].items():
            splits[split] += [Row(next(pool), label) for _ in range(size // len(stanza["words"]))]
    return splits


_READERS: dict[str, Callable[[str, dict], Splits]] = {
    "tab": _tab,
    "vader": _vader,
    "folders": _folders,
    "toy": _toy,
}
