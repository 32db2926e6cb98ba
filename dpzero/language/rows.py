"""Labelled rows as they lie in packages, in local files of JSON lines and on the Hugging Face hub."""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dpzero.errors import UsageError
from dpzero.language import assets

DATA_FOLDER = "DPZERO_DATA_DIR"  # environment variable: the folder of the local files
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


def _tab(name: str, stanza: dict) -> Splits:
    """Orange's .tab with official train and test: three header lines, then `label<TAB>text`."""
    root, ids = assets.folder(stanza["asset"]), {label: i for i, label in enumerate(stanza["words"])}

    def rows(file: str) -> list[Row]:
        lines = (root / file).read_text("utf-8").split("\n")[3:]
        pairs = (line.split("\t", 1) for line in lines if line.strip())
        return [Row(text.strip(), ids[label]) for label, text in pairs]

    return {split: rows(stanza["files"][split]) for split in ("train", "test")}


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
    return by_hash(name, rows, test=True)


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


def local_digest(stanza: dict) -> str | None:
    """SHA-256 of the task's local files, names left out; None where no folder of data is given or the task reads none.

    Raises UsageError for a file that is not there.
    """
    paths = local_files(stanza)
    if not paths:
        return None
    return hashlib.sha256(b"".join(hashlib.sha256(_bytes(p)).digest() for p in paths.values())).hexdigest()


def local_files(stanza: dict) -> dict[str, Path]:
    """Split -> the file of a local folder that it is read from; none where a task is read from elsewhere."""
    folder = os.environ.get(DATA_FOLDER)
    if not folder or stanza["reader"] != "columns":
        return {}
    return {split: Path(folder) / file for split, file in stanza["files"].items()}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the task's rows {path} ({error.strerror}): correct data_dir, or leave it out to read the hub"
        ) from None


def _columns(name: str, stanza: dict) -> Splits:
    """Rows with named columns: from the data folder where one is given, else from the hub."""
    if paths := local_files(stanza):
        raw = {split: _json_lines(path) for split, path in paths.items()}
        values = stanza.get("values")
    else:
        hub = stanza["hub"]
        raw = {split: _hub_rows(hub, split) for split in ("train", "test")}
        values = hub.get("values", stanza.get("values"))
    splits = {}
    for split, rows in raw.items():
        made = (_row(name, stanza, values, where, fields) for where, fields in rows)
        splits[split] = [row for row in made if row is not None]
    return splits


def _json_lines(path: Path) -> list[tuple[str, dict]]:
    found = []
    for number, line in enumerate(_bytes(path).decode("utf-8").split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except ValueError:
                fields = None
            if not isinstance(fields, dict):
                raise UsageError(f"{path}, line {number}, is no JSON object: give one object a line")
            found.append((f"{path}, line {number},", fields))
    return found


def _hub_rows(hub: dict, split: str) -> list[tuple[str, dict]]:
    data = _hub_data(hub, split)
    return [(f"{hub['name']}, {hub[split]}, row {i},", fields) for i, fields in enumerate(data)]


def hub_digest(hub: dict) -> str:
    """SHA-256 of which version of a hub's data set is here, from the names that its cache gives it: they follow the contents."""
    parts = [_hub_data(hub, split) for split in ("train", "test")]
    names = [
        [len(data), *(Path(file["filename"]).parent.name for file in data.cache_files)] for data in parts
    ]
    return hashlib.sha256(json.dumps([hub, names], sort_keys=True).encode()).hexdigest()


@functools.cache
def _load_hub(name: str, config: str | None, part: str, revision: str | None):
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        return load_dataset(name, config, split=part, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # which of them follows the library's version
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"cannot load {part} of data set {name} ({reason}): give a folder of JSON lines as data_dir, or a hub that answers"
        ) from None


def _hub_data(hub: dict, split: str):
    return _load_hub(hub["name"], hub.get("config"), hub[split], hub.get("revision"))


def _row(name: str, stanza: dict, values: list | None, where: str, fields: dict) -> Row | None:
    """The row of these columns; None for one that the data call unlabelled (-1)."""
    column = stanza.get("label", "label")
    try:
        text = " ".join(str(fields[key]).strip() for key in stanza["sentences"])
        given = fields[column] if "words" in stanza else 0
    except KeyError as error:
        raise UsageError(
            f"{where} has no column {error}: task {name} reads {', '.join(stanza['sentences'])} and {column}"
        ) from None
    if "words" not in stanza:
        return Row(text, 0, fields)
    known = values or list(range(len(stanza["words"])))
    if given == -1:
        return None
    if given not in known:
        raise UsageError(
            f"{where} has {column} {given!r}: labels of task {name} are {', '.join(map(str, known))}"
        )
    return Row(text, known.index(given), fields)


_READERS: dict[str, Callable[[str, dict], Splits]] = {
    "tab": _tab,
    "vader": _vader,
    "folders": _folders,
    "toy": _toy,
    "columns": _columns,
}
