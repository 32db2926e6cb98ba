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
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError
from . import assets, prompts, table_files
from .catalogue import COUNT, Keys, Schema, Stanza
from .table_files import RawRow

DATA_FOLDER = "DPZERO_DATA_DIR"  # environment variable: the folder of the local files
DEV_ROWS = 500  # of MeZO's draw, unless a task gives another number


class Row(NamedTuple):
    """One example.

    `label` is an index into the task's labels, or 0 for free answers; `fields` are the data's own columns,
    for prompts.
    """

    text: str
    label: int
    fields: Mapping[str, Any] = {}


Splits = dict[str, list[Row]]


class Draw(NamedTuple):
    """Which training rows are used; by default all.

    `shots` of each class, or `train_examples` in all (see `few_shot`).

    `demonstrations` training rows stand, with their answers, before each prompt (in-context learning).
    """

    shots: int = 0
    train_examples: int = 0
    seed: int = 0
    demonstrations: int = 0


ALL = Draw()


def read(name: str, stanza: Stanza) -> Splits:
    """Rows of train and test, and of dev if the data have one, each in the order of the data."""
    return READERS[stanza["reader"]].read(name, stanza)


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


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place for errors, line) of each line that is not empty."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({error}): correct the task's stanza in tasks.yaml") from None
    # Not splitlines(): it would also break a text at rarer line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number},", line


def _read_tab(name: str, stanza: Stanza) -> Splits:
    """Orange's .tab with official train and test: three header lines, then `label<TAB>text`."""
    root, ids = assets.folder(stanza["asset"]), {label: i for i, label in enumerate(stanza["words"])}

    def row(place: str, line: str) -> Row:
        label, tab, text = line.partition("\t")
        if not tab or label not in ids:
            raise UsageError(f"{place} has label {label[:40]!r}: labels of task {name} are {', '.join(ids)}")
        return Row(text.strip(), ids[label])

    files = ((split, root / stanza["files"][split]) for split in ("train", "test"))
    return {split: [row(*pair) for pair in islice(_lines(file), 3, None)] for split, file in files}


def _read_vader(name: str, stanza: Stanza) -> Splits:
    """`id<TAB>mean valence<TAB>text`: negative below 0, positive above; near-neutral rows are left out."""
    rows = []
    for place, line in _lines(assets.folder(stanza["asset"]) / stanza["file"]):
        try:
            _, rating, text = line.split("\t")
            valence = float(rating)
        except ValueError:
            raise UsageError(
                f"{place} is not `id, valence, text` between tabs, as task {name} is read"
            ) from None
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
    """From the data folder if one is given, else from the hub."""
    paths, splits = local_files(stanza), {}
    for split in paths or ("train", "test"):
        raw = table_files.read_rows(paths[split]) if paths else _hub_rows(stanza["hub"], split)
        source = paths[split] if paths else f"{stanza['hub']['name']}, {stanza['hub'][split]}"
        splits[split] = _rows(
            name, stanza, raw, f"{source} holds no rows with a label: task {name} needs some of split {split}"
        )
    return splits


def _read_table(name: str, stanza: Stanza) -> Splits:
    """From the files of the stanza. Without a file for test, a tenth of the training rows is test, and a tenth dev."""
    files = {split: Path(file) for split, file in stanza["files"].items()}
    splits = {
        split: _rows(
            name,
            stanza,
            table_files.read_rows(file),
            f"{file} holds no rows with a label: task {name} needs some of split {split}",
        )
        for split, file in files.items()
    }
    if "test" in splits:
        return splits
    parts = split_by_hash(name, splits["train"], test=True)
    if "dev" in splits:
        parts |= {"train": parts["train"] + parts["dev"], "dev": splits["dev"]}
    for split, rows in parts.items():
        if not rows:
            raise UsageError(
                f"{files['train']} has too few rows: a tenth of them is {split}, and none fell to it, so give "
                "more rows or a file for it"
            )
    return parts


def _rows(name: str, stanza: Stanza, raw: Iterable[RawRow], empty: str) -> list[Row]:
    """The labelled rows, each checked. Raises UsageError with the words of `empty` if there is none."""
    check, rows = _row_check(name, stanza), []
    for row in raw:
        check(row)
        label = _label(name, stanza, row)
        if label is not None:
            text = " ".join(row.fields[column].strip() for column in stanza["sentences"])
            rows.append(Row(text, label, row.fields))
    if not rows:
        raise UsageError(empty)
    return rows


def _label(name: str, stanza: Stanza, row: RawRow) -> int | None:
    """The id of the row's label, 0 for free answers; None for a row that the data call unlabelled (-1).

    1.0 is the label 1: a column with gaps is often written so. But true and "1" are no numbers, and 1 is no
    truth value.
    """
    if "words" not in stanza:
        return 0
    column = stanza.get("label", "label")
    if stanza["reader"] == "table":
        return _label_by_text(name, stanza["words"], row, column)
    value, known = row.fields[column], _label_values(stanza)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and value == -1:
        return None
    for label, other in enumerate(known):
        if value == other and (type(value) is type(other) or (is_number and not isinstance(other, bool))):
            return label
    values = ", ".join(other if isinstance(other, str) else _show(other) for other in known)
    raise UsageError(f"{row.place} has {column} {_show(value)}: labels of task {name} are {values}")


def _label_by_text(name: str, words: Mapping[str, str], row: RawRow, column: str) -> int:
    text = label_text(row.fields[column])
    if text not in words:
        raise UsageError(
            f"{row.place} has {column} {_show(row.fields[column])}: labels of task {name} are {', '.join(words)}"
        )
    return list(words).index(text)


