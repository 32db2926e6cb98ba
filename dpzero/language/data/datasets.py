"""Labelled rows as they lie in packages, in local files of JSON lines and on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dpzero.errors import UsageError
from dpzero.language.data import assets, columns

DEV_ROWS = 500  # of MeZO's draw, where a task says no other number


class Row(NamedTuple):
    """One example. `label` is an index into the task's labels, 0 where it has none; `fields` are the data's own columns, for prompts."""

    text: str
    label: int
    fields: Mapping = {}


Splits = dict[str, list[Row]]


class Draw(NamedTuple):
    """Which rows are trained on: `shots` of each class or `train_examples` in all, as `seed` says; with neither, all. See `splits`.

    `demonstrations`: training rows that stand, with their answers, before each prompt (in-context learning).
    """

    shots: int = 0
    train_examples: int = 0
    seed: int = 0
    demonstrations: int = 0


ALL = Draw()


def read(name: str, stanza: dict) -> Splits:
    """Rows of train and test, and of dev where the data have one, each in the order of the data."""
    return _READERS[stanza["reader"]](name, stanza)


def place(name: str, text: str) -> int:
    """A number of 256 bits that a text's order and side follow."""
    return int.from_bytes(hashlib.sha256(f"{name}:{text}".encode()).digest(), "big")


def by_hash(name: str, rows: Iterable[Row], test: bool) -> Splits:
    """One tenth dev, one tenth test (if wanted), the rest train; equal texts always on the same side."""
    sides = {0: "dev", 1: "test" if test else "train"}
    splits: Splits = {"train": [], "dev": [], "test": []}
    for row in rows:
        splits[sides.get(place(name, row.text) % 10, "train")].append(row)
    return splits


# -- packages ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, the line) of the lines of a package's file that are not empty."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({error}): correct the task's stanza in tasks.yaml") from None
    # Not splitlines(): it would also break a text at rarer line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number},", line


def _tab(name: str, stanza: dict) -> Splits:
    """Orange's .tab with official train and test: three header lines, then `label<TAB>text`."""
    root, ids = assets.folder(stanza["asset"]), {label: i for i, label in enumerate(stanza["words"])}

    def row(where: str, line: str) -> Row:
        label, tab, text = line.partition("\t")
        if not tab or label not in ids:
            raise UsageError(f"{where} has label {label[:40]!r}: labels of task {name} are {', '.join(ids)}")
        return Row(text.strip(), ids[label])

    files = ((split, root / stanza["files"][split]) for split in ("train", "test"))
    return {split: [row(*pair) for pair in islice(_lines(file), 3, None)] for split, file in files}


def _vader(name: str, stanza: dict) -> Splits:
    """`id<TAB>mean valence<TAB>text`: negative below, positive above, near-neutral rows left out."""
    rows = []
    for where, line in _lines(assets.folder(stanza["asset"]) / stanza["file"]):
        try:
            _, valence, text = line.split("\t")
            valence = float(valence)
        except ValueError:
            raise UsageError(
                f"{where} is not `id, valence, text` between tabs, as task {name} is read"
            ) from None
        if abs(valence) >= stanza["threshold"]:
            text = html.unescape(text).replace("''", '"')  # the file writes & as &amp; and " as ''
            rows.append(Row(" ".join(text.split()), int(valence > 0)))
    return by_hash(name, rows, test=True)


def _folders(name: str, stanza: dict) -> Splits:
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
    return by_hash(name, rows, test=True)


def _toy(name: str, stanza: dict) -> Splits:
    """Every noun in every frame, cut to the same number of rows for each label.

    The hash that cuts is another than the one that orders a split: else the labels of a split would not be mixed.
    """
    splits: Splits = {split: [] for split in stanza["sizes"]}
    for label, nouns in enumerate(stanza["nouns"].values()):
        texts = (frame.format(noun=noun) for frame in stanza["frames"] for noun in nouns)
        pool = iter(sorted(texts, key=lambda text: place(f"{name} split", text)))
        for split, size in stanza["sizes"].items():
            splits[split] += [Row(next(pool), label) for _ in range(size // len(stanza["words"]))]
    return splits


# -- local files and the hub ---------------------------------------------------------------------------------------------


def _columns(name: str, stanza: dict) -> Splits:
    """Rows with named columns: from the data folder where one is given, else from the hub."""
    splits: Splits = {}
    for split, found in columns.read(name, stanza).items():
        made = [(row, _label(name, stanza, row)) for row in found]
        splits[split] = [_row(stanza, row, label) for row, label in made if label is not None]
        if not splits[split]:
            raise UsageError(
                f"{found[0].where} and the rest of split {split} have no label: give rows that do"
            )
    return splits


def _row(stanza: dict, row: columns.Raw, label: int) -> Row:
    return Row(" ".join(row.fields[key].strip() for key in stanza["sentences"]), label, row.fields)


def _label(name: str, stanza: dict, row: columns.Raw) -> int | None:
    """The id of the row's label, 0 for a task without; None for one that the data call unlabelled (-1).

    1.0 is the label 1, as which a column with gaps is often written; true and "1" are no numbers, nor 1 a truth.
    """
    if "words" not in stanza:
        return 0
    column = stanza.get("label", "label")
    given, known = row.fields[column], columns.label_values(stanza)
    numeric = isinstance(given, int | float) and not isinstance(given, bool)
    if numeric and given == -1:
        return None
    for label, value in enumerate(known):
        if given == value and (type(given) is type(value) or (numeric and not isinstance(value, bool))):
            return label
    values = ", ".join(value if isinstance(value, str) else columns.said(value) for value in known)
    raise UsageError(f"{row.where} has {column} {columns.said(given)}: labels of task {name} are {values}")


_READERS: dict[str, Callable[[str, dict], Splits]] = {
    "tab": _tab,
    "vader": _vader,
    "folders": _folders,
    "toy": _toy,
    "columns": _columns,
}
