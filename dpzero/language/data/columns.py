"""Rows with named columns, from local files of JSON lines and from the Hugging Face hub, and the checks that both pass.

Whatever a task reads of a row is what its prompt takes it for, or the row is refused with its place: a file and a line, or a data set,
its split and the row's number.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from dpzero.errors import UsageError
from dpzero.language.data import prompts

DATA_FOLDER = "DPZERO_DATA_DIR"  # environment variable: the folder of the local files
NOT_UTF8 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\0")  # what text in UTF-16 begins with or holds


Check = Callable[["Raw"], None]


class Raw(NamedTuple):
    """A row as it lies there, and where: words for an error."""

    where: str
    fields: Mapping


def read(name: str, stanza: dict) -> dict[str, list[Raw]]:
    """Split -> its rows: from the data folder where one is given, else from the hub. UsageError for a row that is not as the task
    reads it."""
    paths = local_files(stanza)
    sources = paths or {
        split: f"{stanza['hub']['name']}, {stanza['hub'][split]}" for split in ("train", "test")
    }
    splits, checks = {}, list(_checks(name, stanza))
    for split, source in sources.items():
        rows = json_lines(paths[split]) if paths else _hub_rows(stanza["hub"], split)
        splits[split] = [_checked(row, checks) for row in rows]
        if not splits[split]:
            raise UsageError(f"{source} holds no rows: task {name} needs some of split {split}")
    return splits


def label_values(stanza: dict) -> list:
    """What the label column holds, in the order of the labels."""
    own = stanza.get("values") or list(range(len(stanza["words"])))
    return own if local_files(stanza) else stanza["hub"].get("values", own)


def column(fields: Mapping, path: str):
    """answers.text -> fields["answers"]["text"]."""
    value = fields
    for key in path.split("."):
        value = value[key]
    return value


# -- local files ---------------------------------------------------------------------------------------------------------


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
    return {split: Path(folder).expanduser() / file for split, file in stanza["files"].items()}


def refuse_nowhere(name: str, stanza: dict) -> None:
    """Raises UsageError for a task that neither the hub nor a data folder has."""
    if stanza["reader"] == "columns" and "hub" not in stanza and not os.environ.get(DATA_FOLDER):
        raise UsageError(
            f"tasks.yaml, task {name}, has no key 'hub': add it, or give a folder of the task's files as data_dir"
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the task's rows {path} ({error.strerror}): correct data_dir, or leave it out to read the hub"
        ) from None


def json_lines(path: Path) -> Iterator[Raw]:
    """The objects of a file in UTF-8, one a line; a byte order mark is passed over."""
    content = _bytes(path).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number},"
            yield Raw(where, _object(where, line))


def _object(where: str, line: bytes) -> dict:
    if line.startswith(NOT_UTF8[:2]) or NOT_UTF8[2] in line:
        raise UsageError(f"{where} is not UTF-8 but looks like UTF-16: save the file as UTF-8")
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1}): save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{where} is no JSON object: give one object a line")
    return fields


# -- the hub -------------------------------------------------------------------------------------------------------------


def _hub_rows(hub: dict, split: str) -> Iterator[Raw]:
    for number, fields in enumerate(_hub_data(hub, split)):
        yield Raw(f"{hub['name']}, {hub[split]}, row {number},", fields)


def hub_digest(hub: dict) -> str:
    """SHA-256 of which version of a hub's data set is here, from the names that its cache gives it: they follow the contents."""
    parts = [_hub_data(hub, split) for split in ("train", "test")]
    names = [
        [len(data), *(Path(file["filename"]).parent.name for file in data.cache_files)] for data in parts
    ]
    return hashlib.sha256(json.dumps([hub, names], sort_keys=True).encode()).hexdigest()


@cache
def _load_hub(name: str, config: str | None, part: str, revision: str | None):
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        return load_dataset(name, config, split=part, revision=revision)
    except MemoryError:
        raise
    except Exception as error:  # which of them follows the library's version
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"cannot load {part} of data set {name} ({reason}): give a folder of JSON lines as data_dir, or a hub that answers"
        ) from None


def _hub_data(hub: dict, split: str):
    return _load_hub(hub["name"], hub.get("config"), hub[split], hub.get("revision"))


# -- what a task reads of a row --------------------------------------------------------------------------------------------


def _checked(row: Raw, checks: list[Check]) -> Raw:
    for check in checks:
        check(row)
    return row


def _checks(name: str, stanza: dict) -> Iterator[Check]:
    """Of a row: that the columns which the task reads are there, and then of each that it is what the task takes it for."""
    causal = stanza.get("causal", {})
    candidates = causal.get("candidates", [])
    written = candidates if isinstance(candidates, list) else []  # templates
    texts = [(column, "") for column in stanza["sentences"]]
    for template in (causal.get("prompt", ""), causal.get("each", ""), *written):
        texts += [pair for pair in prompts.columns(template) if pair[0] != "candidate"]
    answers = [causal[key] for key in ("candidates", "right") if isinstance(causal.get(key), str)]
    others = [stanza.get("label", "label")] if "words" in stanza else answers
    yield partial(_has, name, list(dict.fromkeys([text for text, _ in texts] + others)))
    for text, change in dict.fromkeys(texts):
        yield partial(_is_text, text, change)
    if isinstance(candidates, str):
        yield partial(_has_a_right_answer, candidates, causal["right"])
    elif written:
        yield partial(_is_a_place, causal["right"], len(written))


def _has(name: str, columns: list[str], row: Raw) -> None:
    for path in columns:
        try:
            path in row.fields or column(row.fields, path)
        except (LookupError, TypeError):
            *first, last = columns
            reads = f"{', '.join(first)} and {last}" if first else last
            raise UsageError(f"{row.where} has no column {path!r}: task {name} reads {reads}") from None


def _is_text(path: str, change: str, row: Raw) -> None:
    check_text(row.where, path, row.fields[path])
    try:
        prompts.CHANGES.get(change, str)(row.fields[path])
    except LookupError:
        found = said(row.fields[path])
        raise UsageError(
            f"{row.where} has {path} {found}, of which the prompt has no {change}: correct it"
        ) from None


def check_text(where: str, path: str, value: object) -> None:
    if not isinstance(value, str):
        raise UsageError(
            f"{where} has {path} {said(value)} where text is wanted: correct it, or leave the row out"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} has half a character, the lone surrogate {value[error.start]!a}, in {path}: correct it, or leave the row out"
        ) from None


def _has_a_right_answer(candidates: str, right: str, row: Raw) -> None:
    for path in (candidates, right):
        found = column(row.fields, path)
        if not isinstance(found, list) or not found:
            raise UsageError(
                f"{row.where} has {path} {said(found)} where a list of texts is wanted: correct it, or leave the row out"
            )
        for item in found:
            check_text(row.where, path, item)
    if not set(column(row.fields, candidates)) & set(column(row.fields, right)):
        raise UsageError(
            f"{row.where} has no right answer among its {candidates}: correct {right}, or leave the row out"
        )


def _is_a_place(right: str, count: int, row: Raw) -> None:
    found = column(row.fields, right)
    if isinstance(found, bool) or found not in range(count):
        raise UsageError(
            f"{row.where} has {right} {said(found)}: it is the number of the right candidate, 0 to {count - 1}"
        )


def said(value: object) -> str:
    """As JSON has it, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