def label_text(value: object) -> str:
    """A label of a table as text: 1.0 is written 1, because a column with gaps holds fractions."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _label_values(stanza: Stanza) -> list:
    """What the label column holds, in the order of the labels."""
    values = stanza.get("values") or list(range(len(stanza["words"])))
    return values if local_files(stanza) else stanza["hub"].get("values", values)


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


def local_digest(stanza: Stanza) -> str | None:
    """SHA-256 over the contents of the task's local files; None for a task that is not read from any.

    Raises UsageError for a file that is missing.
    """
    digests = [hashlib.sha256(table_files.read_bytes(path)).digest() for path in local_files(stanza).values()]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None


def _hub_rows(hub: Stanza, split: str) -> Iterator[RawRow]:
    for number, fields in enumerate(_load_hub(hub, split)):
        yield RawRow(f"{hub['name']}, {hub[split]}, row {number},", fields)


def hub_digest(hub: Stanza) -> str:
    """SHA-256 over the versions of a hub data set in the cache, whose file names follow the contents."""
    names = []
    for split in ("train", "test"):
        data = _load_hub(hub, split)
        names.append([len(data), *(Path(file["filename"]).parent.name for file in data.cache_files)])
    return hashlib.sha256(json.dumps([hub, names], sort_keys=True).encode()).hexdigest()


def _load_hub(hub: Stanza, split: str) -> Any:
    return _load_hub_split(hub["name"], hub.get("config"), hub[split], hub.get("revision"))


@cache
def _load_hub_split(name: str, config: str | None, split: str, revision: str | None) -> Any:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        return load_dataset(name, config, split=split, revision=revision)
    except MemoryError:
        raise
    except Exception as error:  # its type depends on the library's version
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"cannot load {split} of data set {name} ({reason}): give a folder of JSON lines as data_dir,"
            " or a hub that answers"
        ) from None


# -- checks of a row ----------------------------------------------------------------------------------------


def _row_check(name: str, stanza: Stanza) -> Callable[[RawRow], None]:
    """A function that raises UsageError for a row that a task cannot use."""
    causal = stanza.get("causal", {})
    candidates, right = causal.get("candidates", []), causal.get("right", "")
    templates = candidates if isinstance(candidates, list) else []
    texts = [(column, "") for column in stanza["sentences"]]
    for template in (causal.get("prompt", ""), causal.get("each", ""), *templates):
        texts += [pair for pair in prompts.template_columns(template) if pair[0] != "candidate"]
    answers = [right] if templates else [candidates, right]
    if "words" in stanza:
        answers = [stanza.get("label", "label")]
    columns = list(dict.fromkeys([column for column, _ in texts] + answers))

    def check(row: RawRow) -> None:
        for column in columns:
            try:
                column in row.fields or column_value(row.fields, column)
            except (LookupError, TypeError):
                needed = " and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
                raise UsageError(
                    f"{row.place} has no column {column!r}: task {name} reads {needed}"
                ) from None
        for column, transform in dict.fromkeys(texts):
            _check_text_column(row, column, transform)
        if templates:
            _check_index(row, right, len(templates))
        elif candidates:
            _check_candidates(row, candidates, right)

    return check


def _check_text_column(row: RawRow, column: str, transform: str) -> None:
    value = row.fields[column]
    check_text(row.place, column, value)
    try:
        prompts.TRANSFORMS.get(transform, str)(value)
    except LookupError:
        raise UsageError(
            f"{row.place} has {column} {_show(value)}, which has no {transform}: correct it"
        ) from None


def check_text(place: str, column: str, value: object) -> None:
    """Raises UsageError for a value that is no text, or that UTF-8 cannot write."""
    if not isinstance(value, str):
        raise UsageError(
            f"{place} has {column} {_show(value)}, which is no text: correct it, or leave the row out"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place} has half a character, the lone surrogate {value[error.start]!a}, in {column}:"
            " correct it, or leave the row out"
        ) from None


def _check_candidates(row: RawRow, candidates: str, right: str) -> None:
    for column in (candidates, right):
        texts = column_value(row.fields, column)
        if not isinstance(texts, list) or not texts:
            raise UsageError(
                f"{row.place} has {column} {_show(texts)}, which is no list of texts: correct it,"
                " or leave the row out"
            )
        for text in texts:
            check_text(row.place, column, text)
    if not set(column_value(row.fields, candidates)) & set(column_value(row.fields, right)):
        raise UsageError(
            f"{row.place} has no right answer among its {candidates}: correct {right}, or leave the row out"
        )


def _check_index(row: RawRow, right: str, count: int) -> None:
    index = column_value(row.fields, right)
    if isinstance(index, bool) or index not in range(count):
        raise UsageError(
            f"{row.place} has {right} {_show(index)}:"
            f" it is the number of the right candidate, 0 to {count - 1}"
        )


def _show(value: object) -> str:
    """As JSON, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


# -- readers ------------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """How rows are read, and the keys that it needs in a task's stanza."""

    read: Callable[[str, Stanza], Splits]
    keys: Mapping[str, Schema]


_FILES = Keys({"train": str, "test": str})
READERS = {
    "tab": Reader(_read_tab, {"asset": str, "files": _FILES}),
    "vader": Reader(_read_vader, {"asset": str, "file": str, "threshold": float}),
    "folders": Reader(_read_folders, {"asset": str, "folders": [str]}),
    "toy": Reader(
        _make_toy,
        {
            "sizes": Keys({"train": COUNT, "dev": COUNT, "test": COUNT}),
            "nouns": Keys(each=[str]),
            "frames": [str],
        },
    ),
    "columns": Reader(_read_columns, {"files": _FILES._replace(optional={"dev": str}), "sentences": [str]}),
    "table": Reader(
        _read_table,
        {"files": Keys({"train": str}, {"dev": str, "test": str}), "sentences": [str], "label": str},
    ),
}
