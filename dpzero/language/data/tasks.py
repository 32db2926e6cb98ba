"""Tasks: labelled rows with a split, prompts and label words, declared in tasks.yaml.

A user's tasks are stanzas of a file of that name in an included folder (see `include`). Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ...errors import UsageError, unknown
from . import assets, datasets, prompts, table_files
from .catalogue import COUNT, Catalogue, Keys, Schema, Stanza
from .datasets import ALL, DEV_ROWS, READERS, Draw, Row, Splits, local_files

ABOUT = ("title", "source", "split", "files_differ")  # keys that describe the rows, and change no example
PROMPT = "{text}\nLabel:"  # of a user's task that gives none


@dataclass(frozen=True)
class Task:
    """A task and the draw of its training rows. Rows are read when they are first asked for.

    With a `redaction`, a policy of redaction.py, the training rows are those of the task without what is sensitive.
    """

    name: str
    stanza: Stanza
    draw: Draw = ALL
    redaction: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """As in the data, in the order of the label ids; empty if answers are free text."""
        return tuple(self.stanza.get("words", ()))

    @property
    def words(self) -> tuple[str, ...]:
        """A description of each label, for encoders."""
        return tuple(self.stanza.get("words", {}).values())

    @property
    def answers(self) -> tuple[str, ...]:
        """What a causal model appends to the prompt for each label, with its leading space."""
        if "causal" in self.stanza:
            return tuple(self.stanza["causal"].get("answers", ()))
        return tuple(f" {answer}" for answer in self.stanza.get("answers", self.words))

    @property
    def prompt(self) -> str:
        """The template of a causal model's prompt."""
        return self.stanza["causal"]["prompt"] if "causal" in self.stanza else self.stanza["prompt"]

    @property
    def max_new_tokens(self) -> int:
        """How many tokens a model may write as its answer; 0 for a task whose answers are scored."""
        return self.stanza.get("causal", {}).get("generate", 0)

    @property
    def metric(self) -> str:
        return "f1" if self.max_new_tokens else "accuracy"

    @property
    def max_length(self) -> int:
        """Tokens of a text, unless a sweep says otherwise."""
        return self.stanza["max_length"]

    @cached_property
    def splits(self) -> Splits:
        """Train, dev and test rows. Raises UsageError for data that cannot be read.

        Rows are in the order of a hash, because some files are sorted by class.
        """
        rows = datasets.read(self.name, self.stanza)
        train = rows["train"]
        if self.draw.shots or self.draw.train_examples:
            from .few_shot import draw_rows

            labels = [row.label for row in rows["train"]]
            try:
                indices = draw_rows(labels, len(rows["test"]), self.draw, self._dev_rows)
            except ValueError as error:
                raise UsageError(
                    f"task {self.name}: {error}: ask for fewer, or give all of the task's rows"
                ) from None
            sources = {"train": "train", "dev": "train", "test": "test"}
            rows = {split: [rows[source][i] for i in indices[split]] for split, source in sources.items()}
        elif "dev" not in rows:
            parts = datasets.split_by_hash(self.name, rows["train"], test=False)
            rows = {"train": parts["train"], "dev": parts["dev"], "test": rows["test"]}
        if self.draw.demonstrations:
            rows |= {split: self._after_demonstrations(rows[split], train) for split in ("dev", "test")}
        ordered = {
            split: sorted(rows[split], key=lambda row: datasets.text_hash(self.name, row.text))
            for split in ("train", "dev", "test")
        }
        if self.redaction:
            from .redaction import redact_row

            redacted = [redact_row(row, self.redaction) for row in ordered["train"]]
            # in an order of their own: that of the texts as they are would tell of what was taken out
            ordered["train"] = sorted(
                redacted, key=lambda row: (datasets.text_hash(self.name, row.text), row.label)
            )
        return ordered

    @property
    def _dev_rows(self) -> int:
        return self.stanza.get("dev_rows", DEV_ROWS)

    def about(self) -> dict[str, str]:
        """Title, source and split, for the record of a run."""
        draw, split = self.draw, self.stanza["split"]
        if draw.shots:
            split = (
                f"up to {draw.shots} training and {draw.shots} dev rows of each class, drawn as by LM-BFF"
                f" with seed {draw.seed}; {split}"
            )
        elif draw.train_examples:
            split = (
                f"up to {draw.train_examples} training rows, {self._dev_rows} dev and up to 1000 test rows,"
                f" drawn as by MeZO with seed {draw.seed}; {split}"
            )
        return {"title": self.stanza["title"], "source": self.stanza["source"], "split": split}

    def users(self, synthetic: int = 0) -> list[str]:
        """The user of each training row, in their order: the stanza's column `user`.

        Args:
            synthetic: so many made-up users in place of a column, to whom a hash of its text assigns each row.
        """
        train = self.splits["train"]
        if synthetic:
            return [str(datasets.text_hash(f"{self.name} user", row.text) % synthetic) for row in train]
        return [str(row.fields[self.stanza["user"]]) for row in train]

    # -- prompts of causal models ---------------------------------------------------------------------------

    def prompt_for(self, row: Row) -> str:
        """The prompt of a causal model with the row's demonstrations, without an answer."""
        prompt = prompts.fill(self.prompt, {"text": row.text, **row.fields})
        if row.demonstrations and self.draw.leading_blanks == "stripped":
            prompt = prompt.lstrip(" ")
        return row.demonstrations + prompt

    def candidates(self, row: Row) -> list[tuple[str, bool]]:
        """(text that a candidate appends to the prompt, whether it is right), in the order of the data."""
        if self.answers:
            return [(answer, i == row.label) for i, answer in enumerate(self.answers)]
        causal, right = self.stanza["causal"], self.right_answers(row)
        if isinstance(causal["candidates"], list):
            pairs = [(prompts.fill(t, row.fields), i == right) for i, t in enumerate(causal["candidates"])]
        else:
            names = datasets.column_value(row.fields, causal["candidates"])
            texts = [prompts.fill(causal["each"], {**row.fields, "candidate": name}) for name in names]
            # ReCoRD's queries have a place for the candidate
            pairs = [(t.replace("@placeholder", n), n in right) for t, n in zip(texts, names, strict=True)]
        return pairs

    def shown(self, row: Row) -> str:
        """A row with its answer and a blank line after it, as it stands before other rows' prompts."""
        answer = next(text for text, is_right in self.candidates(row) if is_right)
        return (self.prompt_for(row) + answer).strip() + "\n\n"

    def right_answers(self, row: Row) -> Any:
        """The column of the right candidates of a task with free answers: their texts, or an index."""
        return datasets.column_value(row.fields, self.stanza["causal"]["right"])

    def _after_demonstrations(self, rows: list[Row], train: list[Row]) -> list[Row]:
        """The rows with the drawn training rows and their answers, a blank line after each, as MeZO joins them."""
        from .few_shot import draw_demonstrations

        @cache
        def shown(i: int) -> str:
            return self.shown(train[i])

        @cache
        def joined(drawn: tuple[int, ...]) -> str:
            return "".join(map(shown, drawn))

        draws = draw_demonstrations(len(train), len(rows), self.draw)
        pairs = zip(rows, draws, strict=True)
        return [row._replace(demonstrations=joined(tuple(drawn.tolist()))) for row, drawn in pairs]


