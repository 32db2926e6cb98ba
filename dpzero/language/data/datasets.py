"""Labelled rows: from packages, from local files of JSON lines, and from the Hugging Face hub.

Each row with named columns is checked: a row that a prompt cannot use is refused with its place, a file and a
line, or a data set, its split and the row's number.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError, noting, refuse
from . import assets, hub, prompts, table_files
from .catalogue import COUNT, Keys, Schema, Stanza
from .table_files import RawRow

DATA_FOLDER = "DPZERO_DATA_DIR"  # environment variable: the folder of the local files
REMEDY = "correct it, or leave the row out"
SHOWN_FAULTS = 3  # kinds, in an error
DEV_ROWS = 500  # of MeZO's draw, unless a task gives another number


class Row(NamedTuple):
    """One example.

    `label` is an index into the task's labels, or 0 for free answers; `fields` are the data's own columns,
    for prompts. `demonstrations` is the text in front of its prompt.
    """

    text: str
    label: int
    fields: Mapping[str, Any] = {}
    demonstrations: str = ""


Splits = dict[str, list[Row]]
Fields = Mapping[str, Any]  # a row as it is in the data


class Draw(NamedTuple):
    """Which training rows are used; by default all.

    `shots` of each class, or `train_examples` in all (see `few_shot`).

    `demonstrations` training rows stand, with their answers, before each prompt (in-context learning): one
    draw for all rows, or one for each. The prompt's own leading blanks are kept, or stripped.
    """

    shots: int = 0
    train_examples: int = 0
    seed: int = 0
    demonstrations: int = 0
    demonstrations_for: str = "all_rows"
    leading_blanks: str = "kept"


ALL = Draw()


def read(name: str, stanza: Stanza) -> Splits:
    """Rows of train and test, and of dev if the data have one, each in the order of the data."""
    read_rows, _ = READERS[stanza["reader"]]
    return read_rows(name, stanza)


def text_hash(name: str, text: str) -> int:
    """256 bits that decide a text's split and its place in the split."""
    return int.from_bytes(hashlib.sha256(f"{name}:{text}".encode()).digest(), "big")


def split_by_hash(name: str, rows: Iterable[Row], test: bool) -> Splits:
    """One tenth dev, one tenth test (if `test`), the rest train. Equal texts are always in the same split."""
    tenths = {0: "dev", 1: "test" if test else "train"}
    splits: Splits = {"train": [], "dev": [], "test": []}
    for row in rows:
        splits[tenths.get(text_hash(name, row.text) % 10, "train")].append(row)
    return splits


# -- packages -----------------------------------------------------------------------------------------------


def _read_tab(name: str, stanza: Stanza) -> Splits:
    """Orange's .tab with official train and test: three header lines, then `label<TAB>text`."""
    root, ids = assets.folder(stanza["asset"]), {label: i for i, label in enumerate(stanza["words"])}

    def row(place: str, line: str) -> Row:
        label, tab, text = line.partition("\t")
        if not tab or label not in ids:
            raise UsageError(f"{place} has label {label[:40]!r}: labels of task {name} are {', '.join(ids)}")
        return Row(text.strip(), ids[label])

    files = ((split, root / stanza["files"][split]) for split in ("train", "test"))
    return {split: [row(*pair) for pair in islice(table_files.lines(file), 3, None)] for split, file in files}


def _read_vader(name: str, stanza: Stanza) -> Splits:
    """`id<TAB>mean valence<TAB>text`: negative below 0, positive above; near-neutral rows are left out."""
    rows = []
    for place, line in table_files.lines(assets.folder(stanza["asset"]) / stanza["file"]):
        try:
            _, rating, text = line.split("\t")
            valence = float(rating)
        except ValueError:
            fault = "is not `id, valence, text` between tabs"
            raise UsageError(f"{place} {fault}, as task {name} is read") from None
        if abs(valence) >= stanza["threshold"]:
            text = html.unescape(text).replace("''", '"')  # the file writes & as &amp; and " as ''
            rows.append(Row(" ".join(text.split()), int(valence > 0)))
    return split_by_hash(name, rows, test=True)


def _read_folders(name: str, stanza: Stanza) -> Splits:
    """One folder per label, one text file per row; white space, line ends included, becomes one space."""
    root, rows = assets.folder(stanza["asset"]), []
    for label, folder in enumerate(stanza["folders"]):
        paths = sorted((root / folder).glob("*.txt"))
        if not paths:
            raise UsageError(
                f"{root / folder} holds no text files: correct the folders of task {name} in tasks.yaml"
            )
        for path in paths:
            content = path.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:  # one BBC article writes the pound sign in Latin-1
                text = content.decode("latin-1")
            rows.append(Row(" ".join(text.split()), label))
    return split_by_hash(name, rows, test=True)


