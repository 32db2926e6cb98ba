"""Tasks: labelled text with a split, prompts and label words, declared in tasks.yaml.

A new task is a stanza there; Python is needed only for a file format that no reader in `rows` knows.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass

from dpzero.errors import UsageError
from dpzero.language.data import assets, catalogues, columns, datasets
from dpzero.language.data.datasets import ALL, DEV_ROWS, Draw, Splits


@dataclass(frozen=True)
class Task:
    """`labels`, `words` and `answers` are in the same order: that of the label ids; empty where answers are free text."""

    name: str
    title: str
    labels: tuple[str, ...]  # as in the data
    words: tuple[str, ...]  # a description of each label, for encoders
    answers: tuple[str, ...]  # what a causal LM says after the prompt, its leading space included
    prompt: str  # of a causal LM: columns of a row in braces, as "{text}"
    metric: str  # accuracy or f1
    max_length: int  # tokens
    source: str
    split_statement: str
    draw: Draw = ALL

    @functools.cached_property
    def splits(self) -> Splits:
        """train, dev and test. UsageError where the data cannot be had."""
        return _splits(self.name, self.draw)

    @functools.cached_property
    def demonstrations(self) -> list[datasets.Row]:
        """The training rows that MeZO's `sample_subset` takes for in-context learning."""
        if not self.draw.demonstrations:
            return []
        from dpzero.language.data.few_shot import first_rows

        train = datasets.read(self.name, self.stanza)["train"]
        return [train[i] for i in first_rows(len(train), self.draw.demonstrations, self.draw.seed)]

    @property
    def stanza(self) -> dict:
        return stanza(self.name)

    def about(self) -> dict[str, str]:
        """What a record says of the rows: whose they are, and which of them are trained and tested on."""
        return {"title": self.title, "source": self.source, "split": self.split_statement}

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


def departure(name: str) -> str | None:
    """In what the local files that the task is read from are not the papers' rows; None where nothing is known of it."""
    return stanza(name).get("files_differ") if columns.local_files(stanza(name)) else None


def local_digest(name: str) -> str | None:
    """SHA-256 of the local files that the task is read from; None where it is read from elsewhere."""
    return columns.local_digest(stanza(name))


def digest(name: str) -> str:
    """SHA-256 of what the task's examples are made of."""
    lines = stanza(name)
    made_of = {key: value for key, value in lines.items() if key != "files_differ"}  # which is said of them
    parts = [assets.digest(asset) for asset in assets_of(name)] + [json.dumps(made_of, sort_keys=True)]
    if lines["reader"] == "columns":
        parts.append(local_digest(name) or columns.hub_digest(lines["hub"]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load(name: str, draw: Draw = ALL) -> Task:
    """A task, whose rows are read when its splits are asked for. UsageError for an unknown one."""
    lines = stanza(name)
    words, causal = lines.get("words", {}), lines.get("causal", {})
    spaced = tuple(f" {answer}" for answer in lines.get("answers", words.values()))
    return Task(
        name=name,
        title=lines["title"],
        labels=tuple(map(str, words)),
        words=tuple(words.values()),
        answers=tuple(causal.get("answers", ())) if causal else spaced,
        prompt=causal["prompt"] if causal else lines["prompt"],
        metric=lines["metric"],
        max_length=lines["max_length"],
        source=lines["source"],
        split_statement=_statement(lines, draw),
        draw=draw,
    )


def _statement(lines: dict, draw: Draw) -> str:
    if draw.shots:
        return f"up to {draw.shots} training and {draw.shots} dev rows of each class, drawn as by LM-BFF with seed {draw.seed}; {lines['split']}"
    if draw.train_examples:
        dev = lines.get("dev_rows", DEV_ROWS)
        return f"up to {draw.train_examples} training rows, {dev} dev and up to 1000 test rows, drawn as by MeZO with seed {draw.seed}; {lines['split']}"
    return lines["split"]


def _splits(name: str, draw: Draw) -> Splits:
    """In the order of a hash: some files are sorted by class, so that no prefix of them would be a fair sample."""
    found = datasets.read(name, stanza(name))
    if draw.shots or draw.train_examples:
        from dpzero.language.data.few_shot import drawn

        labels, dev_rows = [row.label for row in found["train"]], stanza(name).get("dev_rows", DEV_ROWS)
        try:
            chosen = drawn(labels, len(found["test"]), draw, dev_rows)
        except ValueError as error:
            raise UsageError(f"task {name}: {error}: ask for fewer, or give all of the task's rows") from None
        sides = {"train": "train", "dev": "train", "test": "test"}
        found = {split: [found[sides[split]][i] for i in chosen[split]] for split in sides}
    elif "dev" not in found:
        found |= {k: v for k, v in datasets.by_hash(name, found["train"], test=False).items() if k != "test"}
    return {
        split: sorted(found[split], key=lambda row: datasets.place(name, row.text))
        for split in ("train", "dev", "test")
    }


def _stanzas() -> dict[str, dict]:
    return catalogues.read("tasks")


def stanza(name: str) -> dict:
    """What tasks.yaml says of a task. UsageError, naming the key, where it is not what a task needs."""
    lines = catalogues.entry("task", name, _stanzas())
    columns.refuse_nowhere(name, lines)
    return lines