def load(name: str, draw: Draw = ALL) -> Task:
    """A task by its name in tasks.yaml. Raises UsageError for an unknown name, or a stanza that is wrong."""
    return Task(name, stanza(name), draw)


def names() -> list[str]:
    """The tasks of tasks.yaml, in its order."""
    return list(CATALOGUE.stanzas)


def stanza(name: str) -> Stanza:
    """What tasks.yaml says of a task. Raises UsageError for an unknown name, or a stanza that is wrong."""
    lines = CATALOGUE[name]
    if lines["reader"] == "columns" and "hub" not in lines and not os.environ.get(datasets.DATA_FOLDER):
        raise UsageError(
            f"tasks.yaml, task {name}, has no key 'hub': add it,"
            " or give a folder of the task's files as data_dir"
        )
    return lines


def assets_of(name: str) -> list[str]:
    """The assets that a task reads (see `assets.ensure`)."""
    asset = stanza(name).get("asset")
    return [asset] if asset else []


def files_differ(name: str) -> str | None:
    """How a task's local files differ from the papers' rows; None if no difference is known."""
    return stanza(name).get("files_differ") if local_files(stanza(name)) else None


def local_digest(name: str) -> str | None:
    """SHA-256 of the local files that a task is read from; None for a task that is read from elsewhere.

    For a task of an included folder it covers the stanza, too, which no commit of the package names. Raises
    UsageError for a file that is missing.
    """
    lines = stanza(name)
    digests = [hashlib.sha256(table_files.read_bytes(path)).digest() for path in local_files(lines).values()]
    if not digests:
        return None
    rows = hashlib.sha256(b"".join(digests)).hexdigest()
    if not CATALOGUE.is_own(name):
        return rows
    return hashlib.sha256(f"{_deciding(lines)}\n{rows}".encode()).hexdigest()


def _deciding(lines: Stanza) -> str:
    """The part of a stanza that its examples are made of, as JSON. Local files count by their contents."""
    apart = (*ABOUT, "files") if lines["reader"] == "table" else ABOUT
    return json.dumps({key: lines[key] for key in lines if key not in apart}, sort_keys=True)