def _make_toy(name: str, stanza: Stanza) -> Splits:
    """Every noun in every frame, cut to the same number of rows for each label.

    The hash that cuts differs from the one that orders a split: with one hash the labels of a split would not
    be mixed.
    """
    splits: Splits = {split: [] for split in stanza["sizes"]}
    for label, nouns in enumerate(stanza["nouns"].values()):
        texts = (frame.format(noun=noun) for frame in stanza["frames"] for noun in nouns)
        pool = iter(sorted(texts, key=lambda text: text_hash(f"{name} split", text)))
        for split, size in stanza["sizes"].items():
            splits[split] += [Row(next(pool), label) for _ in range(size // len(stanza["words"]))]
    return splits


# -- named columns: local files and the hub -----------------------------------------------------------------


def _read_columns(name: str, stanza: Stanza) -> Splits:
    """From local files if the task has them, else from the hub. Raises UsageError with the faults of all files."""
    splits: Splits = {}
    if paths := local_files(stanza):
        faults: list[str] = []
        for split, path in paths.items():
            with noting(faults):
                splits[split] = _rows(name, stanza, split, table_files.read_rows(path), str(path))
        refuse(faults)
        return splits
    source = stanza["hub"]
    for split in ("train", "test"):
        place = f"{source['name']}, {source[split]}"
        splits[split] = _rows(name, stanza, split, _hub_rows(source, split), place)
    return splits


def _read_table(name: str, stanza: Stanza) -> Splits:
    """From the stanza's files. Without one for test, a tenth of the training rows is test, and a tenth dev."""
    splits = _read_columns(name, stanza)
    if "test" in splits:
        return splits
    parts = split_by_hash("table", splits["train"], test=True)  # another name of the task moves no row
    if "dev" in splits:
        parts |= {"train": parts["train"] + parts["dev"], "dev": splits["dev"]}
    if empty := [split for split, rows in parts.items() if not rows]:
        raise UsageError(
            f"{stanza['files']['train']} has too few rows: a tenth of them is {' and '.join(empty)}, and none fell"
            " to it, so give more rows or a file for it"
        )
    return parts


def _rows(name: str, stanza: Stanza, split: str, raw: Iterable[RawRow], source: str) -> list[Row]:
    """The labelled rows, each checked.

    Raises UsageError if there is none, or with each kind of fault, where it stands first, and its number of rows.
    """
    faults_of, rows = _row_check(name, stanza), []
    wrong: dict[str, list[str]] = {}  # fault -> its places
    for place, fields in raw:
        fault = next(faults_of(fields), None)
        label, fault = (None, fault) if fault else _label(name, stanza, fields)
        if fault:
            wrong.setdefault(fault, []).append(place)
        elif label is not None:
            text = " ".join(fields[column].strip() for column in stanza["sentences"])
            rows.append(Row(text, label, fields))
    if wrong:
        faults = [
            f"{places[0]} {fault}" + (f" ({len(places)} such rows)" if len(places) > 1 else "")
            for fault, places in wrong.items()
        ]
        more = [f"{len(faults) - SHOWN_FAULTS} more kinds of faults"] * (len(faults) > SHOWN_FAULTS)
        raise UsageError("; ".join(faults[:SHOWN_FAULTS] + more))
    if not rows:
        raise UsageError(f"{source} holds no rows with a label: task {name} needs some of split {split}")
    return rows


def _label(name: str, stanza: Stanza, fields: Fields) -> tuple[int | None, str | None]:
    """The id of the row's label and what is wrong with it.

    The id is 0 for free answers, and None for a row that the data call unlabelled (-1). 1.0 is the label 1: a
    column with gaps is often written so. But 1 is no truth value, and true no number.
    """
    if "words" not in stanza:
        return 0, None
    column = stanza.get("label", "label")
    value, known = fields[column], stanza.get("values") or list(range(len(stanza["words"])))
    if stanza["reader"] == "table":
        value, known = label_text(value), list(stanza["words"])
    elif not local_files(stanza):
        known = stanza["hub"].get("values", known)
    if value == -1:
        return None, None
    for label, other in enumerate(known):
        if value == other and isinstance(value, bool) == isinstance(other, bool):
            return label, None
    values = ", ".join(other if isinstance(other, str) else _show(other) for other in known)
    add = ": add it to its `words`, or correct the row" if stanza["reader"] == "table" else ""
    return None, f"has {column} {_show(fields[column])}: labels of task {name} are {values}{add}"


def label_text(value: object) -> str:
    """A label of a table as text: 1.0 is written 1, because a column with gaps holds fractions."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def column_value(fields: Mapping[str, Any], column: str) -> Any:
    """answers.text -> fields["answers"]["text"]."""
    value: Any = fields
    for key in column.split("."):
        value = value[key]
    return value


def local_files(stanza: Stanza) -> dict[str, Path]:
    """Split -> its file in the data folder; empty if no folder is given or the task is not read from one."""
    if stanza["reader"] == "table":
        return {split: Path(file) for split, file in stanza["files"].items()}
    folder = os.environ.get(DATA_FOLDER)
    if not folder or stanza["reader"] != "columns":
        return {}
    return {split: Path(folder).expanduser() / file for split, file in stanza["files"].items()}


def _hub_rows(source: Stanza, split: str) -> Iterator[RawRow]:
    for number, fields in enumerate(hub.rows(source, split)):
        yield RawRow(f"{source['name']}, {source[split]}, row {number},", fields)


def hub_digest(source: Stanza) -> str:
    """SHA-256 over the versions of a hub data set in the cache, whose file names follow the contents."""
    names = []
    for split in ("train", "test"):
        data = hub.rows(source, split)
        names.append([len(data), *(Path(file["filename"]).parent.name for file in data.cache_files)])
    return hashlib.sha256(json.dumps([source, names], sort_keys=True).encode()).hexdigest()


# -- checks of a row ----------------------------------------------------------------------------------------


def _row_check(name: str, stanza: Stanza) -> Callable[[Fields], Iterator[str]]:
    """A function that yields what is wrong with a row that a task cannot use; only the first is meaningful."""
    causal = stanza.get("causal", {})
    candidates, right = causal.get("candidates", []), causal.get("right", "")
    indexed = isinstance(candidates, list)  # `right` is the index of a template, not a list of texts
    texts = [(column, "") for column in stanza["sentences"]]
    for template in prompts.templates(causal):
        texts += [pair for pair in prompts.template_columns(template) if pair[0] != "candidate"]
    texts = list(dict.fromkeys(texts))
    answers = [right] if indexed else [candidates, right]
    if "words" in stanza:
        answers = [stanza.get("label", "label")]
    user = [stanza["user"]] if "user" in stanza else []
    columns = list(dict.fromkeys([column for column, _ in texts] + answers + user))

    def faults(fields: Fields) -> Iterator[str]:
        for column in columns:
            try:
                column_value(fields, column)
            except (LookupError, TypeError):
                needed = " and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
                yield f"has no column {column!r}: task {name} reads {needed}"
        for column, transform in texts:
            yield from _text_faults(column, fields[column], transform)
        for column in user:
            if (value := fields[column]) is None or value != value or not str(value).strip():
                yield f"has {column} {_show(value)}, which names no user: give each row one"
        if "words" in stanza:
            return
        answer = column_value(fields, right)
        if indexed:
            if isinstance(answer, bool) or answer not in range(len(candidates)):
                numbers = f"0 to {len(candidates) - 1}"
                yield f"has {right} {_show(answer)}: it is the number of the right candidate, {numbers}"
            return
        options = column_value(fields, candidates)
        for column, value in ((candidates, options), (right, answer)):
            if not isinstance(value, list) or not value:
                yield f"has {column} {_show(value)}, which is no list of texts: {REMEDY}"
            for text in value:
                yield from _text_faults(column, text)
        if set(options).isdisjoint(answer):
            yield f"has no right answer among its {candidates}: correct {right}, or leave the row out"

    return faults


def _text_faults(column: str, value: Any, transform: str = "") -> Iterator[str]:
    """Of a value that is no text, that UTF-8 cannot write, or that has no transform."""
    if not isinstance(value, str):
        yield f"has {column} {_show(value)}, which is no text: {REMEDY}"
    try:
        value.encode("utf-8")
        prompts.TRANSFORMS.get(transform, str)(value)
    except UnicodeEncodeError as error:
        yield f"has half a character, the lone surrogate {value[error.start]!a}, in {column}: {REMEDY}"
    except LookupError:
        yield f"has {column} {_show(value)}, which has no {transform}: correct it"


def _show(value: object) -> str:
    """As JSON, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


# -- readers ------------------------------------------------------------------------------------------------


Read = Callable[[str, Stanza], Splits]
_FILES = Keys({"train": str, "test": str})
_OWN_FILES = Keys({"train": str}, {"dev": str, "test": str})
_TOY_SIZES = Keys({"train": COUNT, "dev": COUNT, "test": COUNT})
# name -> (function, the keys that it needs in a task's stanza)
READERS: dict[str, tuple[Read, dict[str, Schema]]] = {
    "tab": (_read_tab, {"asset": str, "files": _FILES}),
    "vader": (_read_vader, {"asset": str, "file": str, "threshold": float}),
    "folders": (_read_folders, {"asset": str, "folders": [str]}),
    "toy": (_make_toy, {"sizes": _TOY_SIZES, "nouns": Keys(each=[str]), "frames": [str]}),
    "table": (_read_table, {"files": _OWN_FILES, "sentences": [str], "label": str}),
    "columns": (_read_columns, {"files": _FILES._replace(optional={"dev": str}), "sentences": [str]}),
}