def digest(name: str) -> str:
    """SHA-256 over everything that a task's examples are made of."""
    lines = stanza(name)
    parts = [assets.digest(asset) for asset in assets_of(name)]
    parts.append(_deciding(lines))
    if lines["reader"] in ("columns", "table"):
        parts.append(local_digest(name) or datasets.hub_digest(lines["hub"]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# -- the schema of a stanza ---------------------------------------------------------------------------------

_HUB = Keys({"name": str, "train": str, "test": str}, {"config": str, "revision": str, "values": [object]})
_MASKED = Keys({"template": str, "words": [str]}, {"limits": [COUNT]})


def _schema(stanza: Stanza) -> Schema:
    """Which keys there are depends on the reader, and on the kind of answers."""
    reader = stanza.get("reader")
    if reader not in tuple(READERS):
        return Keys({"reader": tuple(READERS)}, dict.fromkeys(stanza, object))
    required = {"reader": str, "title": str, "max_length": COUNT, "split": str, "source": str}
    required |= READERS[reader][1]
    optional = {"dev_rows": COUNT, "files_differ": str}
    if reader == "table":
        optional |= {"masked": _MASKED}
    if reader in ("table", "columns"):
        optional |= {"user": str}
    if reader == "columns":
        optional |= {"hub": _HUB}
        causal = stanza.get("causal")
        if isinstance(causal, dict) and "candidates" in causal:
            free: dict[str, Schema] = {"prompt": str, "right": str}
            if isinstance(causal["candidates"], list):
                return Keys(required | {"causal": Keys(free | {"candidates": [str]})}, optional)
            one_column = Keys(free | {"candidates": str, "each": str}, {"generate": COUNT})
            return Keys(required | {"causal": one_column}, optional)
        optional |= {"label": str, "values": [object], "masked": _MASKED}
        if causal is not None:
            required |= {"words": Keys(each=str), "causal": Keys({"prompt": str, "answers": [str]})}
            return Keys(required, optional)
    return Keys(required | {"words": Keys(each=str), "prompt": str}, optional | {"answers": [str]})


def _faults(stanza: Stanza) -> Iterator[str]:
    causal, masked = stanza.get("causal", {}), stanza.get("masked", {})
    yield from _label_faults(stanza, causal, masked)
    for template in (stanza.get("prompt", ""), *prompts.templates(causal)):
        yield from _template_faults(template)
    if "prompt" in stanza and stanza["prompt"].count("{text}") != 1:
        yield "has a prompt that does not hold {text} once"
    if masked:
        yield from _masked_faults(masked["template"], len(stanza["sentences"]))


def _label_faults(stanza: Stanza, causal: Stanza, masked: Stanza) -> Iterator[str]:
    """Lists in the order of the words are as long, and hold nothing twice."""
    labels = len(stanza.get("words", ()))
    parallel = {
        "answers": stanza.get("answers"),
        "causal.answers": causal.get("answers"),
        "masked.words": masked.get("words"),
        "values": stanza.get("values"),
        "hub.values": stanza.get("hub", {}).get("values"),
        "folders": stanza.get("folders"),
        "nouns": list(stanza["nouns"]) if "nouns" in stanza else None,
    }
    for key, items in parallel.items():
        if items is not None and len(items) != labels:
            yield f"has {len(items)} {key} for {labels} words: give one for each, in their order"
        if items is not None and len({(type(item), str(item)) for item in items}) < len(items):
            yield f"has two {key} that are the same, so that two labels could not be told apart"


def _template_faults(template: str) -> Iterator[str]:
    try:
        columns = prompts.template_columns(template)
    except ValueError as error:
        yield f"has the template {template!r}, whose braces do not match ({error})"
        return
    for _, transform in columns:
        if transform and transform not in prompts.TRANSFORMS:
            yield f"has the template {template!r}: {unknown('transform', transform, prompts.TRANSFORMS)}"


def _masked_faults(template: str, sentences: int) -> Iterator[str]:
    parts = template.split("*")
    if "mask" not in parts:
        yield f"has the masked template {template!r} without *mask*"
    for part in parts:
        kind, _, number = part.rpartition("_")
        if kind in prompts.SENTENCES and not (number.isdigit() and int(number) < sentences):
            yield f"has {part} in its masked template, but its sentences are numbered 0 to {sentences - 1}"


def _complete(name: str, own: Stanza, folder: Path) -> Stanza:
    """A user's stanza in the form of the package's: defaults, one text column or several, files from its folder.

    Whatever is of another type stays as it is, for the schema to name.
    """
    lines = {"reader": "table", **own}
    if lines["reader"] != "table":
        return lines
    files = lines.get("files")
    files = {"train": files} if isinstance(files, str) else files
    if isinstance(files, dict):
        paths = {
            split: folder / Path(file).expanduser() for split, file in files.items() if isinstance(file, str)
        }
        lines["files"] = files | {split: str(path) for split, path in paths.items()}
    has_test = isinstance(files, dict) and "test" in files
    split = "as in the files" if has_test else "by hash of the text: a tenth dev, a tenth test"
    about = {"title": name, "source": f"rows of {folder.name}/tasks.yaml", "split": split}
    lines = {**about, "max_length": 128, "prompt": PROMPT, **lines}
    if "text" in lines:
        text = lines.pop("text")
        lines["sentences"] = text if isinstance(text, list) else [text]
    if isinstance(lines.get("words"), dict):
        lines["words"] = {datasets.label_text(label): word for label, word in lines["words"].items()}
    return lines


CATALOGUE = Catalogue(Path(__file__).with_name("tasks.yaml"), _schema, _faults, _complete)
